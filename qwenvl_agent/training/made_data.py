"""Data that a stage of a curriculum makes for itself out of the weights before it: what is asked of whoever makes it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from qwenvl_agent.config import Config, SourceConfig


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What is asked of a maker of data, on all ranks together."""

    config: Config
    """Of the run that will train on it; the data is among its sources."""
    settings: object
    """The stage's own group."""
    round: int
    """From 1."""
    weights: Path
    """The checkpoint of the run before, which `inference.load.find_run` takes."""
    folder: Path
    """Where the dataset has to lie; its manifest.json, which is written last, says that it is whole."""
    ranks: PartialState


@dataclass(frozen=True)
class DataMaker:
    """How a group of a stage (`StageConfig`) makes the data of its rounds out of the weights before them.

    The group has `rounds` (from 1) and `weight`, of all made data together among `data.sources`.
    """

    source: Callable[[Config, object, Path], SourceConfig]
    """(config, the group, folder): how the dataset is read; its weight is set here."""
    make: Callable[[DataRequest], None]
    """The same dataset whenever it is asked for, to the byte, however often it was interrupted."""
