"""What a picture file shows, and that no file ends the process."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from qwenvl_agent import images, png
from qwenvl_agent.data.pixels import load_pixels
from qwenvl_agent.data.readers.computer import PictureFiles, RecordError
from qwenvl_agent.images import read_rgb
from qwenvl_agent.schema import Picture

ORIENTATION = 0x0112
RAMP = np.add.outer(10 * np.arange(4), np.arange(6)).astype(np.uint8)
"""(4, 6), no two values alike."""
COLOURS = np.stack([RAMP, 100 + RAMP, 200 - RAMP], axis=-1)


def shown(path: Path) -> np.ndarray:
    """(H, W, 3) as training sees it; everything else must see the same."""
    picture = Picture.from_file(path, path.name)
    pixels = load_pixels(picture, picture.height, picture.width).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.asarray(picture.open()))
    assert np.array_equal(pixels, np.asarray(read_rgb(path.read_bytes(), path.name)))
    in_memory = Picture.from_image(Image.open(path))
    assert (in_memory.width, in_memory.height) == (picture.width, picture.height)
    assert np.array_equal(pixels, np.asarray(in_memory.open()))
    return pixels


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(head: bytes, *parts: tuple[bytes, bytes], rows: bytes = b"", stream: bytes | None = None) -> bytes:
    """A PNG of any content, its sums right."""
    stream = zlib.compress(rows) if stream is None else stream
    before = b"".join(chunk(*part) for part in parts)
    return png.SIGNATURE + chunk(b"IHDR", head) + before + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


HEAD = struct.pack(">II5B", 6, 4, 8, 2, 0, 0, 0)
ROWS = b"".join(b"\0" + row.tobytes() for row in COLOURS)


def test_transparency_is_over_white(tmp_path):
    path = tmp_path / "a.png"
    alpha = np.full((4, 6), 255, dtype=np.uint8)
    alpha[0], alpha[1] = 0, 51  # nothing, and a fifth
    expected = COLOURS.astype(float)
    expected[0] = 255
    expected[1] = COLOURS[1] * 0.2 + 255 * 0.8
    Image.fromarray(np.dstack([COLOURS, alpha])).save(path)
    assert np.abs(shown(path) - expected).max() <= 1
    Image.fromarray(np.dstack([RAMP, alpha]), "LA").save(path)
    assert np.abs(shown(path)[1, :, 0] - (RAMP[1] * 0.2 + 255 * 0.8)).max() <= 1
    assert (shown(path)[0] == 255).all() and np.array_equal(shown(path)[2:, :, 1], RAMP[2:])


def test_a_transparent_colour_is_white(tmp_path):
    path = tmp_path / "a.png"
    for mode, key in (("RGB", tuple(COLOURS[2, 3].tolist())), ("L", int(RAMP[2, 3]))):
        Image.fromarray(COLOURS if mode == "RGB" else RAMP).save(path, transparency=key)
        expected = COLOURS.copy() if mode == "RGB" else np.repeat(RAMP[..., None], 3, axis=2)
        expected[2, 3] = 255
        assert np.array_equal(shown(path), expected)
    palette = Image.fromarray(RAMP % 3, "P")
    palette.putpalette([1, 2, 3, 40, 50, 60, 7, 8, 9])
    for ending in ("png", "gif"):
        palette.save(path.with_suffix(f".{ending}"), transparency=1)
        expected = np.array([[1, 2, 3], [255] * 3, [7, 8, 9]], dtype=np.uint8)[RAMP % 3]
        assert np.array_equal(shown(path.with_suffix(f".{ending}")), expected)


def test_more_than_8_bits_are_scaled(tmp_path):
    deep = RAMP.astype(np.uint16) * 1000 + 99
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "a.tiff")
    (tmp_path / "a.pgm").write_bytes(b"P5 6 4 65535\n" + deep.astype(">u2").tobytes())
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in deep)
    (tmp_path / "rgb.png").write_bytes(png_of(struct.pack(">II5B", 6, 4, 16, 2, 0, 0, 0), rows=rows))
    for name in ("a.png", "a.tiff", "a.pgm", "rgb.png"):
        assert np.array_equal(shown(tmp_path / name), expected), name
    floats = RAMP.astype(np.float32) / RAMP.max()
    Image.fromarray(floats).save(tmp_path / "f.tiff")
    assert np.array_equal(shown(tmp_path / "f.tiff")[..., 0], np.rint(floats * 255))
    key = struct.pack(">H", deep[1, 2])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "k.png").write_bytes(png_of(struct.pack(">II5B", 6, 4, 16, 0, 0, 0, 0), (b"tRNS", key), rows=rows))
    expected[1, 2] = 255
    assert np.array_equal(shown(tmp_path / "k.png"), expected)


@pytest.mark.parametrize("values", [RAMP.astype(np.float32), RAMP - np.float32(0.5), RAMP.astype(np.int32)])
def test_what_would_have_to_be_guessed_is_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="a.tiff is not a readable picture .*(0 to 1|32 bits)"):
        read_rgb(tmp_path / "a.tiff", "a.tiff")


def test_cmyk_is_the_colour_that_is_printed(tmp_path):
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(shown(tmp_path / "a.jpg").astype(int) - (0, 255, 255)).max() <= 4


def test_the_first_picture_of_a_film_is_shown(tmp_path):
    first, second = Image.new("RGB", (6, 4), (255, 0, 0)), Image.new("RGB", (6, 4), (0, 0, 255))
    for ending in ("gif", "png", "webp", "tiff"):
        path = tmp_path / f"a.{ending}"
        options = {"lossless": True} if ending == "webp" else {}
        first.save(path, save_all=True, append_images=[second], **options)
        assert (shown(path) == (255, 0, 0)).all(), ending


def turned(orientation: int) -> np.ndarray:
    """What is seen of COLOURS that were stored so (EXIF 2.32, tag 274)."""
    return {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.swapaxes(0, 1),
        6: COLOURS[::-1].swapaxes(0, 1),
        7: COLOURS[::-1, ::-1].swapaxes(0, 1),
        8: COLOURS[:, ::-1].swapaxes(0, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "webp", "tiff", "avif", "jpg", "late.png", "xmp.png"])
def test_pictures_stand_upright_and_have_the_size_of_that(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path, image = tmp_path / f"a.{ending}", Image.fromarray(COLOURS)
    if ending == "late.png":  # as some programs add it: behind the pixels
        late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        path.write_bytes(png_of(HEAD, rows=ROWS).replace(chunk(b"IEND", b""), late + chunk(b"IEND", b"")))
    elif ending == "xmp.png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
        image.save(path, pnginfo=text)
    else:
        image.save(path, exif=exif.tobytes(), **({"lossless": True} if ending == "webp" else {}))
    expected = turned(orientation)
    if ending in ("jpg", "avif"):  # lossy: the size, and the corners' order
        assert shown(path).shape == expected.shape
        assert shown(path)[0, 0, 0] < 25 or orientation in (2, 3, 4, 6, 7, 8)
    else:
        assert np.array_equal(shown(path), expected)
    picture, _ = PictureFiles(tmp_path).open(path.name)
    assert (picture.height, picture.width) == expected.shape[:2]


def test_a_picture_is_turned_once(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif.tobytes())
    once = read_rgb(tmp_path / "a.png", "a")
    assert np.array_equal(np.asarray(Picture.from_image(once).open()), turned(6))


def test_too_thin_a_picture_is_refused_when_data_is_read(tmp_path):
    Image.new("RGB", (200, 1)).save(tmp_path / "a.png")
    Image.new("RGB", (1, 201)).save(tmp_path / "b.png")
    assert Picture.from_file(tmp_path / "a.png", "a").width == 200
    message = "b.png'? is 1x201 px, an aspect ratio above 200: the model cannot take it; crop or split it"
    with pytest.raises(ValueError, match=message):
        Picture.from_file(tmp_path / "b.png", "b.png")
    with pytest.raises(RecordError, match=message):
        PictureFiles(tmp_path).open("b.png")


def interlaced() -> bytes:
    """COLOURS in Adam7's seven pictures."""
    rows = b""
    for x, y, every_x, every_y in png.ADAM7:
        part = COLOURS[y::every_y, x::every_x]
        rows += b"".join(b"\0" + row.tobytes() for row in part if part.size)
    return png_of(HEAD[:-1] + b"\1", rows=rows)


def test_a_whole_png_is_read_whatever_it_holds_besides(tmp_path):
    plain = png_of(HEAD, rows=ROWS)
    end = chunk(b"IEND", b"")
    contents = [
        plain + b"what follows the end",
        png_of(HEAD, (b"gAMA", bytes(4)), (b"zzZz", b"?"), rows=ROWS),
        png_of(HEAD, rows=ROWS + bytes(70_000)),
        png_of(HEAD, stream=zlib.compress(ROWS)[:-4]),
        plain.replace(end, chunk(b"tEXt", b"Comment\0eXIf") + end),
        interlaced(),
    ]
    for number, content in enumerate(contents):
        (tmp_path / "a.png").write_bytes(content)
        assert np.array_equal(shown(tmp_path / "a.png"), COLOURS), number


def test_a_png_for_the_decoder_holds_its_pixels_and_nothing_else():
    big = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)  # several stored blocks
    file = io.BytesIO()
    Image.fromarray(big).save(file, "PNG", dpi=(72, 72))
    content = bytes(png.restored(file.getvalue(), 300, 200))
    assert [name for name, _ in png.chunks(content)] == [b"IHDR", b"IDAT", b"IEND"]
    assert np.array_equal(np.asarray(read_rgb(content, "a")), big)
    assert png.restored(file.getvalue(), 200, 300) is None


def broken_pngs() -> list[bytes]:
    """Files in which a decoder finds an error, half of them with right checksums."""
    noise = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    head = struct.pack(">II5B", 30, 40, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in noise)
    stream = zlib.compress(rows)
    whole = png_of(head, stream=stream)
    contents = [whole[:cut] for cut in range(0, len(whole), 97)] + [whole[:-12]]
    for at in range(8, len(whole), 41):
        contents.append(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for at in range(0, len(stream), 53):
        contents.append(png_of(head, stream=stream[:at] + bytes([stream[at] ^ 64]) + stream[at + 1 :]))
        contents.append(png_of(head, stream=stream[:at]))
    for at in range(0, len(rows), 91):  # the filter of each row
        contents.append(png_of(head, rows=rows[:at] + b"\x05" + rows[at + 1 :]))
        contents.append(png_of(head, rows=rows[:at]))
    for name in (b"IHDR", b"IEND", b"IDAT"):
        contents.append(png_of(head, (name, head), rows=rows))
    for place in range(8, 13):  # depth, colours, compression, filter, interlace
        contents += [png_of(head[:place] + bytes([value]) + head[place + 1 :], rows=rows) for value in (1, 3, 5, 255)]
    contents.append(png_of(struct.pack(">II", 2**31, 2**31) + head[8:], rows=rows))
    contents.append(png_of(struct.pack(">II", 0, 40) + head[8:], rows=rows))
    return contents


READER = """
import sys
from pathlib import Path
from qwenvl_agent.data.pixels import load_pixels
from qwenvl_agent.schema import Picture
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_pixels(Picture(30, 40, str(path)), 40, 30)
        print(path.name, "read")
    except ValueError as error:
        assert str(path) in str(error), error
        print(path.name, "refused")
"""


def test_no_broken_png_ends_the_process(tmp_path):
    contents = broken_pngs()
    for number, content in enumerate(contents):
        (tmp_path / f"{number:05d}.png").write_bytes(content)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER, str(tmp_path)], capture_output=True, text=True
    )
    outcomes = dict(line.split() for line in result.stdout.splitlines())
    assert result.returncode == 0 and len(outcomes) == len(contents), result.stderr[-999:]
    read = [name for name, outcome in outcomes.items() if outcome == "read"]
    assert not read, read


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    """A pipe that nobody writes to, a device without end, a file that would fill the memory."""
    os.mkfifo(tmp_path / "pipe.png")
    os.truncate(picture_file(tmp_path / "large.png"), images.MAX_FILE_BYTES + 1)
    for path, what in ((tmp_path / "pipe.png", "no file"), ("/dev/zero", "no file"), (tmp_path / "large.png", "above")):
        for read in (images.read_size, images.read_rgb):
            with pytest.raises(ValueError, match=f"the picture is not a readable picture .*{what}"):
                read(path, "the picture")


def picture_file(path: Path) -> Path:
    Image.new("RGB", (40, 30)).save(path)
    return path
