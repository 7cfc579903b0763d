from dataclasses import replace

from qwenvl_agent.evaluation.step_metrics import (
    RowRecord,
    consistency,
    funnel,
    places,
    predict_rows,
    split_thought,
    step_metrics,
    token_metrics,
)
from qwenvl_agent.records import CallRecord, StepRecord, read_records, write_records
from qwenvl_agent.schema import Answer, Observation, Picture, Request, Row, Tool, ToolCall, Turn

STEPS = {"type": "integer", "minimum": 1, "maximum": 3}
ACTION = {"type": "object", "properties": {"direction": {"type": "string"}, "steps": STEPS}}
MOVE = Tool("move", "", {"type": "object", "properties": {"actions": {"type": "array", "items": ACTION}}})
FOUND = Tool("declare_found", "", {"type": "object", "properties": {"target": {"type": "string"}}})
TOOLS = (MOVE, FOUND)


def move(*actions):
    return ToolCall("move", {"actions": [{"direction": d, "steps": n} for d, n in actions]})


def found(target="tiger"):
    return ToolCall("declare_found", {"target": target})


def row(row_id, *calls, thought="Me a0."):
    observation = Observation("Mission: tiger", (Picture(32, 32, path=f"{row_id}.png"),))
    return Row(row_id, Request("system", TOOLS, (), observation), Turn(thought, calls))


class Script:
    def __init__(self, *answers):
        self.answers = answers

    def act(self, requests):
        assert len(requests) == len(self.answers)
        return list(self.answers)


def say(*calls, thought="Me a0.", **kwargs):
    return Answer(Turn(thought, calls), text="...", **kwargs)


def values(metrics, *names):
    return [metrics[name].value for name in names]


def test_decisions_are_counted_one_by_one():
    rows = [
        row("a/0", move(("UP", 2), ("LEFT", 1))),
        row("a/1", move(("UP", 2)), found()),
        row("b/0", found()),
        row("b/1", move(("DOWN", 3))),
    ]
    answers = [
        say(move(("UP", 1), ("LEFT", 1))),
        say(move(("UP", 2)), found()),
        say(move(("UP", 2))),
        say(move(("DOWN", 3)), found()),
    ]
    metrics = step_metrics(predict_rows(Script(*answers), rows))
    assert values(metrics, "move.recall", "move.precision") == [1.0, 0.75]
    assert values(metrics, "declare_found.recall", "declare_found.precision") == [0.5, 0.5]
    assert values(metrics, "move.actions[0].direction", "move.actions[0].steps") == [1.0, 2 / 3]
    assert metrics["move.actions[1].direction"][::3] == (1.0, 1)
    assert metrics["declare_found.target"].value == 0.5
    assert values(metrics, "name_accuracy", "argument_accuracy") == [0.5, 0.25]
    assert metrics["name_accuracy"].n == 2  # two episodes, not four turns


def test_funnel_keeps_strict_and_repaired_apart():
    rows = [row(f"a/{i}", found()) for i in range(4)]
    answers = [
        say(found()),
        say(found(), repairs=("missing_brace",)),
        Answer(Turn(), text="{", error="json_error"),
        say(move(("UP", 9))),
    ]
    metrics = step_metrics(predict_rows(Script(*answers), rows))
    names = ("strict_parse_rate", "parse_rate", "schema_rate", "name_accuracy", "argument_accuracy")
    assert values(metrics, *names) == [0.5, 0.75, 0.5, 0.5, 0.5]
    assert "legal_rate" not in metrics and "optimal_rate" not in metrics


def step(*flags, error="", schema_ok=True, **kwargs):
    calls = [
        CallRecord(name="move", arguments={}, schema_ok=schema_ok, legal=legal, optimal=optimal)
        for legal, optimal in flags
    ]
    return StepRecord(context="", calls=calls, error=error, **kwargs)


def test_funnel_of_a_world_counts_unreadable_turns_as_failures():
    steps = [step((True, True), (True, None)), step((True, False)), step((False, None)), step(error="no_call")]
    metrics = funnel([("a", one) for one in steps])
    assert values(metrics, "parse_rate", "legal_rate") == [0.75, 0.5]
    # The third turn's optimality is unknown; the unreadable one's is not: it failed.
    assert metrics["optimal_rate"].value == 1 / 3


def test_thought_fields_show_the_policy_that_always_says_none():
    labels = ["Me a0. Target none."] * 3 + ["Me b1. Target red tiger: h3."]
    rows = [row(f"a/{i}", found(), thought=label) for i, label in enumerate(labels)]
    answers = [say(found(), thought="Me a0. Target none.")] * 4
    metrics = step_metrics(predict_rows(Script(*answers), rows))
    assert values(metrics, "thought.Target", "thought.Target.rare") == [0.75, 0.0]
    assert values(metrics, "thought.Me", "thought.Me.rare") == [0.75, 0.0]


def test_split_thought():
    thought = "Me f5. Target red tiger: h3. Path g5 h5.\nPlan: RIGHT 2 UP 2, found. Plan B"
    fields = {"Me": "f5", "Target": "red tiger: h3", "Path": "g5 h5", "Plan": "RIGHT 2 UP 2, found; B"}
    assert split_thought(thought) == fields
    assert split_thought("") == {} == split_thought(" . ")


def test_places_name_every_leaf():
    arguments = {"actions": [{"direction": "UP", "steps": 2}, {"direction": "LEFT", "steps": 1}], "why": ""}
    assert dict(places(arguments)) == {
        "actions[0].direction": "UP",
        "actions[0].steps": 2,
        "actions[1].direction": "LEFT",
        "actions[1].steps": 1,
        "why": "",
    }


def test_consistency_reports_its_coverage():
    say_move = StepRecord(context="", thought="UP", calls=[CallRecord(name="move", arguments={"to": "UP"})])
    lie = StepRecord(context="", thought="LEFT", calls=say_move.calls)
    muse = StepRecord(context="", thought="hm", calls=say_move.calls)

    def agrees(thought, calls):
        return None if thought == "hm" else calls[0]["arguments"]["to"] == thought

    metrics = consistency([("a", say_move), ("a", lie), ("a", muse), ("b", say_move)], agrees)
    assert values(metrics, "thought_coverage", "thought_consistency") == [0.75, 2 / 3]


def test_token_metrics_by_part():
    scores = [
        {"row_id": "a", "part": "call", "num_tokens": 3, "num_correct": 3, "loss_sum": 0.3},
        {"row_id": "a", "part": "end", "num_tokens": 1, "num_correct": 0, "loss_sum": 0.7},
        {"row_id": "b", "part": "call", "num_tokens": 1, "num_correct": 0, "loss_sum": 1.0},
    ]
    metrics = token_metrics(scores)
    assert metrics["token_accuracy/call"] == 0.75 and metrics["token_loss/call"] == 1.3 / 4
    assert metrics["token_accuracy/all"] == 0.6 and metrics["token_loss/all"] == 0.4


def test_row_records_survive_their_file(tmp_path):
    records = predict_rows(Script(say(found())), [row("a/0", move(("UP", 1)))])
    assert records[0].episode == "a" and records[0].step.picture == "a/0.png"
    assert records[0].step.expected_thought == "Me a0."
    write_records(tmp_path / "records.jsonl", records)
    (read,) = read_records(tmp_path / "records.jsonl", RowRecord)
    assert read.step.picture == str(tmp_path / "a" / "0.png")  # from the results' folder on
    assert replace(read, step=records[0].step) == records[0]
    assert replace(read.step, picture="a/0.png") == records[0].step
