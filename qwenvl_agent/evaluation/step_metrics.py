"""How good single decisions are, from step records: on held-out rows (with labels) and in rollouts alike.

Token accuracy hides the decision: most tokens of a turn are easy, and the one that says "the target is here" is rare.
So a predicted turn is compared with the label decision by decision: which tools it calls, each argument by its place
(`move.actions[0].direction`), and each field of the thought. Turns of an episode depend on each other: every interval
is bootstrapped over whole episodes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from qwenvl_agent.evaluation.rollout import step_record
from qwenvl_agent.records import StepRecord, split_thought
from qwenvl_agent.schema import Policy, Row
from qwenvl_agent.statistics import Interval, clustered_share

MAX_LIST_PLACES = 4
"""Of a list argument only the first places are decisions of their own; the exact match covers the rest."""
LABELS = {
    "strict_parse_rate": ("parsed strictly", "turns read without any repair"),
    "parse_rate": ("parsed", "turns read, repaired ones included"),
    "schema_rate": ("schema", "and every call names a tool and fits its schema"),
    "name_accuracy": ("names", "calls the same tools as the oracle or the label"),
    "argument_accuracy": ("arguments", "with the very same arguments"),
    "legal_rate": ("legal", "and the state refuses no call"),
    "optimal_rate": ("optimal", "and comes to the same as the oracle's turn"),
    "thought_coverage": ("thoughts with a plan", "share of the thoughts that announce what to do"),
    "thought_consistency": ("thought = action", "of those, turns that do what their thought says"),
}
"""What each metric of turns is called, and what it means."""
FLAGS = ("legal", "optimal")
"""What a world may tell about a call."""


@dataclass(kw_only=True)
class RowRecord:
    """A held-out row and what the policy made of it; `step.expected` is the label."""

    row_id: str
    episode: str
    step: StepRecord

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "RowRecord":
        return cls(**{**values, "step": StepRecord.from_json(values["step"])})


class Tally:
    """Hits and tries of one decision, by episode."""

    def __init__(self):
        self.hits, self.tries = Counter(), Counter()

    def add(self, episode: str, is_hit: bool) -> None:
        self.hits[episode] += is_hit
        self.tries[episode] += 1

    def interval(self) -> Interval:
        return clustered_share([self.hits[e] for e in self.tries], list(self.tries.values()))


def predict_rows(policy: Policy, rows: Sequence[Row]) -> list[RowRecord]:
    """One free-running answer for every row, beside its label."""
    records = []
    for row, answer in zip(rows, policy.act([row.request for row in rows]), strict=True):
        step = step_record(row.request.observation, answer, row.request.tools, row.turn)
        pictures = row.request.observation.pictures
        step.picture = pictures[-1].path if pictures else ""
        records.append(RowRecord(row_id=row.id, episode=row.id.rpartition("/")[0] or row.id, step=step))
    return records


def step_metrics(records: Iterable[RowRecord]) -> dict[str, Interval]:
    """The funnel and the accuracy of each decision."""
    pairs = [(record.episode, record.step) for record in records]
    return {**funnel(pairs), **decisions(pairs), **thought_fields(pairs)}


def funnel(pairs: Sequence[tuple[str, StepRecord]]) -> dict[str, Interval]:
    """Shares of all turns that come through each stage; stages that nothing is known about are left out.

    strict_parse_rate: read without repairs; parse_rate: read at all; schema_rate: and every call names a tool and
    fits its schema; name_accuracy: and calls the same tools as the label; argument_accuracy: and with the same
    arguments; legal_rate: and the state allows every call; optimal_rate: and none could be better.
    """
    flags = [flag for flag in FLAGS if any(getattr(call, flag) is not None for _, step in pairs for call in step.calls)]
    tallies: dict[str, Tally] = defaultdict(Tally)
    for episode, step in pairs:
        for stage, holds in _stages(step, flags).items():
            tallies[stage].add(episode, holds)
    return {stage: tally.interval() for stage, tally in tallies.items()}


def _stages(step: StepRecord, flags: Sequence[str]) -> dict[str, bool]:
    parsed = not step.error
    fits = parsed and all(call.schema_ok for call in step.calls)
    stages = {"strict_parse_rate": parsed and not step.repairs, "parse_rate": parsed, "schema_rate": fits}
    if step.expected is not None:
        stages["name_accuracy"] = [call.name for call in step.calls] == [call["name"] for call in step.expected]
        stages["argument_accuracy"] = [call.as_json() for call in step.calls] == step.expected
    for flag in flags:
        known = [getattr(call, flag) for call in step.calls if getattr(call, flag) is not None]
        if known or not fits:
            stages[f"{flag}_rate"] = fits and all(known)
    return stages


def decisions(pairs: Sequence[tuple[str, StepRecord]]) -> dict[str, Interval]:
    """For every tool how often a call that is due is made (recall) and a call that is made is due (precision), and for
    every argument place of the labels how often the same tool's first call has the same value there.
    """
    tallies: dict[str, Tally] = defaultdict(Tally)
    for episode, step in pairs:
        if step.expected is None:
            continue
        made, due = _by_tool(call.as_json() for call in step.calls), _by_tool(step.expected)
        for name in due:
            tallies[f"{name}.recall"].add(episode, name in made)
        for name in made:
            tallies[f"{name}.precision"].add(episode, name in due)
        for name, arguments in due.items():
            got = dict(places(made.get(name, {})))
            for place, value in places(arguments):
                tallies[f"{name}.{place}"].add(episode, place in got and got[place] == value)
    return {name: tallies[name].interval() for name in sorted(tallies)}


def thought_fields(pairs: Sequence[tuple[str, StepRecord]]) -> dict[str, Interval]:
    """`thought.<field>`: the field is as in the label. `thought.<field>.rare`: the same over the labels that differ
    from the commonest one, which tells a policy that reads the picture from one that always says "none".
    """
    labels = [(episode, step, split_thought(step.expected_thought)) for episode, step in pairs if step.expected_thought]
    common = {}
    for name in {name for _, _, fields in labels for name in fields}:
        common[name] = Counter(fields[name] for _, _, fields in labels if name in fields).most_common(1)[0][0]
    tallies: dict[str, Tally] = defaultdict(Tally)
    for episode, step, fields in labels:
        got = split_thought(step.thought)
        for name, value in fields.items():
            tallies[f"thought.{name}"].add(episode, got.get(name) == value)
            if value != common[name]:
                tallies[f"thought.{name}.rare"].add(episode, got.get(name) == value)
    return {name: tallies[name].interval() for name in sorted(tallies)}


def places(value: object, path: str = "") -> Iterable[tuple[str, object]]:
    """(`actions[0].direction`, value) for every leaf of an arguments object."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value[:MAX_LIST_PLACES]):
            yield from places(item, f"{path}[{index}]")
    else:
        yield path, value


def token_metrics(scores: Iterable[dict]) -> dict[str, float]:
    """Token accuracy and mean loss by part, from `ModelPolicy.score`."""
    sums: dict[str, Counter] = defaultdict(Counter)
    for score in scores:
        for part in (score["part"], "all"):
            sums[part].update({key: score[key] for key in ("num_tokens", "num_correct", "loss_sum")})
    metrics = {}
    for part, total in sorted(sums.items()):
        metrics[f"token_accuracy/{part}"] = total["num_correct"] / total["num_tokens"]
        metrics[f"token_loss/{part}"] = total["loss_sum"] / total["num_tokens"]
    return metrics


def consistency(
    pairs: Sequence[tuple[str, StepRecord]], agrees: Callable[[str, list[dict]], bool | None]
) -> dict[str, Interval]:
    """Whether turns do what their own thoughts say; `agrees(thought, calls)` is None where a thought says nothing.

    thought_coverage: share of the thoughts that announce what to do; thought_consistency: of those, the share whose
    turn does it.
    """
    coverage, agreement = Tally(), Tally()
    for episode, step in pairs:
        if step.thought and not step.error:
            verdict = agrees(step.thought, [call.as_json() for call in step.calls])
            coverage.add(episode, verdict is not None)
            if verdict is not None:
                agreement.add(episode, verdict)
    return {"thought_coverage": coverage.interval(), "thought_consistency": agreement.interval()}


def _by_tool(calls: Iterable[dict]) -> dict[str, dict]:
    """The arguments of each tool's first call."""
    first: dict[str, dict] = {}
    for call in calls:
        first.setdefault(call["name"], call["arguments"])
    return first
