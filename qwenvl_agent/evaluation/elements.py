"""How well a screen's elements are listed: what a policy found beside what is there, matched one to one by their boxes.

Asked is the question that training asks, of all elements as JSON with `bbox_2d` on the model's grid. An answer without
a list, or a list that breaks off, is measured by what was read of it, and counted by name.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from qwenvl_agent.config import SourceConfig
from qwenvl_agent.coordinates import GRID, Screen
from qwenvl_agent.data.readers import read_rows
from qwenvl_agent.data.readers.computer import PictureFiles, RecordError, Rejected, check_size, read_box, read_records
from qwenvl_agent.data.readers.computer import rejected as rejected_record
from qwenvl_agent.data.source import Reject
from qwenvl_agent.evaluation.screens import file_hash, refusal
from qwenvl_agent.schema import NO_ANSWER, Answer, Observation, Picture, Policy, Request, Turn
from qwenvl_agent.statistics import Interval, clustered_share, wilson

MIN_IOU = 0.5
"""Of the boxes of an element that counts as found: intersection over union."""
QUESTION = "List every element that can be clicked, as JSON."
"""Where the data has no question of its own."""
LABELS = {
    "f1": ("F1", "of elements, matched one to one at an IoU of at least 0.5"),
    "precision": ("precision", "of the listed elements, those that are there"),
    "recall": ("recall", "of the elements that are there, those listed"),
    "type_accuracy": ("type", "of matched elements"),
    "text_accuracy": ("text", "of matched elements"),
    "strict_parse_rate": ("parsed strictly", "lists read without any repair"),
    "parse_rate": ("parsed", "lists read, repaired ones included"),
}
OUTCOMES = {
    "complete": "all elements, nothing else",
    "incomplete": "elements missing or wrong",
    "unreadable": "unreadable",
}
BOX_KEYS = ("bbox_2d", "bbox", "box")
UNASKED = ("cannot_be_shown", NO_ANSWER)
OPEN_OBJECT = re.compile(r"""\{(?=\s*["}])""")


@dataclass(frozen=True)
class ElementsTask:
    """A screenshot and its elements: {"type", "text", "box_px"} each. `source` is `file:line`."""

    case_id: str
    source: str
    picture: Picture
    request: Request
    elements: tuple[dict, ...]


@dataclass(kw_only=True)
class ElementsRecord:
    """A screenshot's elements, and those that the policy listed; boxes in pixels."""

    case_id: str
    picture: str
    width_px: int
    height_px: int
    expected: list[dict]
    found: list[dict] = field(default_factory=list)
    text: str = ""
    error: str = ""
    """no_list: nothing was read; or one of UNASKED, and `text` says why."""
    repairs: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "ElementsRecord":
        return cls(**values)


# data


def read_elements(folder: Path) -> tuple[list[ElementsTask], list[Rejected], dict]:
    """(tasks, rejects, what the result says about them) of a folder with elements.jsonl and questions.jsonl."""
    path = folder / "elements.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise ValueError(f"{path} does not exist: there are no elements to look for; give a folder of generate_ui.py")
    questions_path = path.with_name("questions.jsonl")
    questions = read_questions(questions_path) if questions_path.is_file() else {}
    pictures = PictureFiles(path.parent)
    tasks, rejected = [], []
    for source, record in read_records(path):
        try:
            tasks.append(read_task(record, source, pictures, questions))
        except Exception as error:
            rejected.append(rejected_record(source, error))
    if not tasks:
        raise ValueError(f"{path} gives no screen ({rejected[0].message if rejected else 'it is empty'}): correct it")
    hashed = [path, questions_path] if questions else [path]
    about = {"data": str(path), "num_tasks": len(tasks), "dataset_hash": file_hash(hashed)}
    return tasks, rejected, about | {"rejected": dict(Counter(item.reason for item in rejected).most_common())}


def read_questions(path: Path) -> dict[str, Request]:
    """By picture file the request for its list, as training makes it of the conversation."""
    requests = {}
    for row in read_rows((path,), SourceConfig(path=str(path), kind="chat")):
        if not isinstance(row, Reject) and is_list(row.step.turn.text):
            observation = row.step.observation
            requests[observation.pictures[0].path] = Request(row.system_prompt, row.tools, (), observation, False)
    return requests


def is_list(text: str) -> bool:
    return text.startswith("[")


def read_task(record: object, source: str, pictures: PictureFiles, questions: dict[str, Request]) -> ElementsTask:
    if isinstance(record, RecordError):
        raise record
    if not isinstance(record, dict) or not isinstance(record.get("elements"), list):
        raise RecordError("bad_record", "the row has no list of elements: nothing could be found; write elements")
    picture, _ = pictures.open(record.get("screenshot"))
    check_size(record.get("image_size"), picture)
    request = questions.get(picture.path) or Request("", (), (), Observation(QUESTION, (picture,)))
    elements = tuple(labelled(element, picture) for element in record["elements"])
    return ElementsTask(str(record.get("id") or source.rpartition(":")[2]), source, picture, request, elements)


def labelled(element: object, picture: Picture) -> dict:
    box = element.get("box") if isinstance(element, dict) else None
    if box is None:
        raise RecordError("bad_box", f"element {str(element)[:80]} has no box: where it is is unknown; write box")
    box_px, _ = read_box(box, "px", "xyxy", picture)
    return {"type": str(element.get("type") or ""), "text": str(element.get("text") or ""), "box_px": list(box_px)}


# answers


def predict_elements(policy: Policy, tasks: Sequence[ElementsTask]) -> list[ElementsRecord]:
    """One list for every screen."""
    reasons = [refusal(policy, task.request, task.source) for task in tasks]
    shown = [task.request for task, reason in zip(tasks, reasons, strict=True) if not reason]
    answers = iter(policy.act(shown) if shown else [])
    refused = [Answer(Turn(), text=reason, error="cannot_be_shown") for reason in reasons]
    return [
        to_record(task, answer if reason else next(answers))
        for task, answer, reason in zip(tasks, refused, reasons, strict=True)
    ]


def to_record(task: ElementsTask, answer: Answer) -> ElementsRecord:
    text = answer.text or answer.turn.text
    found, repairs = read_list(text, Screen.of(task.picture))
    if answer.error == "endless":
        repairs = (*repairs, "endless")
    return ElementsRecord(
        case_id=task.case_id,
        picture=task.picture.path,
        width_px=task.picture.width,
        height_px=task.picture.height,
        expected=list(task.elements),
        found=found,
        text=text,
        error=answer.error if answer.error in UNASKED else "" if is_read(text, found) else "no_list",
        repairs=list(repairs),
    )


def is_read(text: str, found: Sequence[dict]) -> bool:
    """An empty list is an answer, too."""
    return bool(found) or text.strip() == "[]"


def read_list(text: str, screen: Screen) -> tuple[list[dict], tuple[str, ...]]:
    """Every element in a model's text, in pixels, and what had to be read over.

    not_a_bare_list: there is more than the list, or it is not closed; no_box: an element without a readable box, left
    out; clamped: a box that leaves the screen, cut.
    """
    try:
        values, is_bare = json.loads(text), True
    except (ValueError, RecursionError):
        values, is_bare = list(objects_in(text)), False
    if not isinstance(values, list):
        values, is_bare = [values], False
    repairs = [] if is_bare or not values else ["not_a_bare_list"]
    found = []
    for value in values:
        element, repair = read_element(value, screen)
        found += [element] if element else []
        repairs += [repair] if repair else []
    return found, tuple(dict.fromkeys(repairs))


def objects_in(text: str) -> Iterator[dict]:
    """Every complete JSON object of a text, outermost ones only."""
    decoder, at = json.JSONDecoder(), 0
    while match := OPEN_OBJECT.search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
        except RecursionError:
            return  # a thousand objects in one another are no list of elements, and each would be tried
        except ValueError:
            at = match.end()
        else:
            yield value


def read_element(value: object, screen: Screen) -> tuple[dict | None, str]:
    """(the element, or None without a box; the name of what was read over)"""
    numbers = next((value[key] for key in BOX_KEYS if key in value), None) if isinstance(value, dict) else None
    is_box = isinstance(numbers, list) and len(numbers) == 4 and all(type(v) in (int, float) for v in numbers)
    if not is_box or not all(abs(v) < 1e6 for v in numbers):
        return None, "no_box"
    inside = [min(max(v, 0), GRID.cells) for v in numbers]
    width, height = screen.width_px / GRID.cells, screen.height_px / GRID.cells
    box_px = [inside[0] * width, inside[1] * height, inside[2] * width, inside[3] * height]
    element = {"type": str(value.get("type") or ""), "text": str(value.get("text") or ""), "box_px": box_px}
    return element, "" if inside == numbers else "clamped"


# metrics


def elements_metrics(records: Sequence[ElementsRecord]) -> dict[str, Interval | dict[str, int]]:
    """Over all elements of all screens; intervals resample screens.

    precision: of the listed elements those that are there, matched one to one at an IoU of at least MIN_IOU; recall: of
    those that are there the listed ones; f1 of both. type_accuracy, text_accuracy: of the matched ones. parse_rate:
    screens from whose answer a list was read; strict_parse_rate: and it was nothing else.
    """
    pairs = [matches(record) for record in records]
    matched = [len(found) for found in pairs]
    listed, there = [len(r.found) for r in records], [len(r.expected) for r in records]
    same = {
        key: [
            sum(r.found[i][key] == r.expected[j][key] for i, j in found)
            for r, found in zip(records, pairs, strict=True)
        ]
        for key in ("type", "text")
    }
    strict = sum(not record.error and not record.repairs for record in records)
    return {
        "f1": clustered_share([2 * number for number in matched], [a + b for a, b in zip(listed, there, strict=True)]),
        "precision": clustered_share(matched, listed),
        "recall": clustered_share(matched, there),
        "type_accuracy": clustered_share(same["type"], matched),
        "text_accuracy": clustered_share(same["text"], matched),
        "strict_parse_rate": wilson(strict, len(records)),
        "parse_rate": wilson(sum(not record.error for record in records), len(records)),
        "numbers": {"screens": len(records), "there": sum(there), "listed": sum(listed), "matched": sum(matched)},
        "errors": dict(Counter(record.error for record in records if record.error).most_common()),
        "repairs": dict(Counter(name for record in records for name in record.repairs).most_common()),
    }


def matches(record: ElementsRecord) -> list[tuple[int, int]]:
    """(index of a found element, index of the expected one): as many pairs as can be, and of those the best fitting."""
    if not record.found or not record.expected:
        return []
    from scipy.optimize import linear_sum_assignment  # here, because it takes seconds to import

    fit = overlaps(record.found, record.expected)
    is_match = fit >= MIN_IOU
    rows, columns = linear_sum_assignment(is_match * (fit + fit.size), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if is_match[i, j]]


def overlaps(found: Sequence[dict], expected: Sequence[dict]) -> np.ndarray:
    """(found, expected): intersection over union of the boxes; a box without an inside overlaps nothing."""
    a = np.array([element["box_px"] for element in found], dtype=float)[:, None]
    b = np.array([element["box_px"] for element in expected], dtype=float)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


class ListOracle:
    """Answers every request of these tasks with the elements that are there, on the model's grid."""

    def __init__(self, tasks: Sequence[ElementsTask]):
        self.tasks = {id(task.request): task for task in tasks}

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(Turn(text=json.dumps(self.listed(request), ensure_ascii=False))) for request in requests]

    def listed(self, request: Request) -> list[dict]:
        task = self.tasks[id(request)]
        screen = Screen.of(task.picture)
        return [
            {
                "type": element["type"],
                "text": element["text"],
                "bbox_2d": [*screen.to_norm(*element["box_px"][:2]), *screen.to_norm(*element["box_px"][2:])],
            }
            for element in task.elements
        ]


def outcome(record: ElementsRecord) -> str:
    """unreadable, complete (every element listed, and nothing else) or incomplete."""
    if record.error:
        return "unreadable"
    is_complete = len(matches(record)) == len(record.expected) == len(record.found)
    return "complete" if is_complete else "incomplete"
