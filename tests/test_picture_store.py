"""Embedded pictures, however they are spelled, become one file by their bytes; what is none is refused by name."""

import base64
import io
import os
import pickle

import pytest
from PIL import Image

from qwenvl_agent import picture_store
from qwenvl_agent.picture_store import PictureFolder, is_embedded


def encoded(image_format: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, image_format)
    return file.getvalue()


PNG = encoded("PNG")
TEXT = base64.b64encode(PNG).decode()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(PNG)
    return PictureFolder(tmp_path / "data", tmp_path / "cache/pictures")


@pytest.mark.parametrize(
    "value",
    [
        PNG,
        bytearray(PNG),
        {"bytes": PNG, "path": "a.png"},
        {"bytes": TEXT, "path": None},
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/png;charset=utf-8;BASE64,{TEXT[:80]}\n{TEXT[80:]}",
        f"data:;base64,{TEXT}",
        TEXT,
    ],
    ids=range(8),
)
def test_an_embedded_picture_is_a_file_of_its_bytes(folder, value, tmp_path):
    path = folder.path(value, "image")
    assert is_embedded(value) and os.path.dirname(path) == str(tmp_path / "cache/pictures")
    with open(path, "rb") as file:
        assert file.read() == PNG
    assert len(os.path.basename(path)) == 64 + len(".png")


@pytest.mark.parametrize("value", ["a.png", {"path": "a.png"}, {"path": "a.png", "bytes": None}])
def test_a_path_is_the_file_below_the_folder(folder, value, tmp_path):
    assert not is_embedded(value)
    assert folder.path(value, "image") == str(tmp_path / "data/a.png")
    with pytest.raises(ValueError, match="leaves the dataset folder"):
        folder.path("../a.png", "image")


@pytest.mark.parametrize(
    ("image_format", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif")]
)
def test_the_ending_is_that_of_the_content(folder, image_format, ending):
    content = encoded(image_format)
    path = folder.path(content, "image")
    assert path.endswith(f".{ending}")
    if image_format in ("PNG", "JPEG", "WEBP", "GIF"):
        assert folder.path(base64.b64encode(content).decode(), "image") == path


def test_a_picture_is_written_once_and_again_when_it_is_lost_or_cut(folder):
    path = folder.path(PNG, "image")
    before = os.stat(path)
    assert folder.path({"bytes": PNG}, "other") == path
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns
    os.truncate(path, 10)
    assert folder.path(PNG, "image") == path and os.path.getsize(path) == len(PNG)
    os.remove(path)
    assert folder.path(PNG, "image") == path and os.path.getsize(path) == len(PNG)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no picture", r"images\[0\] is not a readable picture \(cannot identify image file of these bytes\)"),
        (f"data:image/png;base64,{TEXT[:100]}%%", r"images\[0\] is no base64 .*: the picture is damaged"),
        (f"data:text/html;base64,{TEXT}", r"images\[0\] is a data URI of 'text/html': no picture"),
        ("data:image/svg+xml,<svg/>", r"images\[0\] is a data URI that is not base64"),
        ({"bytes": 5}, r"images\[0\] has bytes that are '5': no picture"),
    ],
)
def test_what_is_no_picture_is_refused_and_leaves_no_file(folder, value, message):
    with pytest.raises(ValueError, match=message):
        folder.path(value, "images[0]")
    assert not folder.store.exists()


def test_size_is_limited_before_anything_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(picture_store, "MAX_BYTES", len(PNG) - 1)
    for value in (PNG, TEXT, f"data:image/png;base64,{TEXT}", {"bytes": PNG}):
        with pytest.raises(
            ValueError, match=r"image is embedded and has \d+ bytes, above \d+: it is not read; save it"
        ):
            folder.path(value, "image")


def test_another_process_keeps_pictures_in_the_same_place(folder):
    assert pickle.loads(pickle.dumps(folder)).path(PNG, "image") == folder.path(PNG, "image")
