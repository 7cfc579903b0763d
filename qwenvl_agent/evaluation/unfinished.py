"""Records of an evaluation that is under way, so that an end before its end costs what was running and no more.

    runs/NAME/eval/safari/
        unfinished/
            settings.json   what decides the records: who is evaluated, on what, with which settings
            records.jsonl   a whole line for each finished episode, row or screen, in the order of their ends
            pictures/

The same command goes on with it; other settings start afresh and say so. When all is done the folder goes: its pictures
move to the result's, and records.jsonl is written there, so a result is never in part of one evaluation and in part of
another.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from qwenvl_agent.files import read_json, write_json
from qwenvl_agent.records import read_records

FOLDER = "unfinished"
Say = Callable[[str], None]


class Unfinished:
    """Opened once it is known what is evaluated: `kept` are the records of the start before, `add` writes more.

    After an error in the block it says what is kept; where that is nothing, nothing is left behind.
    """

    def __init__(self, result_dir: Path, kind: type, settings: dict, say: Say = print):
        self.directory, self.say = result_dir / FOLDER, say
        self.path = self.directory / "records.jsonl"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.file = self._lock()
        settings = json.loads(json.dumps(settings))
        self.kept = self._read(kind) if self._is_of(settings) else self._start_afresh(settings)

    @property
    def picture_dir(self) -> Path:
        return self.directory / "pictures"

    def add(self, records: Sequence) -> None:
        """Whole lines, handed to the system at once: a kill loses none of them."""
        self.file.writelines(json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records)
        self.file.flush()

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.file.close()
        if error is None:
            return
        num_records = self.path.read_bytes().count(b"\n")
        if num_records:
            self.say(f"note: {num_records} records are kept in {self.directory}; the same command goes on with them")
            return
        shutil.rmtree(self.directory)
        with suppress(OSError):  # a result was there before
            self.directory.parent.rmdir()

    def _lock(self) -> TextIO:
        file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the evaluation runs)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.directory} is being written by another process: the records would be of both; wait for its end, "
                "or give another --out"
            ) from None
        return file

    def _is_of(self, settings: dict) -> bool:
        """Whether there are records, of just these settings."""
        path = self.directory / "settings.json"
        if not path.exists() or not self.path.stat().st_size:
            return False
        try:
            found = read_json(path)
        except ValueError:
            found = {}
        changed = [key for key in sorted({*found, *settings}) if found.get(key) != settings.get(key)]
        if changed:
            self.say(
                f"note: the unfinished records in {self.directory} are of another {', '.join(changed)}: starting afresh"
            )
        return not changed

    def _read(self, kind: type) -> list:
        """The records; the line in which a kill or a full disk ended the file is cut off."""
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        if torn:
            self.file.truncate(len(whole) + bool(whole))
        records = read_records(self.path, kind)
        self.say(f"note: going on with the {len(records)} records that {self.directory} has kept")
        return records

    def _start_afresh(self, settings: dict) -> list:
        self.file.truncate(0)
        shutil.rmtree(self.picture_dir, ignore_errors=True)
        write_json(self.directory / "settings.json", settings)
        return []


@contextmanager
def replaced(result_dir: Path) -> Iterator[None]:
    """In the block the new result is written, over an older one if there is one; then nothing is unfinished any more.

    Until its metrics.json is there it is no result, and all of its records are still in the folder of the unfinished.
    """
    (result_dir / "metrics.json").unlink(missing_ok=True)
    pictures = result_dir / FOLDER / "pictures"
    if pictures.exists():
        shutil.rmtree(result_dir / "pictures", ignore_errors=True)
        pictures.rename(result_dir / "pictures")
    yield
    shutil.rmtree(result_dir / FOLDER)


def set_aside(result_dir: Path) -> Path:
    """Take the records out of the way of the next start, for people to look at; where they are."""
    failed = result_dir / "failed"
    shutil.rmtree(failed, ignore_errors=True)
    return (result_dir / FOLDER).rename(failed)
