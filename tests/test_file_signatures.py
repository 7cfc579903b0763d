"""file_signatures: what cannot be a data file is named by its first bytes, with the way out."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest

from qwenvl_agent.file_signatures import check_is_data

ROW = json.dumps({"instruction": "open it", "screenshot": "a.png", "action": {"type": "click", "x": 1, "y": 2}})


def packed(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("data.jsonl", ROW)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo("data.jsonl")
            info.size = len(ROW)
            archive.addfile(info, io.BytesIO(ROW.encode()))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.jsonl", b"", "is empty"),
        ("data.jsonl", b"\xef\xbb\xbf \r\n", "is empty"),
        ("data.zip", packed("zip"), "a ZIP archive: no row can be read from it; unpack it (unzip data.zip)"),
        ("data.jsonl", packed("zip"), "a ZIP archive"),
        ("data.tar", packed("tar"), "a tar archive"),
        (
            "data.jsonl.gz",
            gzip.compress(ROW.encode(), mtime=0),
            "compressed with gzip: no row can be read from it; unpack it",
        ),
        ("data.jsonl", ROW.encode("utf-16"), "text in UTF-16: no row can be read from it; save it as UTF-8"),
        ("data.jsonl", ROW.encode("utf-16-le"), "it holds zero bytes"),
        ("data.csv", b"instruction,screenshot,x,y\nopen,a.png,1,2\n", "a table of 4 columns as text (CSV)"),
        ("data.jsonl", b"instruction\tscreenshot\tx\ty\n", "a table of 4 columns as text (CSV)"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "a picture"),
        ("data.jsonl", f"[{ROW}]".encode(), "a JSON list under another name than .json"),
        ("data.jsonl", b"PAR1...", "a Parquet table under another name"),
        ("data.parquet", ROW.encode(), "no Parquet table, though it is named so"),
        ("data.jsonl", b"<!doctype html>", "HTML or XML"),
        ("data.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("notes.txt", b"Dear all\n", "text that is not JSON (it begins with 'Dear all')"),
    ],
)
def test_what_is_no_data_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        check_is_data(tmp_path / name)
    assert said in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl", ROW.encode()),
        ("data.txt", ROW.encode()),
        ("data.jsonl", b"\xef\xbb\xbf" + ROW.encode() + b"\r\n"),
        ("data.jsonl", b"a broken, first, line\n" + ROW.encode()),
        ("data.json", f"\n [{ROW}]".encode()),
        ("data.parquet", b"PAR1..."),
    ],
)
def test_data_passes(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    check_is_data(tmp_path / name)
