"""What "auto" stands for, on fast devices and slow ones; that training, resuming and evaluating say and keep it."""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.config import ModelConfig, build_config
from qwenvl_agent.model.build import build_for_evaluation, build_model
from qwenvl_agent.model.precision import bfloat16_is_fast, choose, choose_for_evaluation
from qwenvl_agent.planning.vram import describe_plan

REPOSITORY = Path(__file__).parent.parent
ONLY_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""A processor without bfloat16 units, on any x86."""
AUTO = ModelConfig(path="tiny", method="lora")
SLOW, FAST = "cuda:0", "cuda:1"
SLOWLY = "CUDA compute capability 7.5 has no fast bfloat16, which came with 8.0"


@pytest.fixture
def two_gpus(monkeypatch):
    """A Turing and an Ampere."""
    of_device = {SLOW: (7, 5), FAST: (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", of_device.__getitem__)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(checkpoint, dataset.jsonl)"""
    directory = tmp_path_factory.mktemp("base")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")


def run(*words, only_avx2: bool = False, code: int = 0) -> subprocess.CompletedProcess:
    """A command in the repository, of Python, in an environment of one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (ONLY_AVX2 if only_avx2 else {})
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


# what is chosen


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulation is of x86")
def test_without_bfloat16_units_the_probe_says_slow():
    program = "import torch; from qwenvl_agent.model.precision import product_speedup as s; print(s('cpu'), s('cpu'))"
    assert all(float(speedup) < 0.7 for speedup in run("-c", program, only_avx2=True).stdout.split())


def test_with_bfloat16_units_the_probe_says_fast():
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if not re.search("avx512_bf16|amx_bf16", flags) or os.environ.get("ATEN_CPU_CAPABILITY"):
        pytest.skip("no bfloat16 units here")
    is_fast, why = bfloat16_is_fast("cpu")
    assert is_fast and re.fullmatch(r"bfloat16 products run at [\d.]+ times float32's speed on this cpu", why)


def test_the_probe_leaves_random_numbers_and_threads_as_they_were():
    from qwenvl_agent.model.precision import product_speedup

    before, threads = torch.get_rng_state(), torch.get_num_threads()
    product_speedup("cpu")
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("autocast", "dtype", "on_fast", "on_slow"),
    [
        ("auto", "auto", (True, "bfloat16"), (False, "float32")),
        ("auto", "float32", (True, "float32"), (False, "float32")),
        ("auto", "bfloat16", (True, "bfloat16"), (False, "bfloat16")),
        (True, "auto", (True, "bfloat16"), (True, "bfloat16")),
        (False, "auto", (False, "float32"), (False, "float32")),
        (False, "bfloat16", (False, "bfloat16"), (False, "bfloat16")),
    ],
)
def test_auto_follows_the_device_and_settings_stand(two_gpus, autocast, dtype, on_fast, on_slow):
    for device, expected in ((FAST, on_fast), (SLOW, on_slow)):
        chosen = choose(replace(AUTO, autocast=autocast, dtype=dtype), device).model
        assert (chosen.autocast, chosen.dtype) == expected


@pytest.mark.parametrize(
    ("settings", "device", "line"),
    [
        (
            {},
            FAST,
            "precision: bfloat16 autocast, frozen weights in bfloat16 (auto: CUDA compute capability 8.0 multiplies "
            "bfloat16 fast)",
        ),
        ({}, SLOW, f"precision: float32 (auto: {SLOWLY})"),
        ({"autocast": False}, FAST, "precision: float32 (model.autocast is false)"),
        ({"method": "full", "dtype": "float32", "autocast": False}, SLOW, "precision: float32 (as set)"),
        (
            {"autocast": True},
            SLOW,
            "precision: bfloat16 autocast, frozen weights in bfloat16 (model.autocast is true)\n"
            f"  slow here: {SLOWLY}; with model.autocast=auto and model.dtype=auto a new run computes in float32",
        ),
        (
            {"dtype": "bfloat16"},
            SLOW,
            f"precision: bfloat16 (auto: {SLOWLY})\n"
            f"  slow here: {SLOWLY}; with model.autocast=auto and model.dtype=auto a new run computes in float32",
        ),
    ],
)
def test_one_line_gives_the_reason(two_gpus, settings, device, line):
    assert choose(replace(AUTO, **settings), device).line == line


def test_a_resumed_run_keeps_its_precision(two_gpus):
    saved = {"autocast": True, "dtype": "bfloat16"}
    chosen = choose(AUTO, SLOW, saved)
    assert (chosen.model.autocast, chosen.model.dtype) == (True, "bfloat16")
    assert chosen.line.startswith(
        "precision: bfloat16 autocast, frozen weights in bfloat16 (as in the checkpoint, whose precision a resumed run "
        f"keeps)\n  slow here: {SLOWLY}"
    )
    chosen = choose(AUTO, FAST, {"autocast": False, "dtype": "float32"})
    assert (chosen.model.autocast, chosen.model.dtype) == (False, "float32")
    # A setting that differs stands here, and is refused where settings are compared with the checkpoint's.
    assert choose(replace(AUTO, autocast=False), SLOW, saved).model.autocast is False


def test_evaluated_in_float32_where_bfloat16_is_slow(two_gpus):
    trained = replace(AUTO, autocast=True, dtype="bfloat16")
    fast = choose_for_evaluation(trained, FAST)
    assert fast.model == trained
    assert fast.line == "precision: bfloat16 autocast, frozen weights in bfloat16, as it was trained"
    slow = choose_for_evaluation(trained, SLOW)
    assert (slow.model.autocast, slow.model.dtype) == (False, "float32")
    assert slow.line == (
        "precision: trained in bfloat16 autocast, frozen weights in bfloat16, evaluated in float32 "
        f"({SLOWLY}; model.autocast=true evaluates as trained). Logits differ by some thousandths: a greedy answer can "
        "be another where two tokens nearly tie"
    )
    assert choose_for_evaluation(trained, SLOW, True).model == trained
    assert choose_for_evaluation(trained, FAST, False).model.precision == "float32"
    exact = replace(AUTO, autocast=False, dtype="float32")
    assert choose_for_evaluation(exact, FAST).model == exact == choose_for_evaluation(exact, SLOW).model
    assert choose_for_evaluation(exact, FAST, True).model.precision == "bfloat16 autocast, frozen weights in float32"
    with pytest.raises(ValueError, match="model.autocast is 'ture', which means nothing here"):
        choose_for_evaluation(trained, FAST, "ture")


def test_the_plan_is_of_what_was_chosen(two_gpus):
    config = build_config({"name": "x", "model": {"path": "Qwen/Qwen3-VL-2B-Instruct", "attention": "sdpa"}})
    plans = {d: describe_plan(replace(config, model=choose(config.model, d).model)) for d in (FAST, SLOW)}
    assert "\n  in bfloat16 autocast, frozen weights in bfloat16\n" in plans[FAST] + "\n"
    assert "\n  in float32\n" in plans[SLOW] + "\n"
    peaks = [float(re.search(r"planned peak: ([\d.]+) GiB", plans[device])[1]) for device in (FAST, SLOW)]
    assert peaks[0] < peaks[1]
    assert describe_plan(config) == plans[FAST]  # nothing chosen yet: as on a card that is sold today


# what a model does of it


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize(("autocast", "dtype"), [(False, "float32"), (False, "bfloat16"), (True, "float32")])
def test_every_combination_trains(base, method, autocast, dtype):
    """Weights of one type beside activations of another are no error, and everything agrees on the type."""
    from test_model import probe

    settings = ModelConfig(path=str(base[0]), method=method, lora_rank=4, autocast=autocast, dtype=dtype)
    model = build_model(settings, "cpu").train()
    model(**probe(settings)).logits.float().logsumexp(-1).sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    for name, module in model.named_modules():
        if hasattr(module, "compute_dtype"):
            assert module.compute_dtype == (torch.bfloat16 if autocast else getattr(torch, dtype)), name


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_evaluated_in_float32_not_one_weight_is_another(base, two_gpus, method):
    """The base is float32 here, so that loading it in bfloat16 for the training has rounded it."""
    from test_model import logits_of, probe

    trained = ModelConfig(path=str(base[0]), method=method, lora_rank=4, autocast=True, dtype="bfloat16")
    live = build_model(trained, "cpu")
    model = build_for_evaluation(trained, choose_for_evaluation(trained, SLOW), "cpu", None)
    assert model.get_base_model().precision == "float32" if method != "full" else model.precision == "float32"
    weights, wide = dict(live.named_parameters()), dict(model.named_parameters())
    frozen = [name for name in weights if ".lora_" not in name]
    assert frozen and all(torch.equal(wide[name].data.float(), weights[name].data.float()) for name in frozen)
    assert {parameter.dtype for parameter in wide.values()} - {torch.uint8} == {torch.float32}
    assert all(m.compute_dtype == torch.float32 for m in model.modules() if hasattr(m, "compute_dtype"))
    logits, inputs = logits_of(model, probe(trained)), probe(trained)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits_of(live, inputs))
    torch.testing.assert_close(logits, logits_of(live, inputs), rtol=0, atol=0.05)


# whole runs


AUTOMATIC = {"autocast": "auto", "dtype": "auto"}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulation is of x86")
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_run_on_a_processor_without_bfloat16_units(base, tmp_path, method):
    """Trained there in float32, resumed and evaluated anywhere in the same."""
    config = tiny_config(tmp_path, *base, model={"method": method} | AUTOMATIC, train={"max_steps": 2, "save_every": 1})
    path = save_config(config, tmp_path / "config.json")
    said = run("train.py", "--config", path, only_avx2=True).stdout
    assert re.search(r"^precision: float32 \(auto: bfloat16 products run at 0\.\d+ times float32's speed", said, re.M)
    assert "\n  in float32\n" in said
    written = json.loads((config.run_dir / "config.json").read_text())["model"]
    assert (written["autocast"], written["dtype"]) == (False, "float32")
    dtypes = {entry["dtype"] for entry in json.loads((config.run_dir / "manifest.json").read_text())}
    assert dtypes == {"float32"} | ({"uint8"} if method == "qlora" else set())
    said = run("train.py", "--config", path, "--resume", "--set", "train.max_steps=3").stdout
    assert "precision: float32 (as in the checkpoint, whose precision a resumed run keeps)\n" in said
    done = run("train.py", "--config", path, "--resume", "--set", "model.autocast=true", code=2)
    assert "model.autocast is True, False in the checkpoint" in done.stderr
    done = run("eval.py", "--run", config.run_dir, "--suite", "steps", "--rows", 1)
    assert "precision: float32, as it was trained" in done.stderr
    about = json.loads((config.run_dir / "eval" / "steps" / "metrics.json").read_text())["about"]
    assert about["precision"] == {"evaluated": "float32", "trained": "float32"}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulation is of x86")
def test_a_bfloat16_run_is_evaluated_without_bfloat16_units_in_float32(base, tmp_path):
    model = {"method": "lora", "autocast": True, "dtype": "auto"}
    config = tiny_config(tmp_path, *base, model=model, train={"max_steps": 1})
    path = save_config(config, tmp_path / "config.json")
    run("train.py", "--config", path)
    arguments = ["eval.py", "--run", config.run_dir, "--suite", "steps", "--rows", 1]
    done = run(*arguments, only_avx2=True)
    assert "precision: trained in bfloat16 autocast, frozen weights in bfloat16, evaluated in float32" in done.stderr
    about = json.loads((config.run_dir / "eval" / "steps" / "metrics.json").read_text())["about"]
    in_bfloat16 = "bfloat16 autocast, frozen weights in bfloat16"
    assert about["precision"] == {"evaluated": "float32", "trained": in_bfloat16}
    assert about["config"]["model"]["autocast"] is True
    run(*arguments, "--set", "model.autocast=true", "--out", tmp_path / "as_trained", only_avx2=True)
    about = json.loads((tmp_path / "as_trained" / "metrics.json").read_text())["about"]
    assert about["precision"] == {"evaluated": in_bfloat16, "trained": in_bfloat16}
    done = run("eval.py", "--model", base[0], "--config", path, "--set", "model.autocast=auto", "--suite", "steps",
               "--rows", 1, "--out", tmp_path / "zero", only_avx2=True)  # fmt: skip
    assert "precision: float32 (auto: bfloat16 products run at 0." in done.stderr
    about = json.loads((tmp_path / "zero" / "metrics.json").read_text())["about"]
    assert about["precision"] == {"evaluated": "float32"}


RANK = """
import json, os, sys
if os.environ["RANK"] == "1":
    os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
from qwenvl_agent.config import load_config
from qwenvl_agent.model.precision import bfloat16_is_fast, choose_together
from qwenvl_agent.training.zero import build_accelerator
config = load_config(sys.argv[1])
accelerator = build_accelerator(config.train)
model = choose_together(config, accelerator, resume=False).model
own, rank = bfloat16_is_fast("cpu")[0], accelerator.process_index
with open(f"{sys.argv[2]}/rank_{rank}.json", "w") as file:
    json.dump([accelerator.num_processes, rank, own, model.autocast], file)
"""


@pytest.mark.slow
def test_all_ranks_take_rank_0s_answer(base, tmp_path):
    """Also where another one would have answered otherwise."""
    config = save_config(tiny_config(tmp_path, *base, model=AUTOMATIC), tmp_path / "config.json")
    (tmp_path / "rank.py").write_text(RANK)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        run(*launch, tmp_path / "rank.py", config, tmp_path)
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert first[:2] == [2, 0] and second[:2] == [2, 1]
    assert first[3] == second[3] == first[2]
    assert second[2] is False
