"""A curriculum's stages for real: each is an ordinary run that begins with the weights of the one before."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config

import train
from qwenvl_agent.config import build_config
from qwenvl_agent.training import setup
from qwenvl_agent.training.stop import StopRequest


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


INTERRUPTIONS = {
    "stopped in the first": (2, False),
    "crashed in the second": (7, True),
    "crashed between": (5, True),
    "stopped in the third": (9, False),
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
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
