"""Any world's oracle recorded, and recordings of any world read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from corridor_world import corridor
from PIL import Image
from source_rows import read_rows

from qwenvl_agent.cli.record import main as record_main
from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.readers.recorded import digest_beside
from qwenvl_agent.data.source import Reject
from qwenvl_agent.schema import Observation, Picture, Turn
from qwenvl_agent.worlds.recording import RowWriter, record_episode
from qwenvl_agent.worlds.world import RecordedTurn

ROOT = Path(__file__).parents[1]
WORLD = "tests/corridor_world.py:make_world"
ACT = {
    "name": "act",
    "description": "Act.",
    "parameters": {"type": "object", "properties": {"action": {"enum": ["left", "right"]}}, "required": ["action"]},
}


def record(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/generate_oracle.py", "--out", str(out), "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_oracle_of_a_world_in_a_file_is_recorded_and_read_without_it(tmp_path):
    options = ("--world", WORLD, "--set", "length=7", "--noise", "0.3", "--episodes", "6")
    done = record(tmp_path / "a", *options)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert (manifest["world"], manifest["rules"], manifest["seed_set"]) == (WORLD, {"length": 7}, "training")
    assert [tool["function"]["name"] for tool in manifest["tools"]] == ["act"]

    world = corridor(7)
    turns = [turn for seed in range(6) for turn in record_episode(world, seed, {}, 0.3)[0]]
    rows = list(read_rows(tmp_path / "a", "recorded"))
    assert [(row.episode_id, row.turn_index, row.step.turn, row.step.results) for row in rows] == [
        (turn.episode_id, turn.turn_index, turn.turn, turn.results) for turn in turns
    ]
    assert all(row.tools == world.tools and row.system_prompt == world.system_prompt for row in rows)
    seen = [(turn.observation.text, turn.observation.pictures[0].open().tobytes()) for turn in turns]
    assert [(row.step.observation.text, row.step.observation.pictures[0].open().tobytes()) for row in rows] == seen
    assert len(rows) == manifest["rows"] < sum(world.max_turns for _ in range(6)) and manifest["solved"] >= 3

    record(tmp_path / "b", *options, "--workers", "2")
    assert (tmp_path / "a/dataset.jsonl").read_bytes() == (tmp_path / "b/dataset.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--world", "nowhere"), "world 'nowhere' does not exist"),
        (("--world", WORLD, "--task", "perception"), "has no task 'perception': nothing would be recorded; use agent"),
        (("--world", WORLD, "--oracle", "speed=3"), "has no setting speed"),
        (("--world", WORLD, "--resets", "0.5"), f"--resets 0.5: world {WORLD} draws no other states"),
        (("--task", "perception", "--resets", "1"), "--resets 1.0: task perception draws no other states"),
        (("--world", WORLD, "--seed-start", "999999", "--episodes", "2"), "not all of one seed set"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_written(tmp_path, options, said):
    done = record(tmp_path / "out", "--episodes", "1", *options)
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def read(tmp_path):
    """Rows of a dataset with these changes to a good row each."""
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    good = {
        "episode_id": "e",
        "mission": "go",
        "turn": 0,
        "system_prompt": "Play.",
        "context_text": "Mission: go",
        "images": ["a.png", "a.png"],
        "tools": [ACT],
        "tool_calls": [{"name": "act", "args": {"action": "left"}}],
        "tool_results": [{"name": "act", "result": {}}],
    }

    def read(*changes: dict, **options) -> list:
        lines = [json.dumps({**good, "turn": i, **change}) for i, change in enumerate(changes)]
        (tmp_path / "dataset.jsonl").write_text("\n".join(lines) + "\n")
        return list(read_rows(tmp_path, "recorded", **options))

    return read


def test_a_dataset_that_is_there_is_reused_only_if_it_is_the_one_asked_for(tmp_path, capsys):
    out = tmp_path / "d"
    leftover = tmp_path / ".d.tmp" / "images"  # of a recording that was killed
    leftover.mkdir(parents=True)
    (leftover / "old.png").touch()

    def reuse(*options: str) -> tuple[int, str]:
        common = ["--world", WORLD, "--noise", "0.3", "--episodes", "3", "--out", str(out), "--reuse"]
        return record_main([*common, *options]), "".join(capsys.readouterr())

    assert reuse()[0] == 0 and not leftover.exists() and not (out / "images" / "old.png").exists()
    whole = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "is there" in reuse("--noise=0.3")[1]
    status, said = reuse("--noise", "0.1")
    assert status == 2 and "is another dataset, with noise 0.3 (not 0.1)" in said and "--overwrite" in said
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == whole
    with open(out / "dataset.jsonl", "a") as file:
        file.write("\n")
    assert "not as it was recorded" in reuse()[1]
    (out / "manifest.json").unlink()
    assert "no manifest.json" in reuse()[1]


def test_pictures_thoughts_and_calls_are_optional(read):
    rows = read({}, {"thought_text": "Left."}, {"images": [], "tool_calls": [], "tool_results": [], "text": "Done."})
    assert [len(row.step.observation.pictures) for row in rows] == [2, 2, 0]
    assert [(row.step.turn.thought, row.step.turn.text) for row in rows] == [("", ""), ("Left.", ""), ("", "Done.")]
    assert [tool.name for tool in rows[0].tools] == ["act"] and not rows[0].notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tools": None},
            "the row has no tools, and neither tools.json nor manifest.json beside the file names any",
        ),
        ({"tools": [{"nam": "act"}]}, "tools[0] is \"{'nam': 'act'}\": not a tool"),
        ({"tool_calls": [{"name": "fly", "args": {}}]}, "tool_calls[0].name 'fly' is not one of the recording's tools"),
        (
            {"tool_calls": [{"name": "act", "args": {"action": "up"}}]},
            "tool_calls[0].args do not fit: act: 'up' is not",
        ),
        ({"tool_calls": [], "tool_results": []}, "the turn has nothing to learn"),
        ({"images": ["a.png", ""]}, "images[1] is '': no file is named"),
        ({"images": None}, "images is null: whether there was a picture is unknown"),
        ({"thought_text": "x" * 401}, "thought_text has 401 characters, above data.max_thought_chars=400"),
        ({"mission": ""}, "mission is ''"),
        ({"images": {}}, "images is '{}': not a list"),
        ({"images": False}, "images is 'False': not a list"),
        ({"tool_results": False}, "tool_results is 'False': not a list"),
        ({"thought_text": []}, "thought_text is '[]': not text; write text or null"),
        ({"text": "I go."}, "text is 'I go.' beside tool_calls: it would not be learned; write it as thought_text"),
    ],
)
def test_what_must_not_be_learned_is_told_with_its_place(read, tmp_path, changes, message):
    first, other, last = read({}, changes, {})
    assert isinstance(other, Reject) and other.source == f"{tmp_path}/dataset.jsonl:2"
    assert message in other.message
    assert (first.turn_index, last.turn_index) == (0, 2)


def test_tools_stand_in_the_row_or_beside_it_or_are_a_worlds(read, tmp_path):
    bare = {"tools": None}
    (tmp_path / "manifest.json").write_text(json.dumps({"world": WORLD, "rules": {"length": 4}}))
    with pytest.raises(ValueError, match="whose code would be run .* if you do trust it, name it in the source"):
        read(bare)
    from_world = read(bare, world=WORLD)[0].tools
    assert from_world == corridor(4).tools
    wide = {**ACT, "parameters": {"type": "object"}}
    (tmp_path / "tools.json").write_text(json.dumps([wide]))
    assert read(bare)[0].tools[0].parameters == {"type": "object"}
    assert read({})[0].tools[0].parameters == ACT["parameters"]
    assert read({}, world=WORLD)[0].tools[0].parameters == ACT["parameters"]
    assert read(bare, world=WORLD)[0].tools == from_world  # the source has the last word
    (tmp_path / "tools.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"tools.json: not JSON .*; the recording's tools are not known without it"):
        read(bare)


def test_other_tools_beside_a_file_are_other_rows(read, tmp_path):
    read({"tools": None})
    config = DataConfig(
        sources=(SourceConfig(path=str(tmp_path), kind="recorded"),),
        cache_dir=str(tmp_path / "cache"),
        eval_fraction=0.0,
    )
    (tmp_path / "tools.json").write_text(json.dumps([ACT]))
    digest = digest_beside(tmp_path)
    assert build_rows(config, PromptConfig()).train[0].request.tools[0].description == "Act."
    (tmp_path / "tools.json").write_text(json.dumps([{**ACT, "description": "Go."}]))
    assert digest_beside(tmp_path) != digest
    assert build_rows(config, PromptConfig()).train[0].request.tools[0].description == "Go."


def test_a_world_reads_its_own_recordings(tmp_path):
    """The safari derives a thought where none is, also as a source of kind `recorded`."""
    record(tmp_path, "--world", "safari", "--set", "tile_px=16", "--episodes", "1")
    lines = [json.loads(line) for line in (tmp_path / "dataset.jsonl").read_text().splitlines()]
    (tmp_path / "dataset.jsonl").write_text(
        "".join(json.dumps({**line, "thought_text": None}) + "\n" for line in lines)
    )
    assert all(row.notes == () and not row.step.turn.thought for row in read_rows(tmp_path, "recorded"))
    assert all(row.notes == ("thought_derived",) for row in read_rows(tmp_path, "recorded", world="safari"))
    with pytest.raises(ValueError, match=r"sources\[\].world is 'safari' and kind chat"):
        SourceConfig(path="a", kind="chat", world="safari")


def test_what_is_written_is_read_back(tmp_path):
    image = Image.new("RGB", (5, 3), (9, 8, 7))
    pictures = (Picture.from_image(image), Picture.from_image(image))
    with RowWriter(tmp_path) as writer:
        writer.write(RecordedTurn("e", "go", 0, "Play.", Observation("go", pictures), Turn(text="No."), ()))
        writer.write(RecordedTurn("e", "go", 1, "Play.", Observation("go"), Turn(text="No."), ()))
    (tmp_path / "tools.json").write_text(json.dumps([ACT]))
    first, second = read_rows(tmp_path, "recorded")
    assert [picture.open().getpixel((0, 0)) for picture in first.step.observation.pictures] == [(9, 8, 7)] * 2
    assert second.step.observation.pictures == () and second.step.turn.text == "No."
