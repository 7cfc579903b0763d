"""The cache's key is what readers state about themselves: rows that change without a new version would never be read.

If a test here fails because you changed what a reader gives on purpose: raise the version that it names, and write what
the test prints. `git grep -n "^VERSION\\|recording_version"` has all of them.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data import dataset
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.readers import READERS, read_rows
from qwenvl_agent.data.source import Reject

GOLDEN = {
    "safari": ((2, 2), "6c567e239f426bfb"),
    "recorded": ((2, 2), "e356fd450ac3ca93"),
    "chat": ((2, 7), "2359a403aad48d41"),
    "computer": ((2, 2), "e6f2f11ed58089c0"),
}
"""Kind of source -> (versions of the cache and of the reader, digest of the rows of the corpus below)."""

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at": "left"}'}}
SAFARI = {
    "episode_id": "ep0",
    "mission": "find the red tiger",
    "system_prompt": "You play.",
    "image_file": "upright.png",
    "thought_text": "I write it down.",
    "raw_request": None,
    "raw_response": None,
    "tool_calls": [{"name": "update_notepad", "args": {"content": "seen"}}],
    "tool_results": [{"name": "update_notepad", "result": {"status": "updated"}}],
}
STATE = "Mission: find the red tiger\nStep: {}/40\nPosition: (5, 5)\n\nFound Targets: (none)\n\nNotepad:\n(empty)"
CORPUS = {
    "chat": [
        {
            "messages": [
                {"role": "user", "content": "<image>What? <|im_end|> e\u0301"},
                {"role": "assistant", "content": "This."},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "That."},
            ],
            "images": ["upright.png"],
        },
        {
            "id": "a",
            "system": "Be brief.",
            "tools": [LOOK],
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": "lying.jpg"}, {"type": "text", "text": "Look."}],
                },
                {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
                {"role": "tool", "content": '{"seen": 3}'},
                {"role": "assistant", "content": "Three.", "weight": 0.5},
            ],
        },
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {
            "tools": [LOOK],
            "messages": [
                {"role": "user", "content": "Look."},
                {"role": "assistant", "content": 'Thought: I look.\nAction: look\nAction Input: {"at": "left"}'},
                {"role": "user", "content": "Observation: 3"},
                {"role": "assistant", "content": "Action: none, three."},
            ],
        },
        {"messages": [{"role": "assistant", "content": "Nobody asked."}]},
        "no JSON",
    ],
    "computer": [
        {
            "instruction": "Press OK",
            "initial_screenshot": "upright.png",
            "next_action": {"action": "click", "x": 50, "y": 20, "reasoning": "The button is there."},
        },
        {
            "instruction": "Scroll",
            "initial_screenshot": "lying.jpg",
            "next_action": {"action": "scroll", "pixels": -200, "reasoning": "More is below."},
        },
        {
            "instruction": "Press OK",
            "initial_screenshot": "upright.png",
            "next_action": {"action": "left_click", "coordinate": [9, 9]},
        },
        {
            "instruction": "Press OK",
            "initial_screenshot": "gone.png",
            "next_action": {"action": "click", "x": 1, "y": 1},
        },
        {
            "instruction": "Press OK",
            "initial_screenshot": "upright.png",
            "next_action": {"action": "click", "x": 9999, "y": 1},
        },
    ],
    "safari": [
        {**SAFARI, "turn": 0, "context_text": STATE.format(1)},
        {**SAFARI, "turn": 1, "context_text": STATE.format(2), "thought_text": "so " * 200},
        {
            **SAFARI,
            "episode_id": "ep1",
            "turn": 0,
            "context_text": STATE.format(1),
            "image_file": "lying.jpg",
            "tool_calls": [{"name": "catch", "args": {"direction": "UP"}}],
            "tool_results": [{"name": "catch", "result": {"status": "nothing"}}],
        },
        {
            **SAFARI,
            "episode_id": "ep2",
            "turn": 0,
            "context_text": STATE.format(1),
            "tool_calls": [{"name": "fly", "args": {}}],
        },
    ],
    "recorded": [
        {
            **SAFARI,
            "turn": 0,
            "context_text": "Step 1",
            "tools": [LOOK],
            "thought_text": "I look.",
            "tool_calls": [{"name": "look", "args": {"at": "left"}}],
            "tool_results": [{"name": "look", "result": {"seen": 3}}],
        },
        {**SAFARI, "turn": 1, "context_text": "Step 2", "tools": [LOOK], "tool_calls": [{"name": "jump", "args": {}}]},
    ],
}


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> Path:
    """A folder for each kind, with its dataset.jsonl and pictures; read by relative paths."""
    monkeypatch.chdir(tmp_path)
    for kind, records in CORPUS.items():
        Path(kind).mkdir()
        Image.new("RGB", (120, 60), "red").save(f"{kind}/upright.png")
        lying = Image.new("RGB", (100, 40), "blue")
        lying.getexif()[0x0112] = 6  # to be turned by 90 degrees
        lying.save(f"{kind}/lying.jpg", exif=lying.getexif())
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        Path(kind, "dataset.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def digest_of(kind: str) -> str:
    """Of all that a cache keeps of the rows, and of the places of the rejected lines, whatever is said about them."""
    source = SourceConfig(path=kind, kind=kind)
    items = list(read_rows((Path(kind, "dataset.jsonl"),), source, DataConfig(sources=(source,))))
    assert sum(isinstance(item, Reject) for item in items) >= 1 and len(items) > 1
    facts = [item.source if isinstance(item, Reject) else dataclasses.asdict(item) for item in items]
    text = json.dumps(facts, sort_keys=True, default=str).replace(str(Path.cwd()), "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("kind", READERS)
def test_rows_of_a_version_stay_what_they_are(corpus, kind):
    versions = (dataset.VERSION, READERS[kind].version)
    assert (versions, digest_of(kind)) == GOLDEN[kind], f"see the text at the top of {__file__}"


@pytest.mark.parametrize("kind", READERS)
def test_a_version_is_in_the_caches_key(corpus, kind, monkeypatch):
    config = DataConfig(sources=(SourceConfig(path=kind, kind=kind),), cache_dir="cache")

    def folders() -> int:
        build_rows(config, PromptConfig())
        return sum(path.is_dir() for path in Path("cache").iterdir())

    assert [folders(), folders()] == [1, 1]
    monkeypatch.setitem(READERS, kind, dataclasses.replace(READERS[kind], version=READERS[kind].version + 1))
    assert folders() == 2
    monkeypatch.setattr(dataset, "VERSION", dataset.VERSION + 1)
    assert folders() == 3


def test_a_world_that_reads_its_own_recordings_has_its_version_in_the_key(corpus, monkeypatch):
    from qwenvl_agent.worlds.safari.safari import Safari

    reader, source = READERS["safari"], SourceConfig(path="safari")
    before = reader.beside(Path("safari/dataset.jsonl"), source)
    monkeypatch.setattr(Safari, "recording_version", Safari.recording_version + 1)
    assert reader.beside(Path("safari/dataset.jsonl"), source) != before
