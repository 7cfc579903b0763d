"""Published data sets of screens -> samples. One converter; a table says where each set keeps what, and in which unit.

Units and orders are declared, never guessed ("all values below 1" is also a one-pixel box). The facts come from each
set's own loader or card, named beside its row. A declaration that does not fit a file shows at once: its boxes leave
their pictures and are rejected by that name.

Paths are keys joined by dots; `item.` starts at an element of the list that `items` names, everything else at the row.
A path with braces is a text to fill in.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenvl_agent.computer import Action
from qwenvl_agent.computer.context import describe
from qwenvl_agent.computer.dialects import read
from qwenvl_agent.coordinates import Screen, centre
from qwenvl_agent.data.pictures import KnownPictures, see
from qwenvl_agent.data.readers.computer import (
    TEST,
    TRAIN,
    Box,
    Duplicates,
    PictureFiles,
    RecordError,
    Rejected,
    Sample,
    check_size,
    read_box,
    read_records,
    rejected,
)
from qwenvl_agent.images import read_rgb
from qwenvl_agent.json_input import read_json
from qwenvl_agent.schema import Picture

POINT_SLACK_PX = 1.0
THOUGHT_LABEL = re.compile(r"(?mi)^[ \t]*(?:thought|action|observation|low-level instruction)[ \t]*:[ \t]*")
"""Of a line in a thought; in our formats these words are structure and cannot be taught."""
KEPT_FORMATS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}
"""How a file of each format starts."""
INSTRUCTION = re.compile(r"(?i)\binstruction:\s*")
END_OF_TASK = re.compile(r"(?im)^[^\S\n]*(?:\n|previous actions:)")
REFERENCE_END = re.compile(r"</ref>\s*<box>\[\[([^]<]*)\]\]</box>")
CODE = re.compile(r"\b(?:pyautogui|mobile|browser|computer)\.\w+\(|^terminate\(|^answer\(")


@dataclass(frozen=True)
class Layout:
    """Where one data set keeps what. With `action` the sample's actions are read there, in any dialect and in
    `action_unit`; without, it is a click on the point, or in the middle of the box."""

    picture: str
    instruction: tuple[str, ...]
    """The first of these that holds text."""
    items: str = ""
    """A list in the row: one sample an item. Its fields are `item.x`; without, one sample a row."""
    box: str = ""
    box_unit: str = "px"
    box_order: str = "xyxy"
    point: str = ""
    point_unit: str = "px"
    action: str = ""
    action_unit: str = "fraction"
    size: str = ""
    """[width, height] of the annotated picture: checked against the file."""
    thought: str = ""
    is_episode: bool = False
    """The items are the steps of one episode, in order."""
    past: str = ""
    """An item's own words for its step, shown to the steps after it; without, the call itself."""
    history: str = ""
    """A list of texts: the steps before, where each row is a step of its own."""
    id: str = ""
    group: str = ""
    """Samples that agree in it stay on one side of a split."""
    details: tuple[str, ...] = ()
    split: str = TRAIN
    licence: str = ""
    prepare: Callable[[dict], dict] = dict
    """Brings a row with JSON or prose inside into paths."""


def _conversation_turns(row: dict) -> dict:
    """`turns`: each user message with what is answered to it, code apart from words."""
    turns: list[dict] = []
    for message in _listed(row, "conversations"):
        text = str(message.get("value") or "").replace("<image>", "").strip()
        if message.get("from") == "human":
            turns.append({**_task_of(text), "said": "", "code": ""})
        elif message.get("from") == "gpt" and turns:
            key = "code" if CODE.search(text) else "said"
            turns[-1][key] = f"{turns[-1][key]}\n{text}".strip()
    return {**row, "turns": turns}


def _task_of(text: str) -> dict:
    """`asked` and `before` of a user's message: the text after "Instruction:" and the lines after "Previous actions:"."""
    asked, task = "", INSTRUCTION.search(text)
    if task:
        end = END_OF_TASK.search(text, task.end() + 1)
        asked = text[task.end() : end.start() if end else len(text)].strip()
    before = re.search(r"(?is)\bprevious actions:\s*(.*)\Z", text)
    lines = [line.strip() for line in before.group(1).splitlines()] if before else []
    return {
        "asked": asked or text,
        "before": [re.sub(r"^step\s*\d+\s*:\s*", "", line, flags=re.I) for line in lines if line and line != "None"],
    }


def _reference_boxes(row: dict) -> dict:
    """`elements` of OS-Atlas' text: <ref>instruction</ref><box>[[x1, y1, x2, y2]]</box>, thousandths."""
    elements = []
    for message in _listed(row, "conversations"):
        text = str(message.get("value") or "")
        at = 0
        for end in REFERENCE_END.finditer(text):
            start = text.find("<ref>", at, end.start())
            if start >= 0:
                name = text[start + len("<ref>") : end.start()].strip()
                elements.append({"instruction": name, "bbox": [_number(n) for n in end.group(1).split(",")]})
                at = end.end()
    return {**row, "elements": elements}


def _mind2web_steps(row: dict) -> dict:
    """Steps with `bbox` as a list and `act`, a dialect's object; the target's box gives the position."""
    steps = []
    for i, action in enumerate(_listed(row, "actions")):
        operation, box = _decoded(action.get("operation")), action.get("bbox")
        if isinstance(box, dict):
            box = [box.get(key) for key in ("x", "y", "width", "height")]
        said = row.get("action_reprs") or []
        steps.append({**action, "bbox": box, "act": _operation(operation), "said": said[i] if i < len(said) else ""})
    return {**row, "steps": steps}


def _mind2web_row(row: dict) -> dict:
    """A flat row: JSON texts decoded, the first positive candidate's box, and what was done before as `before`."""
    boxes = [_candidate_box(_decoded(candidate)) for candidate in _decoded(row.get("pos_candidates")) or []]
    box = next((box for box in boxes if box and box[2] > 0), None)  # -1,-1,-1,-1: the element was not drawn
    said, index = row.get("action_reprs") or [], row.get("target_action_index")
    before = list(said)[: int(index)] if index is not None else []
    return {**row, "bbox": box, "before": before, "act": _operation(_decoded(row.get("operation")))}


def _candidate_box(candidate: dict) -> list[float]:
    attributes = _decoded(candidate.get("attributes")) or {}
    return [_number(n) for n in str(attributes.get("bounding_box_rect") or "").split(",") if n.strip()]


def _operation(operation: object) -> dict:
    """Mind2Web's CLICK, TYPE and SELECT with a value; HOVER and ENTER exist in its raw form."""
    if not isinstance(operation, dict) or not isinstance(operation.get("op"), str):
        raise RecordError("bad_record", f"operation is {str(operation)[:80]}: no action is named; write op and value")
    text = operation.get("value")
    return {"action": operation["op"]} | ({"text": text} if text and operation["op"] in ("TYPE", "SELECT") else {})


def _bench_steps(row: dict) -> dict:
    """AgentNetBench: the ground-truth actions of each step as dialects' objects, and the first box that one of them has."""
    steps = []
    for step in _listed(row, "steps"):
        truth = step.get("ground_truth_actions") or []
        boxes = [box.get("rel_bbox") for action in truth for box in (action.get("metadata") or {}).get("bboxes") or []]
        steps.append({**step, "act": [_bench_action(action) for action in truth], "box": boxes[0] if boxes else None})
    return {**row, "steps": steps}


def _bench_action(action: dict) -> dict:
    values = dict(action.get("params") or {})
    # `amount` of a scroll is pyautogui's: notches of the wheel.
    renamed = {"notches" if key in ("amount", "pixels") else key: value for key, value in values.items()}
    return {"action": action.get("type"), **renamed}


LAYOUTS: dict[str, Layout] = {
    # SeeClick, pretrain/screenspot_test.py; OS-Copilot's JSON of v2 has the same fields
    "screenspot": Layout(
        picture="img_filename",
        instruction=("instruction",),
        box="bbox",
        box_order="xywh",
        details=("data_type", "data_source"),
        split=TEST,
        licence="Apache-2.0",
    ),
    # the card of rootsautomation/ScreenSpot
    "screenspot_hf": Layout(
        picture="file_name",
        instruction=("instruction",),
        box="bbox",
        box_unit="fraction",
        details=("data_type", "data_source"),
        split=TEST,
        licence="Apache-2.0",
    ),
    # OS-Copilot/ScreenSpot-v2, the JSON files
    "screenspot_v2": Layout(
        picture="img_filename",
        instruction=("instruction",),
        box="bbox",
        box_order="xywh",
        details=("data_type", "data_source"),
        split=TEST,
        licence="Apache-2.0",
    ),
    # GUI-Actor, verifier/ScreenSpot-v2-new
    "screenspot_v2_sized": Layout(
        picture="img_filename",
        instruction=("instruction",),
        box="bbox",
        size="img_size",
        details=("ui_type", "platform", "group"),
        split=TEST,
    ),
    # ScreenSpot-Pro, eval_screenspot_pro.py
    "screenspot_pro": Layout(
        picture="img_filename",
        instruction=("instruction",),
        box="bbox",
        size="img_size",
        id="id",
        details=("ui_type", "platform", "application", "group", "instruction_cn"),
        split=TEST,
    ),
    # ShowUI, TRAIN.md; points have two decimals there, so the box decides
    "showui": Layout(
        picture="img_url",
        instruction=("item.instruction",),
        items="element",
        box="item.bbox",
        box_unit="fraction",
        point="item.point",
        point_unit="fraction",
        size="img_size",
        details=("item.data_type",),
        licence="Apache-2.0",
    ),
    # the card of showlab/ShowUI-desktop
    "showui_desktop": Layout(
        picture="image_url",
        instruction=("instruction",),
        box="bbox",
        box_unit="fraction",
        point="point",
        point_unit="fraction",
        details=("type",),
        licence="Apache-2.0",
    ),
    # SeeClick, readme_data.md; OS-Atlas publishes its raw grounding data in the same form
    "os_atlas": Layout(
        picture="img_filename",
        instruction=("item.instruction",),
        items="elements",
        box="item.bbox",
        box_unit="fraction",
        group="url",
        details=("item.data_type",),
        licence="Apache-2.0",
    ),
    # the card of OS-Copilot/OS-Atlas-data
    "os_atlas_sft": Layout(
        picture="image",
        instruction=("item.instruction",),
        items="elements",
        box="item.bbox",
        box_unit="norm",
        licence="Apache-2.0",
        prepare=_reference_boxes,
    ),
    # the card of agentsea/wave-ui does not say the unit; `size` makes a wrong one show
    "wave_ui": Layout(
        picture="image",
        instruction=("instruction", "name"),
        box="bbox",
        size="resolution",
        details=("source", "platform", "type", "language", "description", "purpose"),
    ),
    # OpenCUA, data/cot-generate/gen_cot_example/raw_example.jsonl
    "agentnet": Layout(
        picture="item.image",
        instruction=("instruction", "natural_language_task"),
        items="traj",
        action="item.value.code",
        thought="item.value.thought",
        past="item.value.action",
        is_episode=True,
        id="task_id",
        licence="MIT",
    ),
    # OpenCUA, evaluation/agentnetbench/eval.py
    "agentnet_bench": Layout(
        picture="item.image",
        instruction=("high_level_task_description", "user_task_description"),
        items="steps",
        box="item.box",
        box_unit="fraction",
        box_order="xywh",
        action="item.act",
        thought="item.inner_monologue.thought",
        past="item.inner_monologue.low_level_instruction",
        is_episode=True,
        id="task_id",
        split=TEST,
        licence="MIT",
        prepare=_bench_steps,
    ),
    # Aguvis, src/aguvis/dataset.py and constants.py
    "aguvis": Layout(
        picture="image",
        instruction=("item.asked",),
        items="turns",
        action="item.code",
        thought="item.said",
        history="item.before",
        prepare=_conversation_turns,
    ),
    # SeeClick, agent_tasks/mind2web_test.py; ShowUI, prepare/hf_mind2web.py
    "mind2web": Layout(
        picture="{annotation_id}-{item.action_uid}.jpg",
        instruction=("confirmed_task",),
        items="steps",
        box="item.bbox",
        box_order="xywh",
        action="item.act",
        past="item.said",
        is_episode=True,
        id="annotation_id",
        group="website",
        details=("website", "domain", "subdomain"),
        prepare=_mind2web_steps,
    ),
    # the card of osunlp/Multimodal-Mind2Web
    "multimodal_mind2web": Layout(
        picture="screenshot",
        instruction=("confirmed_task",),
        box="bbox",
        box_order="xywh",
        action="act",
        history="before",
        id="action_uid",
        group="website",
        details=("website", "domain", "subdomain"),
        prepare=_mind2web_row,
    ),
}


def convert(
    path: Path, layout: str, pictures: Path, *, known: KnownPictures | None = None
) -> Iterator[Sample | Rejected]:
    """Every sample of a file in the form named `layout`; `pictures` is the folder that its pictures' names start from.

    Reads JSONL, a .json list, or a .parquet table with pictures inside (they are then saved to `pictures`). Training
    samples whose picture is among `known`, such as an evaluation set's, are rejected.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not known: the file cannot be read; use one of {', '.join(LAYOUTS)}")
    path, pictures = Path(path), Path(pictures)
    converter = _Converter(layout, PictureFiles(pictures), known)
    records = (
        _read_parquet(path, pictures, LAYOUTS[layout].picture) if path.suffix == ".parquet" else read_records(path)
    )
    for source, row in records:
        yield from converter.samples(row, source)


def known_pictures(path: Path, layout: str, pictures: Path) -> KnownPictures:
    """The pictures of a set, to keep them out of another."""
    known, names = KnownPictures(), set()
    for item in convert(path, layout, pictures):
        if isinstance(item, Sample) and item.picture.path not in names:
            names.add(item.picture.path)
            known.add(item.picture.open(), Path(item.picture.path).name)
    return known


class _Converter:
    def __init__(self, name: str, pictures: PictureFiles, known: KnownPictures | None):
        self.name, self.layout, self.pictures, self.known = name, LAYOUTS[name], pictures, known
        self.duplicates = Duplicates()
        self._found: dict[str, str] = {}

    def samples(self, row: object, source: str) -> Iterator[Sample | Rejected]:
        """The samples of one row, each with its item's number behind the line's; a fault in an item costs that item."""
        try:
            if isinstance(row, RecordError):
                raise row
            if not isinstance(row, dict):
                raise RecordError("bad_record", f"a {type(row).__name__} instead of an object: nothing to read")
            row = _prepared(row, self.layout.prepare)
            items = _listed(row, self.layout.items) if self.layout.items else [{}]
            if not items:
                raise RecordError("no_items", f"{self.layout.items} is empty: the row holds no sample")
        except Exception as error:
            yield rejected(source, error)
            return
        past: list[str] = []
        for index, item in enumerate(items):
            place = f"{source}[{index}]" if self.layout.items else source
            try:
                sample = self._sample({**row, "item": item}, place, index, tuple(past))
                _check_writable(sample)
                yield self.duplicates.check(sample)
                said = _text_at({**row, "item": item}, self.layout.past)
                past.append(said or "; ".join(describe(action, sample.screen) for action in sample.actions))
            except Exception as error:
                past.append(_text_at({"item": item}, self.layout.past) or "(unknown)")
                yield rejected(place, error)

    def _sample(self, row: dict, source: str, index: int, past: tuple[str, ...]) -> Sample:
        layout = self.layout
        picture, seen = self.pictures.open(_name_at(row, layout.picture))
        self._check_unknown(picture)
        check_size(_at(row, layout.size), picture)
        box, notes = read_box(_at(row, layout.box), layout.box_unit, layout.box_order, picture)
        actions, thought, more = self._actions(row, picture, box)
        row_id = str(_at(row, layout.id) or "")
        episode = row_id or source.rpartition("[")[0]
        return Sample(
            source=source,
            instruction=self._instruction(row),
            picture=picture,
            seen=seen,
            actions=actions,
            thought=THOUGHT_LABEL.sub("", thought or _text_at(row, layout.thought)),
            box_px=box,
            id="" if layout.is_episode else row_id,
            episode_id=f"{self.name}/{episode}" if layout.is_episode else "",
            step=index if layout.is_episode else 0,
            past=past if layout.is_episode else tuple(_at(row, layout.history) or ()),
            group=str(_at(row, layout.group) or ""),
            split=layout.split,
            origin=self.name,
            licence=layout.licence,
            details={path.rpartition(".")[2]: v for path in layout.details if (v := _at(row, path)) is not None},
            notes=notes + more,
        )

    def _instruction(self, row: dict) -> str:
        text = next((text for path in self.layout.instruction if (text := _text_at(row, path))), "")
        if not text:
            raise RecordError(
                "no_instruction", f"{' or '.join(self.layout.instruction)} holds no text: there is no task"
            )
        return text

    def _actions(self, row: dict, picture: Picture, box: Box | None) -> tuple[tuple[Action, ...], str, tuple[str, ...]]:
        layout = self.layout
        if layout.action:
            value = _at(row, layout.action)
            if box and isinstance(value, dict) and not {"x", "y", "coordinate"} & set(value):
                value = {**value, "coordinate": _in_unit(centre(box), picture, layout.action_unit)}
            reading = read(value, Screen.of(picture), layout.action_unit)
            if reading.error:
                raise RecordError(reading.error, reading.message)
            return reading.actions, reading.thought, reading.repairs
        point, notes = self._point(row, picture, box)
        return (Action.click(*point),), "", notes

    def _point(self, row: dict, picture: Picture, box: Box | None) -> tuple[tuple[float, float], tuple[str, ...]]:
        """The annotated point, unless it lies beside its box: then the box's middle."""
        value = _at(row, self.layout.point)
        if value is None and box is None:
            raise RecordError("no_position", "neither box nor point is given: there is nothing to hit")
        if value is None:
            return centre(box), ()
        reading = read(value, Screen.of(picture), self.layout.point_unit)
        if reading.error and box is None:
            raise RecordError(reading.error, reading.message)
        point = reading.actions[0].point_px if reading.actions else None
        if box is None or (point and _is_inside(point, box)):
            return point, ()
        return centre(box), ("point_beside_box",)

    def _check_unknown(self, picture: Picture) -> None:
        if self.known is None or self.layout.split == TEST:
            return
        if picture.path not in self._found:
            self._found[picture.path] = self.known.find(picture.open())
        if self._found[picture.path]:
            name = self._found[picture.path]
            raise RecordError("known_picture", f"the picture is {name!r} of the set kept apart: it would be trained on")


def _check_writable(sample: Sample) -> None:
    """ValueError for half a character or a number that JSON has not: the folder to write could not hold them."""
    try:
        json.dumps(sample.to_json(""), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise
    except ValueError as error:
        raise RecordError("bad_number", f"{error}: the row cannot be written; use finite numbers") from None


def _prepared(row: dict, prepare: Callable[[dict], dict]) -> dict:
    try:
        return prepare(row)
    except (AttributeError, TypeError, LookupError) as error:
        # Rows of another set have any shape; what is not where the layout says is no bug of ours.
        raise RecordError(
            "bad_record", f"the row has another form than its layout ({error}): use the right one"
        ) from None


def _is_inside(point: tuple[float, float], box: Box) -> bool:
    (x, y), (x1, y1, x2, y2) = point, box
    return x1 - POINT_SLACK_PX <= x <= x2 + POINT_SLACK_PX and y1 - POINT_SLACK_PX <= y <= y2 + POINT_SLACK_PX


def _in_unit(point_px: tuple[float, float], picture: Picture, unit: str) -> list[float]:
    assert unit == "fraction", unit  # of every layout that gives an action its box's place
    return [point_px[0] / picture.width, point_px[1] / picture.height]


def _at(row: dict, path: str) -> object:
    """The value at a path; None where there is none."""
    value: object = row if path else None
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text_at(row: dict, path: str) -> str:
    value = _at(row, path)
    return value.strip() if isinstance(value, str) else ""


def _name_at(row: dict, path: str) -> object:
    """A picture's file name: at a path, or made of several."""
    if "{" not in path:
        value = _at(row, path)
        return value.get("path") if isinstance(value, dict) else value
    return re.sub(r"\{(.*?)\}", lambda match: str(_at(row, match.group(1))), path)


def _listed(row: dict, path: str) -> list:
    value = _at(row, path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RecordError("bad_record", f"{path} is {str(value)[:80]}: not a list of objects; use the right layout")
    return value


def _decoded(value: object) -> object:
    """JSON given as text is decoded."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as error:
        raise RecordError("bad_record", f"{value[:80]!r}: {error}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RecordError("bad_box", f"{text[:40]!r} is no number of a box: correct it") from None


def _read_parquet(path: Path, pictures: Path, column: str) -> Iterator[tuple[str, object]]:
    """Rows of a table; a picture in a cell is saved under `pictures` by the hash of its pixels."""
    import pyarrow.parquet

    (pictures / "images").mkdir(parents=True, exist_ok=True)
    number = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=16):
        for row in batch.to_pylist():
            number += 1
            source = f"{path}:{number}"
            try:
                cell = next((cell for cell in row.values() if isinstance(cell, dict) and cell.get("bytes")), None)
                yield source, row if cell is None else {**row, column: _saved(cell["bytes"], pictures)}
            except ValueError as error:
                yield source, RecordError("bad_picture", str(error))


def _saved(content: bytes, pictures: Path) -> str:
    """The name below `pictures` under which a cell's picture now lies: as it was if PNG or JPEG, else as PNG."""
    image = read_rgb(content, "the picture in the table")
    suffix = next((suffix for start, suffix in KEPT_FORMATS.items() if content.startswith(start)), "")
    path = pictures / "images" / f"{see(image).pixels}{suffix or '.png'}"
    if suffix:
        path.write_bytes(content)
    else:
        image.save(path)
    return path.relative_to(pictures).as_posix()
