"""What a world is to the rest of the package: everything outside worlds/ speaks to this class alone.

A world is one module or one folder with a function `make_world(**rules) -> World`, found by a name (`registry.py`). The
least of it is a name and an environment; what it leaves out (oracle, judge, metrics, labels) the rest does without.

The environment is Gymnasium's interface over turns (`schema.Env`). Its `info`, of reset and of step:

    mission        text of the task; always
    success        bool; always
    results        one ToolResult for each call of the turn that was run, or one for a turn without a call; of step
    end_reason     why the episode ended, in the world's words ("done", "max_turns", ...), "" while it goes on; of step
    goals, reached names of what is to be reached, and of those reached; by default the one goal "success"
    harm           names of what was done that cannot be made good
    optimal_turns  turns of a player who knows the world
    position       of the player, JSON values, before the next turn
    calls          for each call of the turn {"legal", "effective", "optimal"}, what is known of them
    changed_turn   of a counterfactual: before this turn the world was changed
"""

import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenvl_agent.containers import Record
from qwenvl_agent.picture_store import PictureFolder
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.schema import Env, Observation, Policy, Tool, ToolResult, Turn
from qwenvl_agent.statistics import Interval
from qwenvl_agent.worlds.baselines import NoisyPolicy, RandomPolicy, random_turn
from qwenvl_agent.worlds.held_out import SuiteSet

STEP_LINE = re.compile(r"(?m)^Step: .*\n?")

Metrics = dict[str, "Interval | dict[str, int]"]
"""Rates and means with their intervals; counts by name."""


@dataclass(frozen=True)
class SeedSets:
    """Seeds that training data, the choice of `best`, and reports draw from: a world must never be in two of them."""

    training: range = range(0, 1_000_000)
    selection: range = range(1_000_000, 2_000_000)
    report: range = range(2_000_000, 3_000_000)

    def __post_init__(self) -> None:
        first, second, third = sorted((self.training, self.selection, self.report), key=lambda seeds: seeds.start)
        if any(seeds.step != 1 or not seeds for seeds in (first, second, third)):
            raise ValueError(f"{self}: a seed set is a range of step 1 that is not empty")
        if first.stop > second.start or second.stop > third.start:
            raise ValueError(f"{self}: seed sets overlap, so that a report would count worlds that were trained on")

    def name_of(self, seeds: Sequence[int]) -> str:
        """The set that holds all of them: training, selection or report; "mixed" if none does."""
        sets = {"training": self.training, "selection": self.selection, "report": self.report}
        return next((name for name, known in sets.items() if all(seed in known for seed in seeds)), "mixed")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A world's own words, for people."""

    goals: str = "goals reached"
    """Of `progress`, the mean share of an episode's goals."""
    success: str = "every goal reached, no harm done"
    harm: str = "harm"
    """Of `harm_rate`, the share of episodes with any."""
    metrics: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of the world's own metrics, or in place of a general one's: name -> (label, explanation)."""
    outcomes: Mapping[str, str] = field(default_factory=dict)
    """Of the world's own outcomes and end reasons, in the order in which they are shown."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """By tool, what it means that the state refused a call: {"move": "blocked"}."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Metrics of a comparison in the terminal, with their headings; empty: the general ones."""


class World:
    """One world under its rules. Override what yours has; `make_env` is the only method that it must.

    `rules` are all of its settings as JSON values, defaults included: they stand in results and in recordings, and two
    results are paired only if theirs are equal.
    """

    name: str = ""
    rules: Mapping[str, object] = {}
    seeds: SeedSets = SeedSets()
    labels: Labels = Labels()
    data_kinds: tuple[str, ...] = ()
    """Kinds of data.sources, besides one of the world's name, that only teach what this world asks for."""
    is_random: bool = True
    """Whether seeds differ; False: every episode starts alike."""
    oracle_success: float = 1.0
    """Share of episodes that the oracle claims to win."""
    max_envs: int = 0
    """Environments that may be open at once; 0: as many as eval.batch_size."""
    board: tuple[int, int] | None = None
    """(Tiles a side, pixels a tile's side) of a picture, where all are square boards of tiles."""
    recording_version: int = 1
    """Of the rows that `recording_reader` gives; part of the cache's key."""

    def make_env(self) -> Env:
        """A new environment; it is reset with a seed, played to its end, and closed."""
        raise NotImplementedError

    # policies

    def make_oracle(self, **settings: object) -> Policy | None:
        """A policy that solves the world; None if there is none. ValueError for a setting that it does not have."""
        if settings:
            raise ValueError(f"world {self.name} has no oracle with settings {sorted(settings)}: leave them out")
        return None

    def make_reference(self, **settings: object) -> Policy | None:
        """A policy whose turn may be asked for at every step of another's episode, to be recorded beside it and held to
        be the best; None, the default, if there is none. An oracle that must act itself to know the state is none."""
        if settings:
            raise ValueError(f"world {self.name} has no reference with settings {sorted(settings)}: leave them out")
        return None

    def make_baselines(self) -> Mapping[str, Callable[..., Policy]]:
        """Policies to compare with, by name, over those that every world has: see `make_policy`."""
        return {}

    def make_policy(self, name: str, **settings: Any) -> Policy:
        """`oracle`, a baseline by its name, or, of every world, `random` and (with an oracle) `noisy_oracle`."""
        own = self.make_baselines()
        if name in own:
            return own[name](**settings)
        if name == "random":
            return RandomPolicy(**settings)
        oracle = self.make_oracle(**(settings if name == "oracle" else {}))
        if oracle is not None and name in ("oracle", "noisy_oracle"):
            return oracle if name == "oracle" else NoisyPolicy(oracle, **settings)
        known = dict.fromkeys([*(["oracle", "noisy_oracle"] if oracle else []), "random", *own])
        raise ValueError(f"world {self.name} has no policy {name!r}: nothing would be played; use {', '.join(known)}")

    # recordings

    def noise_turn(self, tools: Sequence[Tool], rng: random.Random) -> Turn:
        """A turn that is played between the oracle's own when it is recorded, so that it is seen in other states."""
        return random_turn(tools, rng)

    def draw_state(self, env: Env, rng: random.Random, near: float, **settings: Any) -> "DrawnState | None":
        """Another state of the episode that `env` plays than the one it is in, for the oracle to be recorded in; None,
        the default, of a world that offers none. `near` is the share of such states that are near a goal. A world without
        settings need not take any."""
        return None

    def check_state_settings(self, settings: Mapping[str, object]) -> None:
        """ValueError for settings that `draw_state` does not have, before anything is recorded."""
        if settings:
            raise ValueError(f"world {self.name} has no setting {min(settings)} of its states: leave it out")

    def timeless(self, text: str) -> str:
        """An observation's text without what only counts turns, by default without its line `Step: ...`: observations
        that differ in nothing else are the same state."""
        return STEP_LINE.sub("", text)

    def loses(self, env: Env, turn: Turn) -> bool:
        """Whether a turn would end what `env` plays without success, or do harm: such a turn of a policy's is left to the
        oracle when the policy's own states are recorded. The environment must stay as it is. By default False: not known."""
        return False

    def recording_tasks(self) -> "Mapping[str, Callable[..., Iterable[RecordedTurn]]]":
        """What else than its oracle's episodes can be recorded, by name: task(seed, **settings)."""
        return {}

    def survey_recording(self, records: Iterable[Record]) -> Any:
        """What must be known of all records of a dataset before one is read; plain data, for other processes."""
        return None

    def recording_reader(
        self, folder: PictureFolder, max_thought_chars: int, surveyed: Any
    ) -> Callable[[Record], Any] | None:
        """What makes a `recording.RecordedRow` or a reject of each record, of a world that reads its own; None, the default: `worlds.recording`
        does, with the tools of the recording. Each record is read by itself, several processes share a file. Other rows of
        the same bytes: raise `recording_version`."""
        return None

    def rules_of_tools(self, names: Collection[str]) -> Mapping[str, object]:
        """The rules that a recording with tools of these names was played under, as far as they tell; by default nothing."""
        return {}

    # judging, from records alone

    def is_legal(self, call: CallRecord) -> bool | None:
        """Whether the tools and the state allowed a call; None: nothing is known. By default the environment's flag."""
        return call.legal

    def is_equivalent(self, calls: Sequence[dict], best: Sequence[dict]) -> bool:
        """Whether two turns, {"name", "arguments"} each, come to the same; by default if they are equal."""
        return list(calls) == list(best)

    def agrees(self, thought: str, calls: Sequence[dict]) -> bool | None:
        """Whether a turn does what its thought announces; None, the default, if the thought announces nothing."""
        return None

    def announces(self, thought: str, calls: Sequence[dict]) -> bool | None:
        """Whether a thought announces a turn that comes to the same as these calls; None if it announces nothing."""
        return self.agrees(thought, calls)

    def explain(self, step: StepRecord, is_right: bool) -> tuple[str, str] | None:
        """What a readable turn got wrong beside `step.expected`, as (class of `studies.diagnosis`, detail).

        None, the default: nothing, or nothing that the thought and the calls alone do not tell.
        """
        return None

    def outcome(self, record: EpisodeRecord) -> str:
        """How an episode ended: done_ok for a success, else its end reason, with `done` told apart by harm."""
        if record.success:
            return "done_ok"
        if record.end_reason != "done":
            return record.end_reason
        return "done_harm" if record.harm else "done_early"

    def marks(self, step: StepRecord) -> "Sequence[Mark]":
        """Places on a step's picture that the report shows, such as where its calls point."""
        return ()

    def metrics(self, records: Sequence[EpisodeRecord]) -> Metrics:
        """The world's own, besides those that every world has (`evaluation.suites`)."""
        return {}

    # what only some worlds have

    def held_out_suites(self) -> Mapping[str, SuiteSet]:
        """Sets of kinds of missions to be played apart, by name (`worlds.held_out`); of this world under its rules."""
        return {}

    def seen_in(self, rule: str, recorded: Mapping[str, Sequence[object]]) -> str:
        """What of this rule's value, which is said to be unseen, a recording shows; "" if nothing.

        `recorded`: rule -> the values that the recording was made with; one that it does not name had its default.
        """
        return f"{rule} {self.rules[rule]}" if self.rules[rule] in recorded.get(rule, ()) else ""

    def counterfactuals(self) -> "Mapping[str, Counterfactual]":
        """Changes of the world or of what a policy is told, to see what its success rests on."""
        return {}


@dataclass(frozen=True)
class RecordedTurn:
    """A turn as it is recorded: what was seen, what was done, and what came of it."""

    episode_id: str
    mission: str
    turn_index: int
    system_prompt: str
    observation: Observation
    turn: Turn
    results: tuple[ToolResult, ...]


@dataclass(frozen=True)
class DrawnState:
    """Another state of an episode: `options` for its environment's `reset` with its seed, and the state's kinds, to count."""

    options: dict
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counterfactual:
    """One thing taken away or made false: another environment, another policy around the one that plays, or both.

    A changed environment tells by `changed_turn` which episodes it changed; another policy plays all of them.
    """

    change_env: Callable[[Env], Env] | None = None
    change_policy: Callable[[Policy], Policy] | None = None


@dataclass(frozen=True)
class Mark:
    """A place on a picture, as shares of its width and height, and what is there."""

    x: float
    y: float
    name: str
