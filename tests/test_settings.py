"""One loader for every file of settings: what a type says is what is taken."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from qwenvl_agent.settings import Range, apply_override, build, check_values, list_settings, read_values, to_json


@dataclass(frozen=True, kw_only=True)
class Lamp:
    watts: Annotated[float, Range(0, 100, "it would burn")]
    """Drawn from
    the wall."""
    colour: Literal["white", "red"] = "white"
    """Of the light."""

    def __post_init__(self):
        check_values(self, "lamps[]")


@dataclass(frozen=True, kw_only=True)
class Room:
    name: str
    """On the door."""
    note: str = ""
    """Whatever."""
    lamps: tuple[Lamp, ...] = ()
    """From the door on."""
    window: bool | Literal["auto"] = "auto"
    """Whether there is one."""
    sides: tuple[int, float] = (3, 4.0)
    """In metres."""
    people: tuple[str, ...] = ()
    """By name."""
    more: list | dict = field(default_factory=dict)
    """Anything."""
    area: float = field(init=False, default=12.0)

    def __post_init__(self):
        check_values(self, "room")


def test_values_are_read_by_their_types():
    room = build(Room, {"$schema": "x.json", "name": "hall", "lamps": [{"watts": 5}], "sides": [1, 2], "people": "Ann"})
    assert room.lamps == (Lamp(watts=5.0),) and isinstance(room.lamps[0].watts, float)
    assert (room.sides, room.people, room.window, room.area) == ((1, 2.0), ("Ann",), "auto", 12.0)
    assert build(Room, {k: v for k, v in to_json(room).items() if k != "area"}) == room
    assert build(Room, {"name": "x", "window": False, "more": [1]}).more == [1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "x"}, "unknown key 'nam': it would have no effect; nearest known key: 'name'"),
        ({"zz": 1}, "unknown key 'zz': it would have no effect; known keys here: name, note, lamps"),
        ({"name": "x", "area": 3}, "unknown key 'area'"),
        ({}, "'name' is missing and has no default: set it"),
        ({"name": 3}, "name is 3, which is not of type str; correct the value"),
        ({"name": " "}, "name is ' ': nothing has that name"),
        ({"name": "x", "people": ["a", ""]}, "people is '': nothing has that name"),
        (
            {"name": "x", "lamps": [{"watts": 1}, {"watts": 200}]},
            r"lamps\[1\].watts is 200.0, above 100: it would burn",
        ),
        ({"name": "x", "lamps": [{"watts": "5"}]}, r"lamps\[0\].watts is '5', which is not of type float"),
        ({"name": "x", "lamps": [{"wats": 5}]}, r"unknown key 'lamps\[0\].wats'"),
        ({"name": "x", "lamps": {"watts": 5}}, r"lamps is \{'watts': 5\}, which is not of type tuple\[dict, ...\]"),
        (
            {"name": "x", "lamps": [{"watts": 5, "colour": "rad"}]},
            r"lamps\[0\].colour is 'rad', which .*; use one of white, red",
        ),
        ({"name": "x", "window": "no"}, "window is 'no', which means nothing here; use one of true, false, auto"),
        ({"name": "x", "window": 1}, r"window is 1, which is not of type bool \| str"),
        ({"name": "x", "sides": [1]}, r"sides is \[1\], which is not of type tuple\[int, float\]"),
        ({"name": "x", "sides": [1, float("nan")]}, "sides is nan, no finite number"),
        ({"name": "x", "more": "a"}, r"more is 'a', which is not of type list \| dict"),
        ([], r"config is \[\], not an object with settings"),
    ],
)
def test_what_a_type_does_not_allow_is_refused(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(Room, values)


def test_a_group_that_is_made_in_code_is_checked_too():
    with pytest.raises(ValueError, match=r"^lamps\[\].watts is -1, below 0: it would burn; raise it"):
        Lamp(watts=-1)
    with pytest.raises(ValueError, match="colour is 'blue'"):
        dataclasses.replace(Lamp(watts=1), colour="blue")


def test_settings_are_listed_with_what_their_source_says():
    found = {setting.path: setting for setting in list_settings(Room)}
    assert list(found)[:5] == ["name", "note", "lamps", "lamps[].watts", "lamps[].colour"] and "area" not in found
    watts = found["lamps[].watts"]
    assert watts.meaning == "Drawn from the wall." and watts.default is dataclasses.MISSING
    assert found["more"].default == {} and [path for path in found if found[path].is_group] == ["lamps"]


def test_the_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone.json: No such file or directory: there is no sweep to run"):
        read_values(tmp_path / "gone.json", what="sweep")


def test_an_override_names_an_item_of_a_list_by_name_by_number_or_all():
    values = {"stages": [{"name": "a", "set": {"train.max_steps": 1}}, {"name": "b", "record": [{"n": 1}]}]}
    for override in ("stages.a.set.train.max_steps=2", "stages.b.record.0.n=3", "stages.*.set.train.seed=4"):
        apply_override(values, override)
    first, second = values["stages"]
    assert first["set"] == {"train.max_steps": 2, "train": {"seed": 4}}
    assert second == {"name": "b", "record": [{"n": 3}], "set": {"train": {"seed": 4}}}
    with pytest.raises(ValueError, match="the list has no 'c'; name one of a, b, \\*"):
        apply_override(values, "stages.c.set.x=1")
    with pytest.raises(ValueError, match="'set' is a value|no key of a value"):
        apply_override({"stages": [5]}, "stages.0.set=1")


@dataclass(frozen=True, kw_only=True)
class House:
    door: Lamp | None = None
    """Lit, or not."""


def test_a_group_may_be_null():
    assert build(House, {}) == build(House, {"door": None}) == House()
    lit = build(House, {"door": {"watts": 5}})
    assert lit.door == Lamp(watts=5.0) and build(House, to_json(lit)) == lit
    with pytest.raises(ValueError, match="door.watts"):
        build(House, {"door": {"watts": 500}})
    assert [setting.path for setting in list_settings(House)] == ["door", "door.watts", "door.colour"]
