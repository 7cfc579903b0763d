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

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from qwenvl_agent.config import Config, load_config
from qwenvl_agent.evaluation.suites import is_world, suite_for
from qwenvl_agent.files import read_json
from qwenvl_agent.settings import Range, build, check_values, read_values
from qwenvl_agent.studies.ablation import CONSTRAINED, OUTCOMES
from qwenvl_agent.studies.cells import Cell, Sweep, build_cell, check_set_once, override_of
from qwenvl_agent.studies.programs import program
from qwenvl_agent.worlds import World

MAKES_CELLS = ("config", "set", "arms", "seeds", "prepare")
"""Keys that say what the cells are: a file with `cells_of` has none of them."""
SEED_KEYS = ("train.seed", "data.seed")
TESTS = ("missions", "steps")
"""Evaluations that every cell gets, besides the further plays."""
CHECKPOINT = "last"
"""Every arm at its last step: a best one would be chosen with other care in each."""


@dataclass(frozen=True, kw_only=True)
class Missions:
    """What every cell plays."""

    suite: str = ""
    """The world: a name, or path/to/file.py:make_world; empty: the config's eval.suite."""
    episodes: Annotated[int, Range(1, 1_000_000, "nothing would be compared")] = 200
    """Each on a seed of its own."""
    counterfactual_episodes: Annotated[int, Range(0, 1_000_000, "there are no fewer than none")] = 0
    """Counterfactuals are played on so many of the first missions; 0: on all."""
    seed_start: Annotated[int, Range(-1, 10**12, "seeds are counted from 0")] = -1
    """The first mission's seed; -1: the first of the world's seeds for reports."""
    world: dict = field(default_factory=dict)
    """Settings of the world, over the config's eval.world."""
    oracle: dict = field(default_factory=dict)
    """Settings of the oracle that judges every turn."""

    def __post_init__(self):
        check_values(self, "missions")


@dataclass(frozen=True, kw_only=True)
class AblationFile:
    """What a file may say."""

    question: str
    """That the report answers."""
    config: str
    """The config that all cells share."""
    set: dict = field(default_factory=dict)
    """Dotted key -> value, for all cells."""
    baseline: str
    """The arm that the others are compared with."""
    arms: dict
    """Name -> dotted key -> value."""
    seeds: tuple[int, ...]
    """Training seeds, each of them with every arm."""
    outcomes: tuple[str, ...] = ("success",)
    """What is compared first."""
    missions: Missions = field(default_factory=Missions)
    """What every cell plays."""
    rows: Annotated[int, Range(0, 10**9, "there are no such rows")] = 500
    """Held-out rows of the offline step metrics."""
    counterfactuals: tuple[str, ...] = ()
    """Changes under which missions are played again."""
    constrained: bool = False
    """Play the missions a second time, with constrained decoding."""
    prepare: dict = field(default_factory=dict)
    """File -> the command that makes it, run if the file is missing."""
    cells_of: str = ""
    """Another file beside this one, whose cells these are."""

    def __post_init__(self):
        check_values(self, "")
        check_arms(self)


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
    missions: Missions
    """With the world's name and its first seed."""
    world: World
    """Under the rules of the first cell, if cells differ in them."""
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
    values = read_values(path, what="ablation")
    try:
        file = build(AblationFile, with_other_file(path, values))
        base = load_config(file.config, [override_of(k, v) for k, v in file.set.items()])
        directory = Path(base.runs_dir) / f"ablation_{Path(file.cells_of or path).stem}"
        cells, places = build_cells(file, directory, seeds)
        name = world_of(file, base)
        world = suite_for(name, cells[0].config, file.missions.world).world
        check_plays(file, world)
        start = world.seeds.report.start if file.missions.seed_start < 0 else file.missions.seed_start
        missions = replace(file.missions, suite=name, seed_start=start)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    sweep = Sweep(directory.name, file.config, directory, cells, "eval/token_loss/all", "min")
    return Ablation(
        question=file.question,
        baseline=file.baseline,
        arms=tuple(file.arms),
        outcomes=file.outcomes,
        missions=missions,
        world=world,
        rows=file.rows,
        plays=(*([CONSTRAINED] if file.constrained else []), *file.counterfactuals),
        prepare=file.prepare,
        sweep=sweep,
        places=places,
        report_dir=directory / (f"report_{path.stem}" if file.cells_of else "report"),
    )


def with_other_file(path: Path, values: dict) -> dict:
    """With the values of the file whose cells these are, if they are another's."""
    if not values.get("cells_of"):
        return values
    other = path.parent / values["cells_of"]
    for key in MAKES_CELLS:
        if key in values:
            raise ValueError(f"{key} beside cells_of: the cells are those of {other}; leave one of the two out")
    found = read_values(other, what="ablation")
    if found.get("cells_of"):
        raise ValueError(f"cells_of names {other}, whose cells are another file's; name {found['cells_of']}")
    try:
        build(AblationFile, found)
    except ValueError as error:
        raise ValueError(f"cells_of {other}: {error}") from None
    return found | values


def check_arms(file: AblationFile) -> None:
    """ValueError unless there are arms, paired by seed, and a baseline among them."""
    if len(file.arms) < 2:
        raise ValueError(f"{len(file.arms)} arm: there is nothing to compare it with; add another")
    if file.baseline not in file.arms:
        raise ValueError(
            f"baseline {file.baseline!r} is no arm: nothing would be compared with it; "
            f"use one of {', '.join(file.arms)}"
        )
    for name, arm in file.arms.items():
        if not isinstance(arm, dict):
            raise ValueError(f"arm {name} is {arm!r}, which sets nothing; write an object, dotted key -> value")
        for key in SEED_KEYS:
            if key in arm or key in file.set:
                raise ValueError(f"arm {name} sets {key}: arms would not be paired by seed; use the key 'seeds'")
    if not file.seeds or len(set(file.seeds)) < len(file.seeds):
        raise ValueError(f"seeds is {list(file.seeds)}: each training seed is there once; write [0, 1, 2]")


def world_of(file: AblationFile, base: Config) -> str:
    """The world of the missions: named by the file, or the config's; a file often sets eval.suite to none for training."""
    named = (file.missions.suite, base.eval.suite, load_config(file.config).eval.suite)
    name = next((name for name in named if name and is_world(name)), "")
    if not name:
        raise ValueError(
            "neither missions.suite nor the config's eval.suite is a world: nothing could be played; name one"
        )
    return name


def check_plays(file: AblationFile, world: World) -> None:
    """ValueError for missions or outcomes that the world cannot give."""
    world.make_reference(**file.missions.oracle)
    known = ["picture_blank", *world.counterfactuals()]
    for name in file.counterfactuals:
        if name not in known:
            raise ValueError(f"counterfactual {name!r} does not exist: it could not be played; use {', '.join(known)}")
    for name in file.outcomes:
        if name not in OUTCOMES:
            raise ValueError(f"outcome {name!r} does not exist: nothing could be compared; use {', '.join(OUTCOMES)}")


def build_cells(
    file: AblationFile, directory: Path, seeds: Sequence[int] | None
) -> tuple[tuple[Cell, ...], dict[str, Arm]]:
    for seed in seeds or ():
        if seed not in file.seeds:
            known = ", ".join(map(str, file.seeds))
            raise ValueError(f"training seed {seed} is none of the file's: it has no cells; the seeds are {known}")
    cells, places = [], {}
    for seed in seeds or file.seeds:
        for arm, settings in file.arms.items():
            check_set_once((file.set, settings))
            overrides = file.set | settings | dict.fromkeys(SEED_KEYS, seed)
            cell = build_cell(file.config, directory, f"{arm}_seed{seed}", overrides)
            cells.append(cell)
            places[cell.name] = Arm(arm, seed)
    return tuple(cells), places


def result_dir(cell: Cell, test: str) -> Path:
    return cell.config.run_dir / "eval" / test


def evaluation_command(ablation: Ablation, cell: Cell, test: str) -> list[str]:
    """eval.py's for one evaluation of one cell."""
    command = [sys.executable, *program("eval.py"), "--run", str(cell.config.run_dir), "--checkpoint", CHECKPOINT]
    command += ["--out", str(result_dir(cell, test))]
    if test == "steps":
        return [*command, "--suite", "steps", "--rows", str(ablation.rows)]
    missions = ablation.missions
    command += ["--suite", missions.suite, "--episodes", str(num_missions(ablation, test))]
    command += ["--seed-start", str(missions.seed_start)]
    for option in ("world", "oracle"):
        for key, value in getattr(missions, option).items():
            command += [f"--{option}", override_of(key, value)]
    if test == "missions":
        return command
    changed = {"picture_blank": ["--blank-pictures"], CONSTRAINED: ["--set", "eval.constrained=true"]}.get(
        test, ["--counterfactual", test]
    )
    return [*command, *changed, "--no-pictures"]


def num_missions(ablation: Ablation, test: str) -> int:
    missions = ablation.missions
    return (test not in ("missions", CONSTRAINED) and missions.counterfactual_episodes) or missions.episodes


def is_evaluated(ablation: Ablation, cell: Cell, test: str) -> bool:
    """Whether a result is there that answers what the file asks now."""
    path = result_dir(cell, test) / "metrics.json"
    if not path.exists():
        return False
    about = read_json(path)["about"]
    if test == "steps":
        return about["num_rows"] == min(ablation.rows, about["num_held_out"])
    missions = ablation.missions
    wanted = {"start": missions.seed_start, "count": num_missions(ablation, test)}
    if any(about["seeds"][key] != value for key, value in wanted.items()):
        return False
    rules = about["world"]
    if about.get("world_from", about["suite"]) != missions.suite:
        return False
    same_world = all(rules.get(key) == value for key, value in missions.world.items())
    return same_world and (about.get("oracle") or {}) == missions.oracle
