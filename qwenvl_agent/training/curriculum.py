"""A curriculum as a list of ordinary runs, from its config alone: what each trains on, and what it begins with.

    {"name": "NAME", "model": ..., "stages": [
        {"name": "perception", "set": {"data.sources": [{"path": "data/perception"}], "train": {"max_steps": 500}}},
        {"name": "agent", "set": {"data.sources": [...], "train": {"max_steps": 2000}}}]}

is runs/NAME/perception and then runs/NAME/agent, which begins with the weights of the one before. What trains them one
after the other is stages.py.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwenvl_agent.config import Config, SourceConfig, StageConfig, build_config, to_json
from qwenvl_agent.evaluation.suites import check_suite, training_suite
from qwenvl_agent.settings import apply_override, join
from qwenvl_agent.training import own_states
from qwenvl_agent.training.made_data import DataMaker
from qwenvl_agent.training.start import check_fits

DATA = "data"
"""Of a run whose data is made for it: RUN/data."""
OF_ALL = ("name", "runs_dir", "stages")
"""Keys that a stage cannot set: its folder follows from them."""


MAKERS: dict[str, DataMaker] = {"own_states": own_states.OWN_STATES, "won_missions": own_states.WON_MISSIONS}
"""By the name of the group in a stage."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a curriculum, or one of its rounds."""

    stage: StageConfig
    config: Config
    round: int = 0
    """From 1, of a stage whose data is made; else 0."""
    is_last: bool = True
    """Of its stage: the gate is asked after it."""

    @property
    def made_by(self) -> str:
        return made_by(self.stage)


def plan_runs(config: Config) -> list[PlannedRun]:
    """The runs of all stages, in their order; ValueError, with the stage, for what cannot be trained."""
    runs: list[PlannedRun] = []
    for i, stage in enumerate(config.stages):
        try:
            runs += runs_of_stage(config, stage, [run.config for run in runs])
        except ValueError as error:
            raise ValueError(f"stages[{i}] ({stage.name}): {error}") from None
    folders = [run.config.name for run in runs]
    if twice := {name for name in folders if folders.count(name) > 1}:
        raise ValueError(f"stages: two runs would share the folder {min(twice)}; rename a stage")
    return runs


def runs_of_stage(config: Config, stage: StageConfig, earlier: Sequence[Config]) -> list[PlannedRun]:
    group = made_by(stage)
    first = config_of_stage(config, stage, earlier)
    if not group:
        return [check_run(PlannedRun(stage, first), earlier, config)]
    settings = getattr(stage, group)
    if not first.model.init_from:
        raise ValueError(
            f"{group} is made by the weights before it, and there are none: put a stage before it, or set model.init_from"
        )
    runs: list[PlannedRun] = []
    for number in range(1, settings.rounds + 1):
        made = replace(first, name=f"{stage.name}_{number}")
        folders = [run.config.run_dir / DATA for run in runs] + [made.run_dir / DATA]
        made = replace(made, data=replace(made.data, sources=sources_of(made, group, settings, folders)))
        if runs:
            made = begun_with(made, runs[-1].config)
        run = PlannedRun(stage, made, number, number == settings.rounds)
        runs.append(check_run(run, [*earlier, *(run.config for run in runs)], config))
    return runs


def sources_of(config: Config, group: str, settings: object, folders: Sequence[Path]) -> tuple[SourceConfig, ...]:
    """The stage's own sources, and what was made until now: `weight` in all, the same of each round."""
    weight = settings.weight / len(folders)  # type: ignore[attr-defined]
    made = [replace(MAKERS[group].source(config, settings, folder), weight=weight) for folder in folders]
    return (*config.data.sources, *made)


def made_sources(run: PlannedRun) -> tuple[SourceConfig, ...]:
    """Of a round's sources those that are made for it and for the rounds before it."""
    return run.config.data.sources[-run.round :] if run.round else ()


def made_by(stage: StageConfig) -> str:
    """The group by which a stage's data is made, "" if it has none."""
    groups = [name for name in MAKERS if getattr(stage, name, None) is not None]
    if len(groups) > 1:
        raise ValueError(f"{' and '.join(groups)}: the data of a stage is made in one way; make two stages of it")
    return groups[0] if groups else ""


def config_of_stage(config: Config, stage: StageConfig, earlier: Sequence[Config]) -> Config:
    """The shared settings with the stage's own over them; it begins with the run before, unless it says otherwise (with an
    earlier stage's name, with another run, or with nothing, which is the base)."""
    values = {key: value for key, value in to_json(config).items() if key != "stages"}
    merge(values, stage.set)
    if any(values[key] != getattr(config, key) for key in ("name", "runs_dir")) or "stages" in values:
        raise ValueError(f"set has one of {', '.join(OF_ALL)}: a stage's folder follows from them; leave it out of set")
    if isinstance(values["model"], dict):  # else build_config says what is wrong
        named = {other.name: str(other.run_dir) for other in earlier}
        is_given = sets(stage.set, "model", "init_from") or not earlier
        begins_with = values["model"]["init_from"] if is_given else earlier[-1].name
        values["model"]["init_from"] = named.get(begins_with, begins_with)
    return build_config(values | {"name": stage.name, "runs_dir": str(config.run_dir)})


def begun_with(config: Config, before: Config) -> Config:
    return replace(config, model=replace(config.model, init_from=str(before.run_dir)))


def merge(values: dict, changes: dict, path: str = "") -> None:
    """Set `changes` in `values`, in place: objects key by key, dotted keys and all else as a whole."""
    for key, value in changes.items():
        if "." in key:
            apply_override(values, f"{key}=null")  # makes the groups on the way, and finds what is no group
            *groups, last = key.split(".")
            inner = values
            for group in groups:
                inner = inner[group]
            inner[last] = copy.deepcopy(value)
        elif isinstance(value, dict) and isinstance(values.get(key), dict):
            merge(values[key], value, join(path, key))
        else:
            values[key] = copy.deepcopy(value)


def recorder_options(entry: dict) -> list[str]:
    """An entry of `StageConfig.record` as arguments of `qwenvl-agent record`."""
    arguments = []
    for key, value in entry.items():
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, dict) and key != "rules":
            arguments += [f"{option}={name}={json.dumps(inner)}" for name, inner in value.items()]
        elif isinstance(value, bool):
            arguments += [option] * value
        else:
            arguments.append(f"{option}={value if isinstance(value, str) else json.dumps(value)}")
    return arguments


def check_recorded(config: Config, stage: StageConfig) -> None:
    """ValueError for a dataset that would be recorded to no end, or not by the recorder's own rules."""
    read = [Path(source.path) for source in config.data.sources]
    for i, entry in enumerate(stage.record):
        if missing := {"out", "episodes"} - entry.keys():
            raise ValueError(f"record[{i}].{min(missing)} is missing: nothing could be recorded; set it")
        if taken := {"config", "json", "overwrite", "reuse"} & entry.keys():
            raise ValueError(f"record[{i}].{min(taken)} is not a stage's to set: leave it out")
        out = Path(str(entry["out"]))
        if not any(out == path or out in path.parents for path in read):
            raise ValueError(
                f"record[{i}].out is {str(out)!r}, and no source of the stage is there: it would be recorded for nothing; "
                f'add {{"path": "{out}"}} to data.sources'
            )


def sets(changes: dict, group: str, key: str) -> bool:
    """Whether a stage sets `group.key`, in either way of writing it."""
    nested = changes.get(group)
    return f"{group}.{key}" in changes or (isinstance(nested, dict) and key in nested)


def check_run(run: PlannedRun, earlier: Sequence[Config], whole: Config) -> PlannedRun:
    """ValueError for what would show only when the run begins, after hours of the runs before it."""
    config = run.config
    check_suite(config)
    if not config.data.sources:
        raise ValueError("data.sources is empty: there is nothing to learn; set it for all stages or for this one")
    check_recorded(config, run.stage)
    for before in (other for other in earlier if config.model.init_from == str(other.run_dir)):
        check_fits(config, before, before.model.path)
    for key in ("zero_stage", "cpu_offload"):
        if getattr(config.train, key) != getattr(whole.train, key):
            raise ValueError(
                f"train.{key} is {getattr(config.train, key)!r}, {getattr(whole.train, key)!r} beside stages: the ranks are "
                "started once for all of them; set it there"
            )
    if run.stage.gate and run.is_last:
        check_gate(config, run.stage)
    return run


def check_gate(config: Config, stage: StageConfig) -> None:
    """ValueError if nothing would measure the gate's metric."""
    assert stage.gate
    metric, cfg = stage.gate.metric, config.eval
    group = metric.partition("/")[0]
    suite_group = training_suite(cfg).group
    if config.train.zero_stage == 3:
        why = "under ZeRO-3 there is no evaluation inside training"
    elif group == "eval" and not cfg.step_rows:
        why = "eval.step_rows is 0"
    elif group not in ("eval", suite_group):
        why = f"eval.suite {cfg.suite!r} measures {f'{suite_group}/...' if suite_group else 'nothing'}"
    elif group == suite_group and not cfg.episodes:
        why = "eval.episodes is 0"
    else:
        return
    raise ValueError(
        f"gate.metric {metric!r} would not be measured: {why}; take another metric, or change that setting"
    )
