"""Data from anywhere, through every reader and layout: broken records, files, folders and pictures.

A case is a folder with one thing wrong, read by a process of its own under a limit of memory and time. What must hold: the
rows are right, or it is refused with the place; never a crash, a hang, another error than ValueError, an error that
nobody foresaw, a connection, or a file read that lies outside the folder (a picture and a text lie there to be found).
"""

import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from attack import Attack, Outcome, random_of
from PIL import Image
from test_bad_lines import TURN, chat
from test_chat_faults import RECORDS
from test_layouts import ROWS, corners

from qwenvl_agent.cli.check_data import main as check_data
from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.curation.convert import convert
from qwenvl_agent.data.dataset import RowDataset, build_rows
from qwenvl_agent.data.readers.computer import Rejected
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.prompt import render_row

MEMORY = 2**31
"""More than the process has at its start."""
CPU_SECONDS, SECONDS = 30, 60
"""Of the processor in a case, and of the clock without any use of it."""
SPARSE = 3 * 2**30
"""Bytes of a file that takes no room: more than MEMORY."""
MARK = "zebra-7731"
"""Stands in what lies outside the folder, and must not come out of a reader."""
WIDTH, HEIGHT = 400, 200
NOBODY_FORESAW = "nothing here reads a line like this one"


class Source(NamedTuple):
    """A form of data: a record that is right, and what reads a file of such."""

    name: str
    record: dict
    picture: str
    """How the record names its picture."""
    layout: str = ""
    """"": the reader of that name reads it in training."""


COMPUTER = {"instruction": "open it", "screenshot": "a.png", "action": {"action": "click", "x": 300, "y": 80}}
SOURCES = (
    *(Source("chat", record, "word_a.png") for record in RECORDS.values() if "word_a.png" in json.dumps(record)),
    Source("chat", chat("<image>look", images=["a.png"]), "a.png"),
    *(Source("chat", record, "") for record in RECORDS.values() if "word_a.png" not in json.dumps(record)),
    Source(
        "computer", {**COMPUTER, "box": [280, 70, 320, 90], "history": ["go"], "image_size": [WIDTH, HEIGHT]}, "a.png"
    ),
    Source(
        "computer",
        {"instruction": "i", "initial_screenshot": "a.png", "next_action": "CLICK <point>[[3,4]]</point>"},
        "a.png",
    ),
    Source("safari", {"episode_id": "e", "turn": 0, **TURN}, "a.png"),
    Source("recorded", {"episode_id": "e", "turn": 0, **TURN, "tools": [{"name": "move", "parameters": {}}]}, "a.png"),
    *(Source(layout, record, "a.png", layout) for layout, record in ROWS.items()),
)

# what stands in place of what is right

WORDS = (
    *(
        "",
        " ",
        "x",
        "<image>",
        "<|im_end|>",
        "null",
        "\0",
        "\ud800",
        "\x1b[2J",
        "e\u0301",
        "a" * 70_000,
        "\u2028",
        "🐯",
    ),
    *("{}", "[", "<tool_call>", "../outside/secret.png", "/etc/passwd", "http://192.0.2.1/a.png", "a.png", "1e400"),
    *(
        "%s%n",
        "{0}",
        "${HOME}",
        "'; DROP TABLE",
        "<point>",
        "None",
        "NaN",
        "-1",
        "½",
        "١٢",
        "0x10",
        "1_000",
        "Infinity",
    ),
)
NUMBERS = (0, -1, 1, 0.5, 1e308, -1e-320, 2**63, 10**400, 10**30, float("nan"), float("inf"), 1.5, -0.0, 999_999_999)
VALUES = (
    *WORDS,
    *NUMBERS,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    {"": None},
    [1, 2],
    ["x"],
    {"bytes": "x"},
)


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def put(record: dict, path: tuple, value: object) -> dict:
    record = copy.deepcopy(record)
    inside: object = record
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return record


def wrong_value(rng: random.Random, record: dict) -> dict:
    for _ in range(rng.choice((1, 1, 2))):
        record = put(record, rng.choice(list(places(record))), rng.choice(VALUES))
    return record


def wrong_keys(rng: random.Random, record: dict) -> dict:
    """A key left out, added, or called otherwise."""
    record = copy.deepcopy(record)
    *before, key = rng.choice([path for path in places(record) if isinstance(path[-1], str)])
    inside: dict = record
    for one in before:
        inside = inside[one]
    value = inside.pop(key)
    new = rng.choice((None, key.upper(), f" {key}", rng.choice(WORDS), "loss", "weight", "split", "$ref", "__class__"))
    if new is not None:
        inside[new] = value if rng.random() < 0.5 else rng.choice(VALUES)
    return record


def nested(rng: random.Random, record: dict) -> dict:
    path = rng.choice(list(places(record)))
    value: object = rng.choice(VALUES)
    for _ in range(rng.choice((3, 20, 63, 64, 65, 120, 240))):
        value = [value] if rng.random() < 0.5 else {rng.choice(("a", "type", "properties", "content", "action")): value}
    return put(record, path, value)


def wrong_number(rng: random.Random, record: dict) -> dict:
    numbers = [path for path in places(record) if type(at(record, path)) in (int, float)]
    path = rng.choice(numbers or list(places(record)))
    return put(record, path, rng.choice(NUMBERS))


def at(record: object, path: tuple) -> object:
    for key in path:
        record = record[key]
    return record


# how lines and files are broken


def line_of(record: object) -> bytes:
    return json.dumps(record).encode()


def broken_line(rng: random.Random, record: dict) -> bytes:
    line = bytearray(line_of(record))
    for _ in range(rng.choice((1, 1, 2, 8))):
        start = rng.randrange(len(line))
        edit = rng.randrange(5)
        if edit == 0:
            line[start] ^= 1 << rng.randrange(8)
        elif edit == 1:
            del line[start : start + rng.choice((1, 5, 50))]
        elif edit == 2:
            line[start:start] = rng.choice(
                (b"{", b"}", b"[", b'"', b",", b"\\", b"\xff", b"\0", b"\n", b"\xed\xa0\x80")
            )
        elif edit == 3:
            line[start:start] = line[start : start + rng.choice((1, 10, 100))]
        else:
            line[start : start + 4] = rng.randbytes(4)
        line = line or bytearray(b"{")
    return bytes(line)


def deep_line(rng: random.Random, record: dict) -> bytes:
    return rng.choice((b"[", b'{"messages":', b'{"a":[')) * rng.choice((200, 900, 1100, 100_000))


def long_number(rng: random.Random, record: dict) -> bytes:
    digits = rng.choice(("9" * 4999, "1" + "0" * 400, "1." + "3" * 10_000, "1e99999", "-0", "1E-400"))
    path = rng.choice(list(places(record)))
    return line_of(put(record, path, "NUMBER")).replace(b'"NUMBER"', digits.encode(), 1)


def twice(rng: random.Random, record: dict) -> bytes:
    line = line_of(record)
    return b"{" + line[1:-1] + b", " + line[1:-1] + b"}" if rng.random() < 0.5 else line + line


# pictures

FORMATS_OF_PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MODES = {
    "PNG": ("RGB", "RGBA", "P", "L", "I;16", "1"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "CMYK", "F", "I;16"),
}
WHOLE: dict[tuple[str, str], bytes] = {}


def whole_picture(picture_format: str, mode: str = "RGB") -> bytes:
    if (picture_format, mode) not in WHOLE:
        pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)) if mode == "I;16" else image.convert(mode)
        file = io.BytesIO()
        image.save(file, picture_format)
        WHOLE[picture_format, mode] = file.getvalue()
    return WHOLE[picture_format, mode]


def damaged_picture(rng: random.Random) -> bytes:
    picture_format = rng.choice(FORMATS_OF_PICTURES)
    content = bytearray(whole_picture(picture_format, rng.choice(MODES.get(picture_format, ("RGB",)))))
    for _ in range(rng.choice((1, 1, 3, 20))):
        start = rng.randrange(rng.choice((64, 600, len(content))))
        edit = rng.randrange(5)
        if edit == 0:
            content[start % len(content)] ^= 1 << rng.randrange(8)
        elif edit == 1:
            del content[start:]
        elif edit == 2:
            content[start : start + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", rng.randbytes(4))
            )
        elif edit == 3:
            content[start:start] = rng.randbytes(rng.choice((1, 9, 300)))
        else:
            other = whole_picture(rng.choice(FORMATS_OF_PICTURES))
            content[start:] = other[start:]
        content = content or bytearray(b"\x89")
    return bytes(content)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *more: bytes, depth: int = 8, colours: int = 2, fill: int = 0) -> bytes:
    """A small file of so many pixels, all alike; of half a gigabyte of them at most, whatever its header says."""
    row = 1 + width * {0: 1, 2: 3, 6: 4}[colours] * depth // 8
    packer, piece = zlib.compressobj(9), bytes([fill]) * 2**20
    whole, rest = divmod(min(row * height, 2**29), len(piece))
    stream = b"".join([packer.compress(part) for part in [piece] * whole + [piece[:rest]]] + [packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"".join((b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), *more, chunk(b"IDAT", stream), chunk(b"IEND", b"")))


def bomb(rng: random.Random) -> bytes:
    """A small file that is large when it is read."""
    text = zlib.compress(bytes(60 * 2**20), 9)
    wide = struct.pack("<IIHHII", 40, 30_000, 30_000, 0, 1 | 24 << 16, 0)
    bombs: tuple[Callable[[], bytes], ...] = (
        lambda: png(9_000, 9_900),
        lambda: png(9_000, 9_900, colours=6),
        lambda: png(60_000, 60_000),
        lambda: png(2**31 - 1, 2**31 - 1),
        lambda: png(40, 30, chunk(b"zTXt", b"a\0\0" + text)),
        lambda: png(40, 30, chunk(b"iTXt", b"a\0\1\0\0\0" + text)),
        lambda: png(40, 30, chunk(b"iCCP", b"a\0\0" + text)),
        lambda: png(40, 30, *[chunk(b"tEXt", b"a\0" + bytes(1000))] * 20_000),
        lambda: png(40, 30) + bytes(30 * 2**20),
        lambda: png(1, 30_000),
        lambda: b"BM" + struct.pack("<IIII", 54, 0, 54, 0)[:12] + wide + bytes(14),
        lambda: b"P6 30000 30000 255\n" + bytes(100),
        lambda: b"P6 " + b"9" * 5000 + b" 3 255\n" + bytes(100),
        lambda: b"P5 20 " + b"#\n" * 200_000 + b"20 255\n" + bytes(400),
        lambda: gif_of_frames(2000),
        lambda: tiff_loop(),
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://192.0.2.1/x.png'/></svg>",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/x) (w) file\n",
        lambda: whole_picture("PNG")[:-12] + chunk(b"IDAT", zlib.compress(bytes(99 * 2**20), 9)) + chunk(b"IEND", b""),
    )
    return rng.choice(bombs)()


def gif_of_frames(number: int) -> bytes:
    content = whole_picture("GIF")
    return content[:-1] + content[content.index(b",") : -1] * number + b";"


def tiff_loop() -> bytes:
    """A directory that says that it follows itself, and a strip of 4 GB."""
    entries = ((256, 4, 1, 40), (257, 4, 1, 30), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 2**32 - 1))
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)


# a case

Make = Callable[[random.Random, Path, Source], "str | None"]


def write(folder: Path, *lines: bytes, name: str = "data.jsonl") -> None:
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")


def with_line(change: Callable[[random.Random, dict], object]) -> Make:
    """The second of three records is broken."""

    def make(rng: random.Random, folder: Path, source: Source) -> None:
        bad = change(rng, source.record)
        bad = bad if isinstance(bad, bytes) else line_of(bad)
        good = line_of(source.record)
        if rng.random() < 0.3:
            (folder / "data.json").write_bytes(b"[" + b",\n".join((good, bad, good)) + b"]")
        else:
            write(folder, good, bad, good)

    return make


def broken_file(rng: random.Random, folder: Path, source: Source) -> None:
    content = b"\n".join([line_of(source.record)] * 3) + b"\n"
    text = content.decode()
    ways = (
        lambda: content[: rng.randrange(len(content))],
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-16-le"),
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.replace(b"\n", b"\r\n"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: content.replace(b"\n", b"\xe2\x80\xa8"),
        lambda: content.replace(b"a", b"\xe9"),
        lambda: content + bytes(rng.choice((1, 1000, 2**20))),
        lambda: content * 3 + b"{" * rng.randrange(5),
        lambda: rng.randbytes(rng.choice((0, 1, 100, 5000))),
        lambda: content[:-2] + b"," + content,
        lambda: b" " * 10**6 + content,
        lambda: b'{"a": "' + b"x" * 2**22,
    )
    name = rng.choice(("data.jsonl", "data.jsonl", "data.json", "data.csv", "data.parquet"))
    (folder / name).write_bytes(rng.choice(ways)())


def named(name: object) -> Make:
    """A picture of that name; a function makes the file, and gives it."""

    def make(rng: random.Random, folder: Path, source: Source) -> str | None:
        value = name(rng, folder) if callable(name) else name
        record = json.loads(json.dumps(source.record).replace(f'"{source.picture}"', json.dumps(value)))
        good = line_of(source.record)
        write(folder, good, line_of(record), good)
        return None

    return make


NAMES = (
    *("../outside/secret.png", "./x/../../outside/secret.png", "/etc/hostname", "/proc/self/environ", "/dev/zero"),
    *(
        "~/secret.png",
        "file:///etc/hostname",
        "http://192.0.2.1/a.png",
        "https://example.org/a.png",
        "ftp://192.0.2.1/",
    ),
    *(
        "",
        ".",
        "..",
        "/",
        "a.png/",
        "a.png/../a.png",
        "a.png\0",
        "\ud800",
        "a" * 300,
        "a/" * 3000,
        "CON",
        "\\..\\a.png",
    ),
    *("%2e%2e/outside/secret.png", "..\\outside\\secret.png", "data:image/png;base64,", "data:text/html,<x>", "a*.png"),
    *(
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png;base64,!!!!",
        "iVBORw0KGgo" + "A" * 100,
        "gone.png",
        "s3://a/b",
    ),
)


def special(rng: random.Random, folder: Path) -> str:
    """What is no plain file, or not the folder's."""
    path, outside = folder / "odd.png", folder.parent / "outside"
    ways = (
        lambda: os.mkfifo(path),
        lambda: socket.socket(socket.AF_UNIX).bind(str(path)) if len(str(path)) < 100 else os.mkfifo(path),
        lambda: device(path, 5),
        lambda: device(path, 3),
        lambda: path.mkdir(),
        lambda: path.symlink_to(outside / "secret.png"),
        lambda: path.symlink_to("odd.png"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/stdin"),
        lambda: (folder / "away").symlink_to(outside),
        lambda: path.symlink_to("nowhere"),
        lambda: sparse(path, SPARSE, whole_picture("PNG")),
        lambda: sparse(path, SPARSE, b""),
        lambda: path.write_bytes(b""),
        lambda: os.link(folder / "a.png", path),
        lambda: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        lambda: sparse(path, SPARSE, whole_picture("BMP")),
        lambda: sparse(path, SPARSE, whole_picture("TIFF")),
    )
    rng.choice(ways)()
    return "away/secret.png" if (folder / "away").is_symlink() else "odd.png"


def device(path: Path, minor: int) -> None:
    """/dev/null or /dev/zero; a pipe where that is not allowed."""
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, minor))
    except PermissionError:
        os.mkfifo(path)


def sparse(path: Path, size: int, head: bytes) -> None:
    """A file that takes no room, and does when it is read."""
    path.write_bytes(head)
    os.truncate(path, size)


def picture(make: Callable[[random.Random], bytes]) -> Make:
    def name(rng: random.Random, folder: Path) -> str:
        ending = rng.choice(("png", "jpg", "webp", "bin"))
        (folder / f"odd.{ending}").write_bytes(make(rng))
        return f"odd.{ending}"

    return named(name)


def table(rng: random.Random, folder: Path, source: Source) -> None:
    """A Parquet table: damaged, of odd types, or a bomb."""
    path = folder / "data.parquet"
    rows = [{key: value if isinstance(value, str) else json.dumps(value) for key, value in source.record.items()}] * 3
    odd: tuple[Callable[[], pa.Table], ...] = (
        lambda: pa.Table.from_pylist(rows),
        lambda: pa.Table.from_pylist([source.record] * 3),
        lambda: pa.table({"messages": [[]], "images": [b"\x89PNG"]}),
        lambda: pa.table(
            {"screenshot": pa.array([{"bytes": whole_picture("PNG"), "path": None}]), "instruction": ["x"]}
        ),
        lambda: pa.table({"": [1], "a": [None]}),
        lambda: pa.table({"messages": pa.array([[1, None]]), "conversations": pa.array([10**18], pa.timestamp("ns"))}),
        lambda: pa.table({"messages": pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))}),
        lambda: pa.table({"messages": pa.array([float("nan")] * 3), "text": pa.array([b"\xff"] * 3)}),
        lambda: pa.table({"messages": pa.nulls(10**5), "n": pa.nulls(10**5, pa.int64())}),
        lambda: pa.table({"messages": pa.array(["x" * 2**20] * 400)}),
    )
    with suppress(pa.ArrowException):
        pyarrow.parquet.write_table(rng.choice(odd)(), path, compression="zstd")
    if not path.exists():
        pyarrow.parquet.write_table(odd[0](), path)
    if rng.random() < 0.6:
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice((1, 3, 30))):
            start = rng.randrange(len(content))
            if rng.random() < 0.7:
                content[start] ^= 1 << rng.randrange(8)
            else:
                del content[start : start + rng.choice((1, 100))]
            content = content or bytearray(b"PAR1")
        path.write_bytes(content)


def beside(rng: random.Random, folder: Path, source: Source) -> str | None:
    """Something odd in place of the file itself, or beside it."""
    good = line_of({key: value for key, value in source.record.items() if key != "tools"})
    write(folder, good, good)
    file = folder / "data.jsonl"
    name = rng.choice(("tools.json", "manifest.json", "dataset_info.json"))
    other, evil = folder / name, folder / "evil.py"
    evil.write_text(
        f"from pathlib import Path\nPath({str(folder.parent / 'outside' / 'ran')!r}).write_text('x')\ndef make_world(): ...\n"
    )
    ways = (
        lambda: other.write_text(json.dumps({"world": f"{evil}:make_world"})),
        lambda: other.write_text(json.dumps({"world": f"{evil}:make_world", "rules": {"a": 1}, "tools": []})),
        lambda: other.write_text(json.dumps({"world": "safari", "rules": {"walls": 10**400, "x": None}})),
        lambda: other.write_text(json.dumps({"tools": rng.choice(VALUES)})),
        lambda: other.write_text(
            json.dumps([{"name": rng.choice(WORDS), "parameters": {"$ref": "http://192.0.2.1/"}}])
        ),
        lambda: other.write_text("[" * 100_000),
        lambda: os.mkfifo(other),
        lambda: other.symlink_to(folder.parent / "outside" / "secret.json"),
        lambda: other.symlink_to(name),
        lambda: other.mkdir(),
        lambda: sparse(other, SPARSE, b"[]"),
        lambda: (file.unlink(), os.mkfifo(file)),
        lambda: (file.unlink(), file.symlink_to("data.jsonl")),
        lambda: (file.unlink(), file.mkdir()),
        lambda: (file.unlink(), device(file, 5)),
        lambda: (file.unlink(), sparse(file, SPARSE, b"")),
        lambda: sparse(file, SPARSE, good + b"\n" + good + b"\n"),
        lambda: (
            (folder / "data.json").write_bytes(b"[" + good + b',"')
            or sparse(folder / "data.json", SPARSE, b"[" + good + b',"')
        ),
    )
    rng.choice(ways)()
    return None


KINDS: dict[str, Make] = {
    "a value of another type": with_line(wrong_value),
    "a key gone, added, renamed": with_line(wrong_keys),
    "nested": with_line(nested),
    "a number": with_line(wrong_number),
    "a damaged line": with_line(broken_line),
    "a line too deep": with_line(deep_line),
    "digits without end": with_line(long_number),
    "twice in one line": with_line(twice),
    "the file's encoding, end, name": broken_file,
    "a picture's name": named(lambda rng, folder: rng.choice(NAMES)),
    "a picture that is a link, pipe, device": named(special),
    "a damaged picture": picture(damaged_picture),
    "a picture that is a bomb": picture(bomb),
    "an odd or damaged table": table,
    "odd things beside the file": beside,
}


def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    outside = scratch / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret.png").write_bytes(whole_picture("PNG"))
    (outside / "secret.json").write_text(json.dumps([{"name": MARK, "parameters": {}}]))
    names = list(KINDS)
    for case in cases:
        rng, kind = random_of(seed, case), names[case % len(names)]
        source = SOURCES[(case // len(names)) % len(SOURCES)]
        folder = scratch / f"case{case}"
        make_folder(folder)
        in_a_fork(partial(KINDS[kind], rng, folder, source))
        fault = fault_in(folder, source, outside)
        shutil.rmtree(folder, ignore_errors=True)
        yield Outcome(kind, not fault, f"{source.layout or source.name}: {fault}" if fault else "")


def in_a_fork(make: Callable[[], object]) -> None:
    """Its memory goes with it: what tables of 400 MB leave in a process would be copied by every later fork of it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            make()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "a case could not be made"


def make_folder(folder: Path) -> None:
    """A data set's, with all that the right records name."""
    folder.mkdir()
    (folder / "x").mkdir()
    for name in ("a.png", "word_a.png", "word_b.png"):
        (folder / name).write_bytes(whole_picture("PNG"))
    (folder / "b.jpg").write_bytes(whole_picture("JPEG"))
    (folder / "task.txt").write_text("Task: open it\nOutput Script:\npyautogui.click(300.0,80.0)\n")
    (folder / "boxes.json").write_text(
        json.dumps({"page": corners(0, 0, WIDTH, HEIGHT), "menu": corners(280, 70, 320, 90)})
    )
    (folder / "splits.json").write_text(json.dumps({"train": [7], "test": [99]}))


def fault_in(folder: Path, source: Source, outside: Path) -> str:
    """What is wrong with how a folder is read, by a process of its own; "" if nothing is."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        try:
            said = read_limited(folder, source, outside)
        except BaseException as error:
            said = f"{type(error).__name__}: {str(error)[:300]}"
        os.write(writes, said.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(writes)
    status, last, deadline = None, 0, time.monotonic() + SECONDS
    while status is None and time.monotonic() < deadline:
        found, ended = os.waitpid(pid, os.WNOHANG)
        status = ended if found else None
        if status is None and (used := cpu_ticks(pid)) > last:
            last, deadline = used, time.monotonic() + SECONDS
        time.sleep(0.002)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said = os.read(reads, 4096).decode("utf-8", "replace")
    os.close(reads)
    if status is None:
        return f"did nothing for {SECONDS} s, and did not end"
    if status:
        return f"ended with {status}: signal {status & 127}, or out of its {CPU_SECONDS} s of CPU"
    if (outside / "ran").exists():
        (outside / "ran").unlink()
        return "code that lay beside the data was run"
    return said


def cpu_ticks(pid: int) -> int:
    """What a process has used of the processor: one that waits uses none, on a busy machine too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def read_limited(folder: Path, source: Source, outside: Path) -> str:
    """In a process of its own: the fault, "" for none."""
    lines = Path("/proc/self/status").read_text().splitlines()
    size = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seen: list[str] = []
    sys.addaudithook(lambda event, arguments: watch(event, arguments, str(outside), seen))
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        fault = read_all(folder, source)
    if seen:
        return f"asked for {seen[0]}"
    if MARK in said.getvalue() or MARK in fault:
        return "what lies outside the folder came out"
    return fault


def watch(event: str, arguments: tuple, outside: str, seen: list[str]) -> None:
    if event == "open" and str(arguments[0]).startswith(outside):
        seen.append(f"{arguments[0]}, which is outside the folder")
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "os.system", "subprocess.Popen", "os.exec"):
        seen.append(f"{event} {arguments[1:]}"[:200])


def read_all(folder: Path, source: Source) -> str:
    file = next(
        file for name in ("data.parquet", "data.json", "data.csv", "data.jsonl") if exists(file := folder / name)
    )
    if source.layout:
        return read_layout(file, source.layout, folder)
    return read_rows(file, source.name, folder) or read_check(file, folder)


def exists(path: Path) -> bool:
    return os.path.lexists(path)


def read_layout(file: Path, layout: str, folder: Path) -> str:
    found = []
    try:
        for item in convert(file, layout, folder):
            found.append(item)
    except ValueError as error:
        return fault_of_refusal(str(error), folder)
    for item in found:
        if isinstance(item, Rejected):
            if fault := fault_of_reject(item.source, item.message, file):
                return fault
        else:
            item.picture.open()
            json.dumps(item.to_json("a.png"), allow_nan=False).encode()
    return ""


def read_rows(file: Path, kind: str, folder: Path) -> str:
    source = SourceConfig(path=str(file), kind=kind)
    config = DataConfig(sources=(source,), cache_dir=str(folder / "cache"), eval_fraction=0.0)
    try:
        rows = build_rows(config, PromptConfig(format="native"))
    except ValueError as error:
        return fault_of_refusal(str(error), folder)
    with open(rows.report["sources"][0]["rejects_path"], encoding="utf-8") as rejects:
        for reject in map(json.loads, rejects):
            if fault := fault_of_reject(reject["source"], reject["message"], file):
                return fault
    return fault_of_rows(rows.train)


def fault_of_rows(rows: RowDataset) -> str:
    for i in range(len(rows)):
        row = rows[i]
        for picture in (p for step in (*row.request.history, row.request) for p in of_step(step)):
            picture.open()
        for fmt in FORMATS.values():
            rendered = render_row(row.request, row.turn, fmt)
            begins = rendered.text.count(fmt.family.template.turn_begin)
            pads = rendered.text.count(fmt.family.template.image_pad)
            if (begins, pads) != (rendered.num_turns, len(rendered.pictures)):
                return f"{row.source}: {begins} turns and {pads} pictures in a prompt of {rendered.num_turns}"
    return ""


def of_step(step) -> tuple:
    return step.observation.pictures


def read_check(file: Path, folder: Path) -> str:
    """The command that a user begins with."""
    status = check_data([str(file), "--set", f"data.cache_dir={folder / 'cache'}"])
    return "" if status in (0, 1, 2) else f"check-data ends with {status}"


def fault_of_refusal(message: str, folder: Path) -> str:
    if NOBODY_FORESAW in message:
        return message[:300]
    return "" if str(folder) in message else f"refused without a place: {message[:300]}"


def fault_of_reject(source: str, message: str, file: Path) -> str:
    if NOBODY_FORESAW in message or len(message) < 20:
        return f"{source}: {message[:300]}"
    return "" if source.startswith(f"{file}:") else f"rejected at {source!r}: {message[:200]}"


ATTACK = Attack(
    "broken_data",
    "records, files, folders and pictures with one thing wrong, through every reader and layout",
    full=5000,
    quick=90,
    seconds=3000,
    processes=2,
    run=run,
)
