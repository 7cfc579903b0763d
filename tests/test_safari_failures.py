"""How safari missions are lost: one class for each, from the record alone."""

from dataclasses import replace

import pytest

from qwenvl_agent.evaluation.suites import find_suite
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.schema import Answer, ToolCall, Turn
from qwenvl_agent.worlds import make_world
from qwenvl_agent.worlds.safari.context import context_text, read_context
from qwenvl_agent.worlds.safari.failures import OUTCOMES

SMALL = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": 16}
PLAIN = {**SMALL, "num_targets": [1], "plain_missions": True, "languages": ["en"]}
SEED = 38
"""The player at (10, 10), an orange monkey, which is the target, at (10, 7), a tree at (11, 9)."""


class Script:
    """Plays its turns in order, then from the first one again."""

    def __init__(self, *turns: Turn):
        self.turns = turns

    def act(self, requests):
        steps = [read_context(request.observation.text).step for request in requests]
        return [Answer(self.turns[(step - 1) % len(self.turns)]) for step in steps]


def walked(*actions: tuple[str, int], then: tuple[ToolCall, ...] = ()) -> Turn:
    actions = [{"direction": direction, "steps": steps} for direction, steps in actions]
    return Turn(tool_calls=(*([ToolCall("move", {"actions": actions})] if actions else []), *then))


def declared(words: str, *actions: tuple[str, int]) -> Turn:
    return walked(*actions, then=(ToolCall("declare_found", {"target": words}), ToolCall("declare_done", {})))


def play(*turns: Turn, seed: int = SEED, **rules) -> tuple:
    """(suite, record) of a mission that is played so."""
    suite = find_suite("safari", {**PLAIN, **rules})
    (record,) = suite.play(Script(*turns), [seed])
    return suite, record


MONKEY = "orange monkey"
AWAY = walked(("LEFT", 2), ("DOWN", 3), ("DOWN", 1), ("DOWN", 3))
"""To (8, 15), from where the monkey is out of view."""
NOTE = Turn(tool_calls=(ToolCall("update_notepad", {"content": "x"}),))


@pytest.mark.parametrize(
    ("turns", "outcome"),
    [
        ([walked(("UP", 1)), declared(MONKEY, ("UP", 1))], "false_2_tiles"),
        ([declared(MONKEY)], "false_3_tiles"),
        ([declared(MONKEY, ("UP", 2))], "false_3_tiles"),
        ([walked(("DOWN", 1)), declared(MONKEY)], "false_4_tiles_up"),
        ([walked(("UP", 2)), declared(MONKEY, ("LEFT", 1))], "false_beside"),
        ([walked(("RIGHT", 1)), declared(MONKEY, ("UP", 1))], "false_after_block"),
        ([AWAY, declared(MONKEY)], "false_out_of_view"),
        ([declared("red tiger", ("UP", 3))], "false_other"),
        ([declared("the way home", ("UP", 3))], "false_other"),
        ([walked(("RIGHT", 1)), *[walked(("UP", 1))] * 39], "stands_blocked"),
        ([NOTE], "stands_still"),
        ([walked(("LEFT", 1), ("RIGHT", 1))], "stands_still"),
        ([walked(("LEFT", 1)), walked(("RIGHT", 1))], "target_in_view"),
        ([AWAY, *[walked(("LEFT", 1)), walked(("RIGHT", 1))] * 20], "to_and_fro"),
        ([declared(MONKEY, ("UP", 3))], "done_ok"),
    ],
)
def test_a_lost_mission_has_the_class_of_what_lost_it(turns, outcome):
    suite, record = play(*turns)
    assert suite.outcome(record) == outcome
    assert outcome in suite.outcomes


def test_an_order_and_a_second_declaration_are_told_apart():
    suite = find_suite("safari", {**PLAIN, "num_targets": [0, 1], "ordered": 1.0})
    env = suite.world.make_env()
    env.reset(seed=1)
    (early,) = suite.play(Script(declared(env.mission.wordings[1])), [1])
    assert suite.outcome(early) == "false_out_of_turn"

    class SaysItTwice:
        oracle = suite.world.make_oracle()

        def act(self, requests):
            turns = [answer.turn for answer in self.oracle.act(requests)]
            return [
                Answer(replace(t, tool_calls=tuple(c for call in t.tool_calls for c in twice(call)))) for t in turns
            ]

    def twice(call: ToolCall) -> list[ToolCall]:
        return [call] * (2 if call.name == "declare_found" else 1)

    (again,) = suite.play(SaysItTwice(), [1])
    assert suite.outcome(again) == "false_again"


def test_a_record_of_another_game_is_told_as_far_as_it_tells_itself():
    _, record = play(declared(MONKEY))
    other = find_suite("safari", {**PLAIN, "languages": ["ko"]})
    assert (other.outcome(record), record.harm) == ("done_harm", [MONKEY])
    moved = replace(record, steps=[replace(record.steps[0], context=context_text("x", 1, 40, (3, 3), "", ""))])
    assert find_suite("safari", PLAIN).outcome(moved) == "done_harm"


def lost(*places: tuple[int, int], **values) -> EpisodeRecord:
    """Of a seed whose mission is another: only the contexts tell."""
    steps = [StepRecord(context=context_text("Find it.", i + 1, 40, place, "", "")) for i, place in enumerate(places)]
    return EpisodeRecord(seed=0, steps=steps, turns=len(steps), **{"end_reason": "max_turns", **values})


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        (lost(*[(1, 1)] * 3, *[(5, 5)] * 10), "stands_still"),
        (lost(*[(5, 5), (6, 5)] * 6), "to_and_fro"),
        (lost(*[(5, y % 5) for y in range(12)]), "to_and_fro"),
        (lost(*[(5, y % 6) for y in range(12)]), "walks_about"),
        (lost((5, 5), end_reason="done"), "done_early"),
        (lost((5, 5), end_reason="done", harm=["red pig"]), "done_harm"),
        (lost(*[(5, 5)] * 12, harm=["red pig"]), "done_harm"),
        (lost((5, 5), end_reason="parse_abort"), "parse_abort"),
        (lost((5, 5), end_reason="done", success=True), "done_ok"),
    ],
)
def test_a_lost_mission_is_classed_by_its_last_turns(record, outcome):
    world = make_world("safari", SMALL)
    assert world.outcome(record) == outcome
    assert outcome in world.labels.outcomes or outcome == "parse_abort"


@pytest.mark.parametrize("rules", [{}, {"rules": "catch", "num_targets": [1, 1, 1]}])
def test_the_classes_of_an_evaluation_add_up_to_its_episodes(rules):
    suite = find_suite("safari", {**SMALL, **rules})
    records = suite.play(suite.world.make_policy("random"), range(2_000_000, 2_000_040))
    counts = suite.metrics(records)["end_reasons"]
    assert sum(counts.values()) == 40 and set(counts) <= set(suite.outcomes)
    assert len(set(counts) & set(OUTCOMES)) >= 3 and "done_harm" not in counts


def test_three_turns_in_a_row_that_change_nothing_are_a_stand_still():
    def rate(*turns: Turn) -> float:
        suite, record = play(*turns, max_turns=6)
        return suite.metrics([record])["stand_still_rate"].value

    blocked, free = walked(("UP", 1)), walked(("LEFT", 1))
    assert rate(walked(("RIGHT", 1)), blocked, NOTE, blocked) == 1.0  # notes move nobody
    assert rate(walked(("RIGHT", 1)), blocked, blocked, free) == 0.0
