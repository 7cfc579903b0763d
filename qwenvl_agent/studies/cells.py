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

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenvl_agent.config import Config, check_choice, load_config, to_json
from qwenvl_agent.evaluation.suites import check_suite

KEYS = ("config", "set", "cells", "grid", "metric", "goal")
PLACES = ("name", "runs_dir")
MAX_NAME = 80


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
    values = read_sweep_file(path)
    try:
        base = load_config(values["config"], [override_of(k, v) for k, v in values["set"].items()])
        points = expand(values)
        directory = Path(base.runs_dir) / path.stem
        cells = tuple(build_cell(values["config"], directory, name, overrides) for name, overrides in points.items())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Sweep(path.stem, values["config"], directory, cells, values["metric"], values["goal"])


def read_sweep_file(path: Path) -> dict:
    """The file's values with defaults."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}): no cell can be read; correct it") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: there is no sweep to run; name an existing file") from None
    if not isinstance(values, dict) or not isinstance(values.get("config"), str):
        raise ValueError(f'{path}: it names no config, so there is nothing to vary; write {{"config": PATH, ...}}')
    for key in values:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)[0]
            raise ValueError(f"{path}: unknown key {key!r}: it would have no effect; nearest known key: {near!r}")
    values = {"set": {}, "cells": [{}], "grid": {}, "metric": "eval/token_loss/all", "goal": "min"} | values
    try:
        check_choice("goal", values["goal"], ("min", "max"))
        check_shape(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return values


def check_shape(values: dict) -> None:
    """ValueError unless `set`, `cells` and `grid` hold overrides."""
    cells = values["cells"].values() if isinstance(values["cells"], dict) else values["cells"]
    if not isinstance(values["cells"], dict | list) or not values["cells"]:
        raise ValueError('cells is empty or no list: there is nothing to run; write [{"train.seed": 1}, ...]')
    for what, group in (("set", values["set"]), ("grid", values["grid"]), *(("an entry of cells", c) for c in cells)):
        if not isinstance(group, dict):
            raise ValueError(f"{what} is {group!r}, which sets nothing; write an object, dotted key -> value")
    for key, choices in values["grid"].items():
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"grid: {key} is {choices!r}, which spans nothing; write a list of values")


def expand(values: dict) -> dict[str, dict[str, object]]:
    """Name -> overrides of every cell, in the order of the file, the last key of the grid running fastest."""
    cells = values["cells"]
    named = list(cells.items()) if isinstance(cells, dict) else [("", cell) for cell in cells]
    keys = list(values["grid"])
    points = []
    for (name, cell), choice in itertools.product(named, itertools.product(*values["grid"].values())):
        groups = (values["set"], cell, dict(zip(keys, choice, strict=True)))
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
        if path.exists() and (changed := changed_keys(json.loads(path.read_text(encoding="utf-8")), now)):
            raise ValueError(
                f"{path} was started with other settings ({', '.join(changed)}): its result and those of the cells "
                f"that run now could not be compared; set them back, rename the sweep's file, or delete {path.parent}"
            )
    for cell in cells:
        path = frozen_path(sweep, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(to_json(cell.config), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
