"""Screens with an instruction and the action to take on them: one step a record.

Two published forms are read, `initial_screenshot` with `next_action` and `screenshot` with `action`; all positions are in
the unit that is declared for the file (`units`). What else a record may hold is listed at `Sample`. A record that cannot
be learned from becomes a `Reject` that says why; every other record stands.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl_agent import containers
from qwenvl_agent.computer import KINDS, Action, build_tool, to_turn
from qwenvl_agent.computer.context import SYSTEM_PROMPT, observation
from qwenvl_agent.computer.dialect_units import OWN_FORM, thousandths_form
from qwenvl_agent.computer.dialects import Reading, read, to_seed
from qwenvl_agent.computer.synonyms import ARGUMENTS, THOUGHTS
from qwenvl_agent.config import SourceConfig
from qwenvl_agent.containers import Record
from qwenvl_agent.coordinates import Screen, corners
from qwenvl_agent.data.pictures import Seen, see
from qwenvl_agent.data.readers import units
from qwenvl_agent.data.readers.units import OUTSIDE_BOX, UNDECLARED, Declared, Evidence, Way
from qwenvl_agent.data.source import FileNote, Item, Origin, Reject, SourceRow
from qwenvl_agent.images import check_aspect_ratio, read_rgb
from qwenvl_agent.json_input import LeftOutError, fault_of_line
from qwenvl_agent.picture_store import PictureFolder, is_embedded
from qwenvl_agent.row_markers import check_row_markers
from qwenvl_agent.schema import Picture, Step, Turn

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the picture."""
MAX_STEP = 10**9
OWN_NAMES = (*KINDS, "click")
OWN_SPELLINGS = {"renamed_action", "renamed_action_key", "xy_keys", "several_actions"}
"""What `dialects` calls repairs and these two forms have by design."""
OF_PLACES = ("outside_screen", "unknown_unit", "box_outside", "empty_box", "click_outside_box")
"""Reasons that another unit or order may be behind."""
TRAIN, TEST = "train", "test"


VERSION = 2
"""Of the rows that a file gives; see `readers.Reader`."""


class RecordError(ValueError):
    """Why a record gives no sample; `reason` is short and stable, for counting."""

    def __init__(self, reason: str, message: str, evidence: Evidence | None = None):
        super().__init__(message)
        self.reason = reason
        self.evidence = evidence


@dataclass(frozen=True)
class Rejected(Reject):
    """A `Reject` with its reason's name, and what its places say of the file's unit."""

    reason: str = ""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)

    @property
    def evidences(self) -> tuple[Evidence, ...]:
        return () if self.evidence is None else (self.evidence,)


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
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    """What its places say of the file's unit, as they were written."""

    @property
    def evidences(self) -> tuple[Evidence, ...]:
        return () if self.evidence is None else (self.evidence,)

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


def read_samples(
    path: Path, declared: Declared = UNDECLARED, notes: Counter[str] | None = None
) -> Iterator[Sample | Rejected]:
    """Every record of a source's files (`containers.data_files`) in order; copies of a record are rejected.

    ValueError at the end if their places cannot be as they are `declared`; what is only suspicious of them is added to
    `notes`.
    """
    found: Counter[Evidence] = Counter()
    files = containers.data_files(path)
    read = chain.from_iterable(_records_read(file, declared) for file in files)
    for item in without_copies(read):
        found.update(item.evidences)
        yield item
    suspicions = units.judge(found, declared, str(files[0] if len(files) == 1 else path))
    if notes is not None:
        notes.update(suspicions)


def samples_of(file: Path, declared: Declared) -> Iterator[Sample | Rejected]:
    """The same of one file, without the judgement."""
    return without_copies(_records_read(file, declared))


def samples_at(path: Path, declared: Declared, sources: Collection[str]) -> dict[str, Sample]:
    """Of a source's records those at these places, by place; no other is decoded."""
    found: dict[str, Sample] = {}
    for file in containers.data_files(path):
        wanted = {source for source in sources if source.startswith(f"{file}:")}
        records = (record for record in containers.read_records(file) if record.source in wanted)
        items = map(sample_reader(PictureFolder(file.parent), declared), islice(records, len(wanted)))
        found |= {item.source: item for item in items if isinstance(item, Sample)}
    return found


def _records_read(file: Path, declared: Declared) -> Iterator[Sample | Rejected]:
    return map(sample_reader(PictureFolder(file.parent), declared), containers.read_records(file))


def sample_reader(folder: PictureFolder, declared: Declared) -> Callable[[Record], Sample | Rejected]:
    """What reads a record by itself."""
    pictures = PictureFiles(folder)

    def read(record: Record) -> Sample | Rejected:
        try:
            return read_sample(_value(record), pictures, record.source, declared)
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
            yield replace(rejected(item.source, error), evidence=item.evidence)


def rejected(source: str, error: Exception) -> Rejected:
    """The reject of a record, whatever went wrong with it."""
    reason, evidence = getattr(error, "reason", "bad_record"), getattr(error, "evidence", None)
    return Rejected(source, fault_of_line(error), isinstance(error, LeftOutError), reason, evidence)


def declared_beside(path: Path, cfg: SourceConfig) -> str:
    """For the cache's key."""
    return f"{cfg.unit} {cfg.box_unit} {cfg.box_order}".strip()


def open_reader(origin: Origin) -> Callable[[Record], tuple[Sample | Rejected]]:
    """What reads a record; `join` makes rows of it."""
    read = sample_reader(origin.folder, Declared.of(origin.cfg))
    return lambda record: (read(record),)


def join(items: Iterable[Sample | Rejected], origin: Origin) -> Iterator[Item]:
    """The samples as training rows; copies and those of a test split are rejected. ValueError as of `read_samples`."""
    found: Counter[Evidence] = Counter()
    source = origin.cfg.path
    for item in without_copies(items):
        source = item.source
        found.update(item.evidences)
        if isinstance(item, Reject):
            yield item
        elif item.split == TEST:
            yield Rejected(
                item.source, "split is test: trained on, it could not be measured on; leave it out", True, TEST
            )
        else:
            yield to_row(item)
    for name, count in units.judge(found, Declared.of(origin.cfg), origin.cfg.path).items():
        yield FileNote(source, name, count)


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


def read_sample(record: object, pictures: PictureFiles, source: str, declared: Declared = UNDECLARED) -> Sample:
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
    written = read_places(record, Screen.of(picture), declared)
    try:
        return _sample(record, picture, seen, source, written, declared)
    except RecordError as error:
        hint = units.hint(written.evidence, declared) if error.reason in OF_PLACES else ""
        raise RecordError(error.reason, f"{error}{hint}", written.evidence) from None


class Written(NamedTuple):
    """A record's action and box as they stand there, what was read of the action, and what that says of the unit."""

    action: Any
    reading: Reading
    box_name: str
    box: Any
    evidence: Evidence | None


def read_places(record: dict, screen: Screen, declared: Declared) -> Written:
    action, way = _one_of(record, "action", "next_action"), declared.way
    reading = read(action, screen, way.unit, box_order=way.box_order)
    name, box = _box_of(record)
    numbers = box if _are_numbers(box, 4) else None
    evidence = units.weigh(reading.written, numbers, screen, thousandths_form(action), way)
    return Written(action, reading, name, box, evidence)


def _sample(record: dict, picture: Picture, seen: Seen, source: str, written: Written, declared: Declared) -> Sample:
    reading, way = written.reading, declared.way
    _check_places(reading, written.evidence, declared)
    box_px, cut = read_box(written.box, way.box_unit, way.box_order, picture)
    _check_hit(written, way)
    thought, notes = _read_thought(record, written.action, reading)
    return Sample(
        source=source,
        instruction=read_text(record, "instruction"),
        picture=picture,
        seen=seen,
        actions=reading.actions,
        thought=thought,
        box_px=box_px,
        id=_label(record, "id"),
        **_read_place(record),
        kinds=_read_kinds(record, reading.actions),
        origin=_label(record, "origin"),
        licence=_label(record, "licence"),
        details=_details(record, way, picture),
        notes=notes + cut + (() if written.box_name in ("", "box") else ("renamed_box",)),
        evidence=written.evidence,
    )


def _check_hit(written: Written, way: Way) -> None:
    """RecordError for a click outside its own box."""
    if written.evidence is not None and written.evidence.fault == OUTSIDE_BOX:
        raise RecordError(
            "click_outside_box",
            f"position {list(written.reading.written[0])} ({way.unit}) lies more than {units.SLACK_PX:g} px outside its own "
            f"{written.box_name} {list(written.box)} ({way.box_order}, {way.box_unit}): which of the two is meant is unknown; "
            "correct it",
        )


def _check_places(reading: Reading, evidence: Evidence | None, declared: Declared) -> None:
    """RecordError for an action that was not read, or whose form states another unit than the one it is read by."""
    if reading.error:
        raise RecordError(reading.error, reading.message)
    if evidence is not None and evidence.form not in ("", OWN_FORM) and not declared.unit:
        raise RecordError(
            "unit_not_declared",
            f"the action is written as {evidence.form}, whose places are 0 to 1000 where it comes from: taken as pixels it "
            'would be elsewhere; declare "unit": "thousand" with the source, or "unit": "px" if they are pixels',
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


def _read_thought(record: dict, value: Any, reading: Reading) -> tuple[str, tuple[str, ...]]:
    """(thought, notes) of a record and its action."""
    items = value if isinstance(value, list) else [value]
    is_own = all(_is_own_form(item) for item in items)
    notes = tuple(name for name in reading.repairs if not (is_own and name in OWN_SPELLINGS))
    given = [(name, record.get(name)) for name in ("reasoning", "thought")]
    given += [(name, item.get(name)) for item in items if isinstance(item, dict) for name in THOUGHTS]
    for name, text in given:
        if not isinstance(text, str | None):
            raise RecordError("bad_text", f"{name} is {str(text)[:80]!r}: not text; write text or leave it out")
    thought = (reading.thought or record.get("reasoning") or record.get("thought") or "").strip()
    target = _target(record)
    if not thought and target:
        return f"The target is {target}.", (*notes, "thought_from_target")
    return thought, notes


def _box_of(record: dict) -> tuple[str, Any]:
    """The name and the value of the record's box; ("", None) if it has none."""
    given = [name for name in ARGUMENTS["box"] if record.get(name) is not None]
    if len(given) > 1:
        raise RecordError("bad_box", f"{' and '.join(given)} are both given: which holds is unknown; keep one")
    return (given[0], record[given[0]]) if given else ("", None)


def _label(record: dict, name: str) -> str:
    """A name or a number as text; "" if none is given."""
    value = record.get(name)
    if not isinstance(value, str | int | None) or isinstance(value, bool):
        raise RecordError(
            "bad_record", f"{name} is {str(value)[:80]}: no name; write text or a number, or leave it out"
        )
    return "" if value is None else str(value)


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
    x1, y1, x2, y2 = corners((*first, *second), order)
    what = f"box {list(value)} ({order}, {unit})"
    if units.is_below_one(value, unit):
        raise RecordError(
            "unknown_unit",
            f"{what} is all below 1: no click could hit it; if these are shares, declare the unit fraction",
        )
    if not (x2 > x1 and y2 > y1):
        raise RecordError(
            "empty_box", f"{what} has no inside: no click could hit it; correct it, or its declared order"
        )
    if min(x1, y1) < -units.SLACK_PX or x2 > picture.width + units.SLACK_PX or y2 > picture.height + units.SLACK_PX:
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
    episode, step = _label(record, "episode_id"), record.get("step")
    step = 0 if step is None else step
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP:
        raise RecordError("bad_record", f"step is {step!r}: it has no place in its episode; write its index from 0")
    past = _listed(record, "history", "the steps before")
    split = TRAIN if record.get("split") is None else record["split"]
    if split not in (TRAIN, TEST):
        raise RecordError("bad_record", f"split is {split!r}: which side it is on is unknown; write train or test")
    return {
        "episode_id": episode,
        "step": step if episode else 0,
        "past": tuple(past),
        "group": _label(record, "group"),
        "split": split,
    }


def _listed(record: dict, name: str, what: str) -> list[str]:
    """A list of texts; empty if none is given."""
    value = record.get(name)
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise RecordError("bad_record", f"{name} is {str(value)[:80]}: not {what}; write a list of texts")
    return value


def _read_kinds(record: dict, actions: Sequence[Action]) -> tuple[str, ...]:
    """The actions that the tool offers: `actions` of the record, or all."""
    kinds = _listed(record, "actions", "actions of the tool") or list(KINDS)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise RecordError(
            "bad_record", f"actions is {str(kinds)[:80]}: not actions of the tool; use {', '.join(KINDS)}"
        )
    missing = [action.kind for action in actions if action.kind not in kinds]
    if missing:
        raise RecordError(
            "bad_record", f"actions lacks {missing[0]}, which is the answer: it could not be given; add it"
        )
    return tuple(kinds)


def _details(record: dict, way: Way, picture: Picture) -> dict:
    """`hit_boxes` among them in pixels."""
    details = record.get("details")
    if details is None or details in ("", []):
        return {}
    if not isinstance(details, dict):
        raise RecordError("bad_record", f"details is {str(details)[:80]}: not an object; write one or leave it out")
    boxes = details.get("hit_boxes")
    return details if boxes is None else details | {"hit_boxes": _hit_boxes(boxes, way, picture)}


def _hit_boxes(boxes: Any, way: Way, picture: Picture) -> list[list[float]]:
    """The boxes in whose union a click reaches the element."""
    if not isinstance(boxes, list) or not boxes:
        raise RecordError(
            "bad_hit_boxes", f"details.hit_boxes is {str(boxes)[:80]}: no list of boxes; write one, or leave it out"
        )
    try:
        found = [read_box(box or [], way.box_unit, way.box_order, picture)[0] for box in boxes]
    except RecordError as error:
        raise RecordError("bad_hit_boxes", f"details.hit_boxes: {error}; or leave it out") from None
    if (way.box_unit, way.box_order) == ("px", "xyxy"):
        return boxes
    return [list(box) for box in found if box]


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
