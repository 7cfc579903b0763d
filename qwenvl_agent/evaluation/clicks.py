"""How well screens are acted on: one answer to each screenshot and instruction, measured in the screenshot's own pixels.

Records hold what was wanted and what was done as actions in pixels, so that every figure can be computed again without
a model. An answer that cannot be read stays in every denominator. Samples of one screenshot (or episode, or site)
depend on each other: where there are several, intervals resample those whole.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from qwenvl_agent.computer import Action
from qwenvl_agent.computer.dialects import Reading, read_turn, to_seed
from qwenvl_agent.computer.places import is_number
from qwenvl_agent.coordinates import Screen, is_finite
from qwenvl_agent.evaluation.screens import ScreenTask, refusal
from qwenvl_agent.schema import Answer, Policy
from qwenvl_agent.statistics import BLOCK_CELLS, RESAMPLES, Interval, wilson

NEAR_PX = 50
"""Of `evaluate_actions`, along each axis."""
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
NOT_SHARES = ("pixel_error", "pixel_error_median")
LABELS = {
    "box_hit_rate": ("box hit", "the first place acted on lies in the box of what is meant, edges included"),
    "box_hit_macro": ("box hit, macro", "mean over the cells of platform or field, and text or icon"),
    "hit_test_rate": ("hit-test hit", "a click there reaches what is meant, whatever lies over its box"),
    "near_rate": ("right action within 50 px", "the same action, less than 50 px away along both axes"),
    "action_accuracy": ("action", "the right kinds of action, in order"),
    "within_10_px": ("within 10 px", "of the labelled place, in pixels of the picture as it is"),
    "within_25_px": ("within 25 px", ""),
    "within_50_px": ("within 50 px", ""),
    "within_100_px": ("within 100 px", ""),
    "word_accuracy": ("words", "typed, answered and pressed as in the label"),
    "pixel_error": ("pixel error, mean", "from the labelled place, over answers with a place"),
    "pixel_error_median": ("pixel error, median", ""),
    "error_of_diagonal": ("error / diagonal", "mean, over answers with a place"),
    "strict_parse_rate": ("parsed strictly", "turns read without any repair"),
    "parse_rate": ("parsed", "turns read, repaired ones included"),
}
OUTCOMES = {
    "hit": "right action, right place",
    "other_words": "other words at the right place",
    "other_place": "right action, elsewhere",
    "other_action": "another action",
    "unreadable": "unreadable",
}


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
    """Why no action could be read: one of the format's errors or the dialects', cannot_be_shown or no_answer (`text` says
    why)."""
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


def evaluate_actions(predictions: Sequence[dict | None], labels: Sequence[dict]) -> float:
    """The share of predictions that are their label's action, less than NEAR_PX away along both axes; 0 of none.

    The measure that data of the computer's two published forms names, on their actions as they stand there, in pixels of
    the picture: `{"action": "click", "x": 300, "y": 80}` and `{"type": "click", "x": 300, "y": 400, "target": "cat"}`. The
    names of actions are compared to the letter, and an action without a place counts as at (0, 0). Rows of that data
    are taken too: their action stands under `next_action` or `action`. None, or what is no object, is an unreadable
    answer, which is wrong. ValueError for labels that are none, and for lists of unequal length.
    """
    if len(predictions) != len(labels):
        raise ValueError(
            f"{len(predictions)} predictions for {len(labels)} labels: which belongs to which is unknown; give one for each"
        )
    wanted = [_label(label, index) for index, label in enumerate(labels)]
    hits = sum(_is_near(_stated(made), due) for made, due in zip(predictions, wanted, strict=True))
    return hits / len(labels) if labels else 0.0


def _stated(value: object) -> dict:
    """{"action", "x", "y"} of an action in either form, or of a row that holds one; {} of what is none."""
    for key in ("next_action", "action"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict):
        return {}
    name = value.get("type") if value.get("action") is None else value["action"]
    x, y = (0 if value.get(axis) is None else value[axis] for axis in "xy")
    return {"action": name, "x": x, "y": y} if isinstance(name, str) else {}


def _label(value: object, index: int) -> dict:
    stated = _stated(value)
    if not stated or not all(_is_finite(stated[axis]) for axis in "xy"):
        raise ValueError(
            f"labels[{index}] is {str(value)[:80]}: no action to compare with; write action (or type), and x and y in pixels"
        )
    return stated


def _is_finite(value: object) -> bool:
    return is_number(value) and is_finite(value)


def _is_near(made: dict, due: dict) -> bool:
    return made.get("action") == due["action"] and all(
        _is_finite(made[axis]) and abs(made[axis] - due[axis]) < NEAR_PX for axis in "xy"
    )


def are_near(made: Sequence[Action], due: Sequence[Action], screen: Screen) -> bool:
    """As many actions as are due, each near its own (`evaluate_actions`, in whole pixels)."""
    if len(made) != len(due):
        return False
    stated = [[to_seed(action, screen) for action in actions] for actions in (made, due)]
    return not due or evaluate_actions(*stated) == 1


def is_inside(point: tuple[float, float] | None, box: Sequence[float]) -> bool:
    """Edges included, as in ScreenSpot's own script."""
    return point is not None and box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def words_of(actions: Iterable[Action]) -> list:
    """What is typed, answered or pressed."""
    return [value for action in actions for value in (action.text, action.keys) if value is not None]


@dataclass(frozen=True)
class Judgement:
    """What holds of a record, by measure; None where its label does not say."""

    verdicts: dict[str, bool | None]
    distance_px: float | None
    """From the answer's place to the label's; None if one of the two has none."""
    diagonal_px: float

    @property
    def outcome(self) -> str:
        """unreadable, other_action, other_place, other_words, or hit: in the box, or without a box near the label."""
        verdicts = self.verdicts
        if not verdicts["parse_rate"]:
            return "unreadable"
        if not verdicts["action_accuracy"]:
            return "other_action"
        is_there = verdicts["near_rate"] if verdicts["box_hit_rate"] is None else verdicts["box_hit_rate"]
        if not is_there:
            return "other_place"
        return "other_words" if verdicts["word_accuracy"] is False else "hit"


def judge(record: ClickRecord) -> Judgement:
    made, due = record.actions, record.expected_actions
    point, goal = first_point(made), first_point(due)
    distance = None if point is None or goal is None else math.dist(point, goal)

    def in_any(boxes: Sequence[Sequence[float]] | None) -> bool | None:
        return any(is_inside(point, box) for box in boxes) if boxes and goal else None

    verdicts = {
        "box_hit_rate": in_any([record.box_px] if record.box_px else None),
        "hit_test_rate": in_any(record.hit_boxes_px),
        "near_rate": are_near(made, due, record.screen),
        "action_accuracy": [action.kind for action in made] == [action.kind for action in due],
        **{
            f"within_{radius}_px": (distance is not None and distance <= radius) if goal else None
            for radius in RADII_PX
        },
        "word_accuracy": words_of(made) == words_of(due) if words_of(due) or words_of(made) else None,
        "strict_parse_rate": not record.error and not record.repairs,
        "parse_rate": not record.error,
    }
    return Judgement(verdicts, distance, math.hypot(record.width_px, record.height_px))


def outcome(record: ClickRecord) -> str:
    return judge(record).outcome


# metrics


def click_metrics(records: Sequence[ClickRecord]) -> dict[str, Interval | dict[str, int]]:
    """Shares are of all samples, or of those whose label has what is asked for (a place, a box, hit boxes, words).

    near_rate: `evaluate_actions` of a sample is 1. action_accuracy: the right kinds of action, in order. within_R_px: the first place that is
    acted on is at most R px away from the label's, and box_hit_rate, hit_test_rate: it lies in the box, or in the hit
    boxes; whatever the action. word_accuracy: to the letter, where words are due or made. pixel_error,
    pixel_error_median, error_of_diagonal (as a share of the picture's diagonal): over answers with a place.
    NAME/DIMENSION=VALUE: of those samples.
    """
    return _metrics(records, {})


def screenspot_metrics(records: Sequence[ClickRecord]) -> dict[str, Interval | dict[str, int]]:
    """`click_metrics`, and the protocol's table: box_hit_rate over all samples alike is its micro average, and
    box_hit_rate/FIELD/KIND a cell (FIELD: Pro's group of applications, else the platform; KIND: text or icon).

    box_hit_macro: the mean of the cells, as tables of the first two versions average them.
    """
    cells: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        values = values_of(record)
        place = values.get("field") or values.get("platform") or "(unknown)"
        cells[f"{place}/{values.get('element', '(unknown)')}"].append(index)
    return _metrics(records, cells)


def _metrics(records: Sequence[ClickRecord], cells: dict[str, list[int]]) -> dict[str, Interval | dict[str, int]]:
    """`cells`: names of parts of the records, by index, that box_hit_rate is also given and averaged over."""
    judged = [judge(record) for record in records]
    clusters = [record.cluster for record in records]
    columns: dict[str, Column] = {}
    for name in judged[0].verdicts if judged else ():
        columns[name] = Column.of([one.verdicts[name] for one in judged])
    if cells:
        columns["box_hit_macro"] = columns["box_hit_rate"].averaged_over(list(cells.values()))
    columns |= {f"box_hit_rate/{name}": columns["box_hit_rate"].only(cells[name]) for name in sorted(cells)}
    errors = [one.distance_px for one in judged]
    relative = [None if one.distance_px is None else one.distance_px / one.diagonal_px for one in judged]
    columns |= {"pixel_error": Column.of(errors, is_share=False)}
    columns |= {"error_of_diagonal": Column.of(relative, is_share=False)}
    for dimension, groups in grouped(records).items():
        for value, indices in groups.items():
            columns |= {f"{name}/{dimension}={value}": columns[name].only(indices) for name in GROUPED}
    known = [(error, cluster) for error, cluster in zip(errors, clusters, strict=True) if error is not None]
    return {
        **intervals(columns, clusters),
        "pixel_error_median": clustered_median([error for error, _ in known], [cluster for _, cluster in known]),
        **counts(records, judged),
    }


@dataclass(frozen=True)
class Column:
    """A figure as sum(tops) / sum(bottoms), one of each for every record; records that say nothing have 0 and 0."""

    tops: np.ndarray
    bottoms: np.ndarray
    is_share: bool = True

    @classmethod
    def of(cls, values: Sequence[float | bool | None], *, is_share: bool = True) -> "Column":
        """The mean of the values that are not None."""
        tops = np.array([value or 0 for value in values], dtype=float)
        return cls(tops, np.array([value is not None for value in values], dtype=float), is_share)

    def only(self, indices: Sequence[int]) -> "Column":
        """Of these records alone."""
        kept = np.zeros(len(self.tops))
        kept[indices] = 1
        return Column(self.tops * kept, self.bottoms * kept, self.is_share)

    def averaged_over(self, groups: Sequence[Sequence[int]]) -> "Column":
        """The mean of the groups' figures: each record is weighted by the inverse of what its group has."""
        weights = np.zeros(len(self.tops))
        for indices in groups:
            weights[indices] = 1 / max(1, self.bottoms[indices].sum())
        return Column(self.tops * weights, self.bottoms * weights, self.is_share)


def intervals(columns: dict[str, Column], clusters: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """Every column's figure with a 95 % interval.

    Wilson's if each record is a cluster of its own; else a percentile bootstrap over whole clusters, the same resampled
    ones for all columns. At 0 and 1, and with one cluster alone, resampling sees no spread: there it is Wilson's over
    the clusters.
    """
    if not columns or not len(clusters):
        return {}
    names, cluster_of = np.unique(clusters, return_inverse=True)

    def by_cluster(values: np.ndarray) -> np.ndarray:
        return np.bincount(cluster_of, weights=values, minlength=len(names))

    tops = np.stack([by_cluster(column.tops) for column in columns.values()], axis=1)  # (clusters, columns)
    bottoms = np.stack([by_cluster(column.bottoms) for column in columns.values()], axis=1)
    low, high = bootstrapped(tops, bottoms, seed)
    found = {}
    for i, (name, column) in enumerate(columns.items()):
        n, num_clusters = int((column.bottoms > 0).sum()), int((bottoms[:, i] > 0).sum())
        if n == 0:
            found[name] = Interval(float("nan"), float("nan"), float("nan"), 0)
            continue
        value = float(column.tops.sum() / column.bottoms.sum())
        bounds = (float(low[i]), float(high[i]))
        is_counted = num_clusters == n and set(np.unique(column.bottoms)) <= {0.0, 1.0}
        if column.is_share and (is_counted or value in (0.0, 1.0) or num_clusters == 1):
            bounds = wilson_bounds(value, num_clusters)
        found[name] = Interval(value, *bounds, n)
    return found


def wilson_bounds(share: float, n: int) -> tuple[float, float]:
    """Of a share of n; where n clusters hold more tries it need not be a whole number of n-ths, and is rounded outwards."""
    hits = round(share * n, 9)
    return wilson(math.floor(hits), n).low, wilson(math.ceil(hits), n).high


def bootstrapped(tops: np.ndarray, bottoms: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the ratio of each column's sums (clusters, columns) over resampled clusters."""
    num_clusters = len(tops)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // num_clusters)
    ratios = []
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        drawn = rng.integers(num_clusters, size=(size, num_clusters)) + num_clusters * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num_clusters).reshape(size, num_clusters).astype(float)
        below = times @ bottoms  # (size, columns)
        ratios.append(np.divide(times @ tops, below, out=np.full(below.shape, np.nan), where=below > 1e-9))
    low_high = np.full((2, tops.shape[1]), np.nan)
    is_told = bottoms.sum(axis=0) > 0
    low_high[:, is_told] = np.nanpercentile(np.concatenate(ratios)[:, is_told], [2.5, 97.5], axis=0)
    return low_high[0], low_high[1]


def clustered_median(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """The value below which half of all lie, with a 95 % percentile bootstrap over whole clusters."""
    if not values:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    order = np.argsort(values)
    ordered = np.asarray(values)[order]
    names, cluster_of = np.unique(np.asarray(clusters)[order], return_inverse=True)
    rng = np.random.default_rng(seed)
    medians = []
    for _ in range(MEDIAN_RESAMPLES):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        medians.append(middle(ordered, times[cluster_of]))
    low, high = np.percentile(medians, [2.5, 97.5])
    return Interval(float(np.median(ordered)), float(low), float(high), len(ordered))


def middle(ordered: np.ndarray, weights: np.ndarray) -> float:
    """The weighted median of ascending values."""
    reached = np.cumsum(weights)
    return float(ordered[np.searchsorted(reached, reached[-1] / 2)])


def grouped(records: Sequence[ClickRecord]) -> dict[str, dict[str, list[int]]]:
    """Indices of records by dimension and value; a dimension with one value would repeat the whole and is left out."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, record in enumerate(records):
        for dimension, value in values_of(record).items():
            found[dimension][value].append(index)
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


def commonest(groups: dict[str, list[int]]) -> dict[str, list[int]]:
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    if len(ordered) <= MAX_GROUPS:
        return dict(ordered)
    others = [index for _, group in ordered[MAX_GROUPS - 1 :] for index in group]
    return dict(ordered[: MAX_GROUPS - 1]) | {"(others)": others}


def counts(records: Sequence[ClickRecord], judged: Sequence[Judgement]) -> dict[str, dict[str, int]]:
    return {
        "outcomes": dict(Counter(one.outcome for one in judged).most_common()),
        "errors": dict(Counter(record.error for record in records if record.error).most_common()),
        "repairs": dict(Counter(name for record in records for name in record.repairs).most_common()),
    }
