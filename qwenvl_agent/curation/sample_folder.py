"""A dataset folder that grows by hand, sample by sample, in the form that `computer` reads.

What a call wrote is on the disk when it returns, and dataset.jsonl is replaced as a whole, so whatever ends the program,
no sample that was written is lost or half there. That costs a file of all samples a call: right for what people make.
"""

import contextlib
import fcntl
import json
from collections import Counter
from pathlib import Path

from PIL import Image

from qwenvl_agent.coordinates import Screen
from qwenvl_agent.data.pictures import see
from qwenvl_agent.data.readers.computer import (
    Duplicates,
    PictureFiles,
    RecordError,
    Sample,
    read_places,
    read_records,
    read_sample,
)
from qwenvl_agent.data.readers.units import UNDECLARED, Evidence, judge
from qwenvl_agent.files import replacing, write_text
from qwenvl_agent.images import read_size
from qwenvl_agent.json_input import fault_of_line


class SampleFolder:
    """`records` are those of dataset.jsonl, in its order. One program at a time: ValueError if another has it open."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ValueError(
                f"{folder} is open in another program: each would overwrite what the other saves; end that one, or give "
                "another folder"
            ) from None
        self._pictures = PictureFiles(self.folder)
        try:
            self.records = list(self._read())
            self._check_unit()
        except ValueError:
            self.close()
            raise

    def __enter__(self) -> "SampleFolder":
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        self._lock.close()

    def _read(self):
        path = self.folder / "dataset.jsonl"
        for place, record in read_records(path) if path.exists() else ():
            if not isinstance(record, dict):
                reason = str(record) if isinstance(record, RecordError) else "not an object"
                raise ValueError(f"{place}: {reason}; it would be lost when the file is saved")
            yield record

    def _check_unit(self) -> None:
        """ValueError if the records' places cannot be in pixels, which is what is added to them."""
        found: Counter[Evidence] = Counter()
        for record in self.records:
            with contextlib.suppress(ValueError):  # what is wrong with one record is said where it is read
                name = record.get("screenshot") or record.get("initial_screenshot")
                size = read_size(self._pictures.folder.path(name, "screenshot"), "screenshot")
                evidence = read_places(record, Screen(*size), UNDECLARED).evidence
                found.update(() if evidence is None else (evidence,))
        try:
            judge(found, UNDECLARED, str(self.folder / "dataset.jsonl"))
        except ValueError as error:
            raise ValueError(f"{error}; what is marked here is in pixels, so give a folder of its own") from None

    def add_picture(self, image: Image.Image) -> str:
        """The path that samples name it by; the file is written once, however many samples show it."""
        name = f"images/{see(image).pixels}.png"
        if not (self.folder / name).exists():
            with replacing(self.folder / name, is_flushed=True) as part:
                image.save(part, "PNG", compress_level=3)
        return name

    def check(self, record: dict) -> Sample:
        """The sample that a reader makes of it; ValueError, as a reader's reject, if it makes none."""
        sample = read_sample(record, self._pictures, str(record.get("id", "")))
        assert sample.turn
        others, duplicates = self._beside(record), Duplicates()
        for other in others:
            duplicates.check(read_sample(other, self._pictures, str(other.get("id", ""))))
        return duplicates.check(sample)

    def _beside(self, record: dict) -> list[dict]:
        """The other records of its picture that have the same words."""
        same = ("screenshot", "instruction", "history")
        return [
            other
            for other in self.records
            if other.get("id") != record["id"] and all(other.get(key) == record.get(key) for key in same)
        ]

    def put(self, record: dict) -> None:
        """Add the record, or replace the one of its id; ValueError, and nothing is changed, for what no reader takes."""
        self.check(record)
        at = self._index(record["id"])
        self._save([*self.records[:at], record, *self.records[at + 1 :]])

    def remove(self, name: str) -> None:
        """Take out the record of that id; ValueError if there is none."""
        at = self._index(name)
        if at == len(self.records):
            raise ValueError(f"sample {name!r} is not there: nothing is removed; load the page again")
        self._save(self.records[:at] + self.records[at + 1 :])

    def _index(self, name: str) -> int:
        """Where the record of that id is, or would be added."""
        return next((i for i, record in enumerate(self.records) if record.get("id") == name), len(self.records))

    def _save(self, records: list[dict]) -> None:
        """They are `records` once they are on the disk: what cannot be written spoils no later save."""
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        try:
            write_text(self.folder / "dataset.jsonl", "".join(lines), is_flushed=True)
        except UnicodeEncodeError as error:
            raise ValueError(fault_of_line(error)) from None
        self.records = records
