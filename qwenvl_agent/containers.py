"""Files of records, whatever holds them: JSON lines, or a .json file's list. What a record means is its reader's to say.

A record that cannot be read is one all the same: it stands at its place with the error, and the rest of the file is read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl_agent.json_input import read_line, read_list


class Record(NamedTuple):
    """One record of a file, at `source`, which is `file:line`."""

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
        return self.content.strip() if isinstance(self.content, bytes) else json.dumps(self.content).encode()


def data_file(path: Path | str) -> Path:
    """A folder means the dataset.jsonl in it."""
    path = Path(path)
    return path / "dataset.jsonl" if path.is_dir() else path


def read_records(path: Path) -> Iterator[Record]:
    """Every record of the file in order: the items of a .json file's list, or the lines that are not blank."""
    if path.suffix == ".json":
        yield from map(Record._make, read_list(path))
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Record(f"{path}:{number}", line)
