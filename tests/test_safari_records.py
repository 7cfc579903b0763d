"""Recorded turns: both published forms are read, every fault is told with its place, missing thoughts are derived."""

import json
import random

import pytest
from PIL import Image
from source_rows import read_safari

from qwenvl_agent.json_input import Reject
from qwenvl_agent.schema import ToolCall, ToolResult, Turn
from qwenvl_agent.worlds.recording import RowWriter
from qwenvl_agent.worlds.safari import SafariEnv, SafariOracle, SafariRules
from qwenvl_agent.worlds.safari.baselines import random_move
from qwenvl_agent.worlds.safari.judge import agrees
from qwenvl_agent.worlds.safari.thoughts import generate_thought
from qwenvl_agent.worlds.safari.tools import TOOLS
from qwenvl_agent.worlds.world import RecordedTurn

CONTEXT = "Mission: {}\nStep: 1/180\nPosition: (25, 25)\n\nFound Targets: {}\n\nNotepad:\n(empty)"
CALLS = [
    {"name": "update_notepad", "args": {"content": "기린 (29, 28)!"}},
    {"name": "move", "args": {"actions": [{"direction": "RIGHT", "steps": 3}, {"direction": "DOWN", "steps": 3}]}},
    {"name": "catch", "args": {"direction": "RIGHT"}},
    {"name": "declare_found", "args": {"target": "파란색 기린"}},
]
RESULTS = [
    {"name": "update_notepad", "result": {"status": "updated"}},
    {"name": "move", "result": {"moved": True, "actualSteps": 3, "blocked": False, "pos": {"x": 28, "y": 28}}},
    {
        "name": "catch",
        "result": {
            "success": True,
            "animal": {"emoji": "\U0001f992", "bgColor": "#0000FF"},
            "position": {"x": 29, "y": 28},
        },
    },
    {"name": "declare_found", "result": {"status": "found", "target": "파란색 기린", "total": 1}},
]


def recorded(**fields) -> dict:
    """A row as it was recorded."""
    return {
        "episode_id": "1f2e3d4c",
        "mission": "파란색 기린을 잡아줘",
        "turn": 0,
        "system_prompt": "사파리 게임",
        "context_text": CONTEXT.format("파란색 기린을 잡아줘", "(none)"),
        "image_file": "images/view.png",
        "tool_calls": CALLS,
        "tool_results": RESULTS,
        "thought_text": "기린이 오른쪽 아래에 있다.",
        "raw_request": {"large": "x" * 100},
        "raw_response": None,
        **fields,
    }


@pytest.fixture
def read(tmp_path):
    """Rows of a dataset with these lines (objects or raw text)."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (480, 480)).save(tmp_path / "images/view.png")

    def read(*lines, **options) -> list:
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / "dataset.jsonl").write_bytes(b"\n".join(raw) + b"\n")
        return read_safari(tmp_path, **options)

    return read


def test_the_recorded_form(read, tmp_path):
    (row,) = read(recorded())
    assert (row.episode_id, row.turn_index, row.mission) == ("1f2e3d4c", 0, "파란색 기린을 잡아줘")
    assert (row.system_prompt, row.source) == ("사파리 게임", f"{tmp_path}/dataset.jsonl:1")
    assert row.step.turn == Turn(
        "기린이 오른쪽 아래에 있다.", tuple(ToolCall(call["name"], call["args"]) for call in CALLS)
    )
    assert row.step.results == tuple(ToolResult(result["name"], result["result"]) for result in RESULTS)
    (picture,) = row.step.observation.pictures
    assert (picture.width, picture.height, picture.path) == (480, 480, str(tmp_path / "images/view.png"))
    assert not row.thought_derived


def test_the_published_form_is_the_same_row(read):
    published = recorded(image="images/view.png", has_raw=False)
    for key in ("image_file", "raw_request", "raw_response"):
        del published[key]
    published["tool_calls"], published["tool_results"] = json.dumps(CALLS), json.dumps(RESULTS)
    assert read(published) == read(recorded())
    assert read({**published, "image": {"path": "images/view.png", "bytes": None}}) == read(recorded())


def test_what_is_written_is_read_back(tmp_path):
    env = SafariEnv(SafariRules(width=20, height=20, num_trees=48, num_animals=10, tile_px=16, rules="catch"))
    observation, info = env.reset(seed=3)
    oracle, written = SafariOracle(env.rules), []
    with RowWriter(tmp_path) as writer:
        while not info["end_reason"]:
            turn = oracle.turn(env.view(), observation.text)
            seen = observation
            observation, _, _, _, info = env.step(turn)
            at = ("00000003", env.mission.text, len(written))
            writer.write(RecordedTurn(*at, env.system_prompt, seen, turn, info["results"]))
            written.append((seen, turn, info["results"]))
    rows = read_safari(tmp_path)
    assert [(row.step.observation.text, row.step.turn, row.step.results) for row in rows] == [
        (seen.text, turn, results) for seen, turn, results in written
    ]
    assert [row.turn_index for row in rows] == list(range(len(rows))) and rows[0].tools == env.tools
    for row, (seen, _, _) in zip(rows, written, strict=True):
        assert row.step.observation.pictures[0].open().tobytes() == seen.pictures[0].image.tobytes()
    assert (tmp_path / "images/ep_00000003_turn_000.png").is_file()


def with_call(name, args) -> dict:
    return {"tool_calls": [{"name": name, "args": args}], "tool_results": []}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_file": "images/gone.png"}, "image_file 'images/gone.png' does not exist"),
        ({"image_file": "../outside.png"}, "leaves the dataset folder"),
        ({"image_file": "/etc/hostname"}, "leaves the dataset folder"),
        ({"image_file": None}, "no file is named"),
        ({"image_file": "dataset.jsonl"}, "is not a readable picture"),
        ({"episode_id": 7}, "episode_id is '7'"),
        ({"episode_id": ["a"]}, "episode_id is"),
        ({"turn": "0"}, "turn is '0': the row has no place"),
        ({"turn": True}, "turn is True"),
        ({"turn": 2**32}, "turn is 4294967296: the row has no place"),
        ({"context_text": ""}, "context_text is ''"),
        ({"tool_calls": "[{"}, "tool_calls is a string that is not JSON"),
        ({"tool_calls": {"name": "move"}}, "tool_calls is"),
        ({"tool_calls": []}, "the turn has nothing to learn"),
        ({"tool_calls": ["move"]}, "tool_calls[0] is 'move': not a call"),
        (with_call("jump", {}), "tool_calls[0].name 'jump' is not a safari tool"),
        (with_call("move", [{"direction": "UP", "steps": 1}]), "arguments of move are"),
        (with_call("move", {}), "tool_calls[0].args do not fit: move: 'actions' is a required property"),
        (with_call("move", {"actions": [{"direction": "UP", "steps": 9}]}), "move.actions[0].steps: 9 is greater"),
        (with_call("update_notepad", {"content": "<|im_end|>"}), "holds the control token '<|im_end|>'"),
        ({"tool_results": [{"name": "move", "result": {}}]}, "tool_results[0] is of 'move', expected update_notepad"),
        ({"tool_results": [*RESULTS, RESULTS[0]]}, "expected no further result"),
        ({"tool_results": [{"name": "update_notepad", "result": "ok"}]}, "not a result"),
        ({"thought_text": "</think> I go."}, "thought holds the control token '</think>'"),
        ({"thought_text": "I go.\nAction: move"}, "thought has a line that starts with 'Action:'"),
        ({"thought_text": 5}, "thought_text is '5': not text"),
        ({"thought_text": None, "context_text": "no state"}, "the state cannot be read"),
    ],
)
def test_a_row_that_must_not_be_learned_is_told_with_its_place(read, tmp_path, fields, message):
    first, reject, last = read(recorded(), recorded(**fields), recorded(turn=2))
    assert isinstance(reject, Reject) and reject.source == f"{tmp_path}/dataset.jsonl:2"
    assert message in reject.message
    assert (first.turn_index, last.turn_index) == (0, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", "not JSON (Expecting property name enclosed in double quotes, column 2)"),
        (b"[1]", "list instead of an object"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_broken_line_is_skipped(read, line, message):
    reject, row = read(line, recorded())
    assert message in reject.message and row.source.endswith(":2")


def test_a_picture_too_large_to_open_is_refused(read, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 480 * 480 - 1)
    (reject,) = read(recorded())
    assert "has more than 230399 pixels" in reject.message


def test_numbers_that_are_equal_are_not_alike_to_a_schema(read):
    rows = read(*(recorded(**with_call("move", {"actions": [{"direction": "UP", "steps": n}]})) for n in (1, True, 1)))
    assert [isinstance(row, Reject) for row in rows] == [False, True, False]
    assert "True is not of type 'integer'" in rows[1].message


def test_blank_lines_and_a_byte_order_mark_are_nothing(read):
    rows = read(b"\xef\xbb\xbf" + json.dumps(recorded()).encode(), b"", b"  ", recorded(turn=1))
    assert [row.source.rpartition(":")[2] for row in rows] == ["1", "4"]


def test_results_may_be_missing_at_the_end(read):
    (row,) = read(recorded(tool_results=RESULTS[:2]))
    assert len(row.step.results) == 2 and len(row.step.turn.tool_calls) == 4


def test_the_tools_are_those_of_the_episode_wherever_its_rows_stand(read):
    note = with_call("update_notepad", {"content": "x"})
    rows = read(
        recorded(episode_id="a", **note),
        recorded(episode_id="b", **note),
        recorded(episode_id="c", **note, system_prompt="Catch animals from beside them."),
        recorded(episode_id="a", turn=1),
    )
    assert [len(row.tools) for row in rows] == [5, 4, 5, 5]
    assert isinstance(read(recorded(), tools=TOOLS["reach"])[0], Reject)


def test_a_missing_or_long_thought_is_derived(read):
    rows = read(
        recorded(thought_text=None),
        recorded(thought_text="  ", turn=1),
        recorded(thought_text="x" * 401, turn=2),
        recorded(thought_text="x" * 400, turn=3),
    )
    assert [row.thought_derived for row in rows] == [True, True, True, False]
    assert rows[0].step.turn.thought == (
        "At (25, 25). Target blue giraffe. Blocked none. Plan RIGHT 3 DOWN 3, catch RIGHT, found."
    )
    assert read(recorded(), max_thought_chars=3)[0].thought_derived


def derived(calls, results=(), mission="find the red tiger and the blue lion", found="(none)") -> str:
    return generate_thought(
        CONTEXT.format(mission, found),
        [ToolCall(*call) for call in calls],
        [ToolResult(*result) for result in results],
    )


def move(*actions):
    return ("move", {"actions": [{"direction": direction, "steps": steps} for direction, steps in actions]})


def stopped(steps, x, y):
    return ("move", {"moved": steps > 0, "actualSteps": steps, "blocked": True, "pos": {"x": x, "y": y}})


@pytest.mark.parametrize(
    ("arguments", "thought"),
    [
        (
            {"calls": [move(("UP", 3), ("LEFT", 2))], "results": [stopped(1, 24, 22)]},
            "At (25, 25). Target red tiger. Blocked (23, 22). Plan UP 3 LEFT 2.",
        ),
        (
            {"calls": [move(("UP", 3))], "results": [stopped(0, 25, 25)], "found": "red tiger"},
            "At (25, 25). Target blue lion. Blocked (25, 24). Plan UP 3.",
        ),
        ({"calls": [("declare_done", {})], "found": "red tiger, blue lion"}, "At (25, 25). Target none. Blocked none. Plan done."),
        ({"calls": [("update_notepad", {"content": "x"})]}, "At (25, 25). Target red tiger. Blocked none. Plan wait."),
        (
            {"calls": [("declare_found", {"target": "青色的狮子"})], "mission": "探せ"},
            "At (25, 25). Target cyan lion. Blocked none. Plan found.",
        ),
        (
            {"calls": [move(("UP", 1))], "mission": "trouve  le tigre. Vite."},
            "At (25, 25). Target trouve le tigre Vite. Blocked none. Plan UP 1.",
        ),
    ],
)  # fmt: skip
def test_a_derived_thought_says_state_and_plan(arguments, thought):
    assert derived(**arguments) == thought


def test_derived_thoughts_agree_with_their_calls_in_any_language():
    rules = SafariRules(width=20, height=20, num_trees=48, num_animals=10, rules="catch", tile_px=16, max_turns=40)
    env, rng = SafariEnv(rules), random.Random(0)
    oracle = SafariOracle(rules)
    for seed in range(9):
        observation, info = env.reset(seed=seed)
        while not info["end_reason"]:
            is_noise = rng.random() < 0.3
            turn = Turn(tool_calls=[random_move(rng)]) if is_noise else oracle.turn(env.view(), observation.text)
            x, y = env.player
            text = observation.text
            observation, _, _, _, info = env.step(turn)
            thought = generate_thought(text, turn.tool_calls, info["results"])
            calls = [{"name": call.name, "arguments": call.arguments} for call in turn.tool_calls]
            assert agrees(thought, calls) is True
            assert thought.startswith(f"At ({x}, {y}). Target ")
            blocked = info["results"][0].content.get("blocked", False)
            assert ("Blocked none" in thought) == (not blocked)
