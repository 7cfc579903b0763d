"""The smoke test of the real sizes: what it counts and measures; the whole of it, on the tiny base, is slow."""

import json
import sys
from pathlib import Path

import pytest
from loading import load_program
from rich.console import Console

from qwenvl_agent.config import DataConfig, ModelConfig, PromptConfig, SourceConfig, load_config
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.planning.vram import ARCHITECTURES

ROOT = Path(__file__).parents[1]
TINY = ROOT / "qwenvl_agent" / "assets" / "tiny"
SAFARI_2B = ROOT / "configs" / "safari_2b.json"
MIB = 2**20


@pytest.fixture(scope="module")
def smoke():
    return load_program("scripts/smoke.py")


@pytest.fixture
def runner(smoke, tmp_path):
    return smoke.Runner(tmp_path, 1, Console(quiet=True))


def entry(name: str, shape: list[int], dtype: str = "bfloat16", trainable: bool = False) -> dict:
    return {"name": name, "shape": shape, "dtype": dtype, "trainable": trainable}


@pytest.mark.parametrize(("size", "adapters", "layers"), [("2B", 17_432_576, 28), ("8B", 43_646_976, 36)])
def test_expected_counts_of_the_published_sizes(smoke, size, adapters, layers):
    arch = ARCHITECTURES[f"Qwen/Qwen3-VL-{size}-Instruct"]
    counts = smoke.expected_counts(ModelConfig(path="x", method="qlora"), arch)
    assert counts["trainable_parameters"] == adapters
    assert counts["layers_in_4_bit"] == layers * 7 and counts["in_4_bit_outside_language_layers"] == 0


def test_a_manifest_is_counted_by_what_trains_and_what_is_packed(smoke):
    layer = "base_model.model.model.language_model.layers.0.mlp.up_proj"
    manifest = [
        entry(f"{layer}.base_layer.weight", [64, 1], "uint8"),
        entry(f"{layer}.lora_A.default.weight", [4, 16], "float32", trainable=True),
        entry(f"{layer}.lora_B.default.weight", [8, 4], "float32", trainable=True),
        entry("base_model.model.model.visual.blocks.0.attn.qkv.weight", [96, 32]),
    ]
    counts = smoke.count_manifest(manifest)
    assert counts == {
        "parameter_tensors": 4,
        "trainable_tensors": 2,
        "trainable_parameters": 96,
        "layers_in_4_bit": 1,
        "in_4_bit_outside_language_layers": 0,
    }
    manifest[-1]["dtype"] = "uint8"
    assert smoke.count_manifest(manifest)["in_4_bit_outside_language_layers"] == 1


def test_a_command_is_measured_with_its_children(runner, smoke, monkeypatch):
    """Each of two processes holds memory of its own; the kernel's peak is of one, the sum is of both."""
    monkeypatch.setattr(smoke, "SAMPLE_S", 0.05)
    hold = "held = bytearray(100 * 2**20); import time; time.sleep(1.5)"
    program = (
        f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}; child.wait()"
    )
    stage = runner("hold", [sys.executable, "-c", program])
    # A forked child starts with the pages of its parent, this test's process: only its own are bounded from above.
    assert stage.peak_rss > 100 * MIB and 200 * MIB < stage.peak_anonymous < 300 * MIB
    assert stage.seconds > 1.5


def test_steps_are_timed_by_their_lines(smoke, monkeypatch):
    clock = iter((100.0, 112.0, 121.5))
    monkeypatch.setattr(smoke.time, "monotonic", lambda: next(clock))
    stage = smoke.Stage()
    for line in (
        "train 9 rows",
        "trainable parameters: adapters 4",
        "step 1/2  loss 2.5  left 0:10",
        "step 2/2  loss 2",
    ):
        smoke.note_step(line + "\n", stage)
    smoke.note_step("step 2/2  eval/token_loss 3\n", stage)
    assert smoke.step_seconds(stage) == {1: 12.0, 2: 9.5}


def test_a_failed_command_names_its_log(runner, tmp_path):
    with pytest.raises(ValueError, match="train ended with status 3: .*train.log"):
        runner("train", [sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    assert (tmp_path / "train.log").read_text() == "why\n"


def test_drawn_screens_are_all_learnt_from(smoke, tmp_path):
    smoke.draw_screens(tmp_path / "data")
    source = SourceConfig(path=str(tmp_path / "data"), kind="computer")
    rows = build_rows(DataConfig(sources=(source,), cache_dir=str(tmp_path / "cache")), PromptConfig())
    assert rows.report["sources"][0]["num_rejects"] == 0
    assert len(rows.train) + len(rows.held_out) == 12 and len(rows.held_out) >= 1
    picture = rows.train[0].request.observation.pictures[0]
    assert (picture.width, picture.height) == (1280, 800)


def test_the_config_keeps_all_that_sizes_depend_on(smoke, tmp_path):
    config = load_config(SAFARI_2B)
    path = smoke.write_config(config, TINY, tmp_path / "data", tmp_path)
    changed = load_config(path)
    assert changed.vision == config.vision and changed.prompt == config.prompt
    assert changed.model.path == str(TINY) and changed.model.lora_rank == config.model.lora_rank
    assert (changed.train.batch_size, changed.train.accumulation) == (2, 4)
    assert (changed.train.max_steps, changed.train.save_every, changed.eval.temperature) == (2, 1, 0.0)


@pytest.mark.parametrize(
    "path", sorted(p for p in (ROOT / "configs").glob("*.json") if p.name != "schema.json"), ids=lambda path: path.stem
)
def test_two_steps_of_every_config_are_a_config(smoke, path, tmp_path):
    config = load_config(path)
    if config.stages:
        with pytest.raises(ValueError, match="has stages.*give the config of one"):
            smoke.write_config(config, TINY, tmp_path / "data", tmp_path)
        return
    changed = load_config(smoke.write_config(config, TINY, tmp_path / "data", tmp_path))
    assert (changed.train.max_steps, changed.train.eval_every, changed.train.patience) == (2, 0, 0)


def save_run(directory: Path, losses: dict[int, float], manifest: list[dict], metrics: dict) -> Path:
    directory.mkdir(parents=True)
    lines = [{"step": step, "train/loss": loss, "train/tokens_per_s": 5.0} for step, loss in losses.items()]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 2, **metrics}])
    (directory / "metrics.jsonl").write_text(text)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.mark.parametrize(
    ("resumed", "metrics", "failed"),
    [
        ({2: 1.5}, {"rollout/success_rate": 0.0}, None),
        ({2: 1.5000001}, {"rollout/success_rate": 0.0}, "resumed loss is the same to the bit"),
        ({2: 1.5}, {}, "one greedy turn was evaluated"),
    ],
)
def test_what_differs_fails_by_name(smoke, tmp_path, resumed, metrics, failed):
    config = load_config(SAFARI_2B, ["model.method=lora"])
    arch = ARCHITECTURES[config.model.path]
    manifest = [entry("x.lora_A.weight", [17_432_576], "float32", trainable=True)]
    run_dir = save_run(tmp_path / "run", {1: 2.5, 2: 1.5}, manifest, {})
    resumed_dir = save_run(tmp_path / "resumed", resumed, manifest, metrics)
    stages = {"train": smoke.Stage(10.0, 5, 4, {0: 1.0, 1: 3.0}), "resume": smoke.Stage(10.0, 6, 3)}
    report = smoke.build_report(config, arch, TINY, run_dir, resumed_dir, stages, 2)
    assert [name for name, passed in report["checks"].items() if not passed] == ([failed] if failed else [])
    assert report["passed"] is (failed is None)
    assert (report["peak_rss"], report["peak_anonymous"]) == (6, 4)
    assert report["losses"] == {1: 2.5, 2: 1.5} and "17,432,576 trainable" in smoke.summary(report)
    manifest.append(entry("x.visual.weight", [4, 1], "uint8"))
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    assert not smoke.build_report(config, arch, TINY, run_dir, resumed_dir, stages, 2)["checks"][
        "manifest is as computed"
    ]


def test_without_a_model_it_says_what_is_missing(smoke, tmp_path, capsys):
    assert smoke.main(["--config", str(SAFARI_2B), "--out", str(tmp_path / "out")]) == 2
    assert "error: --size and --processor, or --model" in capsys.readouterr().err


def test_a_mixture_is_refused_before_anything_runs(smoke, tmp_path, capsys):
    sources = json.dumps([{"path": "a", "kind": "chat"}])
    args = ("--config", str(SAFARI_2B), "--base", str(TINY), "--out", str(tmp_path), "--set", f"data.sources={sources}")
    assert smoke.main(args) == 2
    assert "data.sources are of the kinds ['chat']" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safari", "computer"])
def test_the_whole_of_it_on_the_tiny_base(smoke, tmp_path, kind, capsys):
    sources = json.dumps([{"path": "made here", "kind": kind}])
    args = [
        "--config",
        str(ROOT / "configs" / "safari_tiny.json"),
        "--base",
        str(TINY),
        "--out",
        str(tmp_path),
        "--json",
    ]
    settings = ["model.method=qlora", "model.dtype=auto", "train.batch_size=2", f"data.sources={sources}"]
    if kind == "computer":
        settings += ["vision.tiles=0", "eval.suite=none", "vision.min_tokens_per_image=4"]
    status = smoke.main([*args, *(word for setting in settings for word in ("--set", setting))])
    report = json.loads(capsys.readouterr().out)
    assert status == 0 and report["passed"], report
    assert set(report["step_seconds"]["train"]) == {"1", "2"} and set(report["step_seconds"]["resume"]) == {"2"}
    assert report["manifest"]["layers_in_4_bit"] == 4 * 7
    assert json.loads((tmp_path / "smoke.json").read_text()) == report
