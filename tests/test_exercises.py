"""What the tiny base's rows ask for is what the oracle says of the same picture and context (scripts/pretrain_tiny.py)."""

import random
import re

import pytest

from qwenvl_agent.formats import FORMATS
from qwenvl_agent.worlds import make_env
from qwenvl_agent.worlds.safari.context import context_text
from qwenvl_agent.worlds.safari.missions import read_mission, resolve_target
from qwenvl_agent.worlds.safari.oracle import SafariOracle
from scripts import pretrain_tiny as script


def scenes(num: int):
    rng = random.Random(3)
    for _ in range(num):
        yield script.Scene.of(script.random_board(rng)), rng


def test_a_task_lists_the_targets_that_the_oracle_lists():
    oracle = SafariOracle(make_env("safari", **script.DEMO_WORLD).rules, thought_form="looking")
    num_listed = [0] * 4
    for scene, rng in scenes(300):
        task = script.Task.of_several(scene, rng)
        if any(len(scene.places.get(animal, ())) > 1 for animal in task.wanted):
            continue  # several tiles show it: which is meant depends on the way
        found = task.found_line.removeprefix("Found Targets: ")
        text = context_text(task.mission.text, 2, 40, scene.me, "" if found == "(none)" else found, "")
        listed = re.search(r"Target ([^.]+)\.", oracle.turn(scene.symbols, text).thought)[1]
        assert task.where(scene) == listed, text
        num_listed[listed.count(",") + 1] += 1
    assert min(num_listed[1:]) > 20, num_listed


@pytest.mark.parametrize("name", script.FORMATS_WITH_THOUGHT)
def test_a_turn_of_several_targets_declares_the_one_it_walks_to_and_is_done_after_the_last(name):
    fmt, ends = FORMATS[name], {"found": 0, "done": 0, "passed": 0}
    for scene, rng in scenes(400):
        pieces = script.exchange(scene, rng, fmt, looks=True, several=True)
        if not pieces:
            continue
        prompt, answer = pieces[0].text, "".join(piece.text for piece in pieces[1:]).removesuffix("<|im_end|>\n")
        turn = fmt.parse(answer, script.env_tools("reach")).turn
        calls = {call.name: call.arguments for call in turn.tool_calls}
        targets = re.search(r"Target ([^.]+)\.", turn.thought)[1].split(", ")
        if "declare_found" in calls:
            ends["found"] += 1
            walked_to = re.search(r"([a-z]+ [a-z]+) target\.", turn.thought)[1]
            assert resolve_target(calls["declare_found"]["target"]).name == walked_to
            assert any(target.startswith(walked_to) for target in targets)
            assert calls["declare_found"]["target"] in prompt
        else:
            assert " target." not in turn.thought
            last = re.findall(r" ([a-z]+ [a-z]+)\. Plan", turn.thought)
            assert not last or not any(target.startswith(last[0]) for target in targets), turn.thought
            ends["passed"] += bool(last)
        mission, found = re.search(r"Mission: (.*)\n(?:.|\n)*Found Targets: (.*)\n", prompt).groups()
        num_left = len(read_mission(mission).targets) - (0 if found == "(none)" else found.count(",") + 1)
        assert ("declare_done" in calls) == ("declare_found" in calls and num_left == 1)
        ends["done"] += "declare_done" in calls
    assert ends["done"] > 20 and ends["found"] - ends["done"] > 20 and ends["passed"] > 20, ends


def test_where_to_go_is_asked_and_never_learned():
    """A reader could not know it."""
    num_asked = 0
    for scene, rng in scenes(100):
        for text, supervised in script.missions_row(scene, rng, num_asked):
            if re.search(r"[gG]o [a-j][0-9]\.", text):
                assert not supervised, text
                num_asked += 1
    assert num_asked > 100
