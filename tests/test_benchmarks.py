"""The benchmarks: that the two sides do the same work, and that the table says what was measured."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from qwenvl_agent.data.chat import read_conversation
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.prompt import render_row
from qwenvl_agent.vram import ARCHITECTURES

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import compare  # noqa: E402
import ours  # noqa: E402
import prepare  # noqa: E402
from template import learn_last_turn  # noqa: E402
from worker import measured  # noqa: E402

SMALL = {
    "text_config": {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "vision_config": {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 1, "out_hidden_size": 64},
}
EXACT = ["model.dtype=float32", "model.autocast=false", "model.lora_dropout=0.0", "model.gradient_checkpointing=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What prepare.py makes, with a model of two narrow layers."""
    out = tmp_path_factory.mktemp("bench") / "out"
    settings = json.loads(prepare.BENCH_MODEL.read_text())
    settings["text_config"] |= SMALL["text_config"] | {"num_attention_heads": 1, "num_key_value_heads": 1}
    settings["vision_config"] |= SMALL["vision_config"] | {"deepstack_visual_indexes": [0, 1, 2]}
    model_json = out.parent / "small.json"
    model_json.write_text(json.dumps(settings))
    prepare.prepare(out, episodes=3, model_json=model_json)
    return out


@pytest.fixture(scope="module")
def bench(folder) -> ours.Bench:
    return ours.Bench(prepare.bench_config(folder, EXACT))


def test_bench_model_has_the_proportions_of_2b():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    settings = json.loads(prepare.BENCH_MODEL.read_text())
    del settings["tokenizer_size"]
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**settings))
    model.tie_weights()
    vision = sum(p.numel() for p in model.model.visual.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    total = sum(p.numel() for p in model.parameters())
    real = ARCHITECTURES["Qwen/Qwen3-VL-2B-Instruct"]
    real_total = real.language + real.vision
    assert 20e6 < total < 40e6
    assert vision / total == pytest.approx(real.vision / real_total, abs=0.01)
    assert embedding / total == pytest.approx(real.embedding / real_total, abs=0.01)


# rows as a peer takes them


def test_exported_rows_are_read_back_as_ours(folder, bench):
    lines = (folder / "chat.jsonl").read_bytes().splitlines()
    assert len(lines) == len(bench.rows)
    for i in (0, 1, len(lines) - 1):
        row = bench.rows[i]
        steps = list(read_conversation(lines[i], folder, "chat.jsonl:1"))
        assert steps[-1].step.turn == row.turn
        assert steps[-1].step.observation.text == row.request.observation.text
        assert len(steps) == 1 + len(row.request.history)


def test_exported_rows_give_the_same_text_by_the_published_template(folder, bench, auto_processor):
    for i, line in enumerate((folder / "chat.jsonl").read_text().splitlines()):
        messages = json.loads(line)["messages"]
        text = auto_processor.apply_chat_template(messages, tokenize=False)
        assert text == render_row(bench.rows[i].request, bench.rows[i].turn, FORMATS["native"]).text


def test_only_the_last_turn_is_marked_as_learned():
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{%- for message in messages %}{%- if message.role == 'user' %}{{- message.content }}{%- else %}"
        "{%- generation -%}{{- message.content }}{{- '<|im_end|>\\n' }}{%- endgeneration -%}{%- endif %}{%- endfor %}"
    )
    talk = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    (text,), (marks,) = render_jinja_template(
        [talk], chat_template=learn_last_turn(template), return_assistant_tokens_mask=True
    )
    assert text == "ab<|im_end|>\ncd<|im_end|>\n"
    assert [text[start:end] for start, end in marks] == ["d<|im_end|>"]


def test_a_template_of_another_trl_is_refused():
    with pytest.raises(ValueError, match="has changed"):
        learn_last_turn("{%- generation -%}{{ message.content }}{%- endgeneration -%}")


# our side


def test_commands_measure_real_steps(bench):
    planned = bench.plan(2)["steps"]
    assert [len(step) for step in planned] == [4, 4]
    before = [p.detach().clone() for p in bench.model.parameters() if p.requires_grad]
    done = bench.steps(1)
    after = [p for p in bench.model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    batch = bench.loader.collate_fn([bench.rows[i] for i in planned[1]])
    assert done["supervised"] == int((batch["labels"] != -100).sum())
    assert done["tokens"] == int(batch["attention_mask"].sum()) <= done["places"]
    assert done["cpu_s"] > 0 and done["peak"] > 0


def test_packed_rows_have_the_loss_of_padded_ones(folder, bench):
    padded = ours.Bench(prepare.bench_config(folder, [*EXACT, "train.pack_tokens=0"]))
    padded.model.load_state_dict(bench.model.state_dict())
    rows = [bench.rows[i] for i in (0, 1, 2)]
    assert bench.loader.collate_fn(rows)["input_ids"].numel() < padded.loader.collate_fn(rows)["input_ids"].numel()
    assert bench.loss([0, 1, 2])["loss"] == pytest.approx(padded.loss([0, 1, 2])["loss"], abs=1e-5)


def test_opening_rows_counts_them_and_memory(folder, bench, tmp_path):
    done = bench.open_rows(str(folder / "safari"), str(tmp_path))
    assert done["num_rows"] == len(build_rows(bench.config.data, bench.config.prompt).train)
    assert done["chars"] > 0


def test_rows_are_repeated_under_new_names(folder):
    for path, key in zip(compare.repeat_rows(folder, 50), ("episode_id", "id"), strict=True):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == 50
        assert len({(row[key], row.get("turn")) for row in rows}) == 50


# workers and the table


def worker(tmp_path: Path, code: str) -> compare.Worker:
    script = tmp_path / "fake.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\nfrom worker import serve\n{code}\n")
    return compare.Worker(sys.executable, str(script), threads=1, log=tmp_path / "log")


def test_a_worker_answers_whatever_its_libraries_print(tmp_path):
    code = "def double(n):\n    print('noise')\n    return {'n': 2 * n}\nserve({'double': double})"
    with worker(tmp_path, code) as double:
        assert double("double", n=21) == {"n": 42}
        with pytest.raises(ValueError, match="TypeError"):
            double("double")
        assert double("double", n=1) == {"n": 2}
    assert (tmp_path / "log").read_text().count("noise") == 2


def test_a_worker_that_dies_is_named_with_its_log(tmp_path):
    with worker(tmp_path, "raise SystemExit('no weights')") as dead, pytest.raises(ValueError, match="no weights"):
        dead("describe")


def test_growth_is_the_peak_above_the_start():
    with measured() as figures:
        block = bytearray(64 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        del block
    assert 60 * 2**20 < figures["growth"] < 128 * 2**20


def fresh_bench() -> compare.Bench:
    results = compare.Results(settings={}, machine={})
    return compare.Bench(argparse.Namespace(), results, Console(quiet=True))


def test_ratios_are_of_each_repeat_and_say_how_much_better_ours_is():
    bench = fresh_bench()
    bench.add("data", "speed", "1/s", [10.0, 30.0, 20.0], [5.0, 10.0, 5.0], target=3)
    bench.add("data", "memory", "MiB", [100.0], [150.0], more_is_better=False, target=2)
    speed, memory = bench.results.figures
    assert (speed.ours, speed.peer, speed.ratio, speed.met) == (20, 5, 3, True)
    assert (memory.ratio, memory.met) == (1.5, False)
    lines = compare.markdown(bench.results).splitlines()
    assert "| data: speed | 1/s | 20 | 5 | 3.00x | 3x | met |" in lines
    assert "| data: memory | MiB | 100 | 150 | 1.50x | 2x | missed |" in lines


def test_one_label_that_differs_is_found():
    arrays = {f"{row}/{name}": np.arange(4) for row in (0, 1) for name in ("input_ids", "labels", "pixel_values")}
    other = arrays | {"1/labels": np.array([0, 1, 2, -100])}
    assert compare.different_rows([0, 1], arrays, arrays) == []
    assert compare.different_rows([0, 1], arrays, other) == ["1/labels"]


def test_what_is_missing_is_said_without_a_traceback(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "prepare.py" in done.stderr and "Traceback" not in done.stderr
