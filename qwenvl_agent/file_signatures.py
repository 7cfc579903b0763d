"""What a file is by its first bytes, where that is no data that can be read here: an archive, a picture, another encoding.

A data file begins with `{` or `[` (JSON), or is a Parquet table of that name. All else would be a reject for every line,
or for none, with a reason that does not help. Standard library only.
"""

from collections.abc import Sequence
from pathlib import Path

HEAD_BYTES = 4096
PARQUET = b"PAR1"
UTF_16 = "text in UTF-16"
TO_UTF_8 = "save it as UTF-8 (iconv -f UTF-16 -t UTF-8 {name} > utf8_{name})"
A_PICTURE = ("a picture", "name the JSON file that lists pictures, or mark them with qwenvl-agent annotate FOLDER")
SIGNATURES: Sequence[tuple[bytes, str, str]] = (
    (b"PK\x03\x04", "a ZIP archive", "unpack it (unzip {name}) and name the data file in it"),
    (b"PK\x05\x06", "an empty ZIP archive", "pack what it was to hold again"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it (gunzip {name}) and name the file that comes out"),
    (b"BZh", "compressed with bzip2", "unpack it (bunzip2 {name}) and name the file that comes out"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it (unxz {name}) and name the file that comes out"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "unpack it (unzstd {name}) and name the file that comes out"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it (7z x {name}) and name the data file in it"),
    (b"\xff\xfe", UTF_16, TO_UTF_8),
    (b"\xfe\xff", UTF_16, TO_UTF_8),
    (b"\x89PNG", *A_PICTURE),
    (b"\xff\xd8\xff", *A_PICTURE),
    (b"GIF8", *A_PICTURE),
    (b"RIFF", *A_PICTURE),
    (b"BM", *A_PICTURE),
    (b"II*\x00", *A_PICTURE),
    (b"MM\x00*", *A_PICTURE),
    (b"%PDF", "a PDF file", "give the data as JSON lines"),
    (b"ARROW1", "an Arrow table", 'write it as Parquet (datasets.load_from_disk(FOLDER).to_parquet("data.parquet"))'),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream",
        'write it as Parquet (datasets.Dataset.from_file(FILE).to_parquet("data.parquet"))',
    ),
    (
        b"SQLite format 3",
        "an SQLite database",
        "write its table as JSON lines (sqlite3 -json FILE 'select * from ...')",
    ),
    (b"\x80\x04", "a pickle, which may run any code when it is opened", "write it as JSON lines where you trust it"),
    (b"version https://git-lfs", "a pointer of Git LFS, and not the file", "fetch the file (git lfs pull)"),
    (b"<", "HTML or XML", "give the data as JSON lines: a page that was saved in place of a download begins so, too"),
)
"""How a file begins, what it is, and what to do; {name} is the file's."""
TAR_AT, TAR = 257, b"ustar"
FROM_CSV = (
    'write one JSON object a line: python -c "import csv, json; [print(json.dumps(r)) for r in '
    "csv.DictReader(open('{name}'))]\" > data.jsonl"
)
SEPARATORS = (",", "\t", ";", "|")


def check_is_data(path: Path) -> None:
    """ValueError if the file is no data that a reader here can read, by its first bytes and its name."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    found = _foreign(path, head)
    if found:
        what, remedy = found
        raise ValueError(f"{path} is {what}: no row can be read from it; {remedy.format(name=path.name)}")


def _foreign(path: Path, head: bytes) -> tuple[str, str] | None:
    """What the file is and what to do about it; None: data."""
    if head.startswith(PARQUET):
        is_named = path.suffix == ".parquet"
        return None if is_named else ("a Parquet table under another name", "rename it to NAME.parquet")
    if path.suffix == ".parquet":
        return "no Parquet table, though it is named so", "copy it again, or rename it by what it is"
    for start, what, remedy in SIGNATURES:
        if head.startswith(start):
            return what, remedy
    if head[TAR_AT:].startswith(TAR):
        return "a tar archive", "unpack it (tar xf {name}) and name the data file in it"
    if b"\x00" in head.partition(b"\n")[0]:  # a line behind it is a reject alone
        return "neither text in UTF-8 nor a known table (it holds zero bytes)", TO_UTF_8
    return _foreign_text(path, head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip())


def _foreign_text(path: Path, text: str) -> tuple[str, str] | None:
    if not text:
        return "empty", "correct the path, or write one JSON object a line"
    if text[0] == "{":
        return None
    if text[0] == "[":
        remedy = "rename it to NAME.json, so that it is read as a list"
        return None if path.suffix == ".json" else ("a JSON list under another name than .json", remedy)
    first, *others = text.splitlines()
    if any(line.lstrip().startswith("{") for line in others):
        return None  # one broken line before good ones: its reader names it
    columns = max(first.count(separator) for separator in SEPARATORS) + 1
    if path.suffix in (".csv", ".tsv") or columns > 2:
        return f"a table of {columns} columns as text (CSV)", FROM_CSV
    return f"text that is not JSON (it begins with {first[:40]!r})", "write one JSON object a line"
