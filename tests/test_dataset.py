"""Rows: split by episode, linked to their history, cached by content, and every reject told with its place."""

import json
import os
import pickle
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data import dataset
from qwenvl_agent.data.dataset import Rows, build_rows
from qwenvl_agent.schema import ToolCall, ToolResult, Turn


def safari_row(episode_id: str = "ep0", turn: int = 0, **fields) -> dict:
    """One line of a recorded dataset; its notepad tells the turns apart."""
    return {
        "episode_id": episode_id,
        "mission": "find the red tiger",
        "turn": turn,
        "system_prompt": "You play.",
        "context_text": f"Mission: find the red tiger\nStep: {turn + 1}/40\nPosition: (5, 5)\n\n"
        "Found Targets: (none)\n\nNotepad:\n(empty)",
        "image_file": "images/view.png",
        "tool_calls": [{"name": "update_notepad", "args": {"content": f"turn {turn}"}}],
        "tool_results": [{"name": "update_notepad", "result": {"status": "updated"}}],
        "thought_text": f"I write down turn {turn}.",
        "raw_request": None,
        "raw_response": None,
        **fields,
    }


def chat_row(text: str, answers: tuple[str, ...] = ("Yes.",), **fields) -> dict:
    messages = []
    for i, answer in enumerate(answers):
        messages += [{"role": "user", "content": f"{text} {i}"}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **fields}


def write_lines(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def build(tmp_path):
    """Write records to `<name>/dataset.jsonl` with a picture beside it, and build the rows of these sources."""

    def build(*, history_steps: int = 0, kind: str = "safari", weights: dict | None = None, **sources: list) -> Rows:
        data = {"cache_dir": str(tmp_path / "cache"), "eval_fraction": sources.pop("eval_fraction", 0.0)}
        for name, records in sources.items():
            write_lines(tmp_path / name / "dataset.jsonl", records)
            (tmp_path / name / "images").mkdir(exist_ok=True)
            view = tmp_path / name / "images" / "view.png"
            if not view.exists():
                Image.new("RGB", (320, 160)).save(view)
        configs = tuple(
            SourceConfig(path=str(tmp_path / name), kind=kind, weight=(weights or {}).get(name, 1.0))
            for name in sources
        )
        return build_rows(DataConfig(sources=configs, **data), PromptConfig(history_steps=history_steps))

    return build


def notepads(row) -> list[str]:
    """The turns of the history and the row's own, by what they write."""
    turns = [*(step.turn for step in row.request.history), row.turn]
    return [turn.tool_calls[0].arguments["content"] for turn in turns]


def test_a_row_is_one_step_with_its_picture_still_closed(build, tmp_path):
    rows = build(park=[safari_row()])
    (row,) = [rows.train[i] for i in range(len(rows.train))]
    assert row.id == "ep0/0" and row.source == f"{tmp_path}/park/dataset.jsonl:1" and row.weight == 1.0
    assert row.request.system_prompt == "You play." and row.request.history == ()
    assert row.request.observation.text.startswith("Mission: find the red tiger\nStep: 1/40\n")
    (picture,) = row.request.observation.pictures
    assert (picture.width, picture.height, picture.image) == (320, 160, None)
    assert Path(picture.path) == tmp_path / "park/images/view.png"
    assert row.turn == Turn("I write down turn 0.", (ToolCall("update_notepad", {"content": "turn 0"}),))


def test_history_is_in_turn_order_whatever_the_order_of_lines(build):
    rows = build(park=[safari_row("a", 2), safari_row("b", 0), safari_row("a", 0), safari_row("a", 1)], history_steps=2)
    found = {rows.train[i].id: notepads(rows.train[i]) for i in range(4)}
    assert found == {
        "a/2": ["turn 0", "turn 1", "turn 2"],
        "b/0": ["turn 0"],
        "a/0": ["turn 0"],
        "a/1": ["turn 0", "turn 1"],
    }
    assert rows.train[0].request.history[0].results == (ToolResult("update_notepad", {"status": "updated"}),)


def test_history_is_as_long_as_asked_and_stops_at_a_rejected_step(build):
    lines = [safari_row("a", turn) for turn in range(5)]
    lines[2]["image_file"] = "images/gone.png"
    rows = build(park=lines, history_steps=1)
    assert [notepads(rows.train[i]) for i in range(4)] == [
        ["turn 0"],
        ["turn 0", "turn 1"],
        ["turn 3"],
        ["turn 3", "turn 4"],
    ]
    assert rows.report["sources"][0]["num_rejects"] == 1


def test_a_second_step_at_the_same_place_is_rejected(build):
    rows = build(park=[safari_row("a", 0), safari_row("a", 1), safari_row("a", 1, thought_text="Again.")])
    assert [rows.train[i].turn.thought for i in range(len(rows.train))] == [
        "I write down turn 0.",
        "I write down turn 1.",
    ]
    (reject,) = rejects_of(rows)
    assert reject["source"].endswith("park/dataset.jsonl:3")
    assert reject["message"].startswith("turn 1 of episode 'a' is there already: it would count twice")


def rejects_of(rows: Rows, source: int = 0) -> list[dict]:
    lines = Path(rows.report["sources"][source]["rejects_path"]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_reject_is_in_the_report_and_counted_by_reason(build):
    bad = [safari_row("x", i, image_file=f"images/gone{i}.png") for i in range(3)]
    rows = build(park=[safari_row(), *bad, "{broken", safari_row("y", image_file="../outside.png")])
    assert [reject["source"].rpartition(":")[2] for reject in rejects_of(rows)] == ["2", "3", "4", "5", "6"]
    (source,) = rows.report["sources"]
    assert (source["num_rows"], source["num_rejects"]) == (1, 5)
    assert sorted(source["reject_reasons"].values()) == [1, 1, 3]
    summary = rows.summary()
    assert "1 rows of 1 episodes, 5 rejected" in summary and source["rejects_path"] in summary
    assert all(f"rejected {count} x {reason}" in summary for reason, count in source["reject_reasons"].items())


def test_half_a_character_is_rejected_in_both_forms(build):
    line = json.dumps(safari_row("x")).replace("You play.", "You \\ud83d play.")
    assert "is half a character: correct the text" in rejects_of(build(park=[safari_row(), line]))[0]["message"]
    line = json.dumps(chat_row("What?")).replace("Yes.", "\\ud83d")
    rows = build(talk=[chat_row("What?"), line], kind="chat")
    assert "is half a character: correct the text" in rejects_of(rows)[0]["message"]


def test_picture_over_the_decompression_limit_is_rejected(build, monkeypatch, tmp_path):
    (tmp_path / "park/images").mkdir(parents=True)
    Image.new("L", (400, 400)).save(tmp_path / "park/images/large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 320 * 160)
    rows = build(park=[safari_row("a"), safari_row("b", image_file="images/large.png")])
    assert [reject["source"].rpartition(":")[2] for reject in rejects_of(rows)] == ["2"]
    assert "pixels" in rejects_of(rows)[0]["message"]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_split_is_by_episode_and_stays_when_episodes_are_added(build, fraction):
    def sides(num_episodes: int) -> tuple[set, set]:
        lines = [safari_row(f"ep{e}", turn) for e in range(num_episodes) for turn in range(2)]
        rows = build(park=lines, eval_fraction=fraction)
        assert len(rows.train) + len(rows.held_out) == 2 * num_episodes
        train, held_out = ({part[i].id.split("/")[0] for i in range(len(part))} for part in (rows.train, rows.held_out))
        assert not train & held_out
        assert rows.report["num_held_out_episodes"] == len(held_out)
        return train, held_out

    (train, held_out), (more_train, more_held_out) = sides(100), sides(200)
    assert train < more_train and held_out < more_held_out
    assert abs(len(more_held_out) - 200 * fraction) < 20


def test_small_sets_have_both_sides_and_fraction_zero_holds_out_nothing(build):
    for fraction in (0.01, 0.99):
        rows = build(park=[safari_row("a"), safari_row("b")], eval_fraction=fraction)
        assert (len(rows.train), len(rows.held_out)) == (1, 1)
    assert len(build(park=[safari_row("a")], eval_fraction=0.5).train) == 1
    assert len(build(park=[safari_row("a"), safari_row("b")]).held_out) == 0


def test_an_episode_in_two_sources_is_on_one_side(build):
    lines = [safari_row(f"ep{e}") for e in range(40)]
    rows = build(park=lines, zoo=lines, eval_fraction=0.5)
    ids = [rows.held_out[i].id for i in range(len(rows.held_out))]
    assert len(ids) == 2 * len(set(ids)) > 0


def test_weights_share_the_draws_between_sources(build):
    park, zoo = [safari_row(f"p{e}") for e in range(2)], [safari_row(f"z{e}") for e in range(6)]
    assert build(park=park, zoo=zoo).train.sampling_weights.tolist() == [2.0] * 2 + [2 / 3] * 6
    weighted = build(park=park, zoo=zoo, weights={"zoo": 3.0}).train.sampling_weights
    assert weighted.tolist() == [1.0] * 8
    assert build(park=park, weights={"park": 0.3}).train.sampling_weights.tolist() == [1.0] * 2
    with pytest.raises(ValueError, match=r"data.sources\[\].weight is 0.0, below 1e-06"):
        build(park=park, weights={"park": 0.0})


def test_lengths_grow_with_text_pictures_and_history(build):
    lines = [safari_row("a", 0), safari_row("a", 1), safari_row("b", 0, context_text="Step: 1/9\n" * 90)]
    short, _, long = build(park=lines).train.lengths
    assert long - short > 200 and short > 320 * 160 / 1024
    alone, after_one, alone_long = build(park=lines, history_steps=3).train.lengths
    assert (alone, alone_long) == (short, long)
    assert after_one - alone > 50 + 320 * 160 / 1024


def test_cache_is_used_again_and_keyed_by_content(build, tmp_path):
    first = build(park=[safari_row()])
    (folder,) = (tmp_path / "cache").iterdir()
    meta_time = (folder / "meta.json").stat().st_mtime_ns
    assert sorted(file.name for file in folder.iterdir()) == [
        "index.npy",
        "meta.json",
        "prompts.arrow",
        "rejects.jsonl",
        "steps.arrow",
    ]
    again = build(park=[safari_row()])
    assert (folder / "meta.json").stat().st_mtime_ns == meta_time and again.report == first.report
    changed = build(park=[safari_row(thought_text="Another thought.")])
    assert changed.train[0].turn.thought == "Another thought."
    assert changed.report["dataset_hash"] != first.report["dataset_hash"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cache_is_written_anew_when_a_picture_changes(build, tmp_path):
    assert build(park=[safari_row()]).train[0].request.observation.pictures[0].width == 320
    Image.effect_noise((64, 48), 50).save(tmp_path / "park/images/view.png")
    assert build(park=[safari_row()]).train[0].request.observation.pictures[0].width == 64
    (tmp_path / "park/images/view.png").rename(tmp_path / "park/images/other.png")
    rows = build_rows_of(tmp_path / "park", tmp_path)
    assert "view.png" in str(rows) and "all 1 rows are rejected" in str(rows)
    assert [path.name for path in (tmp_path / "cache").iterdir() if "." in path.name] == []


def test_a_known_file_is_not_read_again_to_know_it(build, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SETTLED_NS", -1)
    first = build(park=[safari_row()])
    path = tmp_path / "park/dataset.jsonl"
    stat = path.stat()
    with monkeypatch.context() as patched:
        patched.setattr(dataset.hashlib, "file_digest", None)
        assert build_again(tmp_path).report == first.report
    # Another content of the same length, with the time of the old one: its inode has changed.
    write_lines(path, [safari_row("ep1")])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert build_again(tmp_path).train[0].id == "ep1/0"


def build_again(tmp_path) -> Rows:
    config = DataConfig(
        sources=(SourceConfig(path=str(tmp_path / "park")),), cache_dir=str(tmp_path / "cache"), eval_fraction=0.0
    )
    return build_rows(config, PromptConfig(history_steps=0))


def test_a_file_that_changed_just_now_is_read_again(build, tmp_path):
    build(park=[safari_row()])
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [""]


def test_indexing_a_long_file_shows_a_bar_in_a_terminal_only(build, monkeypatch):
    for is_terminal in (False, True):
        shown = Console(file=StringIO(), force_terminal=is_terminal, width=80)
        monkeypatch.setattr(dataset, "Console", lambda shown=shown, **_: shown)
        monkeypatch.setattr(dataset, "LONG_FILE", 0)
        build(park=[safari_row(str(is_terminal), turn) for turn in range(3)])
        assert ("indexing dataset.jsonl" in shown.file.getvalue()) == is_terminal


def build_rows_of(path: Path, tmp_path: Path, **source) -> ValueError:
    """The error that these settings give."""
    config = DataConfig(sources=(SourceConfig(path=str(path), **source),), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError) as caught:
        build_rows(config, PromptConfig())
    return caught.value


def test_dataset_hash_does_not_depend_on_the_folder(build):
    lines = [safari_row(), safari_row("b")]
    assert build(park=lines).report["dataset_hash"] == build(zoo=lines).report["dataset_hash"]


def test_dataset_hash_is_that_of_earlier_versions(build):
    """Result files name it."""
    rows = build(park=[safari_row(), safari_row("b", 0, mission="\u8001\u864e"), safari_row("b", 1)])
    assert rows.report["dataset_hash"] == "a3543521328f0631"


def test_files_without_rows_are_errors_with_a_remedy(tmp_path):
    assert str(build_rows_of(tmp_path / "gone.jsonl", tmp_path)) == (
        f"{tmp_path}/gone.jsonl: there is no such file, so no rows to read; correct its name"
    )
    empty = write_lines(tmp_path / "empty.jsonl", [])
    assert "empty.jsonl is empty" in str(build_rows_of(empty, tmp_path, kind="chat"))
    bad = write_lines(tmp_path / "bad.jsonl", ["{broken"] * 5)
    message = str(build_rows_of(bad, tmp_path, kind="chat"))
    assert "all 5 rows are rejected" in message
    assert [f"bad.jsonl:{line}: not JSON" in message for line in (1, 2, 3, 4)] == [True, True, True, False]
    weightless = chat_row("What?")
    weightless["messages"][1]["weight"] = 0
    idle = write_lines(tmp_path / "idle.jsonl", [weightless, "{broken"])
    assert "idle.jsonl: every answer has weight 0" in str(build_rows_of(idle, tmp_path, kind="chat"))
    with pytest.raises(ValueError, match="data.sources is empty"):
        build_rows(DataConfig(), PromptConfig())


def test_chat_rows_and_what_their_report_notes(build):
    lines = [chat_row("What?", ("One.", "Two.")), chat_row("Who?")]
    rows = build(talk=lines, kind="chat")
    assert [rows.train[i].turn.text for i in range(3)] == ["One.", "Two.", "Yes."]
    assert rows.report["sources"][0]["notes"] == {"history_longer_than_prompt.history_steps": 1}
    rows = build(talk=lines, kind="chat", history_steps=1)
    assert rows.report["sources"][0]["notes"] == {}
    assert [step.turn.text for step in rows.train[1].request.history] == ["One."]


def test_turn_of_weight_zero_is_history_only(build):
    record = chat_row("What?", ("One.", "Two."))
    record["messages"][1]["weight"] = 0
    rows = build(talk=[record], kind="chat", history_steps=1)
    assert [notice.turn.text for notice in rows.train[0].request.history] == ["One."]
    assert len(rows.train) == 1


def test_tools_and_prompt_are_stored_once(build, tmp_path):
    tools = [{"name": "look", "parameters": {"type": "object", "properties": {}}}]
    rows = build(talk=[chat_row("What?", tools=tools, system="Be kind.", id=i) for i in range(30)], kind="chat")
    assert len(rows.train.sources[0].prompts) == 1
    assert rows.train[3].request.tools is rows.train[7].request.tools
    assert rows.train[29].request.system_prompt == "Be kind." and rows.train[0].request.tools[0].name == "look"


def test_rows_travel_to_a_worker_process_by_path(build):
    rows = build(park=[safari_row(f"ep{e}", context_text="x" * 2000) for e in range(200)])
    data = pickle.dumps(rows.train)
    assert len(data) < 3_000
    assert pickle.loads(data)[150] == rows.train[150]


MEASURE = """
import sys
from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data.dataset import build_rows
source = SourceConfig(path=sys.argv[1])
rows = build_rows(DataConfig(sources=(source,), cache_dir=sys.argv[2], eval_fraction=0.0), PromptConfig())
status = open("/proc/self/status").read()
print(len(rows.train), int(status.split("RssAnon:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_rows(tmp_path):
    """RssAnon leaves out the pages of memory-mapped Arrow, which the kernel may take back."""
    indexed, opened = {}, {}
    Image.new("RGB", (320, 160)).save(tmp_path / "view.png")
    for num_rows in (10_000, 100_000):
        path = tmp_path / f"{num_rows}.jsonl"
        with open(path, "w") as file:
            for i in range(num_rows):
                row = safari_row(f"ep{i // 10}", i % 10, image_file="view.png", thought_text=f"Thought {i}. " * 20)
                file.write(json.dumps(row) + "\n")
        command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "cache")]
        for used in (indexed, opened):
            count, used[num_rows] = map(int, subprocess.check_output(command, text=True).split())
            assert count == num_rows
    # The text of 90,000 more rows is 90 MB, their index 3 MB; what is not mapped is their positions, 0.4 MB.
    assert opened[100_000] - opened[10_000] < 5, opened
    # What indexing leaves in allocators differs by some 10 MB from run to run, with processes and without.
    assert indexed[100_000] - indexed[10_000] < 25, indexed


@pytest.mark.parametrize(("kind", "num_rows"), [("safari", 1), ("recorded", 2), ("chat", 3), ("computer", 3)])
def test_examples_in_the_documentation_are_read(tmp_path, kind, num_rows):
    text = (Path(__file__).parents[1] / "docs" / "DATA.md").read_text(encoding="utf-8")
    lines = text.partition(f"```json {kind}\n")[2].partition("\n```")[0].split("\n")
    (tmp_path / "images").mkdir()
    for name in ("screen.png", "left.png", "right.png", "images/ep_1f2e3d4c_turn_000.png"):
        Image.new("RGB", (480, 480)).save(tmp_path / name)
    source = SourceConfig(path=str(write_lines(tmp_path / "data.jsonl", lines)), kind=kind)
    config = DataConfig(sources=(source,), cache_dir=str(tmp_path / "cache"), eval_fraction=0.0)
    rows = build_rows(config, PromptConfig(history_steps=1))
    assert (len(rows.train), rows.report["sources"][0]["num_rejects"]) == (num_rows, 0)
    assert rows.report["sources"][0]["notes"] == {}


def test_a_history_that_is_learned_keeps_no_weights(build, tmp_path):
    """Else an answer marked as not to be learned would be, as history of the next."""
    row = chat_row("Hi", ("wrong", "right"))
    row["messages"][1]["weight"] = 0
    assert len(build(kind="chat", talk=[row]).train) == 1
    config = DataConfig(
        sources=(SourceConfig(path=str(tmp_path / "talk"), kind="chat"),), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(ValueError, match=r"dataset.jsonl:1: an answer has weight 0, and prompt.supervise_history"):
        build_rows(config, PromptConfig(history_steps=1, supervise_history=True))
