"""The benchmarks: that the two sides do the same work, and that the table says what was measured."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console

from qwenvl_agent.containers import Record
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.readers.chat import read_conversation
from qwenvl_agent.families import DEFAULT
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.picture_store import PictureFolder
from qwenvl_agent.planning.vram import ARCHITECTURES
from qwenvl_agent.prompt import render_row

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
        steps = list(read_conversation(Record("chat.jsonl:1", lines[i]), PictureFolder(folder)))
        assert steps[-1].step.turn == row.turn
        assert steps[-1].step.observation.text == row.request.observation.text
        assert len(steps) == 1 + len(row.request.history)


def test_exported_rows_give_the_same_text_by_the_published_template(folder, bench, auto_processor):
    for i, line in enumerate((folder / "chat.jsonl").read_text().splitlines()):
        messages = json.loads(line)["messages"]
        text = auto_processor.apply_chat_template(messages, tokenize=False)
        assert text == render_row(bench.rows[i].request, bench.rows[i].turn, FORMATS["native"]).text


def test_plain_rows_are_the_rendered_text_in_turns_that_alternate(folder, bench):
    lines = (folder / "text.jsonl").read_text().splitlines()
    assert len(lines) == len(bench.rows)
    for i, line in enumerate(lines):
        row = json.loads(line)
        system, *turns = row["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        texts = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in (system, *turns)]
        rendered = render_row(bench.rows[i].request, bench.rows[i].turn, FORMATS["native"])
        assert "".join(texts).replace("<image>", DEFAULT.template.image) == rendered.text
        assert row["images"] == json.loads((folder / "chat.jsonl").read_text().splitlines()[i])["images"]


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
    done = bench.steps(planned)
    after = [p for p in bench.model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    batch = bench.loader.collate_fn(planned[1])
    assert done["supervised"] == int((batch["labels"] != -100).sum())
    assert done["tokens"] == int(batch["attention_mask"].sum()) <= done["places"]
    assert done["seconds"] == pytest.approx(done["cpu_s"], abs=0.05) and done["peak"] > 0  # without a GPU


def test_packed_rows_have_the_loss_of_padded_ones(folder, bench):
    padded = ours.Bench(prepare.bench_config(folder, [*EXACT, "train.pack_tokens=0"]))
    padded.model.load_state_dict(bench.model.state_dict())
    rows = [0, 1, 2]
    assert bench.loader.collate_fn(rows)["input_ids"].numel() < padded.loader.collate_fn(rows)["input_ids"].numel()
    assert bench.loss([0, 1, 2])["loss"] == pytest.approx(padded.loss([0, 1, 2])["loss"], abs=1e-5)


def test_opening_rows_counts_them_and_memory(folder, bench, tmp_path):
    done = bench.open_rows(str(folder / "safari"), str(tmp_path))
    assert done["num_rows"] == len(build_rows(bench.config.data, bench.config.prompt).train)
    assert done["chars"] > 0


def test_rows_are_repeated_under_new_names(folder):
    for side, key in (("ours", "episode_id"), ("trl", "id")):
        rows = [json.loads(line) for line in compare.repeat_rows(folder, 50, side).read_text().splitlines()]
        assert len(rows) == 50
        assert len({(row[key], row.get("turn")) for row in rows}) == 50


class Opener:
    """A worker that opens what it is told to, and says how often it has been opened."""

    opened: ClassVar[list[str]] = []

    def __enter__(self) -> "Opener":
        return self

    def __exit__(self, *error: object) -> None: ...

    def __call__(self, command: str, path: str = "", cache_dir: str = "") -> dict:
        if command == "describe":
            return {}
        self.opened.append(Path(path).name)
        Path(cache_dir).mkdir(exist_ok=True)
        num_rows = len(Path(path).read_text().splitlines())
        return {"num_rows": num_rows, "wall_s": len(self.opened), "anonymous": 2**20, "process": 2**22}


def test_the_largest_files_are_opened_by_ours_alone_and_removed(folder):
    bench = fresh_bench("trl")
    bench.args = argparse.Namespace(rows=[20, 40], repeats=2, peer_rows=20, out=folder)
    bench.ours, bench.peer = Opener, lambda name, settings: Opener()
    before = sorted(folder.rglob("*"))
    compare.measure_rows(bench)
    assert Opener.opened == ["rows_20.jsonl"] * 3 + ["chat_20.jsonl"] * 3 + ["rows_40.jsonl"] * 3
    figures = {figure.name: (figure.ours, figure.peers) for figure in bench.results.figures}
    assert figures["rows 20: opened first"] == (1, {"trl": 4}) and figures["rows 20: opened again"] == (
        2.5,
        {"trl": 5.5},
    )
    assert figures["rows 40: opened again"] == (8.5, {}) and figures["rows 40: anonymous memory"] == (1, {})
    assert sorted(folder.rglob("*")) == before


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


def fresh_bench(*peers: str) -> compare.Bench:
    results = compare.Results(settings={"peers": list(peers)}, machine={})
    return compare.Bench(argparse.Namespace(), results, Console(quiet=True))


def test_ratios_are_of_each_repeat_and_say_how_much_better_ours_is():
    bench = fresh_bench("trl", "swift")
    speeds = {"ours": [10.0, 30.0, 20.0], "trl": [5.0, 10.0, 5.0], "swift": [10.0, 10.0, 40.0]}
    bench.add("data", "speed", "1/s", speeds, target=3)
    bench.add("data", "memory", "MiB", {"ours": [100.0], "trl": [150.0]}, more_is_better=False, target=2)
    bench.add("data", "padding", "share", {"ours": [0.0]}, shown="< 0.02")
    speed, memory, _ = bench.results.figures
    assert (speed.ours, speed.peers, speed.ratios, speed.met) == (
        20,
        {"trl": 5, "swift": 10},
        {"trl": 3, "swift": 1},
        True,
    )
    assert (memory.ratios, memory.met) == ({"trl": 1.5}, False)
    lines = compare.markdown(bench.results).splitlines()
    assert "| what | unit | ours | TRL | ms-swift | target |  |" in lines
    assert "| data: speed | 1/s | 20 | 5 (3.00x) | 10 (1.00x) | 3x | met |" in lines
    assert "| data: memory | MiB | 100 | 150 (1.50x) |  | 2x | missed |" in lines
    assert "| data: padding | share | 0 |  |  | < 0.02 |  |" in lines


def encoded(ids: list[int], labels: list[int], pixels: float = 0.0) -> dict:
    """A row as a worker's `encode` writes it."""
    pictures = np.full((2, 3), pixels, np.float32)
    return {"7/input_ids": np.array([ids]), "7/labels": np.array([labels]), "7/pixel_values": pictures}


def judged(peer: str, theirs: dict, losses=(1.0, 1.0), answers=None) -> dict:
    ours = encoded([1, 2, 3, 4], [-100, -100, 3, -100])
    found = compare.difference([7], ours, theirs) | {"rows": 1, "losses": list(losses), "answers": answers}
    compare.judge(found, compare.PEERS[peer])
    return found


def test_what_comes_after_the_last_learned_token_makes_no_difference():
    found = judged("llamafactory", encoded([1, 2, 3], [-100, -100, 3]))
    assert (found["tokens"], found["num_tokens"], found["tail"], found["passed"]) == (0, 3, [1, 0], True)
    assert "after it ours has 1 and it 0" in compare.describe_equality({"llamafactory": found})


@pytest.mark.parametrize(
    "theirs, tokens",
    [
        (encoded([1, 9, 3, 4], [-100, -100, 3, -100]), 1),
        (encoded([1, 2, 3, 4], [-100, 2, 3, -100]), 1),
        (encoded([1, 2, 3, 4], [-100, -100, 3, 4]), 1),
        (encoded([0, 1, 2, 3], [-100, -100, -100, 3]), 4),
    ],
    ids=["id", "label", "one more learned", "one more before"],
)
def test_one_token_that_differs_is_found(theirs, tokens):
    found = judged("llamafactory", theirs)
    assert (found["tokens"], found["passed"]) == (tokens, False)


def test_pixels_may_differ_only_as_known_of_the_peer():
    same = ([1, 2, 3, 4], [-100, -100, 3, -100])
    assert judged("swift", encoded(*same, pixels=2 / 255))["passed"]
    assert not judged("swift", encoded(*same, pixels=4 / 255))["passed"]
    assert not judged("llamafactory", encoded(*same, pixels=2 / 255))["passed"]
    missing = encoded(*same) | {"7/pixel_values": np.zeros((1, 3))}
    assert not judged("swift", missing)["passed"]


def test_losses_and_answers_count():
    same = encoded([1, 2, 3, 4], [-100, -100, 3, -100])
    assert judged("trl", same, losses=(1.0, 1.0005), answers=True)["passed"]
    assert not judged("trl", same, losses=(1.0, 1.002), answers=True)["passed"]
    assert not judged("trl", same, answers=False)["passed"]


# peers, where they are installed


@pytest.mark.slow
@pytest.mark.parametrize("name", compare.PEERS)
def test_a_peer_computes_the_same_loss_and_takes_a_step(name, folder, bench, tmp_path):
    if not compare.is_installed(compare.PEERS_DIR, name):
        pytest.skip(f"{compare.PEERS[name].title} is not set up: make bench-peers")
    python = compare.environment_python(compare.PEERS_DIR, name)
    options = ["--out", str(folder), "--settings", json.dumps(bench.describe())]
    with_history = next(i for i in range(len(bench.rows)) if bench.rows[i].request.history)
    rows = [with_history, 0]
    bench.encode(rows, str(tmp_path / "ours.npz"))
    with compare.Worker(python, f"{name}_peer.py", *options, threads=1, log=tmp_path / "log") as peer:
        peer("encode", indices=rows, path=str(tmp_path / "peer.npz"))
        found = compare.difference(rows, np.load(tmp_path / "ours.npz"), np.load(tmp_path / "peer.npz"))
        answered = {"rows": 2, "losses": [bench.loss(rows)["loss"], peer("loss", indices=rows)["loss"]]}
        steps = peer("steps", steps=[[0, 1, 2, 3], [4, 5, 6, 7]])
    found |= answered | {"answers": None}
    compare.judge(found, compare.PEERS[name])
    assert found["passed"], compare.describe_equality({name: found})
    assert steps["cpu_s"] > 0 and steps["peak"] > 0


@pytest.mark.parametrize("missing", compare.PEERS)
def test_a_peer_that_is_not_installed_is_named(missing, tmp_path):
    (tmp_path / "text.jsonl").touch()
    for name in set(compare.PEERS) - {missing}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "installed").touch()
    options = ["--out", str(tmp_path), "--peers-dir", str(tmp_path)]
    with pytest.raises(ValueError, match=f"{missing} is not set up.*make bench-peers"):
        compare.check(compare.parse_args([*options, "--peers", missing]))
    args = compare.parse_args(options)
    if missing == compare.FIRST:
        with pytest.raises(ValueError, match="make bench-peers"):
            compare.check(args)
        return
    compare.check(args)
    assert args.peers == [name for name in compare.PEERS if name != missing]


def test_what_is_missing_is_said_without_a_traceback(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "prepare.py" in done.stderr and "Traceback" not in done.stderr
