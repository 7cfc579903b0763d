"""DeepSpeed ZeRO for real: two CPU ranks over gloo take the same steps as one process without DeepSpeed.

And what each rank holds is what was asked for and planned; all shipped configs: test_shipped_configs.py.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zero_worker
from safetensors.torch import load_file
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.families import FAMILIES
from qwenvl_agent.model.build import build_model
from qwenvl_agent.planning.vram import budget_row, find_architecture, plan_memory, trainable_parameters
from qwenvl_agent.training.optim import build_optimizer
from train import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
ENVIRONMENT = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
STEPS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Function from a run's name and settings to the path of its config."""
    directory = tmp_path_factory.mktemp("zero")
    base, dataset = save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data", 16)

    def write(name, data=dataset, method="lora", train_vision=False, more=None, **train):
        # The rows of a step are those of batch_size * accumulation * ranks = 4, however they are shared out.
        train = {"max_steps": STEPS, "save_every": 2, "accumulation": 2, "batch_size": 1, **train}
        model = {"lora_dropout": 0.0, "method": method, "train_vision": train_vision, **(more or {})}
        config = tiny_config(directory, base, data, name=name, model=model, train=train, eval={"step_rows": 0})
        return save_config(config, directory / f"{name}.json"), config

    write.directory = directory
    return write


def launch(config_path: Path, *options: str, expect: int = 0) -> str:
    return start("train.py", "--config", str(config_path), *options, expect=expect)


def launch_alone(config_path: Path, *options: str) -> None:
    """Without a launcher: one rank."""
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config_path), *options]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def start(script: str, *arguments: str, expect: int = 0) -> str:
    command = [*LAUNCH, "--use_deepspeed", str(ROOT / script), *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


def logged(run_dir: Path) -> dict[int, dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "train/loss" in line}


def read_manifest(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "manifest.json").read_text())


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    files = sorted((run_dir / f"checkpoints/step_{step:06d}/model").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def forget_last(run_dir: Path) -> None:
    """As if the run had been stopped after step 2."""
    checkpoints = run_dir / "checkpoints"
    shutil.rmtree(checkpoints / f"step_{STEPS:06d}")
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("step_000002")


def assert_two_ranks(run_dir: Path, stage: int) -> None:
    ranks = [json.loads((run_dir / f"checkpoints/last/rank_{rank}.json").read_text())["ranks"] for rank in range(2)]
    assert ranks == [{"zero_stage": stage, "rank": r, "world_size": 2, "backend": "gloo"} for r in range(2)]


def assert_same_losses(run_dir: Path, expected: Path, tolerance: float = 1e-5) -> None:
    ours, wanted = logged(run_dir), logged(expected)
    assert list(ours) == list(wanted) == list(range(1, STEPS + 1))
    for step in wanted:
        for name in ("train/loss", "train/gradient_norm"):
            assert ours[step][name] == pytest.approx(wanted[step][name], rel=tolerance), f"step {step}, {name}"


def assert_same_run(run_dir: Path, expected: Path) -> None:
    assert_same_losses(run_dir, expected)
    for name, tensor in weights(expected, STEPS).items():
        torch.testing.assert_close(weights(run_dir, STEPS)[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def assert_goes_on_to_the_bit(run_dir: Path, resume: Callable[[], object]) -> str:
    """Losses and weights of a run that was stopped after step 2 are those of the run that was not; what `resume` says."""
    losses, whole = {step: line["train/loss"] for step, line in logged(run_dir).items()}, weights(run_dir, STEPS)
    forget_last(run_dir)
    output = resume()
    assert {step: line["train/loss"] for step, line in logged(run_dir).items()} == losses
    again = weights(run_dir, STEPS)
    assert whole and all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    return str(output)


@pytest.fixture(scope="module")
def one_process(runs):
    """Function from a method and a dataset to the folder of a run of one process without DeepSpeed."""
    done = {}

    def run(method, **settings):
        if method not in done or settings:
            _, config = runs(f"one_{method}_{len(done)}", method=method, batch_size=2, **settings)
            train(config)
            done[method] = config.run_dir
        return done[method]

    return run


@pytest.mark.parametrize(
    ("stage", "method"), [(1, "lora"), (2, "lora"), (3, "lora"), (3, "full")], ids=lambda value: str(value)
)
def test_two_ranks_learn_what_one_process_learns(runs, one_process, stage, method):
    path, config = runs(f"zero{stage}_{method}", method=method, zero_stage=stage)
    launch(path)
    assert_two_ranks(config.run_dir, stage)
    assert_same_run(config.run_dir, one_process(method))


MIXTURES = {"lora": {"lora_places": ["language", "experts"]}, "full": {}}


@pytest.mark.parametrize("method", MIXTURES)
def test_ranks_that_route_to_other_experts_learn_what_one_process_learns(runs, method):
    """Each rank has other rows, so other experts; a layer's experts and their adapters are gathered as one."""
    base = save_tiny_checkpoint(runs.directory / f"mixture_{method}", family=FAMILIES["qwen3_vl_moe"])
    more = {"path": str(base), **MIXTURES[method]}
    path, config = runs(f"mixture_zero_{method}", method=method, more=more, zero_stage=3)
    launch(path)
    assert_two_ranks(config.run_dir, 3)
    _, alone = runs(f"mixture_one_{method}", method=method, more=more, batch_size=2)
    train(alone)
    assert_same_run(config.run_dir, alone.run_dir)
    if method == "lora":
        assert_goes_on_to_the_bit(config.run_dir, lambda: launch(path, "--resume"))


@pytest.fixture(scope="module")
def linear_attention(runs):
    """Function from a method to settings of a Qwen3.5, and the folder of its run of one process without DeepSpeed."""
    base = save_tiny_checkpoint(runs.directory / "linear", family=FAMILIES["qwen3_5"])
    done = {}

    def alone(method):
        settings = {"method": method, "more": {"path": str(base)}}
        if method not in done:
            _, config = runs(f"linear_one_{method}", batch_size=2, **settings)
            train(config)
            done[method] = config.run_dir
        return settings, done[method]

    return alone


@pytest.mark.parametrize(("stage", "ranks", "method"), [(2, 1, "full"), (2, 2, "lora"), (3, 1, "lora"), (3, 2, "full")])
def test_linear_attention_learns_what_one_process_learns_and_goes_on_to_the_bit(
    runs, linear_attention, stage, ranks, method
):
    """Its layers read the weight of their convolution without calling it: ZeRO-3 has to gather that all the same."""
    settings, expected = linear_attention(method)
    path, config = runs(f"linear_{stage}_{ranks}", zero_stage=stage, batch_size=2 // ranks, **settings)
    begin = launch if ranks == 2 else launch_alone
    begin(path)
    assert_same_run(config.run_dir, expected)
    assert_goes_on_to_the_bit(config.run_dir, lambda: begin(path, "--resume"))
    saved = [json.loads((config.run_dir / f"checkpoints/last/rank_{r}.json").read_text()) for r in range(ranks)]
    assert [(one["ranks"]["zero_stage"], one["ranks"]["world_size"]) for one in saved] == [(stage, ranks)] * ranks


@pytest.fixture(scope="module")
def published(runs):
    """A checkpoint of the published dtype."""
    return save_tiny_checkpoint(runs.directory / "published", torch.bfloat16)


BFLOAT16 = {
    "lora": {"zero_stage": 3},
    "full": {"zero_stage": 3, "cpu_offload": True, "weight_decay": 0.1},
}


@pytest.mark.parametrize("method", BFLOAT16)
def test_bfloat16_weights_in_slices_learn_what_one_process_learns(runs, published, method):
    """The same micro-batches, so that only the order of sums differs."""
    model = {"path": str(published), "dtype": "bfloat16", "autocast": True}
    path, config = runs(f"bfloat16_{method}", method=method, more=model, **BFLOAT16[method])
    launch(path)
    alone = BFLOAT16[method] | {"zero_stage": 0, "cpu_offload": False, "accumulation": 4}
    _, alone = runs(f"bfloat16_one_{method}", method=method, more=model, **alone)
    train(alone)
    assert_two_ranks(config.run_dir, 3)
    assert_same_losses(config.run_dir, alone.run_dir, tolerance=3e-3)
    assert logged(config.run_dir)[1]["train/loss"] == logged(alone.run_dir)[1]["train/loss"]
    frozen = sum(math.prod(e["shape"]) * 2 for e in read_manifest(config.run_dir) if not e["trainable"])
    parts = (config.run_dir / "checkpoints/last/deepspeed").rglob("*model_states.pt")
    assert sum(part.stat().st_size for part in parts) < frozen / 4, "frozen weights are in the checkpoint"
    ours, wanted = weights(config.run_dir, STEPS), weights(alone.run_dir, STEPS)
    assert {name: tensor.dtype for name, tensor in ours.items()} == {n: tensor.dtype for n, tensor in wanted.items()}
    for name, tensor in wanted.items():  # AdamW makes whole steps of gradients that are noise
        torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=3e-3, msg=name)


def test_each_rank_holds_the_bytes_that_were_planned_and_decays_the_same_matrices(runs, published):
    model = {"path": str(published), "dtype": "bfloat16", "autocast": True}
    configs = {
        method: runs(f"held_{method}", method=method, more=model, **settings) for method, settings in BFLOAT16.items()
    }
    start("tests/zero_worker.py", *(str(path) for path, _ in configs.values()), str(runs.directory))
    for _, config in configs.values():
        arch = find_architecture(str(published))
        plan = plan_memory(config, arch, budget_row(config, arch), num_gpus=2)
        alone = build_model(config.model, "cpu")
        decayed = zero_worker.decayed_names(alone, build_optimizer(alone, config.train))
        assert bool(decayed) == (config.train.weight_decay > 0)
        state = 4 * 4 * trainable_parameters(config.model, arch) // 2  # masters, gradients, two averages
        for rank in range(2):
            held = json.loads((runs.directory / f"{config.name}_{rank}.json").read_text())
            assert held["decayed"] == decayed
            assert (held["wrong_dtype"], held["gathered"], held["buffers"]) == ([], 0, ["torch.float32"])
            if config.train.cpu_offload:
                assert plan.host_bytes == held["weights"] + state
            else:
                assert {name: plan.steady[name] for name in ("weights", "adapters")} == {
                    name: held[name] for name in ("weights", "adapters")
                }


def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(runs):
    path, config = runs("resumed", zero_stage=3)
    launch(path)
    output = assert_goes_on_to_the_bit(config.run_dir, lambda: launch(path, "--resume"))
    assert "resuming" in output and "start afresh" not in output


def test_on_another_number_of_ranks_the_weights_go_on_and_what_starts_afresh_is_said(runs, one_process, capsys):
    path, config = runs("fewer", zero_stage=2, max_steps=2)
    launch(path)
    saved = weights(config.run_dir, 2)
    _, alone = runs("fewer", batch_size=2, max_steps=2)
    train(alone, resume=True)
    output = capsys.readouterr().out
    assert "AdamW's averages start afresh, the weights go on" in output
    assert "saved by 2 ranks at ZeRO stage 2, now 1 at 0" in output
    _, alone = runs("fewer", batch_size=2, max_steps=3)
    train(alone, resume=True)
    assert logged(config.run_dir)[3]["train/loss"] == pytest.approx(
        logged(one_process("lora"))[3]["train/loss"], rel=1e-4
    )
    assert saved.keys() == weights(config.run_dir, 3).keys()


def test_a_consolidated_zero3_adapter_changes_the_logits_as_the_live_one_did(runs):
    from peft import PeftModel
    from transformers import Qwen3VLForConditionalGeneration

    path, config = runs("export", zero_stage=3, learning_rate=0.05, max_steps=5, save_every=4)
    launch(path)
    live_loss = logged(config.run_dir)[5]["train/loss"]  # made with the weights of step 4
    checkpoints = config.run_dir / "checkpoints"
    shutil.rmtree(checkpoints / "step_000005")
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("step_000004")
    folder = checkpoints / "last/model"
    adapter = load_file(folder / "adapter_model.safetensors")
    assert len(adapter) == 28 and all(tensor.numel() and tensor.any() for tensor in adapter.values())
    ids = torch.arange(5, 25)[None]

    def logits(with_adapter: bool) -> torch.Tensor:
        model = Qwen3VLForConditionalGeneration.from_pretrained(config.model.path, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder) if with_adapter else model
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits

    assert (logits(True) - logits(False)).abs().max() > 0.01
    _, alone = runs("export", learning_rate=0.05, max_steps=5, save_every=4, batch_size=2)
    train(alone, resume=True)
    assert logged(config.run_dir)[5]["train/loss"] == pytest.approx(live_loss, rel=1e-5)


@pytest.fixture(scope="module")
def half_text_dataset(runs):
    """16 rows, every second one without a picture; lengths that put one of each into a pair of ranks."""
    path = save_dataset(runs.directory / "half_text", 16)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::2]:
        row["images"] = []
        row["messages"][1]["content"] = row["messages"][1]["content"].replace("<image>", "")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (2, {"method": "full", "train_vision": True}),
        (3, {"method": "full", "train_vision": True}),
        (3, {"method": "lora"}),
    ],
    ids=["2-vision", "3-vision", "3-lora"],
)
def test_a_rank_without_a_picture_does_not_change_the_loss(runs, half_text_dataset, request, stage, settings):
    name = request.node.callspec.id
    path, config = runs(f"text_{name}", half_text_dataset, zero_stage=stage, **settings)
    launch(path)
    _, alone = runs(f"text_one_{name}", half_text_dataset, **settings, batch_size=2)
    train(alone)
    assert_two_ranks(config.run_dir, stage)
    assert_same_run(config.run_dir, alone.run_dir)


def test_a_process_that_no_launcher_started_is_the_one_rank_of_zero(runs):
    path, config = runs("lone", zero_stage=3, batch_size=2, max_steps=1)
    launch_alone(path)
    ranks = json.loads((config.run_dir / "checkpoints/last/rank_0.json").read_text())["ranks"]
    assert ranks == {"zero_stage": 3, "rank": 0, "world_size": 1, "backend": "gloo"}


LAUNCHES = {
    "on the CPU": (3, {"ACCELERATE_USE_CPU": "true"}, (), "train.zero_stage is 3 and DeepSpeed is not active"),
    "alone twice": (0, {}, (*LAUNCH, "--multi_gpu"), "WORLD_SIZE is 2 and this process counts 1"),
    "by srun": (0, {"SLURM_STEP_NUM_TASKS": "4"}, (), "SLURM_STEP_NUM_TASKS is 4 and this process counts 1"),
    "by the launcher": (
        0,
        {},
        (*LAUNCH, "--use_deepspeed"),
        "train.zero_stage is 0 and the launcher asks for DEEPSPEED",
    ),
}


@pytest.mark.parametrize("launch", LAUNCHES)
def test_ranks_and_zero_that_are_not_what_was_asked_for_are_refused(runs, launch):
    stage, environment, launcher, message = LAUNCHES[launch]
    path, config = runs("refused", zero_stage=stage)
    command = [*(launcher or (sys.executable,)), str(ROOT / "train.py"), "--config", str(path)]
    done = subprocess.run(command, env=ENVIRONMENT | environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    first = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert message in first, done.stderr[-3000:]
    assert not config.run_dir.exists()


def test_a_dead_rank_ends_the_job_and_is_named(runs):
    path, config = runs("dead", zero_stage=2, max_steps=100_000, save_every=100_000)
    command = [*LAUNCH, "--use_deepspeed", str(ROOT / "train.py"), "--config", str(path)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        try:
            while not (config.run_dir / "metrics.jsonl").exists() or not logged(config.run_dir):
                assert job.poll() is None, job.stdout.read()
                time.sleep(0.5)
            killed = time.monotonic()
            os.kill(process_of_rank(1, config.name), signal.SIGKILL)
            output, _ = job.communicate(timeout=90)
        finally:
            job.kill()
    assert job.returncode != 0 and time.monotonic() - killed < 90
    assert re.search(r"rank\s*:\s*1 \(local_rank: 1\)", output) and "SIGKILL" in output, output[-3000:]


def process_of_rank(rank: int, run_name: str) -> int:
    """The trainer's process, by its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if (
            arguments[-1:] == [b""]
            and f"{run_name}.json".encode() in b" ".join(arguments)
            and f"RANK={rank}".encode() in environment
        ):
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank} runs {run_name}")
