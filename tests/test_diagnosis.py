import pytest
from made_up_study import made, move, note, thought

from qwenvl_agent.evaluation.episodes import judge
from qwenvl_agent.evaluation.suites import find_suite
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.schema import Answer, ToolCall, Turn
from qwenvl_agent.studies.diagnosis import error_of, first_error, first_errors, quadrant, quadrants
from qwenvl_agent.worlds import make_world

DUE = [note("Map V.\nGo b0"), move("UP", 2)]
SEEN = thought("f3", "UP", 2)
WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 12, "tile_px": 16}
SAFARI = make_world("safari", WORLD)


def step(said=SEEN, calls=DUE, **values):
    return StepRecord(
        context="", thought=said, calls=[made(call) for call in calls], expected=DUE, expected_thought=SEEN, **values
    )


@pytest.mark.parametrize(
    ("turn", "kind", "detail"),
    [
        (step(), None, None),
        (step(calls=[note("Map  V.\nGo b0 "), move("UP", 2)]), None, None),  # spaces are no other notes
        (
            step(calls=[DUE[0], {"name": "move", "arguments": {"actions": [{"direction": "UP", "steps": 1}] * 2}}]),
            None,
            None,
        ),
        (step(calls=[], error="json_error"), "format", "json_error"),
        (
            step(thought("c3", "UP", 1), [DUE[0], move("UP", 1)]),
            "perception",
            "Target red tiger c3, due was Target red tiger f3",
        ),
        (step(SEEN.replace("Me f5", "Me e5"), [DUE[0], move("UP", 1)]), "perception", "Me e5, due was Me f5"),
        (step(thought("f3", "LEFT", 2), [DUE[0], move("LEFT", 2)]), "planning", "planned LEFT 2, due was UP 2"),
        (step(SEEN, [DUE[0], move("DOWN", 2)]), "execution", "planned UP 2, did DOWN 2"),
        (step(SEEN, [move("UP", 2)]), "memory", "notes were due"),
        (step(SEEN, [note("Map .."), move("UP", 2)]), "memory", "other notes"),
        (step("", [DUE[0], move("DOWN", 2)]), "unexplained", "no thought"),
        (step("Off I go!", [DUE[0], move("DOWN", 2)]), "unexplained", "the thought announces nothing"),
        (step(thought("c3", "UP", 2), DUE), None, None),  # wrong sight, right turn: not what lost it
    ],
)
def test_what_a_turn_got_wrong(turn, kind, detail):
    assert error_of(SAFARI, turn) == (None if kind is None else (kind, detail))


def test_a_call_that_breaks_its_schema_is_a_format_error():
    turn = step(calls=[move("UP", 2)])
    turn.calls[0].schema_ok = False
    assert error_of(SAFARI, turn)[0] == "format"


def test_a_blocked_turn_is_not_right_though_it_is_the_references():
    """The reference, too, may walk into what it does not see; it counts as the plan's error, not as none."""
    turn = step()
    turn.calls[1].legal = False
    assert error_of(SAFARI, turn)[0] == "execution"


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        (step(), "both_right"),
        (step(SEEN, [DUE[0], move("DOWN", 2)]), "execution_gap"),
        (step(thought("f3", "LEFT", 2), DUE), "reasoning_gap"),
        (step(thought("f3", "LEFT", 2), [DUE[0], move("LEFT", 2)]), "both_wrong"),
        (step("Off I go!"), None),
        (step(SEEN, [], error="json_error"), "execution_gap"),
    ],
)
def test_quadrants(turn, name):
    assert quadrant(SAFARI, turn) == name
    counts = quadrants(SAFARI, [turn, turn])
    assert counts[name or "uncovered"] == 2 and sum(counts.values()) == 2


def test_the_first_error_of_failed_episodes_only():
    wrong, right = step(SEEN, [move("UP", 2)]), step()
    lost = EpisodeRecord(seed=1, steps=[right, wrong, step(calls=[], error="no_call")])
    won = EpisodeRecord(seed=2, steps=[wrong], success=True)
    crashed = EpisodeRecord(seed=3, steps=[right], end_reason="error")
    assert (first_error(SAFARI, lost).turn, first_error(SAFARI, lost).kind) == (2, "memory")
    counts = first_errors(SAFARI, [lost, won, crashed])
    assert counts["memory"] == 1 and counts["none"] == 1 and sum(counts.values()) == 2


class Blind:
    """The oracle with another fault from its third turn on."""

    def __init__(self, oracle, fault):
        self.oracle, self.fault = oracle, fault

    def act(self, requests):
        return [
            self.answer(request, right.turn) for request, right in zip(requests, self.oracle.act(requests), strict=True)
        ]

    def answer(self, request, turn):
        if "Step: 1/" in request.observation.text or "Step: 2/" in request.observation.text:
            return Answer(turn)
        return self.fault(turn)


def forgets(turn):
    kept = tuple(call for call in turn.tool_calls if call.name != "update_notepad")
    return Answer(Turn(turn.thought, kept or (ToolCall("move", {"actions": [{"direction": "UP", "steps": 1}]}),)))


def babbles(turn):
    return Answer(Turn(), text="{", error="json_error")


def strays(turn):
    return Answer(Turn(turn.thought, (ToolCall("move", {"actions": [{"direction": "LEFT", "steps": 3}] * 4}),)))


@pytest.mark.parametrize(
    ("fault", "kinds"), [(babbles, {"format"}), (strays, {"execution"}), (forgets, {"memory", "execution"})]
)
def test_faults_in_real_games_are_found_where_they_begin(fault, kinds):
    suite = find_suite("safari", WORLD)
    oracle = SAFARI.make_oracle()
    records = [judge(SAFARI, r) for r in suite.play(Blind(oracle, fault), range(2_000_000, 2_000_006))]
    errors = [first_error(SAFARI, record) for record in records if not record.success]
    found = [error for error in errors if error]
    assert found and {error.kind for error in found} <= kinds and min(error.turn for error in found) >= 3
    perfect = [judge(SAFARI, r) for r in suite.play(oracle, range(2_000_000, 2_000_003))]
    assert all(first_error(SAFARI, record) is None for record in perfect if record.success)
    counts = quadrants(SAFARI, [step for record in perfect for step in record.steps])
    assert counts["both_right"] == sum(counts.values()) > 0
