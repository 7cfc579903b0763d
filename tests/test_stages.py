"""A curriculum's stages for real: each is an ordinary run that begins with the weights of the one before."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

import train
from qwenvl_agent.config import build_config
from qwenvl_agent.inference.load import find_run
from qwenvl_agent.studies.progress import read_progress
from qwenvl_agent.training import setup
from qwenvl_agent.training.stop import StopRequest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(checkpoint, dataset.jsonl)"""
    directory = tmp_path_factory.mktemp("base")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    return save_dataset(tmp_path_factory.mktemp("other"), 17)


@pytest.fixture
def configure(base, tmp_path):
    return lambda **groups: tiny_config(tmp_path, *base, **groups)


@pytest.fixture(scope="module")
def three_stages(other_data):
    """The agent's stage has a dropout, a learning rate and data of its own; all are saved and evaluated on the way."""
    other = [{"path": str(other_data), "kind": "chat"}]
    return {
        "model": {"lora_dropout": 0.3},
        "data": {"num_workers": 1},
        "train": {"max_steps": 3, "save_every": 2, "eval_every": 2},
        "stages": [
            {"name": "perception", "set": {"train.max_steps": 4}},
            {
                "name": "agent",
                "set": {"data.sources": other, "model": {"lora_dropout": 0.1}, "train": {"learning_rate": 5e-4}},
            },
            {"name": "own_states", "set": {"data": {"sources": other}, "train.seed": 1}},
        ],
    }


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    files = sorted((run_dir / "checkpoints" / name / "model").glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def assert_same_files(run_dir: Path, expected: Path) -> None:
    """Weights, optimizer, random numbers, metrics: all that a checkpoint holds."""
    ours, theirs = ((folder / "checkpoints" / "last").resolve() for folder in (run_dir, expected))
    assert ours.name == theirs.name
    for path in (*theirs.rglob("*.safetensors"),):
        tensors, wanted = load_file(ours / path.relative_to(theirs)), load_file(path)
        assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[key], wanted[key]) for key in wanted)
    for name in ("state.json", "rank_0.json", "evaluation.json"):
        read, wanted = (json.loads((folder / name).read_text()) for folder in (ours, theirs))
        assert {k: v for k, v in read.items() if k != "means"} == {k: v for k, v in wanted.items() if k != "means"}


class CrashError(Exception):
    """An end that saves nothing."""


def interrupted_after(num_steps: int, *, by_crash: bool):
    """A StopRequest class that stops or crashes in the `num_steps`-th step of this process, of whatever stage."""

    class Interrupted(StopRequest):
        num_asked = 0

        def is_set(self) -> bool:
            Interrupted.num_asked += 1
            if by_crash and self.num_asked == num_steps:
                raise CrashError
            return self.num_asked >= num_steps

    return Interrupted


@pytest.fixture(scope="module")
def uninterrupted(base, three_stages, tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("whole"), *base, **three_stages)
    train.train_stages(config)
    return config.run_dir


def test_each_stage_begins_with_the_weights_before_it(uninterrupted):
    records = [json.loads((uninterrupted / name / "start.json").read_text()) for name in ("agent", "own_states")]
    best = [(uninterrupted / name / "checkpoints" / "best").resolve() for name in ("perception", "agent")]
    assert [Path(record["checkpoint"]) for record in records] == best and not (
        uninterrupted / "perception" / "start.json"
    ).exists()
    configs = [
        json.loads((uninterrupted / name / "config.json").read_text()) for name in ("perception", "agent", "own_states")
    ]
    assert [c["model"]["lora_dropout"] for c in configs] == [0.3, 0.1, 0.3]
    assert [c["train"]["learning_rate"] for c in configs] == [1e-3, 5e-4, 1e-3]
    adapter = json.loads((uninterrupted / "agent/checkpoints/last/model/adapter_config.json").read_text())
    assert adapter["lora_dropout"] == 0.1
    assert find_run(uninterrupted).run == uninterrupted / "own_states"  # what eval.py and export take it for
    assert (uninterrupted / "checkpoints" / "last").resolve() == (
        uninterrupted / "own_states/checkpoints/last"
    ).resolve()


def test_a_stage_equals_the_run_that_its_own_config_is(uninterrupted, tmp_path):
    """Begun by itself, in another process's place, with init_from in its JSON."""
    values = json.loads((uninterrupted / "agent" / "config.json").read_text())
    alone = build_config(values | {"name": "alone", "runs_dir": str(tmp_path)})
    torch.rand(7)
    train.train(alone)
    assert_same_files(alone.run_dir, uninterrupted / "agent")


# The last step of a run is not asked for a stop: 3, 2 and 2 steps are.
INTERRUPTIONS = {
    "crashed in the third": (7, True),
    "stopped in the first": (2, False),
    "crashed before the second saves": (4, True),
}


@pytest.mark.parametrize(
    "interruption", [pytest.param(name, marks=[pytest.mark.slow] * (i > 0)) for i, name in enumerate(INTERRUPTIONS)]
)
def test_an_interrupted_curriculum_equals_an_uninterrupted_one_to_the_bit(
    configure, three_stages, uninterrupted, monkeypatch, interruption
):
    config, (step, by_crash) = configure(**three_stages), INTERRUPTIONS[interruption]
    with monkeypatch.context() as patch:
        patch.setattr(setup, "StopRequest", interrupted_after(step, by_crash=by_crash))
        try:
            train.train_stages(config)
            assert not by_crash
        except CrashError:
            assert by_crash
    assert not (config.run_dir / "own_states" / "done.json").exists()
    torch.rand(7)
    train.train_stages(config, resume=True)
    for name in ("perception", "agent", "own_states"):
        assert_same_files(config.run_dir / name, uninterrupted / name)


def test_a_stage_that_is_over_is_not_run_again(configure, three_stages, capsys):
    config = configure(**three_stages)
    train.train_stages(config)
    before = {path: path.stat().st_mtime_ns for path in config.run_dir.glob("*/checkpoints/**/*")}
    capsys.readouterr()
    assert train.train_stages(config, resume=True) == {}
    assert {path: path.stat().st_mtime_ns for path in config.run_dir.glob("*/checkpoints/**/*")} == before
    assert "step 1/" not in capsys.readouterr().out


COUNT_ALIVE = """
import sys, weakref
import train
from qwenvl_agent.config import load_config
from qwenvl_agent.training import setup

whole, made = setup.build_trained, []

def build(*args):
    print("alive", sum(part() is not None for part in made))
    parts = whole(*args)
    made.extend(weakref.ref(part) for part in (parts[0], parts[2]))
    return parts

setup.build_trained = build
train.train_stages(load_config(sys.argv[1]))
"""


@pytest.mark.slow
def test_of_a_stage_that_is_over_nothing_is_in_memory(configure, tmp_path):
    """Neither its model nor its optimizer, when the next one's are made. In a process of its own: pytest keeps what is
    logged and warned of."""
    stages = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    path = save_config(configure(train={"max_steps": 1}, stages=stages), tmp_path / "c.json")
    command = [sys.executable, "-c", COUNT_ALIVE, str(path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("alive")] == ["alive 0"] * 3


def test_batch_scripts_see_when_a_curriculum_is_over(uninterrupted, tmp_path):
    progress = read_progress(uninterrupted)
    assert progress.is_done and progress.saved_step == 3 and progress.lines[-1]["step"] == 3
    begun = shutil.copytree(uninterrupted, tmp_path / "begun", symlinks=True)
    (begun / "done.json").unlink()
    assert not read_progress(begun).is_done


# gates


def gated(**gate) -> dict:
    """Two stages of two steps with a gate between them."""
    first = {"name": "first", "gate": {"metric": "eval/token_loss/all", **gate}}
    return {
        "data": {"num_workers": 0},
        "train": {"max_steps": 2, "learning_rate": 1e-3, "min_lr_fraction": 0.1},
        "stages": [first, {"name": "second"}],
    }


def test_a_gate_that_is_not_met_trains_on_and_then_ends_the_curriculum(configure, tmp_path, capsys):
    """In the same run, with its optimizer and its rows going on; and with --resume once the gate is lower."""
    config = configure(**gated(most=0.1, more_steps=2, times=2))
    assert train.main(["--config", str(save_config(config, tmp_path / "c.json"))]) == 3
    assert "eval/token_loss/all is 5." in capsys.readouterr().err and not (config.run_dir / "second").exists()
    done = json.loads((config.run_dir / "first/done.json").read_text())
    assert done == {"step": 6, "extra_steps": 4}
    lines = [json.loads(line) for line in (config.run_dir / "first/metrics.jsonl").read_text().splitlines()]
    rates = [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]
    assert rates[2:] == pytest.approx([1e-4] * 4) and len(rates) == 6

    straight = configure(name="straight", train={"max_steps": 2, "extra_steps": 4}, data={"num_workers": 0})
    train.train(straight)
    assert all(
        torch.equal(weights(straight.run_dir)[key], value) for key, value in weights(config.run_dir / "first").items()
    )

    lower = configure(**gated(most=9.0))
    train.train_stages(lower, resume=True)
    assert json.loads((config.run_dir / "second/start.json").read_text())["run"] == str(config.run_dir / "first")


def test_a_gate_may_only_warn_and_one_of_an_unmeasured_metric_names_those_there_are(configure, capsys):
    config = configure(**gated(most=0.1, otherwise="go_on"))
    train.train_stages(config)
    assert "not met: the next stage begins all the same" in capsys.readouterr().out
    wrong = configure(
        name="wrong", **gated(least=0) | {"stages": [{"name": "a", "gate": {"metric": "eval/no", "least": 0}}]}
    )
    with pytest.raises(ValueError, match="'eval/no' was not measured.*eval/token_loss/all"):
        train.train_stages(wrong)


# what may not happen


def test_results_are_not_lost_and_a_changed_stage_is_not_built_upon(configure, three_stages):
    config = configure(**three_stages | {"stages": three_stages["stages"][:1]})
    train.train_stages(config)
    with pytest.raises(ValueError, match="its results would be lost"):
        train.train_stages(config)
    changed = configure(**three_stages | {"train": three_stages["train"] | {"learning_rate": 9e-4}})
    with pytest.raises(ValueError, match=r"perception is over and had train.learning_rate 0.001, which is 0.0009 now"):
        train.train_stages(changed, resume=True)
    with pytest.raises(ValueError, match="its results would be lost"):
        train.train(configure(name="run"))  # an ordinary run of that name


def test_a_source_that_is_missing_in_the_last_stage_is_found_before_the_first_is_trained(configure):
    gone = [{"path": "no/such.jsonl", "kind": "chat"}]
    config = configure(stages=[{"name": "a"}, {"name": "b", "set": {"data.sources": gone}}])
    with pytest.raises(ValueError, match="stage b: no/such.jsonl: there is no such file.*let the stage `record` it"):
        train.train_stages(config)
    assert not (config.run_dir / "a").exists()


def test_a_stop_asked_of_the_curriculum_ends_the_stage_that_runs(configure, three_stages, monkeypatch):
    config, whole = configure(**three_stages), train.train_step

    def step(*args, **kwargs):
        (config.run_dir / "STOP").touch()
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", step)
        train.train_stages(config)
    state = json.loads((config.run_dir / "perception/checkpoints/last/state.json").read_text())
    assert state["step"] == 1 and not (config.run_dir / "agent").exists()


# ranks

RANKS = {"DDP": ["--multi_gpu"], "ZeRO-2": ["--use_deepspeed"], "ZeRO-3": ["--use_deepspeed"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RANKS)
def test_two_ranks_train_stage_after_stage_and_go_on_to_the_bit(configure, tmp_path, kind):
    """A stop in the first stage, and a new launch for the rest."""
    stage = int(kind[-1]) if kind != "DDP" else 0
    groups = {
        "train": {"max_steps": 2, "batch_size": 1, "accumulation": 1, "zero_stage": stage},
        "eval": {"step_rows": 0},
        "stages": [
            {"name": "one", "set": {"train.max_steps": 3}},
            {"name": "two", "set": {"train.seed": 1}},
            {"name": "three"},
        ],
    }
    whole, config = configure(name="whole", **groups), configure(**groups)
    launch(kind, save_config(whole, tmp_path / "whole.json"))
    path = save_config(config, tmp_path / "c.json")
    interrupted = subprocess.Popen(command_of(kind, path), env=environment(kind), cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (config.run_dir / "two" / "config.json").exists():
        assert interrupted.poll() is None
        time.sleep(0.05)
    (config.run_dir / "STOP").touch()
    assert interrupted.wait(timeout=300) == 0
    launch(kind, path, "--resume")
    for name in ("one", "two", "three"):
        last = whole.run_dir / name / "checkpoints" / "last"
        ranks = [json.loads((last / f"rank_{rank}.json").read_text())["ranks"] for rank in range(2)]
        assert [(r["zero_stage"], r["rank"], r["world_size"], r["backend"]) for r in ranks] == [
            (stage, rank, 2, "gloo") for rank in range(2)
        ]
        ours, wanted = weights(config.run_dir / name), weights(whole.run_dir / name)
        assert ours.keys() == wanted.keys() and all(torch.equal(ours[key], wanted[key]) for key in wanted), name


def command_of(kind: str, path: Path, *options: str) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    return [*launcher, *RANKS[kind], str(ROOT / "train.py"), "--config", str(path), *options]


def environment(kind: str) -> dict[str, str]:
    return ENVIRONMENT | ({"ACCELERATE_USE_CPU": "true"} if kind == "DDP" else {})


def launch(kind: str, path: Path, *options: str) -> None:
    command = command_of(kind, path, *options)
    done = subprocess.run(command, env=environment(kind), cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
