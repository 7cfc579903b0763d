"""What a reader of any source file is given, and yields: one SourceRow a step, or a Reject that says why there is none;
what is to be said of the file as a whole is a FileNote.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_agent.config import DataConfig, SourceConfig
from qwenvl_agent.json_input import Reject
from qwenvl_agent.picture_store import PictureFolder
from qwenvl_agent.schema import Step, Tool

__all__ = ["FileNote", "Item", "Origin", "Reject", "SourceRow", "origin_of"]


@dataclass(frozen=True)
class Origin:
    """What a reader knows besides the records; plain data, for other processes. `surveyed` is what `Reader.survey` gave."""

    folder: PictureFolder
    """Where the file lies, and pictures' names start."""
    cfg: SourceConfig
    data_cfg: DataConfig
    surveyed: Any = None


def origin_of(path: Path, cfg: SourceConfig, data_cfg: DataConfig) -> Origin:
    """Of the records of a file."""
    return Origin(PictureFolder(path.parent, Path(data_cfg.cache_dir) / "pictures"), cfg, data_cfg)


@dataclass(frozen=True)
class SourceRow:
    """One step of an episode; `source` is `file:line`.

    Rows with the same `split_key` stay on one side of the split. `notes` names what the reader changed or left out
    without losing the row; each is counted in the report.
    """

    episode_id: str
    turn_index: int
    split_key: str
    system_prompt: str
    tools: tuple[Tool, ...]
    step: Step
    source: str
    weight: float = 1.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileNote:
    """What a reader has to say of a file, counted in the report as the notes of rows are; `source` is its last `file:line`."""

    source: str
    name: str
    count: int


Item = SourceRow | Reject | FileNote
