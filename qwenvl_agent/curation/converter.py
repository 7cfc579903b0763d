"""A row of a data set -> samples, as its layout says."""

import json
import re
from collections.abc import Iterator

from qwenvl_agent.computer.context import describe
from qwenvl_agent.curation.extraction import TRANSFORMS, decoded, listed, read_files, with_parts
from qwenvl_agent.curation.layout import Layout, LeaveOut
from qwenvl_agent.curation.native_actions import Step, acted, together
from qwenvl_agent.curation.paths import text_of, value_at
from qwenvl_agent.data.pictures import KnownPictures
from qwenvl_agent.data.readers.computer import (
    TEST,
    Duplicates,
    PictureFiles,
    RecordError,
    Rejected,
    Sample,
    check_size,
    rejected,
)
from qwenvl_agent.picture_store import is_embedded
from qwenvl_agent.schema import Picture

THOUGHT_LABEL = re.compile(r"(?mi)^[ \t]*(?:thought|action|observation|low-level instruction)[ \t]*:[ \t]*")
"""Of a line in a thought; in our formats these words are structure and cannot be taught."""
STEP_NUMBER = re.compile(r"(?i)^step\s*\d+\s*:\s*")
"""Of a line of history, which the prompt numbers itself."""


class Converter:
    def __init__(
        self,
        name: str,
        layout: Layout,
        pictures: PictureFiles,
        known: KnownPictures | None,
        split: str,
        test_ids: frozenset[str],
    ):
        self.name, self.layout, self.pictures, self.known = name, layout, pictures, known
        self.split, self.test_ids = split, test_ids
        self.duplicates = Duplicates()
        self._found: dict[str, str] = {}

    def samples(self, row: object, source: str) -> Iterator[Sample | Rejected]:
        """The samples of one row, each with its item's number behind the line's; a fault in an item costs that item."""
        try:
            row = self._prepared(row)
            items = listed(row, self.layout.items) if self.layout.items else [row]
            if not items:
                raise RecordError("no_items", f"{self.layout.items} is empty: the row holds no sample")
        except Exception as error:
            yield rejected(source, error)
            return
        past: list[str] = []
        for index, item in enumerate(items):
            place = f"{source}[{index}]" if self.layout.items else source
            values = {**row, "item": item}
            said = ""
            try:
                said = _text(values, self.layout.past, index)
                sample = self._sample(values, place, index, tuple(past))
                _check_writable(sample)
                said = said or "; ".join(describe(action, sample.screen) for action in sample.actions)
                self._check_kept(values, index)
                yield self.duplicates.check(sample)
            except Exception as error:
                yield rejected(place, error)
            past.append(said or "(unknown)")

    def _prepared(self, row: object) -> dict:
        if isinstance(row, RecordError):
            raise row
        if not isinstance(row, dict):
            raise RecordError("bad_record", f"a {type(row).__name__} instead of an object: nothing to read")
        row = TRANSFORMS[self.layout.transform](row) if self.layout.transform else row
        row = decoded(read_files(row, self.layout.files, self.pictures.folder.root), self.layout.decode)
        for rule in self.layout.extract:
            row = with_parts(row, rule.text, rule.pattern)
        return row

    def _check_kept(self, values: dict, index: int) -> None:
        """RecordError for what the layout leaves out."""
        for rule in self.layout.leave_out:
            value = value_at(values, rule.where, index)
            if _is_so(value, rule):
                raise RecordError(rule.reason, f"{rule.where} is {str(value)[:80]}: {rule.because}; it is left out")

    def _sample(self, values: dict, source: str, index: int, past: tuple[str, ...]) -> Sample:
        layout = self.layout
        picture, seen = self.pictures.open(self._picture(values, index))
        self._check_unknown(picture)
        step = Step(values, index, picture)
        check_size(together(step, layout.size), picture)
        done = acted(layout, step)
        row_id = _word(step, layout.id, "id")
        episode = row_id or source.rpartition("[")[0]
        return Sample(
            source=source,
            instruction=self._instruction(values, index),
            picture=picture,
            seen=seen,
            actions=done.actions,
            thought=THOUGHT_LABEL.sub("", done.thought or _text(values, layout.thought, index)),
            box_px=done.box,
            id="" if layout.is_episode else row_id,
            episode_id=f"{self.name}/{episode}" if layout.is_episode else "",
            step=index if layout.is_episode else 0,
            past=past if layout.is_episode else _history(step, layout),
            group=_word(step, layout.group, "group"),
            split=self._side(values, row_id),
            origin=self.name,
            licence=layout.licence,
            details=_details(step, layout) | done.details,
            notes=done.notes,
        )

    def _picture(self, values: dict, index: int) -> object:
        """A picture's file name, or what holds the picture itself: at its path, or else elsewhere in the row."""
        value = value_at(values, self.layout.picture, index) if "{" not in self.layout.picture else None
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if is_embedded(value):
            return value
        inside = [item for item in values.values() if isinstance(item, bytes | dict) and is_embedded(item)]
        if len(inside) > 1:
            raise RecordError("no_picture", f"{len(inside)} pictures in the row: which is meant is unknown; name one")
        if inside:
            return inside[0]
        if value is None and not (value := text_of(values, self.layout.picture, index)):
            raise RecordError("no_picture", f"{self.layout.picture} names no picture: there is nothing to look at")
        return value

    def _instruction(self, values: dict, index: int) -> str:
        text = next((text for path in self.layout.instruction if (text := _text(values, path, index))), "")
        if not text:
            raise RecordError(
                "no_instruction", f"{' or '.join(self.layout.instruction)} holds no text: there is no task"
            )
        return text

    def _side(self, values: dict, row_id: str) -> str:
        is_test = row_id.removesuffix(".json") in self.test_ids or str(values.get("split", "")).startswith(TEST)
        return TEST if is_test and self.layout.split == "by_name" else self.split

    def _check_unknown(self, picture: Picture) -> None:
        if self.known is None or self.split == TEST:
            return
        if picture.path not in self._found:
            self._found[picture.path] = self.known.find(picture.open())
        if self._found[picture.path]:
            name = self._found[picture.path]
            raise RecordError("known_picture", f"the picture is {name!r} of the set kept apart: it would be trained on")


# Values


def _is_so(value: object, rule: LeaveOut) -> bool:
    if rule.when in ("filled", "empty"):
        if value is not None and not isinstance(value, list | str):
            raise RecordError("bad_record", f"{rule.where} is {str(value)[:80]}: neither list nor text; correct it")
        return bool(value) == (rule.when == "filled")
    if value is not None and str(value).lower() not in ("true", "false"):
        raise RecordError("bad_record", f"{rule.where} is {str(value)[:80]}: neither true nor false; correct it")
    return str(value).lower() == rule.when


def _text(values: dict, path: str, index: int) -> str:
    value = value_at(values, path, index)
    if value is not None and not isinstance(value, str):
        raise RecordError("bad_text", f"{path} is {str(value)[:80]}: not text; write text or leave it out")
    return (value or "").strip()


def _word(step: Step, path: str, what: str) -> str:
    """A name or number as text."""
    value = step.at(path)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise RecordError("bad_record", f"{path} is {str(value)[:80]}: no {what}; write text or a whole number")
    return "" if value is None else str(value)


def _history(step: Step, layout: Layout) -> tuple[str, ...]:
    value = step.at(layout.history)
    lines = value.splitlines() if isinstance(value, str) else value or []
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise RecordError("bad_record", f"{layout.history} is {str(value)[:80]}: not the steps before; write texts")
    length = text_of(step.values, layout.history_length, step.index) if layout.history_length else str(len(lines))
    if not length.isdecimal() or int(length) > len(lines):
        raise RecordError(
            "bad_record", f"{layout.history_length} is {length[:80]!r}: not how many of {len(lines)} steps; correct it"
        )
    return tuple(said for line in lines[: int(length)] if (said := STEP_NUMBER.sub("", line.strip())))


def _details(step: Step, layout: Layout) -> dict:
    return {_last_name(path): v for path in layout.details if (v := step.at(path)) is not None}


def _last_name(path: str) -> str:
    return [part for part in path.split(".") if not part.isdecimal()][-1]


def _check_writable(sample: Sample) -> None:
    """ValueError for half a character or a number that JSON has not: the folder to write could not hold them."""
    try:
        json.dumps(sample.to_json(""), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise
    except ValueError as error:
        raise RecordError("bad_number", f"{error}: the row cannot be written; use finite numbers") from None
