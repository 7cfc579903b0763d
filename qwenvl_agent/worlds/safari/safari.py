"""Vision Safari as a world: what its judge, its words and its seeds are."""

import copy
import dataclasses
import json
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from qwenvl_agent.containers import Record
from qwenvl_agent.json_input import Reject
from qwenvl_agent.picture_store import PictureFolder
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.schema import Env, Policy, Tool, Turn
from qwenvl_agent.settings import build
from qwenvl_agent.statistics import wilson
from qwenvl_agent.worlds.held_out import SuiteSet, read_suites
from qwenvl_agent.worlds.recording import RecordedRow
from qwenvl_agent.worlds.safari import diagnosis, failures, judge
from qwenvl_agent.worlds.safari.baselines import NoisyOracle, RandomAgent, random_move
from qwenvl_agent.worlds.safari.counterfactuals import ChangedNotepad, SwappedMission, corrupt
from qwenvl_agent.worlds.safari.env import SafariEnv
from qwenvl_agent.worlds.safari.oracle import SafariOracle
from qwenvl_agent.worlds.safari.perception import perception_rows
from qwenvl_agent.worlds.safari.records import episodes_that_catch, row_reader
from qwenvl_agent.worlds.safari.states import StateSettings, draw_state
from qwenvl_agent.worlds.safari.thoughts import thought_form_named
from qwenvl_agent.worlds.safari.tools import TOOLS
from qwenvl_agent.worlds.safari.world import REPORT_SEEDS, SELECTION_SEEDS, TRAIN_SEEDS, VIEW, SafariRules
from qwenvl_agent.worlds.world import Counterfactual, DrawnState, Labels, Metrics, RecordedTurn, SeedSets, World

SUITES_DIR = Path(__file__).parent / "suites"
"""Held-out suites, a set a file."""
ORACLE_SETTINGS = ("max_path", "max_final_path", "thought_form", "waypoints", "false_starts")
LABELS = Labels(
    goals="targets found",
    success="declare_done called, every target found, nothing declared falsely",
    harm="false declarations",
    metrics={
        "stand_still_rate": (
            "stand-stills",
            f"share of the episodes with {failures.STILL_TURNS} turns in a row that changed nothing but notes",
        )
    },
    outcomes={
        "done_ok": "all found and done",
        "done_early": "declared done too early",
        **failures.OUTCOMES,
    },
    refusals=judge.REFUSALS,
    columns={
        "success_rate": "success %",
        "progress": "found %",
        "mean_turns": "turns",
        "mean_turns_success": "if won",
        "path_efficiency": "efficiency %",
    },
)


class Safari(World):
    name = "safari"
    seeds = SeedSets(TRAIN_SEEDS, SELECTION_SEEDS, REPORT_SEEDS)
    labels = LABELS
    recording_version = 2

    def __init__(self, rules: SafariRules):
        self.settings = rules
        self.board = (VIEW, rules.tile_px)
        self.rules = json.loads(json.dumps(dataclasses.asdict(rules)))

    def make_env(self) -> SafariEnv:
        return SafariEnv(self.settings)

    def make_oracle(self, **settings) -> SafariOracle:
        unknown = settings.keys() - ORACLE_SETTINGS
        if unknown:
            raise ValueError(
                f"the safari's oracle has no setting {min(unknown)!r}: it would change nothing; it has "
                f"{', '.join(ORACLE_SETTINGS)}"
            )
        return SafariOracle(self.settings, **settings)

    def make_reference(self, **settings) -> SafariOracle:
        return self.make_oracle(**settings)

    def make_baselines(self) -> Mapping[str, Callable[..., Policy]]:
        return {
            "random": partial(RandomAgent, self.settings),
            "noisy_oracle": lambda **settings: NoisyOracle(self.make_oracle(), **settings),
        }

    def noise_turn(self, tools: Sequence[Tool], rng: random.Random) -> Turn:
        return Turn(tool_calls=(random_move(rng),))

    def draw_state(self, env: Env, rng: random.Random, near: float, **settings) -> DrawnState:
        assert isinstance(env, SafariEnv), type(env)
        return draw_state(env, rng, near, build(StateSettings, settings, "states"))

    def check_state_settings(self, settings: Mapping[str, object]) -> None:
        build(StateSettings, settings, "states")

    def loses(self, env: Env, turn: Turn) -> bool:
        """A false declaration, or the end before all is found."""
        assert isinstance(env, SafariEnv), type(env)
        if not any(call.name in ("declare_found", "declare_done") for call in turn.tool_calls):
            return False
        _, _, terminated, _, info = copy.deepcopy(env).step(turn)
        return len(info["harm"]) > len(env.false_declarations) or (terminated and not info["success"])

    def recording_tasks(self) -> Mapping[str, Callable[..., Iterable[RecordedTurn]]]:
        return {"perception": self.record_questions}

    def record_questions(self, seed: int, thought_form: str = "tiles") -> Iterator[RecordedTurn]:
        """Questions about views with exact answers, from random places of one world."""
        return perception_rows(self.settings, seed, thought_form_named(thought_form))

    def survey_recording(self, records: Iterable[Record]) -> frozenset[str]:
        return episodes_that_catch(records)

    def recording_reader(
        self, folder: PictureFolder, max_thought_chars: int, surveyed: frozenset[str]
    ) -> Callable[[Record], RecordedRow | Reject]:
        return row_reader(folder, catching=surveyed, max_thought_chars=max_thought_chars)

    def rules_of_tools(self, names: Collection[str]) -> Mapping[str, object]:
        played = [rules for rules, tools in TOOLS.items() if {tool.name for tool in tools} == set(names)]
        return {"rules": played[0]} if len(played) == 1 else {}

    def is_legal(self, call: CallRecord) -> bool:
        if not call.schema_ok:
            return False
        return call.result is None or not judge.is_refused(call.name, call.result, bool(call.effective))

    def is_equivalent(self, calls: Sequence[dict], best: Sequence[dict]) -> bool:
        return judge.is_equivalent(calls, best)

    def agrees(self, thought: str, calls: Sequence[dict]) -> bool | None:
        return judge.agrees(thought, calls)

    def announces(self, thought: str, calls: Sequence[dict]) -> bool | None:
        return diagnosis.announces(thought, calls)

    def explain(self, step: StepRecord, is_right: bool) -> tuple[str, str] | None:
        return diagnosis.explain(step, is_right)

    def outcome(self, record: EpisodeRecord) -> str:
        outcome = super().outcome(record)
        if record.harm:
            return failures.false_declaration(self.settings, record)
        return failures.way_lost(self.settings, record) if outcome == "max_turns" and record.steps else outcome

    def metrics(self, records: Sequence[EpisodeRecord]) -> Metrics:
        return {"stand_still_rate": wilson(sum(map(failures.has_stand_still, records)), len(records))}

    def held_out_suites(self) -> Mapping[str, SuiteSet]:
        return {path.stem: read_suites(path, self.seeds.report) for path in sorted(SUITES_DIR.glob("*.json"))}

    def seen_in(self, rule: str, recorded: Mapping[str, Sequence[object]]) -> str:
        if rule != "asked_for":
            return super().seen_in(rule, recorded)
        left_out = [set(animals) for animals in recorded.get("left_out", ()) if isinstance(animals, list)] or [set()]
        shown = set(self.settings.asked_for) - set.intersection(*left_out)
        return f"animals that are asked for: {', '.join(sorted(shown))}" if shown else ""

    def counterfactuals(self) -> Mapping[str, Counterfactual]:
        return {
            "notepad_wiped": Counterfactual(change_env=lambda env: ChangedNotepad(env, lambda text: "")),
            "notepad_corrupted": Counterfactual(change_env=lambda env: ChangedNotepad(env, corrupt)),
            "mission_swapped": Counterfactual(change_policy=SwappedMission),
        }


def make_world(**rules) -> Safari:
    return Safari(SafariRules.from_json(rules))
