import json
import time

import pytest
from PIL import Image

from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.records import read_records, write_records
from qwenvl_agent.schema import Answer, Observation, Picture, Tool, ToolCall, ToolResult, Turn

WALK = Tool(
    "walk",
    "Walk to the right.",
    {
        "type": "object",
        "properties": {"steps": {"type": "integer", "minimum": 1, "maximum": 3}},
        "required": ["steps"],
        "additionalProperties": False,
    },
)
STOP = Tool("stop", "End the mission.", {"type": "object", "properties": {}})


class Corridor:
    """Walk `seed` tiles to the right and stop there. Seed 13 crashes at reset, a walk of 3 onto tile 7 in a step."""

    system_prompt = "You walk."
    tools = (WALK, STOP)
    max_turns = 6

    def __init__(self, opened=None):
        self.opened = [] if opened is None else opened
        self.opened.append(self)

    def close(self):
        self.opened.remove(self)

    def reset(self, *, seed=None, options=None):
        if seed == 13:
            raise RuntimeError("no such corridor")
        self.goal, self.x, self.turns, self.end_reason = seed, 0, 0, ""
        return self.observation(), self.info(())

    def step(self, turn):
        self.turns += 1
        results, flags = [], []
        for call in turn.tool_calls:
            if call.name == "walk" and isinstance(call.arguments.get("steps"), int):
                self.x += call.arguments["steps"]
                if (self.x, call.arguments["steps"]) == (7, 3):
                    raise RuntimeError("fell into a hole")
                results.append(ToolResult("walk", {"x": self.x}))
                flags.append({"legal": True, "effective": True, "optimal": self.x <= self.goal})
            elif call.name == "stop":
                self.end_reason = "done"
                results.append(ToolResult("stop", {}))
                flags.append({"legal": True, "effective": True})
                break
            else:
                results.append(ToolResult(call.name, {"status": "unknown_tool"}))
                flags.append({"legal": False, "effective": False})
        if not turn.tool_calls:
            results.append(ToolResult("", {"status": "no_tool_call"}))
        if not self.end_reason and self.turns == self.max_turns:
            self.end_reason = "max_turns"
        terminated, truncated = self.end_reason == "done", self.end_reason == "max_turns"
        return self.observation(), 0.0, terminated, truncated, self.info(results, flags)

    def observation(self):
        image = Image.new("RGB", (8, 8), (self.x * 30 % 256, 0, 0))
        return Observation(f"x={self.x} goal={self.goal}", (Picture.from_image(image),))

    def info(self, results, flags=()):
        success = self.end_reason == "done" and self.x == self.goal
        return {
            "results": list(results),
            "calls": list(flags),
            "mission": f"go to {self.goal}",
            "goals": [str(self.goal)],
            "reached": [str(self.goal)] * success,
            "success": success,
            "harm": [],
            "end_reason": self.end_reason,
            "optimal_turns": max(1, -(-self.goal // 3)),
            "position": (self.x, 0),
        }


class Walker:
    """Walks to the goal, then stops; counts the requests of each batch and keeps the histories it was shown."""

    def __init__(self, answer=None):
        self.batch_sizes, self.histories, self.answer = [], [], answer

    def act(self, requests):
        self.batch_sizes.append(len(requests))
        self.histories += [request.history for request in requests]
        return [self.answer or self.decide(request) for request in requests]

    def decide(self, request):
        x, goal = (int(part.split("=")[1]) for part in request.observation.text.split())
        steps = min(3, goal - x)
        calls = [ToolCall("walk", {"steps": steps})] if steps else []
        if x + steps == goal:
            calls.append(ToolCall("stop", {}))
        return Answer(Turn("go", calls), text=f"walk {steps}")


class Script:
    def __init__(self, answers):
        self.answers = iter(answers)

    def act(self, requests):
        return [next(self.answers) for _ in requests]


WALK_1 = ToolCall("walk", {"steps": 1})
UNREADABLE = Answer(Turn(), text="???", error="no_call")


def test_finished_episodes_make_room_for_the_next_seeds():
    policy = Walker()
    records = rollout(Corridor, policy, [1, 9, 2, 12], batch_size=2)
    assert [record.seed for record in records] == [1, 9, 2, 12]
    assert all(record.success and record.end_reason == "done" for record in records)
    assert [record.turns for record in records] == [1, 3, 1, 4]
    # 1 and 9; 9 and 2; 9 and 12; then 12 alone.
    assert policy.batch_sizes == [2, 2, 2, 1, 1, 1]


def test_record_tells_what_was_seen_written_and_answered():
    record = rollout(Corridor, Walker(), [4], reference=Walker())[0]
    assert (record.mission, record.goals, record.reached, record.optimal_turns) == ("go to 4", ["4"], ["4"], 2)
    first, second = record.steps
    assert (first.context, first.text, first.thought, first.position) == ("x=0 goal=4", "walk 3", "go", [0, 0])
    assert first.results == [{"name": "walk", "content": {"x": 3}}]
    assert [call.name for call in second.calls] == ["walk", "stop"]
    walk = second.calls[0]
    assert (walk.name_ok, walk.schema_ok, walk.legal, walk.optimal, walk.result) == (True, True, True, True, {"x": 4})
    assert second.calls[1].optimal is None  # this world does not say
    assert second.expected == [{"name": "walk", "arguments": {"steps": 1}}, {"name": "stop", "arguments": {}}]


def test_calls_are_checked_against_their_tools():
    answer = Answer(Turn("", [ToolCall("fly", {}), ToolCall("walk", {"steps": 9}), ToolCall("stop", {})]))
    calls = rollout(Corridor, Walker(answer), [1])[0].steps[0].calls
    assert [(call.name_ok, call.schema_ok) for call in calls] == [(False, False), (True, False), (True, True)]


def test_three_unreadable_answers_in_a_row_end_an_episode():
    record = rollout(Corridor, Walker(UNREADABLE), [1])[0]
    assert (record.end_reason, record.turns, record.success) == ("parse_abort", 3, False)
    assert record.steps[0].results == [{"name": "", "content": {"status": "no_tool_call"}}]
    assert record.steps[0].error == "no_call" and record.steps[0].text == "???"


def test_free_text_is_no_call_either():
    record = rollout(Corridor, Walker(Answer(Turn(text="Hello!"), text="Hello!")), [1])[0]
    assert (record.end_reason, record.turns) == ("parse_abort", 3)
    assert {(step.error, step.thought) for step in record.steps} == {("free_text", "Hello!")}


def test_a_readable_answer_restarts_the_count():
    class Stammerer(Walker):
        def decide(self, request):
            return UNREADABLE if len(self.batch_sizes) % 3 else super().decide(request)

    record = rollout(Corridor, Stammerer(), [6])[0]
    assert [step.error for step in record.steps] == ["no_call", "no_call", "", "no_call", "no_call", ""]
    assert record.success


def test_a_crash_of_the_world_is_a_failed_episode():
    records = rollout(Corridor, Walker(), [1, 13, 2])
    assert [record.end_reason for record in records] == ["done", "error", "done"]
    assert "no such corridor" in records[1].error and records[1].turns == 0


def test_a_crash_in_a_step_keeps_what_was_called():
    hole = [Answer(Turn("", [WALK_1])), Answer(Turn("", [ToolCall("walk", {"steps": 3})] * 2))]
    crashed = rollout(Corridor, Script(hole), [30])[0]
    assert (crashed.end_reason, crashed.turns) == ("error", 2) and "fell into a hole" in crashed.error
    assert len(crashed.steps[1].calls) == 2 and crashed.steps[1].results == []


def test_the_worlds_own_limit_ends_an_episode():
    record = rollout(Corridor, Walker(Answer(Turn("", [WALK_1]))), [30])[0]
    assert (record.end_reason, record.turns, record.success) == ("max_turns", 6, False)


def test_time_limit_fails_what_was_started_and_only_that():
    records = rollout(Corridor, Walker(), [1, 2, 3], batch_size=2, time_limit_s=0.0)
    assert records == []  # nothing had begun

    class Slow(Walker):
        def act(self, requests):
            time.sleep(0.05)
            return super().act(requests)

    records = rollout(Corridor, Slow(), [1, 9, 2, 5], batch_size=2, time_limit_s=0.04)
    assert [(record.seed, record.end_reason) for record in records] == [(1, "done"), (9, "time_limit")]


@pytest.mark.parametrize(("history_steps", "lengths"), [(0, [0, 0, 0]), (2, [0, 1, 2]), (1, [0, 1, 1])])
def test_history_holds_the_last_steps(history_steps, lengths):
    policy = Walker()
    rollout(Corridor, policy, [8], history_steps=history_steps)
    assert [len(history) for history in policy.histories] == lengths
    if history_steps == 2:
        first, second = policy.histories[2]
        assert first.observation.text == "x=0 goal=8" and second.observation.text == "x=3 goal=8"
        assert second.turn.tool_calls[0].arguments == {"steps": 3} and second.results[0].content == {"x": 6}


def test_records_survive_their_file(tmp_path):
    ended = []
    records = rollout(Corridor, Walker(), [4, 13], picture_dir=tmp_path / "pictures", on_progress=ended.append)
    assert sorted(record.seed for record in ended) == [4, 13]
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records
    with Image.open(tmp_path / records[0].steps[1].picture) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (90, 0, 0)


def test_a_broken_record_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, rollout(Corridor, Walker(), [1]))
    path.write_text(path.read_text() + json.dumps({"seed": 1, "speed": 2}) + "\n")
    with pytest.raises(ValueError, match=r"records.jsonl:2: not a record of an evaluation"):
        read_records(path)


@pytest.mark.parametrize("seeds", [[1, 9, 2], [13, 1], [30]], ids=["won", "crashed at reset", "crashed in a step"])
def test_every_environment_is_closed_when_its_episode_ends(seeds):
    opened, seen = [], []
    hole = [Answer(Turn("", [WALK_1])), Answer(Turn("", [ToolCall("walk", {"steps": 3})] * 2))]
    policy = Script(hole) if seeds == [30] else Walker()
    rollout(lambda: Corridor(opened), policy, seeds, batch_size=2, on_progress=lambda record: seen.append(len(opened)))
    assert opened == [] and len(seen) == len(seeds) and max(seen) <= 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_environments_are_closed_when_the_policy_fails_or_people_interrupt(error):
    class Failing:
        def act(self, requests):
            raise error

    opened = []
    with pytest.raises(error):
        rollout(lambda: Corridor(opened), Failing(), [1, 2, 3], batch_size=2)
    assert opened == []


def test_environments_are_closed_at_the_time_limit():
    opened = []

    class Slow(Walker):
        def act(self, requests):
            time.sleep(0.05)
            return super().act(requests)

    assert len(rollout(lambda: Corridor(opened), Slow(), [9, 8], batch_size=2, time_limit_s=0.02)) == 2
    assert opened == []


def test_what_goes_wrong_in_closing_is_told_and_changes_nothing():
    class Stuck(Corridor):
        def close(self):
            raise RuntimeError("the door is stuck")

    record = rollout(Stuck, Walker(), [1])[0]
    assert record.success and record.end_reason == "done" and "the door is stuck" in record.error


def test_the_same_seed_twice_is_refused():
    with pytest.raises(ValueError, match="seed 2 twice"):
        rollout(Corridor, Walker(), [1, 2, 2])
