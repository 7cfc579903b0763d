"""Kinds of source files by name. A new kind is one module, one entry here, and its name in `config.SourceConfig.kind`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwenvl_agent.config import DataConfig, SourceConfig
from qwenvl_agent.containers import Record, records_of
from qwenvl_agent.containers.note import Note, ignore
from qwenvl_agent.data.readers import chat, computer, recorded
from qwenvl_agent.data.source import Item, Origin, origin_of

DEFAULTS = DataConfig()


@dataclass(frozen=True)
class Reader:
    """How the records of a kind become rows.

    `open` gives what reads one record by itself, so that several processes share a file. What depends on other records is
    `survey`'s, which sees all before any is read (its answer is `Origin.surveyed`), or `join`'s, which sees all that was
    read, in the file's order, in one process. What `open`'s function gives is rows unless `join` makes them of it.
    """

    open: Callable[[Origin], Callable[[Record], Iterable[Any]]]
    version: int
    """Part of the cache's key: raise it whenever the same bytes give other rows, other rejected lines, or other notes, and
    write the new digest into tests/test_reader_versions.py, which fails until both are done. A comment, a faster way or
    another wording of a reject need no new version: a million rows would be read anew for nothing."""
    survey: Callable[[Iterable[Record], Origin], Any] = lambda records, origin: None
    join: Callable[[Iterable[Any], Origin], Iterable[Item]] | None = None
    beside: Callable[[Path, SourceConfig], str] = lambda path, cfg: ""
    """What else than the file's bytes decides what its rows hold; part of the key too."""


def read_rows(
    files: Sequence[Path], cfg: SourceConfig, data_cfg: DataConfig = DEFAULTS, note: Note = ignore
) -> Iterator[Item]:
    """The rows and rejects of a source's files in their order, in this process; `note` as in `containers.records_of`."""
    reader, origin = READERS[cfg.kind], origin_of(files[0], cfg, data_cfg)
    origin = replace(origin, surveyed=reader.survey(records_of(files), origin))
    read = reader.open(origin)
    items = (item for record in records_of(files, note) for item in read(record))
    yield from reader.join(items, origin) if reader.join else items


READERS = {
    "safari": Reader(
        recorded.open_reader,
        recorded.VERSION,
        survey=recorded.survey,
        beside=lambda path, cfg: recorded.version_of("safari"),
    ),
    "recorded": Reader(
        recorded.open_reader,
        recorded.VERSION,
        survey=recorded.survey,
        beside=lambda path, cfg: recorded.digest_beside(path, cfg.world),
    ),
    "chat": Reader(chat.open_reader, chat.VERSION),
    "computer": Reader(computer.open_reader, computer.VERSION, join=computer.join, beside=computer.declared_beside),
}
