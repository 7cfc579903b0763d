"""Files of ours, written as a whole or not at all; their JSON; and folders out of which no path leads. Standard library.

What others wrote is read by `json_input.py`, line by line; settings by `settings.py`.
"""

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, is_flushed: bool = False) -> Iterator[Path]:
    """A name beside `path` to write the new file to; when the block ends it is `path`, at once.

    Who reads meanwhile sees the old file, whole; an error or a kill leaves it. `is_flushed`: the bytes are on the disk
    before, so that a power cut leaves one of the two as well.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield part
        if is_flushed:
            flush_to_disk(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a kill left it of a file that was being replaced."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def flush_to_disk(path: Path) -> None:
    """A file's bytes, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, *, is_flushed: bool = False) -> None:
    with replacing(path, is_flushed=is_flushed) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, values: object, *, is_flushed: bool = False) -> None:
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n", is_flushed=is_flushed)


def read_json(path: Path) -> dict:
    """The object in a file of ours; ValueError with file and line for one that is cut off or no JSON."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not JSON ({error.msg}): it is damaged, and what it said is lost; restore the file"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8: it is damaged; restore the file") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested without end
        raise ValueError(f"{path}: no JSON of ours ({error}): it is damaged; restore the file") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, no object: it is none of our files; name another")
    return values


def write_manifest(out: Path, about: dict) -> dict:
    """`about`, with the hash of dataset.jsonl, as manifest.json of a dataset; returns it."""
    manifest = about | {"sha256": sha256_of(out)}
    write_json(out / "manifest.json", manifest)
    return manifest


def sha256_of(out: Path) -> str:
    with open(out / "dataset.jsonl", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_plain_file(path: Path | str, max_bytes: int) -> None:
    """ValueError for a pipe, device or folder, whose reading may never end, and for more bytes than could be used."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is a pipe, a device or a folder, and no file")
    if found.st_size > max_bytes:
        raise ValueError(f"it has {found.st_size} bytes, above {max_bytes}")


class ConfinedFolder:
    """Files by their path relative to a folder, out of which no path leads.

    Folders, the files' own among them, are resolved once: make a new one for each reading.
    """

    MAX_RESOLVED = 1024

    def __init__(self, root: Path):
        self.root = root
        self.inside = os.path.join(os.path.realpath(root), "")
        self._resolved: dict[str, str] = {}

    def path(self, relative: str) -> str:
        """`root / relative`, resolved; ValueError if that leaves `root` (by `..`, an absolute path or a link)."""
        if "\0" in relative:
            raise ValueError(f"path {relative[:80]!r} holds a NUL character: no file has such a name; correct it")
        folder, name = os.path.split(os.path.join(self.root, relative))
        path = os.path.join(self._resolve(folder), name)
        if name in ("", "..", ".") or os.path.islink(path):
            path = os.path.realpath(path)
        if not path.startswith(self.inside) and path != self.inside.rstrip(os.sep):
            raise ValueError(
                f"path {relative!r} leaves the dataset folder {self.root}: it is not read; copy the file inside"
            )
        return path

    def _resolve(self, folder: str) -> str:
        if folder not in self._resolved:
            if len(self._resolved) == self.MAX_RESOLVED:
                self._resolved.clear()
            self._resolved[folder] = os.path.realpath(folder)
        return self._resolved[folder]


def confined_path(root: Path, relative: str) -> Path:
    """`root / relative`, ValueError if that leaves `root` (by `..`, an absolute path or a link)."""
    return Path(ConfinedFolder(root).path(relative))
