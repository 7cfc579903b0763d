"""What an evaluation keeps of episodes, in neutral words; a world's own words for them are labels (worlds/world.py).

A record holds all that a metric or a report needs, so both can be made again without a model. One JSON object a line of
records.jsonl.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")


@dataclass(kw_only=True)
class CallRecord:
    """One call of a turn. What the world does not tell is None and stays out of the rates."""

    name: str
    arguments: dict
    result: dict | None = None
    """None: the episode ended before this call."""
    name_ok: bool = True
    """The tool exists."""
    schema_ok: bool = True
    """The tool exists and its schema allows the arguments."""
    legal: bool | None = None
    """The state allows it: no walk into a tree, no declaration of what was not found."""
    effective: bool | None = None
    """It changed the state."""
    optimal: bool | None = None
    """It is among the best calls in that state."""

    def as_json(self) -> dict:
        """Only what was called, as in `StepRecord.expected`."""
        return {"name": self.name, "arguments": self.arguments}


@dataclass(kw_only=True)
class StepRecord:
    """One observation, what the policy wrote, how it was read, and what came of it."""

    picture: str = ""
    """File name relative to the records' folder; empty if pictures were not kept."""
    context: str
    text: str = ""
    thought: str = ""
    calls: list[CallRecord] = field(default_factory=list)
    results: list[dict] = field(default_factory=list)
    """{name, content} for each result, the answer to a turn without a call included."""
    expected: list[dict] | None = None
    """The calls of the label, or of the reference policy on the same observation; None: there is neither."""
    expected_thought: str = ""
    error: str = ""
    """Why no call could be read: one of the format's errors, or free_text."""
    repairs: list[str] = field(default_factory=list)
    position: list[int] | None = None
    """Before the turn."""

    @classmethod
    def from_json(cls, values: dict) -> "StepRecord":
        return cls(**{**values, "calls": [CallRecord(**call) for call in values["calls"]]})


@dataclass(kw_only=True)
class EpisodeRecord:
    """One episode, from its seed to its end."""

    seed: int
    mission: str = ""
    goals: list[str] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)
    """Of `goals`."""
    success: bool = False
    progress: float = 0.0
    """Share of the goals reached."""
    turns: int = 0
    optimal_turns: int | None = None
    harm: list[str] = field(default_factory=list)
    """What was done that cannot be made good, such as a false declaration or a wrong download."""
    end_reason: str = ""
    """The world's own (done, max_turns ...), or parse_abort, time_limit, error."""
    error: str = ""
    """The world's traceback if it crashed, or why the policy has no answer."""
    changed_turn: int | None = None
    """Before this turn the world was changed, by a counterfactual; None: never."""
    steps: list[StepRecord] = field(default_factory=list)

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "EpisodeRecord":
        values = _renamed(values) if "targets" in values else values
        return cls(**{**values, "steps": [StepRecord.from_json(step) for step in values["steps"]]})


def _renamed(values: dict) -> dict:
    """A record of version 0.1, in which harm was a number."""
    values = dict(values)
    values["goals"], values["reached"] = values.pop("targets"), values.pop("found")
    values["harm"] = ["unnamed"] * values.pop("false_declarations")
    return values


def split_thought(thought: str) -> dict[str, str]:
    """{first word: rest} of each sentence; sentences with the same first word are joined.

    `Me f5. Target red tiger: h3.` gives {"Me": "f5", "Target": "red tiger: h3"}.
    """
    fields: dict[str, str] = {}
    for sentence in SENTENCE_END.split(thought):
        name, _, value = sentence.strip().partition(" ")
        name = name.rstrip(":,")
        if name:
            fields[name] = f"{fields[name]}; {value}" if name in fields else value
    return fields


def write_records(path: str | Path, records: Iterable) -> None:
    """One JSON line per record. Pictures of a data set are named from the records' folder on: no file says whose home
    it was made in, and a folder that is moved with its data finds them."""
    folder = os.path.realpath(Path(path).parent)
    values = (_with_picture(record.to_json(), lambda picture: _from(folder, picture)) for record in records)
    lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)


def _from(folder: str, picture: str) -> str:
    return os.path.relpath(picture, folder) if os.path.isabs(picture) else picture


def _with_picture(values: dict, change: Callable[[str], str]) -> dict:
    """A screen's or a row's record with another name of its picture; an episode's pictures lie beside the records."""
    if picture := values.get("picture"):
        return {**values, "picture": change(picture)}
    if isinstance(step := values.get("step"), dict) and step.get("picture"):
        return {**values, "step": {**step, "picture": change(step["picture"])}}
    return values


def read_records(path: str | Path, kind: Any = EpisodeRecord) -> list:
    """The records of a records.jsonl; ValueError with file:line for a line that is none."""
    records, folder = [], os.path.realpath(Path(path).parent)
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line)
                values = _with_picture(values, lambda picture: os.path.realpath(os.path.join(folder, picture)))
                records.append(kind.from_json(values))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: not a record of an evaluation ({error}): no metric can rest on it; evaluate again"
                ) from None
    return records
