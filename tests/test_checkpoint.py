import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from qwenvl_agent.config import Config, ModelConfig, TrainConfig
from qwenvl_agent.training.checkpoint import (
    load_optimizer_tensors,
    optimizer_tensors,
    prepare_run_dir,
    preserved_random_state,
    random_state,
    read_json,
    save_checkpoint,
    set_random_state,
    write_json,
)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def save(directory: Path, accelerator, step: int, *, is_best: bool = False, keep: int = 1, write=None) -> None:
    write = write or (lambda folder: write_json(folder / "state.json", {"step": step}))
    save_checkpoint(directory, step, write, accelerator, is_best, keep)


def write_whole(folder: Path, config: dict) -> None:
    """The least that a resume looks at."""
    (folder / "model").mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "state.json", {})
    write_json(folder / "rank_0.json", {})
    save_file({"weight": torch.zeros(3)}, folder / "model" / "model.safetensors")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# folders


def test_last_and_best_are_kept_besides_the_newest(tmp_path, accelerator):
    for step, is_best in ((1, False), (2, True), (3, False), (4, False), (5, False)):
        save(tmp_path, accelerator, step, is_best=is_best)
    assert names(tmp_path) == ["best", "last", "step_000002", "step_000004", "step_000005"]
    assert (tmp_path / "last").resolve().name == "step_000005"
    assert read_json(tmp_path / "best" / "state.json") == {"step": 2}
    assert not (tmp_path / "last").readlink().is_absolute()


def test_a_save_that_fails_leaves_the_last_checkpoint_as_it_was(tmp_path, accelerator):
    save(tmp_path, accelerator, 1)

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, accelerator, 2, write=fail)
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["last", "step_000001"]
    assert read_json(tmp_path / "last" / "state.json") == {"step": 1}
    save(tmp_path, accelerator, 2)
    assert names(tmp_path / "step_000002") == ["state.json"]


def test_a_step_that_is_reached_again_replaces_its_checkpoint(tmp_path, accelerator):
    save(tmp_path, accelerator, 1)
    save(tmp_path, accelerator, 1, write=lambda folder: write_json(folder / "again.json", {}))
    assert names(tmp_path / "step_000001") == ["again.json"]


@pytest.fixture
def config(tmp_path):
    return Config(name="run", runs_dir=str(tmp_path), model=ModelConfig(path="base"))


def test_a_fresh_run_gets_its_folder_and_config(config, accelerator):
    assert prepare_run_dir(config, accelerator, resume=False, overwrite=False) is None
    assert read_json(config.run_dir / "config.json")["name"] == "run"


def test_an_existing_run_is_not_overwritten_unasked(config, accelerator):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    with pytest.raises(ValueError, match="exists: its results would be lost; use --resume, --overwrite"):
        prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    (config.run_dir / "metrics.jsonl").write_text("{}")
    prepare_run_dir(config, accelerator, resume=False, overwrite=True)
    assert names(config.run_dir) == ["config.json"]


def test_a_folder_that_is_no_run_is_never_deleted(config, accelerator):
    config.run_dir.mkdir()
    (config.run_dir / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is no run"):
        prepare_run_dir(config, accelerator, resume=False, overwrite=True)
    assert names(config.run_dir) == ["thesis.tex"]


def test_resume_names_the_settings_that_differ_and_clears_stop(config, accelerator, capsys):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)

    saved = read_json(config.run_dir / "config.json")
    save(config.run_dir / "checkpoints", accelerator, 3, write=lambda folder: write_whole(folder, saved))
    (config.run_dir / "STOP").touch()
    longer = replace(config, train=TrainConfig(max_steps=9))
    found = prepare_run_dir(longer, accelerator, resume=True, overwrite=False)
    assert found == config.run_dir / "checkpoints" / "step_000003"
    out = capsys.readouterr().out
    assert "train.max_steps: 0 in the checkpoint, 9 now" in out and out.count("\n") == 2
    assert not (config.run_dir / "STOP").exists()


def test_resume_refuses_another_model(config, accelerator):
    prepare_run_dir(config, accelerator, resume=True, overwrite=False)
    saved = read_json(config.run_dir / "config.json")
    save(config.run_dir / "checkpoints", accelerator, 1, write=lambda folder: write_whole(folder, saved))
    other = replace(config, model=ModelConfig(path="base", lora_rank=8))
    with pytest.raises(ValueError, match="model.lora_rank is 8, 16 in the checkpoint"):
        prepare_run_dir(other, accelerator, resume=True, overwrite=False)
    same = replace(config, model=ModelConfig(path="base", attention="sdpa"))
    prepare_run_dir(same, accelerator, resume=True, overwrite=False)


@pytest.mark.parametrize("name", ["model/model.safetensors", "state.json", "rank_0.json"])
@pytest.mark.parametrize("keep_bytes", [None, 5])
def test_a_torn_checkpoint_is_skipped_for_the_last_whole_one_and_said(config, accelerator, capsys, name, keep_bytes):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    saved, checkpoints = read_json(config.run_dir / "config.json"), config.run_dir / "checkpoints"
    for step in (1, 2):
        save(checkpoints, accelerator, step, write=lambda folder: write_whole(folder, saved))
    (checkpoints / ".step_000003.tmp").mkdir()
    torn = checkpoints / "step_000002" / name
    if keep_bytes is None:
        torn.unlink()
    else:
        torn.write_bytes(torn.read_bytes()[:keep_bytes] if torn.suffix != ".json" else b'{"ste')
    assert prepare_run_dir(config, accelerator, resume=True, overwrite=False) == checkpoints / "step_000001"
    said = capsys.readouterr().out
    assert f"{name} is missing or cut off: step_000002 is skipped" in said and ".step_000003.tmp was never" in said


def test_resume_goes_by_the_link_not_by_the_highest_number(config, accelerator):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    saved, checkpoints = read_json(config.run_dir / "config.json"), config.run_dir / "checkpoints"
    for step in (1, 2):
        save(checkpoints, accelerator, step, write=lambda folder: write_whole(folder, saved))
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("step_000001")
    assert prepare_run_dir(config, accelerator, resume=True, overwrite=False) == checkpoints / "step_000001"


def test_resume_and_overwrite_contradict(config, accelerator):
    with pytest.raises(ValueError, match="give one of them"):
        prepare_run_dir(config, accelerator, resume=True, overwrite=True)


# states


def draw() -> list:
    return [random.random(), random.gauss(0, 1), *np.random.rand(2), np.random.randn(), *torch.rand(2).tolist()]


def test_random_states_survive_json(tmp_path):
    draw()
    write_json(tmp_path / "state.json", random_state())
    expected = draw()
    set_random_state(read_json(tmp_path / "state.json"))
    assert draw() == expected


def test_what_runs_inside_leaves_no_trace_in_random_numbers():
    state = random_state()
    expected = draw()
    set_random_state(state)
    with preserved_random_state():
        draw()
    assert draw() == expected


def test_optimizer_state_goes_by_name_not_by_order():
    def step(model, groups):
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        model(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
        return optimizer

    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    saved = optimizer_tensors(model, step(model, [{"params": [model.weight]}, {"params": [model.bias]}]))
    assert set(saved) == {f"{n}:{k}" for n in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")}
    other = nn.Linear(2, 3)
    reversed_order = torch.optim.AdamW([{"params": [other.bias]}, {"params": [other.weight]}], lr=0.3)
    load_optimizer_tensors(other, reversed_order, saved)
    for name, parameter in other.named_parameters():
        for key, value in reversed_order.state[parameter].items():
            assert torch.equal(value, saved[f"{name}:{key}"])
    assert [group["lr"] for group in reversed_order.param_groups] == [0.3, 0.3]
