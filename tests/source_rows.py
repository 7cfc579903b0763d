"""Rows of a file of each kind, read as a run reads them."""

from collections.abc import Iterator
from pathlib import Path

from qwenvl_agent.config import DataConfig, SourceConfig
from qwenvl_agent.containers import data_file, data_files, read_records
from qwenvl_agent.data import readers
from qwenvl_agent.data.source import Reject, SourceRow
from qwenvl_agent.picture_store import PictureFolder
from qwenvl_agent.worlds.recording import RecordedRow
from qwenvl_agent.worlds.safari.records import episodes_that_catch, row_reader


def read_rows(path: Path, kind: str, *, world: str = "", max_thought_chars: int = 400) -> Iterator[SourceRow | Reject]:
    files = data_files(path)
    source = SourceConfig(path=str(files[0]), kind=kind, world=world)
    config = DataConfig(
        sources=(source,), max_thought_chars=max_thought_chars, cache_dir=str(files[0].with_name("kept"))
    )
    return readers.read_rows(files, source, config)


def read_safari(path: Path, **options) -> list[RecordedRow | Reject]:
    path = data_file(path)
    catching = frozenset() if "tools" in options else episodes_that_catch(read_records(path))
    read = row_reader(PictureFolder(path.parent, path.with_name("kept")), catching=catching, **options)
    return list(map(read, read_records(path)))
