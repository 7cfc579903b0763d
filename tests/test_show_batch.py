"""show_batch: the audit of a whole dataset, one JSON object a row, and the page with pictures inside."""

import json
import re

import pytest
from conftest import TOOLS, TURNS, picture, request_of, tiny_processor

from qwenvl_agent.cli import show
from qwenvl_agent.config import PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.curation.samples import pieces, to_json, write_samples
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.masks import MaskAudit
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.schema import Row


@pytest.fixture(scope="module")
def config_path(tmp_path_factory) -> str:
    """A config over 12 steps of chat data and a checkpoint folder without weights."""
    from transformers import Qwen3VLConfig

    folder = tmp_path_factory.mktemp("show_batch")
    processor = tiny_processor(1)
    processor.tokenizer.save_pretrained(folder / "base")
    processor.image_processor.save_pretrained(folder / "base")
    Qwen3VLConfig(vision_config={"patch_size": 16, "spatial_merge_size": 1}).save_pretrained(folder / "base")
    with open(folder / "chat.jsonl", "w", encoding="utf-8") as file:
        for i in range(6):
            picture(160, 160, i).open().save(folder / f"{i}.png")
            file.write(json.dumps(conversation(i)) + "\n")
    config = {
        "name": "shown",
        "model": {"path": str(folder / "base"), "method": "full"},
        "data": {
            "sources": [{"path": str(folder / "chat.jsonl"), "kind": "chat"}],
            "cache_dir": str(folder / "cache"),
            "eval_fraction": 0.3,
        },
        "prompt": {"format": "plain", "history_steps": 1},
        "vision": {"tiles": 10},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder / "config.json")


def conversation(i: int) -> dict:
    """Two steps: one with a call, one of free text."""
    call = TURNS[i % 3].tool_calls[0]
    return {
        "images": [f"{i}.png"],
        "tools": [tool.to_json() for tool in TOOLS],
        "messages": [
            {"role": "user", "content": f"<image>Mission {i}: 호랑이"},
            {
                "role": "assistant",
                "content": TURNS[i % 3].thought,
                "tool_calls": [{"function": {"name": call.name, "arguments": call.arguments}}],
            },
            {"role": "tool", "content": '{"status": "ok"}'},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "끝났다 🐯."},
        ],
    }


@pytest.mark.parametrize("name", FORMATS)
def test_the_audit_counts_every_row_in_one_line(config_path, capsys, name):
    assert show.main(["--config", config_path, "--audit", "--set", f"prompt.format={name}"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    # A picture a prompt: the second step's shows it in its history.
    assert out.startswith(f"audit: format {name}, rows 12, wrong 0, ")
    assert "supervised_end 12, image_tokens 1200, dropped_images 0, dropped_turns 0, rejected_rows 0" in out


def test_the_audit_fails_if_one_token_of_one_row_is_wrong(config_path, capsys, monkeypatch):
    sample = Collator.sample

    def leaky_sample(self, row):
        made = sample(self, row)
        if row.source.endswith(":3"):
            made.labels[5] = made.encoded.input_ids[5]
        return made

    monkeypatch.setattr(Collator, "sample", leaky_sample)
    assert show.main(["--config", config_path, "--audit", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["wrong"] == 2 and err.count("chat.jsonl:3: token 5 is supervised") == 2


def test_the_audit_names_rows_over_budget(config_path, capsys):
    assert show.main(["--config", config_path, "--audit", "--set", "vision.max_row_tokens=300"]) == 1
    out, err = capsys.readouterr()
    assert "wrong 12" in out and "chat.jsonl:1: " in err and "and 2 more" in err


def test_json_gives_each_row(config_path, capsys):
    assert show.main(["--config", config_path, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 12 and {row["num_image_tokens"] for row in rows} == {100}
    assert {tuple(row) for row in rows} == {("id", "input_ids", "labels", "supervised_text", "num_image_tokens")}
    texts = [row["supervised_text"] for row in rows]
    assert texts.count("끝났다 🐯.<|im_end|>") == 6 and sum(text.startswith("Thought: ") for text in texts) == 6
    for row in rows:
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_rows_are_shown_and_written_with_their_pictures(config_path, capsys, tmp_path):
    page = tmp_path / "samples.html"
    assert show.main(["--config", config_path, "--rows", "2", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "<|image_pad|> x 100" in out and str(page) in re.sub(r"\s", "", out)
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 2 and "http" not in text


def test_a_users_mistake_is_one_line(config_path, capsys):
    assert show.main(["--config", config_path, "--set", "prompt.formt=plain"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown key 'prompt.formt': it would have no effect; nearest known key: 'format'\n"
    )


@pytest.fixture
def sample(processor):
    collator = Collator(
        processor, FORMATS["plain"], PromptConfig(format="plain"), VisionConfig(tiles=10), TrainConfig(weight_thought=0)
    )
    return collator, collator.sample(Row("<b>", request_of(1, 1), TURNS[2], source="a.jsonl:1"))


def test_pieces_are_the_whole_text(sample):
    collator, made = sample
    text = "".join(piece.text for piece in pieces(made))
    assert text.replace("<|image_pad|> x 100", "<|image_pad|>" * 100) == "".join(s.text for s in made.encoded.spans)
    supervised = "".join(piece.text for piece in pieces(made) if piece.part != "prompt")
    assert supervised == to_json(made, collator)["supervised_text"]


def test_the_page_escapes_text_and_marks_weightless_tokens(sample, tmp_path):
    write_samples(tmp_path / "page.html", [sample[1]], "t")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>&lt;b&gt;</h2>" in page and "&lt;|im_end|&gt;" in page
    assert "thought, weight 0" in page and "call, weight 1" in page


def test_the_audit_is_fast(processor):
    """Two thousand rows must take seconds: a millisecond or so a row."""
    import time

    collator = Collator(processor, FORMATS["native"], PromptConfig(), VisionConfig(tiles=10), TrainConfig())
    audit, row = MaskAudit(processor.tokenizer), Row("r", request_of(0, 1), TURNS[0])
    start = time.process_time()
    for _ in range(100):
        made = collator.sample(row)
        audit.check(made.encoded.input_ids, made.labels, made.parts, made.encoded.spans, made.encoded.num_turns)
    assert time.process_time() - start < 2
