"""A live browser as a world."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from qwenvl_agent.coordinates import GRID
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.schema import Policy
from qwenvl_agent.statistics import wilson
from qwenvl_agent.worlds.browser.env import BrowserEnv
from qwenvl_agent.worlds.browser.oracle import BrowserOracle, RandomAgent
from qwenvl_agent.worlds.browser.rules import BrowserRules
from qwenvl_agent.worlds.world import Labels, Mark, Metrics, World

MAX_BROWSERS = 4
"""Episodes at once: each has a browser of its own, of some 200 MB."""


NOT_STARTED = "(not started)"


def task_of(record: EpisodeRecord) -> str:
    """The task's name, which the environment writes before the dot of each goal."""
    return record.goals[0].partition(".")[0] if record.goals else NOT_STARTED


def mark_of(call: CallRecord) -> Mark | None:
    """Where a call points; None if it has no place."""
    place = call.arguments.get("coordinate")
    if not call.schema_ok or place is None:
        return None
    return Mark(place[0] / GRID.cells, place[1] / GRID.cells, call.arguments["action"])


class Browser(World):
    name = "browser"
    data_kinds = ("computer",)
    max_envs = MAX_BROWSERS
    labels = Labels(
        outcomes={
            "harm": "did what cannot be made good",
            "gave_up": "gave up",
            "hung": "its browser hung",
            "died": "its browser died",
            "crashed": "its page crashed",
        },
        columns={
            "success_rate": "success %",
            "progress": "goals %",
            "mean_turns": "turns",
            "mean_turns_success": "if won",
            "harm_rate": "harm %",
        },
    )

    def __init__(self, rules: BrowserRules):
        self.settings = rules
        self.rules = json.loads(json.dumps(dataclasses.asdict(rules)))

    def make_env(self) -> BrowserEnv:
        return BrowserEnv(self.settings)

    def make_oracle(self, **settings) -> BrowserOracle:
        """It plays any rules: what a task wants comes with the observation."""
        super().make_oracle(**settings)
        return BrowserOracle()

    def make_baselines(self) -> Mapping[str, Callable[..., Policy]]:
        return {"random": partial(RandomAgent, self.settings)}

    def metrics(self, records: Sequence[EpisodeRecord]) -> Metrics:
        """success_rate/TASK: of the episodes of that task."""
        tasks: dict[str, list[EpisodeRecord]] = {}
        for record in records:
            tasks.setdefault(task_of(record), []).append(record)
        return {
            f"success_rate/{task}": wilson(sum(record.success for record in played), len(played))
            for task, played in tasks.items()
        }

    def marks(self, step: StepRecord) -> list[Mark]:
        return [mark for call in step.calls if (mark := mark_of(call))]


def make_world(**rules) -> Browser:
    return Browser(BrowserRules.from_json(rules))
