"""A sweep's file: a grid or a list of overrides over one config.

    {
      "config": "configs/safari_2b.json",
      "set": {"train.epochs": 1},
      "cells": [{"model.lora_rank": 8, "model.lora_alpha": 16}, {"model.lora_rank": 32, "model.lora_alpha": 64}],
      "grid": {"train.learning_rate": [1e-4, 2e-4], "train.seed": [0, 1]},
      "metric": "eval/token_loss/all",
      "goal": "min"
    }

Every combination of the grid with every entry of `cells` is one cell, one run; `set` is for all of them. `cells` may
also be an object, name -> overrides. The sweep's folder is runs_dir/NAME, NAME the file's:

    runs/NAME/
        cells/CELL.json        the cell's whole config, as it was when the cell was first started
        CELL/                  its run
        logs/  submissions/    of the starts
        results.csv  curves.png  metric.png

A cell's config is written once and then kept: a base config that is edited while cells wait in a queue changes none.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qwenvl_agent.config import Config, load_config, to_json
from qwenvl_agent.evaluation.suites import check_suite
from qwenvl_agent.files import read_json, write_json
from qwenvl_agent.settings import build, check_values, read_values

PLACES = ("name", "runs_dir")
MAX_NAME = 80


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """What a file may say."""

    config: str
    """The config that is varied."""
    set: dict = field(default_factory=dict)
    """Dotted key -> value, for all cells."""
    cells: list | dict = field(default_factory=lambda: [{}])
    """Overrides of one cell each: a list, or name -> overrides."""
    grid: dict = field(default_factory=dict)
    """Dotted key -> list of values: every combination of them with every entry of `cells`."""
    metric: str = "eval/token_loss/all"
    """A logged value that says which cell is best."""
    goal: Literal["min", "max"] = "min"
    """Which values of `metric` are better."""

    def __post_init__(self):
        check_values(self, "")
        check_shape(self)


@dataclass(frozen=True)
class Cell:
    name: str
    overrides: dict[str, object]
    """Dotted key -> JSON value: what this cell sets, `set` included."""
    config: Config

    @property
    def settings(self) -> list[str]:
        """`key=value` for `--set`, the run's place first."""
        places = {"runs_dir": self.config.runs_dir, "name": self.config.name}
        return [override_of(key, value) for key, value in (places | self.overrides).items()]


@dataclass(frozen=True)
class Sweep:
    name: str
    config_path: str
    directory: Path
    cells: tuple[Cell, ...]
    metric: str
    goal: str

    @property
    def swept_keys(self) -> list[str]:
        """The keys whose value differs between cells."""
        keys = list(dict.fromkeys(key for cell in self.cells for key in cell.overrides))
        return [key for key in keys if len({json.dumps(cell.overrides.get(key)) for cell in self.cells}) > 1]

    def is_better(self, value: float, other: float) -> bool:
        return value > other if self.goal == "max" else value < other


def load_sweep(path: Path) -> Sweep:
    """ValueError names the file, the cell and what is wrong with it."""
    values = read_values(path, what="sweep")
    try:
        file = build(SweepFile, values)
        base = load_config(file.config, [override_of(k, v) for k, v in file.set.items()])
        directory = Path(base.runs_dir) / path.stem
        cells = tuple(build_cell(file.config, directory, name, overrides) for name, overrides in expand(file).items())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Sweep(path.stem, file.config, directory, cells, file.metric, file.goal)


def check_shape(file: SweepFile) -> None:
    """ValueError unless `set`, `cells` and `grid` hold overrides."""
    cells = file.cells.values() if isinstance(file.cells, dict) else file.cells
    if not isinstance(file.cells, dict | list) or not file.cells:
        raise ValueError('cells is empty or no list: there is nothing to run; write [{"train.seed": 1}, ...]')
    for what, group in (("set", file.set), ("grid", file.grid), *(("an entry of cells", c) for c in cells)):
        if not isinstance(group, dict):
            raise ValueError(f"{what} is {group!r}, which sets nothing; write an object, dotted key -> value")
    for key, choices in file.grid.items():
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"grid: {key} is {choices!r}, which spans nothing; write a list of values")


def expand(file: SweepFile) -> dict[str, dict[str, object]]:
    """Name -> overrides of every cell, in the order of the file, the last key of the grid running fastest."""
    cells = file.cells
    named = list(cells.items()) if isinstance(cells, dict) else [("", cell) for cell in cells]
    keys = list(file.grid)
    points = []
    for (name, cell), choice in itertools.product(named, itertools.product(*file.grid.values())):
        groups = (file.set, cell, dict(zip(keys, choice, strict=True)))
        check_set_once(groups)
        points.append((name, groups))
    labels = short_keys(dict.fromkeys(key for _, (_, cell, point) in points for key in (*cell, *point)))
    expanded = {}
    for name, (common, cell, point) in points:
        shown = point if name else cell | point
        full_name = cell_name(name, {labels[key]: value for key, value in shown.items()})
        if full_name in expanded:
            raise ValueError(f"cell {full_name} is there twice: the two would share one run; remove one")
        expanded[full_name] = common | cell | point
    return expanded


def check_set_once(groups: Sequence[dict]) -> None:
    for first, second in itertools.combinations(groups, 2):
        if both := first.keys() & second.keys():
            raise ValueError(f"{min(both)} is set in two of set, cells and grid: one would hide the other; keep one")


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Key -> its last part, or all of it where two keys end alike."""
    tails = {key: key.rpartition(".")[2] for key in keys}
    return {key: tail if list(tails.values()).count(tail) == 1 else key for key, tail in tails.items()}


def cell_name(name: str, shown: dict[str, object]) -> str:
    """A folder's name, `learning_rate=0.0001,rank=8`; with a hash where the values cannot be written out."""
    texts = [f"{k}={v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for k, v in shown.items()]
    text = ",".join(filter(None, (name, *texts))) or "base"
    clean = re.sub(r"[^\w.+=,-]", "_", text, flags=re.ASCII)[:MAX_NAME].lstrip(".-")
    return clean if clean == text else f"{clean}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def build_cell(config_path: str, directory: Path, name: str, overrides: dict[str, object]) -> Cell:
    for key in PLACES:
        if key in overrides:
            raise ValueError(f"{key} is set: the sweep itself gives each run its place; remove it")
    places = {"runs_dir": str(directory), "name": name}
    try:
        config = load_config(config_path, [override_of(key, value) for key, value in (places | overrides).items()])
        check_suite(config)
    except ValueError as error:
        raise ValueError(f"cell {name}: {error}") from None
    return Cell(name, overrides, config)


def override_of(key: str, value: object) -> str:
    """`key=value` as `load_config` reads it: quotes only around a string that would be read as something else."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except json.JSONDecodeError:
            return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def frozen_path(sweep: Sweep, cell: Cell) -> Path:
    return sweep.directory / "cells" / f"{cell.name}.json"


def freeze(sweep: Sweep, cells: Sequence[Cell]) -> None:
    """Write the cells' configs; ValueError if one was started with other settings."""
    for cell in sweep.cells:
        path, now = frozen_path(sweep, cell), to_json(cell.config)
        if path.exists() and (changed := changed_keys(read_json(path), now)):
            raise ValueError(
                f"{path} was started with other settings ({', '.join(changed)}): its result and those of the cells "
                f"that run now could not be compared; set them back, rename the sweep's file, or delete {path.parent}"
            )
    for cell in cells:
        path = frozen_path(sweep, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, to_json(cell.config))


def changed_keys(before: dict, now: dict) -> list[str]:
    """`group.key` of what differs between two resolved configs."""
    changed = []
    for group in sorted(before.keys() | now.keys()):
        old, new = before.get(group), now.get(group)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += [f"{group}.{key}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        elif old != new:
            changed.append(group)
    return changed
