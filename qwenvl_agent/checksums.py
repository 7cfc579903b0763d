"""What a folder holds: size and SHA-256 of every file, written when it is made and compared before it is used.

SHA-256 because anybody can check it (`sha256sum`) and processors compute it in hardware; files are read side by side.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qwenvl_agent.files import read_json, write_json

FILE_NAME = "checksums.json"


def write_checksums(directory: Path) -> None:
    """`checksums.json` with {"bytes", "sha256"} of every file below `directory`, by its path from there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    entries = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests(files), strict=True)
    }
    write_json(directory / FILE_NAME, entries)


def find_damage(directory: Path, parts: tuple[str, ...] = ("",)) -> str | None:
    """The first file, of those whose paths begin with one of `parts`, that is not as it was written, and why; else None.

    FileNotFoundError for a folder that was written without checksums. Files that were added since are not looked at.
    """
    try:
        entries = read_json(directory / FILE_NAME)
        expected = {directory / name: entry for name, entry in entries.items() if name.startswith(parts)}
        sizes = {path: entry["bytes"] for path, entry in expected.items()}
        sums = [entry["sha256"] for entry in expected.values()]
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{directory / FILE_NAME} cannot be read"
    for path, size in sizes.items():
        if not path.is_file() or path.stat().st_size != size:
            return f"{path} is missing or cut off"
    for path, now, before in zip(expected, digests(list(expected)), sums, strict=True):
        if now != before:
            return f"{path} is damaged (another SHA-256 than when it was written)"
    return None


def digests(paths: list[Path]) -> list[str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        return list(pool.map(digest_of, paths))


def digest_of(path: Path) -> str:
    """Of the file's content; of one that cannot be read whole, what the system says."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error}"


def digest_of_values(values: object) -> str:
    """Of JSON values, however they are written."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
