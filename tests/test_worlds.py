"""Worlds by name, by entry point and by path, and what a world leaves out."""

import pytest

from qwenvl_agent.records import CallRecord, EpisodeRecord
from qwenvl_agent.worlds import SeedSets, World, known_worlds, make_world

WORLD_FILE = """
from qwenvl_agent.worlds import World

class Empty(World):
    name = "empty"

    def __init__(self, size):
        self.rules = {"size": size}

def make_world(size=3):
    return Empty(size)

def make_nothing():
    return 5
"""


@pytest.fixture
def world_file(tmp_path):
    path = tmp_path / "empty_world.py"
    path.write_text(WORLD_FILE)
    return path


def test_a_world_in_a_file_needs_no_installation(world_file):
    world = make_world(f"{world_file}:make_world", {"size": 5})
    assert (world.name, world.rules) == ("empty", {"size": 5})
    assert type(make_world(f"{world_file}:make_world")) is type(world)  # its module is loaded once


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sfari", "world 'sfari' does not exist: nothing can be played in it; choose one of browser, safari"),
        ("nowhere.py:make_world", "there is no file nowhere.py"),
        ("{file}:make_wrld", "has no function 'make_wrld'"),
        ("{file}:make_nothing", "gives int, no qwenvl_agent.worlds.World"),
    ],
)
def test_what_is_no_world_is_refused(world_file, name, said):
    with pytest.raises(ValueError, match="world") as error:
        make_world(name.format(file=world_file))
    assert said in str(error.value)


def test_our_worlds_are_known_by_name():
    assert {"browser", "safari"} <= set(known_worlds())
    assert make_world("safari", {"width": 20}).rules["width"] == 20


def test_seed_sets_never_overlap():
    assert SeedSets().name_of([5, 999_999]) == "training"
    assert SeedSets().name_of([1_999_999, 2_000_000]) == "mixed"
    with pytest.raises(ValueError, match="seed sets overlap"):
        SeedSets(range(10), range(5, 20), range(20, 30))


def test_a_world_that_judges_nothing_goes_by_equality_and_flags():
    world, move = World(), {"name": "move", "arguments": {"to": 3}}
    assert world.is_equivalent([move], [move]) and not world.is_equivalent([move], [])
    assert world.agrees("go there", [move]) is None and world.counterfactuals() == {}
    assert [world.is_legal(CallRecord(name="move", arguments={}, legal=flag)) for flag in (True, False, None)] == [
        True,
        False,
        None,
    ]
    ends = [
        EpisodeRecord(seed=0, end_reason="done", success=s, harm=h)
        for s, h in ((True, []), (False, ["x"]), (False, []))
    ]
    assert [world.outcome(record) for record in ends] == ["done_ok", "done_harm", "done_early"]


def test_records_of_version_0_1_are_read():
    old = {"seed": 1, "targets": ["a", "b"], "found": ["a"], "false_declarations": 2, "steps": []}
    record = EpisodeRecord.from_json(old)
    assert (record.goals, record.reached, len(record.harm)) == (["a", "b"], ["a"], 2)
    assert EpisodeRecord.from_json(record.to_json()) == record
