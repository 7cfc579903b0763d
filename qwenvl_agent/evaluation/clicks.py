"""How well screens are acted on: one answer to each screenshot and instruction, measured in the screenshot's own pixels.

Records hold what was wanted and what was done as actions in pixels, so that every figure can be computed again without
a model. An answer that cannot be read stays in every denominator. Samples of one screenshot (or episode, or site)
depend on each other: where there are several, intervals resample those whole.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from qwenvl_agent.coordinates import Screen
from qwenvl_agent.envs.computer import Action
from qwenvl_agent.envs.computer.dialects import Reading, read_turn, to_seed
from qwenvl_agent.evaluation.screens import ScreenTask, refusal
from qwenvl_agent.evaluation.statistics import Interval, bootstrap_ratio, clustered_share, wilson
from qwenvl_agent.schema import Answer, Policy

NEAR_PX = 50
"""Of `is_near`, along each axis."""
RADII_PX = (10, 25, 50, 100)
SIDES_PX = (640, 1280, 1920, 2560)
"""Picture sizes are grouped by their longer side, up to each of these."""
DIMENSIONS = {
    "element": ("role", "ui_type", "data_type", "type"),
    "meant_by": ("kind",),
    "language": ("language",),
    "platform": ("platform",),
    "field": ("group",),
    "application": ("application",),
    "theme": ("theme",),
    "family": ("family",),
}
"""What samples are grouped by: the first of these details that a sample has."""
MAX_GROUPS = 30
"""Of one dimension; the rarer ones are measured together, as (others)."""
GROUPED = ("box_hit_rate", "near_rate")
MEDIAN_RESAMPLES = 1000


@dataclass(kw_only=True)
class ClickRecord:
    """A sample and what the policy made of it. Actions are `Action` fields that are not None, in pixels."""

    case_id: str
    cluster: str
    """Samples that agree in it are resampled together."""
    instruction: str
    picture: str
    width_px: int
    height_px: int
    expected: list[dict]
    expected_thought: str = ""
    box_px: list[float] | None = None
    """x1, y1, x2, y2 of the element that is meant."""
    hit_boxes_px: list[list[float]] | None = None
    """Boxes whose union a click reaches the element in; None: the data does not tell."""
    details: dict = field(default_factory=dict)
    predicted: list[dict] = field(default_factory=list)
    """Empty: nothing could be read."""
    thought: str = ""
    text: str = ""
    """As the model wrote it."""
    error: str = ""
    """Why no action could be read: one of the format's errors or the dialects', or cannot_be_shown."""
    repairs: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "ClickRecord":
        record = cls(**values)
        record.actions, record.expected_actions  # noqa: B018 (a record whose actions are none is refused here)
        return record

    @property
    def screen(self) -> Screen:
        return Screen(self.width_px, self.height_px)

    @property
    def actions(self) -> list[Action]:
        return [Action(**values) for values in self.predicted]

    @property
    def expected_actions(self) -> list[Action]:
        return [Action(**values) for values in self.expected]

    @property
    def point_px(self) -> tuple[float, float] | None:
        """Where the answer acts first, if anywhere."""
        return first_point(self.actions)

    @property
    def expected_point_px(self) -> tuple[float, float] | None:
        return first_point(self.expected_actions)


def first_point(actions: Sequence[Action]) -> tuple[float, float] | None:
    return next((action.point_px for action in actions if action.point_px), None)


def predict_clicks(policy: Policy, tasks: Sequence[ScreenTask]) -> list[ClickRecord]:
    """One answer for every task; a task that the policy cannot be shown has the error cannot_be_shown."""
    records = [new_record(task) for task in tasks]
    shown = []
    for task, record in zip(tasks, records, strict=True):
        record.text = refusal(policy, task.request, task.source)
        record.error = "cannot_be_shown" if record.text else ""
        if not record.error:
            shown.append((task, record))
    answers = policy.act([task.request for task, _ in shown]) if shown else []
    for (_, record), answer in zip(shown, answers, strict=True):
        take(record, answer)
    return records


def new_record(task: ScreenTask) -> ClickRecord:
    return ClickRecord(
        case_id=task.case_id,
        cluster=task.cluster,
        instruction=task.instruction,
        picture=task.picture.path,
        width_px=task.picture.width,
        height_px=task.picture.height,
        expected=[action_json(action) for action in task.actions],
        expected_thought=task.thought,
        box_px=None if task.box_px is None else list(task.box_px),
        hit_boxes_px=task.hit_boxes_px,
        details=task.details,
    )


def take(record: ClickRecord, answer: Answer) -> None:
    """Write down what the answer does."""
    reading = Reading(error=answer.error) if answer.error else read_turn(answer.turn, record.screen)
    record.predicted = [action_json(action) for action in reading.actions]
    record.thought = answer.turn.thought or reading.thought
    record.text = answer.text or answer.turn.text
    record.error = reading.error or ("" if reading.actions else "no_action")
    record.repairs = list(dict.fromkeys((*answer.repairs, *reading.repairs)))


def action_json(action: Action) -> dict:
    values = {key: value for key, value in asdict(action).items() if value is not None}
    return values | ({"keys": list(action.keys)} if action.keys else {})


# what is right


def is_near(predicted: dict, expected: dict) -> bool:
    """The same action, less than NEAR_PX away along both axes; an action without a place counts as at (0, 0).

    On {"action", "x", "y"} in whole pixels, as data states it: the measure with which such data is usually published.
    """
    return (
        predicted.get("action") == expected.get("action")
        and abs(predicted.get("x", 0) - expected.get("x", 0)) < NEAR_PX
        and abs(predicted.get("y", 0) - expected.get("y", 0)) < NEAR_PX
    )


def has_right_kinds(record: ClickRecord) -> bool:
    return [action.kind for action in record.actions] == [action.kind for action in record.expected_actions]


def is_near_throughout(record: ClickRecord) -> bool:
    """As many actions as expected, each near its own."""
    made, due = record.actions, record.expected_actions
    pairs = zip(made, due, strict=False)
    screen = record.screen
    return len(made) == len(due) and all(is_near(to_seed(a, screen), to_seed(b, screen)) for a, b in pairs)


def distance_px(record: ClickRecord) -> float | None:
    """From the answer's place to the label's; None if one of the two has none."""
    if record.point_px is None or record.expected_point_px is None:
        return None
    return math.dist(record.point_px, record.expected_point_px)


def is_inside(point: tuple[float, float] | None, box: Sequence[float]) -> bool:
    """Edges included, as in ScreenSpot's own script."""
    return point is not None and box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def has_right_words(record: ClickRecord) -> bool:
    """What is typed, answered or pressed is as in the label, to the letter."""
    return words_of(record.actions) == words_of(record.expected_actions)


def words_of(actions: Iterable[Action]) -> list:
    return [value for action in actions for value in (action.text, action.keys) if value is not None]


def outcome(record: ClickRecord) -> str:
    """unreadable, other_action, other_place, other_words, or hit: in the box, or without a box near the label."""
    if record.error:
        return "unreadable"
    if not has_right_kinds(record):
        return "other_action"
    has_box = record.box_px is not None and record.expected_point_px is not None
    if not (is_inside(record.point_px, record.box_px) if has_box else is_near_throughout(record)):
        return "other_place"
    return "hit" if has_right_words(record) else "other_words"


# metrics


def click_metrics(records: Sequence[ClickRecord]) -> dict[str, Interval | dict[str, int]]:
    """Shares are of all samples, or of those whose label has what is asked for (a place, a box, hit boxes, words).

    near_rate: `is_near`. action_accuracy: the right kinds of action, in order. within_R_px: the first place that is
    acted on is at most R px away from the label's, and box_hit_rate, hit_test_rate: it lies in the box, or in the hit
    boxes; whatever the action. pixel_error, pixel_error_median, error_of_diagonal (as a share of the picture's
    diagonal): over answers with a place. NAME/DIMENSION=VALUE: of those samples.
    """
    return {
        **{name: share(records, holds) for name, holds in measures().items()},
        **error_metrics(records),
        **{
            f"{name}/{dimension}={value}": share(group, measures()[name])
            for dimension, groups in grouped(records).items()
            for value, group in groups.items()
            for name in GROUPED
        },
        **counts(records),
    }


def measures() -> dict[str, Callable[[ClickRecord], bool | None]]:
    """What holds of a record, None where its label does not say."""
    return {
        "box_hit_rate": lambda r: in_any(r, None if r.box_px is None else [r.box_px]),
        "hit_test_rate": lambda r: in_any(r, r.hit_boxes_px),
        "near_rate": is_near_throughout,
        "action_accuracy": has_right_kinds,
        **{f"within_{radius}_px": within(radius) for radius in RADII_PX},
        "word_accuracy": lambda r: has_right_words(r) if words_of(r.expected_actions) else None,
        "strict_parse_rate": lambda r: not r.error and not r.repairs,
        "parse_rate": lambda r: not r.error,
    }


def in_any(record: ClickRecord, boxes: Sequence[Sequence[float]] | None) -> bool | None:
    if not boxes or record.expected_point_px is None:
        return None
    return any(is_inside(record.point_px, box) for box in boxes)


def within(radius_px: float) -> Callable[[ClickRecord], bool | None]:
    def holds(record: ClickRecord) -> bool | None:
        if record.expected_point_px is None:
            return None
        distance = distance_px(record)
        return distance is not None and distance <= radius_px

    return holds


def share(records: Iterable[ClickRecord], holds: Callable[[ClickRecord], bool | None]) -> Interval:
    """Of the records of which `holds` tells; Wilson's interval if each is a cluster of its own, else by cluster."""
    hits, tries = Counter(), Counter()
    for record in records:
        verdict = holds(record)
        if verdict is not None:
            hits[record.cluster] += verdict
            tries[record.cluster] += 1
    if all(number == 1 for number in tries.values()):
        return wilson(hits.total(), tries.total())
    interval = clustered_share([hits[cluster] for cluster in tries], list(tries.values()))
    return interval._replace(n=tries.total())


def error_metrics(records: Sequence[ClickRecord]) -> dict[str, Interval]:
    known = [(record, distance) for record in records if (distance := distance_px(record)) is not None]
    errors = [distance for _, distance in known]
    relative = [distance / math.hypot(record.width_px, record.height_px) for record, distance in known]
    clusters = [record.cluster for record, _ in known]
    return {
        "pixel_error": clustered_mean(errors, clusters),
        "pixel_error_median": clustered_median(errors, clusters),
        "error_of_diagonal": clustered_mean(relative, clusters),
    }


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    sums, numbers = Counter(), Counter(clusters)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value
    return bootstrap_ratio([sums[c] for c in numbers], list(numbers.values()))._replace(n=len(values))


def clustered_median(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """The value below which half of all lie, with a 95 % percentile bootstrap over whole clusters."""
    if not values:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    order = np.argsort(values)
    ordered = np.asarray(values)[order]
    names, cluster_of = np.unique(np.asarray(clusters)[order], return_inverse=True)
    rng = np.random.default_rng(seed)
    medians = [middle(ordered, np.ones(len(ordered)))]
    for _ in range(MEDIAN_RESAMPLES):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        medians.append(middle(ordered, times[cluster_of]))
    low, high = np.percentile(medians[1:], [2.5, 97.5])
    return Interval(float(np.median(ordered)), float(low), float(high), len(ordered))


def middle(ordered: np.ndarray, weights: np.ndarray) -> float:
    """The weighted median of ascending values."""
    reached = np.cumsum(weights)
    return float(ordered[np.searchsorted(reached, reached[-1] / 2)])


def grouped(records: Sequence[ClickRecord]) -> dict[str, dict[str, list[ClickRecord]]]:
    """Records by dimension and value; a dimension with one value only would repeat the whole and is left out."""
    found: dict[str, dict[str, list[ClickRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for dimension, value in values_of(record).items():
            found[dimension][value].append(record)
    return {dimension: commonest(groups) for dimension, groups in found.items() if len(groups) > 1}


def values_of(record: ClickRecord) -> dict[str, str]:
    values = {"size": size_name(max(record.width_px, record.height_px))}
    for dimension, keys in DIMENSIONS.items():
        value = next((record.details[key] for key in keys if isinstance(record.details.get(key), str)), "")
        if value:
            values[dimension] = value[:60]
    return values


def size_name(side_px: int) -> str:
    limit = next((limit for limit in SIDES_PX if side_px <= limit), None)
    return f"to {limit} px" if limit else f"over {SIDES_PX[-1]} px"


def commonest(groups: dict[str, list[ClickRecord]]) -> dict[str, list[ClickRecord]]:
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    if len(ordered) <= MAX_GROUPS:
        return dict(ordered)
    others = [record for _, group in ordered[MAX_GROUPS - 1 :] for record in group]
    return dict(ordered[: MAX_GROUPS - 1]) | {"(others)": others}


def counts(records: Sequence[ClickRecord]) -> dict[str, dict[str, int]]:
    return {
        "outcomes": dict(Counter(outcome(record) for record in records).most_common()),
        "errors": dict(Counter(record.error for record in records if record.error).most_common()),
        "repairs": dict(Counter(name for record in records for name in record.repairs).most_common()),
    }


# the ScreenSpot protocol


def screenspot_metrics(records: Sequence[ClickRecord]) -> dict[str, Interval | dict[str, int]]:
    """`click_metrics`, and the protocol's table: box_hit_rate over all samples alike is its micro average, and
    box_hit_rate/FIELD/KIND a cell (FIELD: Pro's group of applications, else the platform; KIND: text or icon).

    box_hit_macro: the mean of the cells, as tables of the first two versions average them.
    """
    holds = measures()["box_hit_rate"]
    cells: dict[str, list[ClickRecord]] = defaultdict(list)
    for record in records:
        values = values_of(record)
        place = values.get("field") or values.get("platform") or "(unknown)"
        cells[f"{place}/{values.get('element', '(unknown)')}"].append(record)
    return {
        "box_hit_rate": share(records, holds),
        "box_hit_macro": macro_share(list(cells.values()), holds),
        **{f"box_hit_rate/{name}": share(cells[name], holds) for name in sorted(cells)},
        **click_metrics(records),
    }


def macro_share(groups: Sequence[Sequence[ClickRecord]], holds: Callable[[ClickRecord], bool | None]) -> Interval:
    """The mean of the groups' shares: the share over all records, each weighted by the inverse of its group's size."""
    hits, tries = Counter(), Counter()
    told = [[record for record in group if holds(record) is not None] for group in groups]
    for group in told:
        for record in group:
            hits[record.cluster] += holds(record) / len(group)
            tries[record.cluster] += 1 / len(group)
    interval = clustered_share([hits[cluster] for cluster in tries], list(tries.values()))
    return interval._replace(n=sum(map(len, told)))
