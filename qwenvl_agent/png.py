"""PNG files without a decoder: checked for damage, their size read, plain ones made safe for a decoder in C.

torchvision's decoder is the fastest at hand, and libpng inside it ends the process with signal 11 on the first error
that it finds: a flipped bit, a filter that does not exist, a stream that ends early. So it never gets a file. `restored`
checks and inflates what is in the file, and lays it into a new PNG of stored blocks in which nothing can be wrong; with
ISA-L that takes less time than libpng's own inflating. All other PNGs are left to Pillow, which raises; but Pillow
checks no sums of pixels, so `check` does that first.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

try:  # the same results in a quarter of the time; there are platforms for which it is not built
    from isal import isal_zlib as zlib
except ImportError:
    import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = struct.Struct(">8s I4s II BBBBB I I4s")
"""Signature; length and name of the first chunk; width, height; depth, colours, compression, filter, interlace; CRC;
length and name of the second chunk (PNG specification, section 11.2.1)."""
DEPTH_AT = 24
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 4: (8, 16), 6: (8, 16)}
"""Bits a channel by kind of colour; 3, a palette, is left to Pillow."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass, and the steps (PNG specification, section 8.2)."""
TAIL_BYTES = 4096
METADATA = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
"""Chunks that may say how the picture is to be turned."""
HARMLESS = frozenset(
    (b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"sBIT", b"bKGD", b"tIME")
)
"""Chunks that change no pixel by our rules (images.py): colour profiles are not applied."""
PLAIN_RGB = (8, 2, 0, 0, 0)
MAX_SIDE = 1_000_000
"""libpng refuses more."""
NUM_FILTERS = 5
STORED_BYTES = 2**16 - 1
"""Of a block that is not compressed (RFC 1951, section 3.2.4)."""


def plain_size(path: Path | str) -> tuple[int, int] | None:
    """(width, height) of a PNG whose pixels follow its head at once and that is shown upright; None for all else.

    Pillow would read no further either, but takes five times as long.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size or not head.startswith(SIGNATURE) or tail_has_metadata(file):
                return None
    except OSError:
        return None
    signature, length, chunk, width, height, depth, colours, *methods, crc, _, next_chunk = HEAD.unpack(head)
    is_plain = (signature, length, chunk, next_chunk) == (SIGNATURE, 13, b"IHDR", b"IDAT")
    is_valid = depth in DEPTHS.get(colours, ()) and methods[:2] == [0, 0] and zlib.crc32(head[12:29]) == crc
    return (width, height) if is_plain and is_valid and width and height else None


def tail_has_metadata(file) -> bool:
    """Whether the end of an open file may say how the picture is to be turned: some programs write that last."""
    file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    return any(name in tail for name in METADATA)


def chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(name, data) of every chunk up to IEND; ValueError for what is cut off, changed, or not in its place."""
    view, at, name = memoryview(content), len(SIGNATURE), b""
    while name != b"IEND":
        data_at = at + 8
        if data_at > len(content):
            raise ValueError(f"the file ends at byte {len(content)}, before its last chunk")
        length, name = struct.unpack_from(">I4s", content, at)
        end = data_at + length
        if end + 4 > len(content):
            raise ValueError(f"the file ends at byte {len(content)}, inside the chunk {name!r} at byte {at}")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"the chunk {name!r} at byte {at} is damaged: its checksum differs")
        if (name == b"IHDR") != (at == len(SIGNATURE)):
            raise ValueError(f"the chunk {name!r} is at byte {at}, where a PNG has none")
        yield name, view[data_at:end]
        at = end + 4


def check(content: bytes) -> None:
    """ValueError for a file that is damaged, or has too few pixels: Pillow takes some of those, with black for the rest.

    Takes the memory of all pixels: ask Pillow for the size first.
    """
    parts = list(chunks(content))
    width, height, depth, colours, compression, filters, interlace = struct.unpack(">II5B", parts[0][1])
    if compression or filters or interlace > 1:
        raise ValueError(f"compression {compression}, filter {filters}, interlace {interlace} are of no known PNG")
    bits = depth * CHANNELS.get(colours, 1)
    needed = sum(
        rows * (1 + (columns * bits + 7) // 8) for columns, rows in _passes(width, height, interlace) if columns
    )
    inflater = zlib.decompressobj()
    try:
        found = len(inflater.decompress(b"".join(data for name, data in parts if name == b"IDAT"), needed + 1))
    except zlib.error as error:
        raise ValueError(f"its pixels are damaged: {error}") from None
    if found < needed:
        raise ValueError(f"{needed - found} of {needed} bytes of its pixels are missing")


def _passes(width: int, height: int, interlace: int) -> Iterator[tuple[int, int]]:
    """(columns, rows) of the pictures that the file consists of: one, or Adam7's seven."""
    if not interlace:
        yield width, height
        return
    for x, y, every_x, every_y in ADAM7:
        yield (width - x + every_x - 1) // every_x, (height - y + every_y - 1) // every_y


def restored(content: bytes, width: int, height: int) -> bytearray | None:
    """The same pixels as a PNG that no decoder can fail on; None unless it is 8-bit RGB of that size, and whole.

    Also None if the file says more of its pixels: that they are transparent, turned, moving.
    """
    head = struct.pack(">II5B", width, height, *PLAIN_RGB)
    if not content.startswith(SIGNATURE + b"\x00\x00\x00\x0dIHDR" + head) or max(width, height) > MAX_SIDE:
        return None
    try:
        parts = list(chunks(content))
    except ValueError:
        return None
    if any(name not in HARMLESS for name, _ in parts):
        return None
    rows = _inflated(b"".join(data for name, data in parts if name == b"IDAT"), height * (1 + 3 * width))
    if rows is None or max(rows[:: 1 + 3 * width]) >= NUM_FILTERS:
        return None
    return rgb_file(width, height, _stored(rows))


def rgb_file(width: int, height: int, stream: list[bytes | memoryview]) -> bytearray:
    """An 8-bit RGB PNG; `stream` is zlib's of the rows, each led by the number of its filter (0: none)."""
    head = struct.pack(">II5B", width, height, *PLAIN_RGB)
    return bytearray().join([SIGNATURE, *_chunk(b"IHDR", [head]), *_chunk(b"IDAT", stream), *_chunk(b"IEND", [])])


def size_in(content: bytes) -> tuple[int, int]:
    """(width, height) that the head of a whole PNG states."""
    return struct.unpack(">II", content[16:24])


def _inflated(stream: bytes, size: int) -> bytes | None:
    """Exactly `size` bytes, or None."""
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(stream, size + 1)
    except zlib.error:
        return None
    return rows if len(rows) == size and inflater.eof else None


def _stored(rows: bytes) -> list[bytes | memoryview]:
    """A zlib stream of `rows` in blocks that are not compressed (RFC 1950, RFC 1951)."""
    view, parts = memoryview(rows), [b"\x78\x01"]
    for start in range(0, len(rows), STORED_BYTES):
        block = view[start : start + STORED_BYTES]
        is_last = start + STORED_BYTES >= len(rows)
        parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return [*parts, zlib.adler32(rows).to_bytes(4)]


def _chunk(name: bytes, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    crc = zlib.crc32(name)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return [sum(map(len, parts)).to_bytes(4), name, *parts, crc.to_bytes(4)]
