"""Screens with an instruction and the action to take on them: one step a record.

Two published forms are read, `initial_screenshot` with `next_action` and `screenshot` with `action`; positions are in
pixels of the screenshot. What else a record may hold is listed at `Sample`. A record that cannot be learned from
becomes a `Reject` that says why; every other record stands.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwenvl_agent import containers
from qwenvl_agent.computer import KINDS, Action, build_tool, to_turn
from qwenvl_agent.computer.context import SYSTEM_PROMPT, observation
from qwenvl_agent.computer.dialects import read, to_seed
from qwenvl_agent.containers import Record
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.data.pictures import Seen, see
from qwenvl_agent.data.source import Origin, Reject, SourceRow
from qwenvl_agent.images import check_aspect_ratio, read_rgb
from qwenvl_agent.json_input import fault_of_line
from qwenvl_agent.picture_store import PictureFolder, is_embedded
from qwenvl_agent.row_markers import check_row_markers
from qwenvl_agent.schema import Picture, Step, Turn

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the picture."""
BOX_SLACK_PX = 1.0
"""A box may reach this far over the picture's edge (annotators round); it is cut back, and counted."""
MAX_STEP = 10**9
OWN_NAMES = (*KINDS, "click")
OWN_SPELLINGS = {"renamed_action", "renamed_action_key", "xy_keys", "several_actions"}
"""What `dialects` calls repairs and these two forms have by design."""
TRAIN, TEST = "train", "test"


VERSION = 1
"""Of the rows that a file gives; see `readers.Reader`."""


class RecordError(ValueError):
    """Why a record gives no sample; `reason` is short and stable, for counting."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Rejected(Reject):
    """A `Reject` with its reason's name."""

    reason: str = ""


@dataclass(frozen=True)
class Sample:
    """One labelled step, in pixels of its screenshot. `source` is `file:line`.

    `box_px` is the element that the action hits. `seen` is the decoded picture's hash, so that samples of one picture
    stay on one side of a split; steps of an episode do by `episode_id`, and `group` (such as a site) overrides both.
    `past` are lines that describe the steps before. `kinds` are the actions that the tool offers. `split` is train or
    test: a test sample is never trained on. `details` (element kind, platform, language ...) are kept for evaluation.
    """

    source: str
    instruction: str
    picture: Picture
    seen: Seen
    actions: tuple[Action, ...]
    thought: str = ""
    box_px: Box | None = None
    id: str = ""
    episode_id: str = ""
    step: int = 0
    past: tuple[str, ...] = ()
    group: str = ""
    kinds: tuple[str, ...] = tuple(KINDS)
    split: str = TRAIN
    origin: str = ""
    licence: str = ""
    details: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def screen(self) -> Screen:
        return Screen.of(self.picture)

    @property
    def split_key(self) -> str:
        return self.group or self.episode_id or self.seen.pixels

    @property
    def turn(self) -> Turn:
        """What the model is to write; ValueError for text that must not be taught."""
        return to_turn(self.actions, self.screen, self.thought)

    def to_json(self, screenshot: str) -> dict:
        """The record in the published form, with only the fields that say something."""
        shown = [to_seed(action, self.screen) for action in self.actions]
        if self.thought:
            shown[0]["reasoning"] = self.thought
        record = {
            "id": self.id,
            "instruction": self.instruction,
            "screenshot": screenshot,
            "image_size": [self.picture.width, self.picture.height],
            "action": shown[0] if len(shown) == 1 else shown,
            "box": self.box_px and [round(v, 2) for v in self.box_px],
            "episode_id": self.episode_id,
            "step": self.step if self.episode_id else None,
            "history": list(self.past),
            "group": self.group,
            "actions": [] if self.kinds == tuple(KINDS) else list(self.kinds),
            "split": self.split,
            "origin": self.origin,
            "licence": self.licence,
            "details": self.details,
        }
        return {key: value for key, value in record.items() if value not in (None, "", [], {})}


def read_records(path: Path) -> Iterator[tuple[str, object]]:
    """(source, value) of every record of a file in whatever container; a broken one's value is a RecordError."""
    return ((record.source, _value(record)) for record in containers.read_records(path))


def _value(record: Record) -> object:
    try:
        return record.value()
    except ValueError as error:
        return RecordError("not_json", str(error))


def read_samples(path: Path) -> Iterator[Sample | Rejected]:
    """Every record of a file (or of a folder's dataset.jsonl) in order; copies of a record are rejected."""
    path = containers.data_file(path)
    read = sample_reader(PictureFolder(path.parent))
    return without_copies(map(read, containers.read_records(path)))


def sample_reader(folder: PictureFolder) -> Callable[[Record], Sample | Rejected]:
    """What reads a record by itself."""
    pictures = PictureFiles(folder)

    def read(record: Record) -> Sample | Rejected:
        try:
            return read_sample(_value(record), pictures, record.source)
        except Exception as error:
            return rejected(record.source, error)

    return read


def without_copies(items: Iterable[Sample | Rejected]) -> Iterator[Sample | Rejected]:
    """The items, with a reject for each sample that was there already."""
    duplicates = Duplicates()
    for item in items:
        try:
            yield duplicates.check(item) if isinstance(item, Sample) else item
        except RecordError as error:
            yield rejected(item.source, error)


def rejected(source: str, error: Exception) -> Rejected:
    """The reject of a record, whatever went wrong with it."""
    return Rejected(source, fault_of_line(error), reason=getattr(error, "reason", "bad_record"))


def open_reader(origin: Origin) -> Callable[[Record], tuple[Sample | Rejected]]:
    """What reads a record; `join` makes rows of it."""
    read = sample_reader(origin.folder)
    return lambda record: (read(record),)


def join(items: Iterable[Sample | Rejected], origin: Origin) -> Iterator[SourceRow | Reject]:
    """The samples as training rows; copies and those of a test split are rejected."""
    for item in without_copies(items):
        if isinstance(item, Reject):
            yield item
        elif item.split == TEST:
            yield Rejected(
                item.source, "split is test: trained on, it could not be measured on; leave it out", True, TEST
            )
        else:
            yield to_row(item)


def to_row(sample: Sample) -> SourceRow | Reject:
    """The training row; a Reject for words that must not be taught."""
    try:
        turn = sample.turn
    except Exception as error:
        return Rejected(sample.source, fault_of_line(error), reason="bad_text")
    number = sample.source.rpartition(":")[2]
    return SourceRow(
        episode_id=sample.episode_id or f"{sample.id or sample.seen.pixels}#{number}",
        turn_index=sample.step,
        split_key=sample.split_key,
        system_prompt=SYSTEM_PROMPT,
        tools=(build_tool(sample.kinds),),
        step=Step(observation(sample.picture, sample.instruction, sample.past), turn),
        source=sample.source,
        notes=sample.notes,
    )


class PictureFiles:
    """Pictures below a folder, each decoded once however many records show it."""

    def __init__(self, folder: PictureFolder | Path):
        self.folder = folder if isinstance(folder, PictureFolder) else PictureFolder(folder)
        self._seen: dict[str, Seen] = {}

    def open(self, name: Any) -> tuple[Picture, Seen]:
        what = "screenshot (embedded)" if is_embedded(name) else f"screenshot {name!r}"
        if not is_embedded(name):
            name = name.get("path") if isinstance(name, dict) else name
            if not isinstance(name, str) or not name:
                raise RecordError(
                    "no_picture", f"screenshot is {str(name)[:80]!r}: no file is named; name the picture's file"
                )
        try:
            path = self.folder.path(name, what)
            if path not in self._seen:
                self._seen[path] = see(read_rgb(path, what))
            seen = self._seen[path]
            check_aspect_ratio(seen.width, seen.height, what)
        except ValueError as error:
            raise RecordError("bad_picture", str(error)) from None
        return Picture(seen.width, seen.height, path), seen


class Duplicates:
    """Finds samples that were there already: same pixels, instruction, history and actions."""

    def __init__(self) -> None:
        self._sources: dict[bytes, str] = {}
        self._paths: dict[str, str] = {}

    def check(self, sample: Sample) -> Sample:
        """The sample, with a note if its picture is there under another name; RecordError if it is a copy."""
        content = repr((sample.seen, sample.instruction, sample.past, sample.actions)).encode("utf-8", "surrogatepass")
        key = hashlib.sha256(content).digest()[:16]
        first = self._sources.setdefault(key, sample.source)
        if first != sample.source:
            raise RecordError(
                "duplicate",
                f"same picture, instruction and action as {first}: it would count twice; remove one of the two",
            )
        path = self._paths.setdefault(sample.seen.pixels, sample.picture.path)
        return (
            sample if path == sample.picture.path else replace(sample, notes=(*sample.notes, "picture_under_two_names"))
        )


def read_sample(record: object, pictures: PictureFiles, source: str) -> Sample:
    """The sample of one record in either form; ValueError says what is wrong with it."""
    if isinstance(record, RecordError):
        raise record
    if not isinstance(record, dict):
        raise RecordError(
            "bad_record", f"a {type(record).__name__} instead of an object: nothing to read; write one object"
        )
    check_row_markers(record, "take the row out")
    picture, seen = pictures.open(_one_of(record, "screenshot", "initial_screenshot"))
    check_size(record.get("image_size"), picture)
    actions, thought, notes = _read_actions(record, Screen.of(picture))
    target = _target(record)
    if not thought and target:
        thought, notes = f"The target is {target}.", (*notes, "thought_from_target")
    box, cut = read_box(record.get("box"), "px", "xyxy", picture)
    return Sample(
        source=source,
        instruction=read_text(record, "instruction"),
        picture=picture,
        seen=seen,
        actions=actions,
        thought=thought,
        box_px=box,
        id=str(record.get("id") or ""),
        **_read_place(record),
        kinds=_read_kinds(record, actions),
        origin=str(record.get("origin") or ""),
        licence=str(record.get("licence") or ""),
        details=_details(record),
        notes=notes + cut,
    )


def _one_of(record: dict, *names: str) -> object:
    given = [name for name in names if record.get(name) is not None]
    if len(given) != 1:
        what = "both are given: which holds is unknown; keep one" if given else "neither is given: write one"
        raise RecordError("bad_record", f"{' and '.join(names)}: {what}")
    return record[given[0]]


def read_text(record: dict, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"no_{name}", f"{name} is {str(value)[:80]!r}: there is no task; write it as text")
    return value.strip()


def check_size(size: Any, picture: Picture) -> None:
    """RecordError if the annotation was made on a picture of another size; None: not stated."""
    if size is None:
        return
    if not _are_numbers(size, 2):
        raise RecordError("bad_size", f"image_size is {str(size)[:80]}: not a size; write [width, height]")
    if tuple(size) != (picture.width, picture.height):
        raise RecordError(
            "size_differs",
            f"the picture is {picture.width}x{picture.height} px, annotated as {size[0]}x{size[1]}: positions would be "
            "wrong; use the picture that was annotated",
        )


def _are_numbers(value: Any, length: int) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) == length
    return is_list and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in value)


def _read_actions(record: dict, screen: Screen) -> tuple[tuple[Action, ...], str, tuple[str, ...]]:
    """(actions, thought, notes)."""
    value = _one_of(record, "action", "next_action")
    reading = read(value, screen, "px")
    if reading.error:
        raise RecordError(reading.error, reading.message)
    is_own = all(_is_own_form(item) for item in (value if isinstance(value, list) else [value]))
    notes = tuple(name for name in reading.repairs if not (is_own and name in OWN_SPELLINGS))
    thought = reading.thought or record.get("reasoning") or record.get("thought") or ""
    if not isinstance(thought, str):
        raise RecordError("bad_text", f"reasoning is {str(thought)[:80]!r}: not text; write text or leave it out")
    return reading.actions, thought.strip(), notes


def _is_own_form(value: object) -> bool:
    return isinstance(value, dict) and (value.get("action") or value.get("type")) in OWN_NAMES


def _target(record: dict) -> str:
    action = record.get("action")
    target = action.get("target") if isinstance(action, dict) else None
    return target.strip() if isinstance(target, str) else ""


def read_box(value: Any, unit: str, order: str, picture: Picture) -> tuple[Box | None, tuple[str, ...]]:
    """A box as x1, y1, x2, y2 in pixels, cut to the picture, and ("box_cut",) if it was; None: no box is given."""
    if value is None:
        return None, ()
    if not _are_numbers(value, 4):
        raise RecordError("bad_box", f"box is {str(value)[:80]}: not four numbers; write them")
    screen = Screen.of(picture)
    first, second = screen.from_unit(value[0], value[1], unit), screen.from_unit(value[2], value[3], unit)
    x1, y1 = first
    x2, y2 = (x1 + second[0], y1 + second[1]) if order == "xywh" else second
    what = f"box {list(value)} ({order}, {unit})"
    if not (x2 > x1 and y2 > y1):
        raise RecordError(
            "empty_box", f"{what} has no inside: no click could hit it; correct it, or its declared order"
        )
    if min(x1, y1) < -BOX_SLACK_PX or x2 > picture.width + BOX_SLACK_PX or y2 > picture.height + BOX_SLACK_PX:
        raise RecordError(
            "box_outside",
            f"{what} leaves the picture of {picture.width}x{picture.height} px: it was drawn on another, or its unit is "
            "not what is declared; correct it",
        )
    box = (max(x1, 0), max(y1, 0), min(x2, picture.width), min(y2, picture.height))
    if not (box[2] > box[0] and box[3] > box[1]):
        raise RecordError("empty_box", f"{what} lies on the picture's edge: no click could hit it; correct it")
    return box, () if box == (x1, y1, x2, y2) else ("box_cut",)


def _read_place(record: dict) -> dict:
    """Episode, step, history, group and split of a record."""
    episode, step = record.get("episode_id"), record.get("step", 0)
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP:
        raise RecordError("bad_record", f"step is {step!r}: it has no place in its episode; write its index from 0")
    past = record.get("history") or []
    if not isinstance(past, list) or not all(isinstance(line, str) for line in past):
        raise RecordError("bad_record", f"history is {str(past)[:80]}: not the steps before; write a list of texts")
    split = record.get("split", TRAIN)
    if split not in (TRAIN, TEST):
        raise RecordError("bad_record", f"split is {split!r}: which side it is on is unknown; write train or test")
    return {
        "episode_id": str(episode) if episode is not None else "",
        "step": step if episode is not None else 0,
        "past": tuple(past),
        "group": str(record.get("group") or ""),
        "split": split,
    }


def _read_kinds(record: dict, actions: Sequence[Action]) -> tuple[str, ...]:
    """The actions that the tool offers: `actions` of the record, or all."""
    kinds = record.get("actions") or list(KINDS)
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in KINDS for kind in kinds):
        raise RecordError(
            "bad_record", f"actions is {str(kinds)[:80]}: not actions of the tool; use {', '.join(KINDS)}"
        )
    missing = [action.kind for action in actions if action.kind not in kinds]
    if missing:
        raise RecordError(
            "bad_record", f"actions lacks {missing[0]}, which is the answer: it could not be given; add it"
        )
    return tuple(kinds)


def _details(record: dict) -> dict:
    details = record.get("details") or {}
    if not isinstance(details, dict):
        raise RecordError("bad_record", f"details is {str(details)[:80]}: not an object; write one or leave it out")
    return details


class SampleWriter:
    """Writes a dataset folder: dataset.jsonl, and each picture once as images/<hash of its pixels>.<ending>."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        self.file = open(self.folder / "dataset.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "SampleWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, sample: Sample) -> None:
        """Add a sample; its picture is linked, or copied where links cannot be, or saved as PNG from memory."""
        suffix = Path(sample.picture.path).suffix.lower() or ".png"
        screenshot = f"images/{sample.seen.pixels}{suffix}"
        target = self.folder / screenshot
        if not target.exists():
            self._place(sample.picture, target)
        self.file.write(json.dumps(sample.to_json(screenshot), ensure_ascii=False) + "\n")

    def _place(self, picture: Picture, target: Path) -> None:
        if not picture.path:
            picture.open().save(target)
            return
        try:
            os.link(picture.path, target)
        except OSError:
            shutil.copyfile(picture.path, target)


def summary(samples: int, reasons: Counter, notes: Counter) -> str:
    """Counts for people: what was read, what was rejected and why, what was changed."""
    lines = [f"{samples} samples, {reasons.total()} rejected"]
    lines += [f"  rejected {count} x {name}" for name, count in reasons.most_common()]
    lines += [f"  {name}: {count}" for name, count in notes.most_common()]
    return "\n".join(lines)
