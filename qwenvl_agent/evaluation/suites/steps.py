"""Offline: one answer to each held-out row, beside its label."""

from collections.abc import Sequence

from qwenvl_agent.config import Config
from qwenvl_agent.evaluation.episodes import count, thought_metrics
from qwenvl_agent.evaluation.figures import prompt_hash
from qwenvl_agent.evaluation.step_metrics import LABELS, RowRecord, predict_rows, step_metrics
from qwenvl_agent.evaluation.suites.suite import (
    Options,
    Say,
    Suite,
    TurnsView,
    Work,
    last_line,
    pick_rows,
    work_on_rows,
)
from qwenvl_agent.schema import NO_ANSWER, Policy
from qwenvl_agent.worlds import World
from qwenvl_agent.worlds.world import Metrics

NUM_ROWS = 1000
"""If it is not said how many."""


class Steps(Suite):
    """`world`: the one that the rows are of, which can tell what their thoughts announce; a bare World if none can."""

    name = "steps"
    record = RowRecord
    title = "Held-out steps, turn by turn"
    intro = "Each row is one recorded turn that no training has seen."
    labels = {**LABELS, "error_rate": ("crashed", "rows to which a silent server gave no answer")}
    columns = {"parse_rate": "parsed %", "name_accuracy": "names %", "argument_accuracy": "arguments %"}
    outcomes = {
        "same": "just as the label",
        "other_arguments": "the label's tools, other arguments",
        "other_tools": "other tools than the label",
        "unreadable": "unreadable",
    }
    good = frozenset({"same"})

    def __init__(self, world: World | None = None):
        self.world = world or World()

    def measure(self, records: Sequence[RowRecord]) -> Metrics:
        """`step_metrics`, and whether turns do what their thought says."""
        pairs = [(record.episode, record.step) for record in records]
        return {
            **step_metrics(records),
            **thought_metrics(self.world, pairs),
            "errors": count(step.error for _, step in pairs if step.error),
            "repairs": count(name for _, step in pairs for name in step.repairs),
        }

    def case_of(self, record: RowRecord) -> str:
        return record.row_id

    def outcome(self, record: RowRecord) -> str:
        calls = [call.as_json() for call in record.step.calls]
        if record.step.error:
            return "unreadable"
        if calls == record.step.expected:
            return "same"
        same_tools = [call["name"] for call in calls] == [call["name"] for call in record.step.expected]
        return "other_arguments" if same_tools else "other_tools"

    def failure(self, record: RowRecord) -> str:
        return last_line(record.step.text) if record.step.error == NO_ANSWER else ""

    def view(self, record: RowRecord) -> TurnsView:
        return TurnsView(record.step.context.partition("\n")[0], "", [record.step])

    def prepare(self, config: Config, policy: Policy | None, options: Options, say: Say) -> Work:
        from qwenvl_agent.data.dataset import build_rows
        from qwenvl_agent.data.unusable import drop_unusable, usable_rows

        policy = policy or self.pick_baseline(options.baseline, {})
        rows = drop_unusable(build_rows(config.data, config.prompt), policy.collator)
        say(rows.summary())
        drawn = pick_rows(rows.held_out, options.rows or NUM_ROWS)
        picked = usable_rows(policy.collator, drawn)
        if not picked:
            raise ValueError("no rows are held out: there is nothing to compare with; raise data.eval_fraction")
        about = {
            "dataset_hash": rows.report["dataset_hash"],
            "num_held_out": len(rows.held_out),
            "num_unusable": len(drawn) - len(picked),
            "prompt_hash": prompt_hash(picked[0].request, config.prompt),
        }
        return work_on_rows(policy, picked, about, config.eval.batch_size, predict_rows)
