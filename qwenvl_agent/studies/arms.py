"""An ablation's file: arms x training seeds of one config, each cell played on the same missions.

    {
      "question": "Does a small VLM act better with native tool calls than with text?",
      "config": "configs/safari_tiny.json",
      "set": {"eval.suite": "none"},
      "baseline": "native",
      "arms": {"native": {"prompt.format": "native"}, "plain": {"prompt.format": "plain"}},
      "seeds": [0, 1, 2, 3, 4, 5],
      "outcomes": ["success", "optimal"],
      "missions": {"episodes": 200, "counterfactual_episodes": 50, "world": {}, "oracle": {"max_path": 4}},
      "rows": 500,
      "counterfactuals": ["notepad_wiped"],
      "constrained": true,
      "prepare": {"generated/x/manifest.json": ["python", "scripts/generate_oracle.py", "..."]}
    }

A training seed is `train.seed` and `data.seed`: what is drawn in training, which rows are held out, and their order. It
is the same for all arms, so arms are compared on the same rows in the same order. Cells come seed by seed, all arms
of the first before the second, so that an ablation that was broken off is still balanced. `prepare` makes what cells
need: file -> the command that makes it, run if the file is missing. `constrained` plays the missions a second time, with
constrained decoding in all arms. The folder, like a sweep's, is runs_dir/ablation_NAME; see `cells` for what else lies
there.

A file with "cells_of": "OTHER.json" asks another question of the cells that OTHER.json beside it has trained: they stay
where they are, and all keys that it does not give itself are that file's. Its report lies beside them, in report_NAME.
"""

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenvl_agent.config import load_config
from qwenvl_agent.studies.ablation import CONSTRAINED
from qwenvl_agent.studies.cells import Cell, Sweep, build_cell, check_set_once, override_of
from qwenvl_agent.worlds.safari.counterfactuals import COUNTERFACTUALS

KEYS = {
    "question": str,
    "config": str,
    "set": dict,
    "baseline": str,
    "arms": dict,
    "seeds": list,
    "outcomes": list,
    "missions": dict,
    "rows": int,
    "counterfactuals": list,
    "constrained": bool,
    "prepare": dict,
    "cells_of": str,
}
DEFAULTS = {
    "set": {},
    "outcomes": ["success"],
    "rows": 500,
    "counterfactuals": [],
    "constrained": False,
    "prepare": {},
    "cells_of": "",
}
MAKES_CELLS = ("config", "set", "arms", "seeds", "prepare")
"""Keys that say what the cells are: a file with `cells_of` has none of them."""
MISSIONS = {"episodes": 200, "counterfactual_episodes": 0, "seed_start": 2_000_000, "world": {}, "oracle": {}}
"""Counterfactuals are played on the first `counterfactual_episodes` missions; 0: on all."""
SEED_KEYS = ("train.seed", "data.seed")
TESTS = ("missions", "steps")
"""Evaluations that every cell gets, besides the further plays."""
CHECKPOINT = "last"
"""Every arm at its last step: a best one would be chosen with other care in each."""


@dataclass(frozen=True)
class Arm:
    """Which arm and training seed a cell is."""

    arm: str
    seed: int


@dataclass(frozen=True)
class Ablation:
    """A file, read; `sweep` holds the cells, `places` what each is."""

    question: str
    baseline: str
    arms: tuple[str, ...]
    outcomes: tuple[str, ...]
    missions: dict
    rows: int
    plays: tuple[str, ...]
    """The missions played again: CONSTRAINED, counterfactuals."""
    prepare: dict[str, list[str]]
    sweep: Sweep
    places: dict[str, Arm]
    report_dir: Path

    @property
    def tests(self) -> tuple[str, ...]:
        return (*TESTS, *self.plays)


def load_ablation(path: Path, seeds: Sequence[int] | None = None) -> Ablation:
    """`seeds` keeps only cells of these training seeds. ValueError names the file and what is wrong with it."""
    try:
        values = read_values(path)
        base = load_config(values["config"], [override_of(k, v) for k, v in values["set"].items()])
        directory = Path(base.runs_dir) / f"ablation_{Path(values['cells_of'] or path).stem}"
        cells, places = build_cells(values, directory, seeds)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    sweep = Sweep(directory.name, values["config"], directory, cells, "eval/token_loss/all", "min")
    return Ablation(
        question=values["question"],
        baseline=values["baseline"],
        arms=tuple(values["arms"]),
        outcomes=tuple(values["outcomes"]),
        missions=MISSIONS | values["missions"],
        rows=values["rows"],
        plays=(*([CONSTRAINED] if values["constrained"] else []), *values["counterfactuals"]),
        prepare=values["prepare"],
        sweep=sweep,
        places=places,
        report_dir=directory / (f"report_{path.stem}" if values["cells_of"] else "report"),
    )


def read_values(path: Path) -> dict:
    """The file's values with defaults, checked."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: not JSON ({error.msg}): no arm can be read; correct it") from None
    except OSError as error:
        raise ValueError(f"{error.strerror}: there is no ablation to run; name an existing file") from None
    if not isinstance(values, dict):
        raise ValueError("it is no object with a question, a config and arms: there is nothing to compare; write one")
    check_keys(values, KEYS)
    if values.get("cells_of"):
        values = of_other_file(path, values) | values
    values = DEFAULTS | {"missions": {}} | values
    for key, kind in KEYS.items():
        if key not in values:
            raise ValueError(f"{key!r} is missing: nothing could be compared; add it")
        if type(values[key]) is not kind:
            raise ValueError(f"{key} is {values[key]!r}, which is not of type {kind.__name__}; correct it")
    check_values(values)
    return values


def of_other_file(path: Path, values: dict) -> dict:
    """The values of the file whose cells these are."""
    other = path.parent / values["cells_of"]
    for key in MAKES_CELLS:
        if key in values:
            raise ValueError(f"{key} beside cells_of: the cells are those of {other}; leave one of the two out")
    try:
        found = read_values(other)
    except ValueError as error:
        raise ValueError(f"cells_of {other}: {error}") from None
    if found["cells_of"]:
        raise ValueError(f"cells_of names {other}, whose cells are another file's; name {found['cells_of']}")
    return found


def check_keys(values: dict, known: dict) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown key {key!r}: it would have no effect; nearest known key: {near!r}")


def check_values(values: dict) -> None:
    check_keys(values["missions"], MISSIONS)
    if len(values["arms"]) < 2:
        raise ValueError(f"{len(values['arms'])} arm: there is nothing to compare it with; add another")
    if values["baseline"] not in values["arms"]:
        raise ValueError(
            f"baseline {values['baseline']!r} is no arm: nothing would be compared with it; "
            f"use one of {', '.join(values['arms'])}"
        )
    for name, arm in values["arms"].items():
        if not isinstance(arm, dict):
            raise ValueError(f"arm {name} is {arm!r}, which sets nothing; write an object, dotted key -> value")
        for key in SEED_KEYS:
            if key in arm or key in values["set"]:
                raise ValueError(f"arm {name} sets {key}: arms would not be paired by seed; use the key 'seeds'")
    numbers = values["seeds"]
    if not numbers or any(type(seed) is not int for seed in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds is {numbers!r}: each training seed must be a whole number, once; write [0, 1, 2]")
    for name in values["counterfactuals"]:
        if name not in COUNTERFACTUALS:
            raise ValueError(
                f"counterfactual {name!r} does not exist: it could not be played; use {', '.join(COUNTERFACTUALS)}"
            )


def build_cells(values: dict, directory: Path, seeds: Sequence[int] | None) -> tuple[tuple[Cell, ...], dict[str, Arm]]:
    for seed in seeds or ():
        if seed not in values["seeds"]:
            known = ", ".join(map(str, values["seeds"]))
            raise ValueError(f"training seed {seed} is none of the file's: it has no cells; the seeds are {known}")
    cells, places = [], {}
    for seed in seeds or values["seeds"]:
        for arm, settings in values["arms"].items():
            check_set_once((values["set"], settings))
            overrides = values["set"] | settings | dict.fromkeys(SEED_KEYS, seed)
            cell = build_cell(values["config"], directory, f"{arm}_seed{seed}", overrides)
            cells.append(cell)
            places[cell.name] = Arm(arm, seed)
    return tuple(cells), places


def result_dir(cell: Cell, test: str) -> Path:
    return cell.config.run_dir / "eval" / test


def evaluation_command(ablation: Ablation, cell: Cell, test: str) -> list[str]:
    """eval.py's for one evaluation of one cell."""
    command = [sys.executable, "eval.py", "--run", str(cell.config.run_dir), "--checkpoint", CHECKPOINT]
    command += ["--out", str(result_dir(cell, test))]
    if test == "steps":
        return [*command, "--suite", "steps", "--rows", str(ablation.rows)]
    missions = ablation.missions
    command += ["--suite", "safari", "--episodes", str(num_missions(ablation, test))]
    command += ["--seed-start", str(missions["seed_start"])]
    for option in ("world", "oracle"):
        for key, value in missions[option].items():
            command += [f"--{option}", override_of(key, value)]
    if test == "missions":
        return command
    changed = {"picture_blank": ["--blank-pictures"], CONSTRAINED: ["--set", "eval.constrained=true"]}.get(
        test, ["--counterfactual", test]
    )
    return [*command, *changed, "--no-pictures"]


def num_missions(ablation: Ablation, test: str) -> int:
    missions = ablation.missions
    return (test not in ("missions", CONSTRAINED) and missions["counterfactual_episodes"]) or missions["episodes"]


def is_evaluated(ablation: Ablation, cell: Cell, test: str) -> bool:
    """Whether a result is there that answers what the file asks now."""
    path = result_dir(cell, test) / "metrics.json"
    if not path.exists():
        return False
    about = json.loads(path.read_text(encoding="utf-8"))["about"]
    if test == "steps":
        return about["num_rows"] == min(ablation.rows, about["num_held_out"])
    missions = ablation.missions
    wanted = {"start": missions["seed_start"], "count": num_missions(ablation, test)}
    if any(about["seeds"][key] != value for key, value in wanted.items()):
        return False
    rules = about["world"]
    same_world = all(rules.get(key) == value for key, value in missions["world"].items())
    return same_world and (about.get("oracle") or {}) == missions["oracle"]
