"""Files of records, whatever holds them: JSON lines, a .json file's list, a Parquet table. What a record means is its
reader's to say.

A record that cannot be read is one all the same: it stands at its place with the error, and the rest of the file is read.
Files are streamed: what is held in memory is a few records, however many there are.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl_agent.containers import json_list, parquet
from qwenvl_agent.containers.note import Note, ignore
from qwenvl_agent.json_input import MAX_RECORD_BYTES, read_line, too_long

SHARD = re.compile(r"(?P<name>.*?)-(?P<number>\d{5})-of-(?P<count>\d{5})")
LINES_A_NOTE = 256
SKIPPED_BYTES = 2**20
"""At a time, of a line that is too long."""


class Record(NamedTuple):
    """One record of a file, at `source`: `file:line`, of a table `file:row`. Of items of a list that begin on one line all
    but the first have their index besides: `file:line[index]`."""

    source: str
    content: Any
    """A line's bytes, not decoded; or else the value; or the ValueError that says why there is none."""

    def value(self) -> Any:
        """What the record holds; ValueError says what is wrong with it."""
        if isinstance(self.content, bytes):
            return read_line(self.content)
        if isinstance(self.content, ValueError):
            raise self.content
        return self.content

    def identity(self) -> bytes:
        """The same for the same record of another file: a line as it stands, a value as JSON."""
        if isinstance(self.content, bytes):
            return self.content.strip()
        return json.dumps(self.content, default=lambda picture: hashlib.sha256(picture).hexdigest()).encode()


# which files


def data_files(path: Path | str) -> tuple[Path, ...]:
    """The files that a source's path means: itself, those that a pattern (`*`, `?`, `[...]`) matches, or of a folder its
    dataset.jsonl, else its only file or its shards. ValueError for none, or where it is open which are meant."""
    path = Path(path)
    if path.is_file():
        return (path,)
    if path.is_dir():
        return _files_of_folder(path)
    if not any(character in str(path) for character in "*?["):
        raise ValueError(f"{path}: there is no such file, so no rows to read; correct its name")
    root = next(parent for parent in path.parents if not any(c in str(parent) for c in "*?["))
    files = tuple(sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file()))
    if not files:
        raise ValueError(f"{path}: no file matches, so there are no rows to read; correct it")
    folders = {file.parent for file in files}
    if len(folders) > 1:
        raise ValueError(
            f"{path}: files of {len(folders)} folders match: where their pictures' names start would be unknown; "
            "name a pattern for each folder, as sources of their own"
        )
    return files


def data_file(path: Path | str) -> Path:
    """The only file of `data_files`."""
    files = data_files(path)
    if len(files) > 1:
        raise ValueError(f"{path} means {len(files)} files, and one is read here: name one")
    return files[0]


def _files_of_folder(folder: Path) -> tuple[Path, ...]:
    if (folder / "dataset.jsonl").is_file():
        return (folder / "dataset.jsonl",)
    if (folder / "dataset_info.json").is_file() and any(folder.glob("*.arrow")):
        raise ValueError(
            f"{folder} is a folder of Dataset.save_to_disk: it is not read; write it as Parquet (Dataset.to_parquet)"
        )
    for place in (folder, folder / "data"):
        files = sorted(file for file in place.glob("*.parquet") if file.is_file())
        if files:
            return _whole(files, place)
    raise ValueError(f"{folder} holds neither dataset.jsonl nor *.parquet: there are no rows to read; name the file")


def _whole(files: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """The files, if they are one file or all shards of one split."""
    shards = [SHARD.fullmatch(file.stem) for file in files]
    names = sorted({shard["name"] if shard else file.stem for shard, file in zip(shards, files, strict=True)})
    if len(names) > 1:
        raise ValueError(
            f"{folder} holds {', '.join(names[:5])}: which are to be trained on is unknown; name one, as "
            f"{folder / names[0]}*.parquet"
        )
    if shards[0] and len(files) != int(shards[0]["count"]):
        raise ValueError(
            f"{folder} holds {len(files)} of {int(shards[0]['count'])} shards: rows would be missing; fetch the others, or "
            f"name those that are there, as {folder / names[0]}*.parquet"
        )
    return tuple(files)


# what they hold


def records_of(files: Iterable[Path], note: Note = ignore) -> Iterator[Record]:
    """Every record of the files, one file after another; `note` is told now and then how many bytes are read."""
    num_before = 0
    for file in files:
        before = num_before
        yield from read_records(file, lambda num_bytes: note(before + num_bytes))  # noqa: B023 (called within the loop)
        num_before += file.stat().st_size
        note(num_before)


def num_records(path: Path, limit: int) -> int:
    """Of a table its rows; else at least one for each line, or limit + 1 if there are more."""
    if path.suffix == ".parquet":
        return parquet.num_rows(path)
    with open(path, "rb") as file:
        return sum(1 for _ in itertools.islice(file, limit + 1))


def read_records(path: Path, note: Note = ignore) -> Iterator[Record]:
    """Every record of the file in order; blank lines are none. `note` is told now and then how many bytes are read."""
    if path.suffix == ".parquet":
        yield from map(Record._make, parquet.read_rows(path, note))
    elif path.suffix == ".json":
        yield from map(Record._make, json_list.read_list(path, note))
    else:
        yield from _read_lines(path, note)


def _read_lines(path: Path, note: Note) -> Iterator[Record]:
    with open(path, "rb") as file:
        lines = iter(lambda: file.readline(MAX_RECORD_BYTES), b"")
        for number, line in enumerate(lines, 1):
            if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(SKIPPED_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield Record(f"{path}:{number}", too_long())
            elif line.strip():
                yield Record(f"{path}:{number}", line)
            if number % LINES_A_NOTE == 0:
                note(file.tell())
