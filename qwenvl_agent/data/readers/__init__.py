"""Kinds of source files by name. A new kind is one module, one entry here, and its name in `config.SourceConfig.kind`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenvl_agent.config import DataConfig, SourceConfig
from qwenvl_agent.data.readers import chat, computer, recorded
from qwenvl_agent.data.source import Reject, SourceRow
from qwenvl_agent.worlds import make_world


@dataclass(frozen=True)
class Reader:
    """How a kind of source file becomes rows."""

    read: Callable[[Path, SourceConfig, DataConfig], Iterator[SourceRow | Reject]]
    version: int
    """Part of the cache's key: raise it whenever the same bytes give other rows, other rejected lines, or other notes, and
    write the new digest into tests/test_reader_versions.py, which fails until both are done. A comment, a faster way or
    another wording of a reject need no new version: a million rows would be read anew for nothing."""
    beside: Callable[[Path, SourceConfig], str] = lambda path, cfg: ""
    """What else than the file's bytes decides what its rows hold; part of the key too."""


def _read_safari(path: Path, cfg: SourceConfig, data_cfg: DataConfig) -> Iterator[SourceRow | Reject]:
    rows = make_world("safari").read_recording(path, data_cfg.max_thought_chars)
    assert rows is not None, "the safari reads its own"
    return map(recorded.to_source_row, rows)


def _read_recorded(path: Path, cfg: SourceConfig, data_cfg: DataConfig) -> Iterator[SourceRow | Reject]:
    return recorded.read_rows(path, world=cfg.world, max_thought_chars=data_cfg.max_thought_chars)


READERS = {
    "safari": Reader(_read_safari, recorded.VERSION, beside=lambda path, cfg: recorded.version_of("safari")),
    "recorded": Reader(
        _read_recorded, recorded.VERSION, beside=lambda path, cfg: recorded.digest_beside(path, cfg.world)
    ),
    "chat": Reader(lambda path, cfg, data_cfg: chat.read_rows(path), chat.VERSION),
    "computer": Reader(lambda path, cfg, data_cfg: computer.read_rows(path), computer.VERSION),
}
