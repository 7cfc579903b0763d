import os
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from qwenvl_agent.checksums import find_damage
from qwenvl_agent.config import Config, ModelConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.files import read_json, replacing, write_json
from qwenvl_agent.training.checkpoint import (
    last_whole,
    point_links,
    prepare_run_dir,
    read_state,
    record_evaluation,
    save_checkpoint,
)
from qwenvl_agent.training.state import (
    check_data,
    load_optimizer_tensors,
    optimizer_tensors,
    preserved_random_state,
    random_state,
    set_random_state,
)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def save(directory: Path, accelerator, step: int, *, is_best: bool = False, keep: int = 1, write=None) -> None:
    write = write or (lambda folder: write_json(folder / "state.json", {"step": step}))
    save_checkpoint(directory, step, write, accelerator, keep)
    if is_best:
        record_evaluation(directory, step, {"step": step}, {}, keep)


def write_whole(folder: Path, config: dict) -> None:
    """The least that a resume looks at."""
    (folder / "model").mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "state.json", {"best": {}})
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


def test_damaged_checkpoints_ahead_do_not_count_among_the_newest(tmp_path, accelerator):
    for step in (2, 4, 8, 9):
        save(tmp_path, accelerator, step, keep=9)
    point_to_step(tmp_path, 4)  # 8 and 9 were found to be damaged
    for step in (5, 6):
        save(tmp_path, accelerator, step, keep=1)
    assert names(tmp_path) == ["last", "step_000005", "step_000006", "step_000008", "step_000009"]


def test_the_millionth_step_comes_after_those_of_six_digits(tmp_path, accelerator):
    for step in (999_998, 999_999, 1_000_000):
        save(tmp_path, accelerator, step, keep=1)
    assert names(tmp_path) == ["last", "step_1000000", "step_999999"]
    (tmp_path / "last").unlink()
    assert last_whole(tmp_path, print).name == "step_1000000"


def point_to_step(directory: Path, step: int) -> None:
    (directory / "last").unlink()
    (directory / "last").symlink_to(f"step_{step:06d}")


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
    assert names(tmp_path / "step_000002") == ["checksums.json", "state.json"]


def test_a_step_that_is_reached_again_replaces_its_checkpoint(tmp_path, accelerator):
    save(tmp_path, accelerator, 1)
    save(tmp_path, accelerator, 1, write=lambda folder: write_json(folder / "again.json", {}))
    assert names(tmp_path / "step_000001") == ["again.json", "checksums.json"]


@pytest.fixture
def config(tmp_path):
    return Config(name="run", runs_dir=str(tmp_path), model=ModelConfig(path="base"))


def test_a_fresh_run_gets_its_folder_and_config(config, accelerator):
    assert prepare_run_dir(config, accelerator, resume=False, overwrite=False) is None
    assert read_json(config.run_dir / "config.json")["name"] == "run"


@pytest.mark.parametrize("result", ["metrics.jsonl", "checkpoints/step_000001/state.json", "eval/safari/metrics.json"])
def test_an_existing_run_is_not_overwritten_unasked(config, accelerator, result):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    (config.run_dir / result).parent.mkdir(parents=True, exist_ok=True)
    (config.run_dir / result).write_text("{}")
    with pytest.raises(ValueError, match="exists: its results would be lost; use --resume, --overwrite"):
        prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    prepare_run_dir(config, accelerator, resume=False, overwrite=True)
    assert names(config.run_dir) == ["config.json"]


def test_a_start_that_came_to_nothing_is_in_nobodys_way(config, accelerator):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    (config.run_dir / "tensorboard").mkdir()
    (config.run_dir / "metrics.jsonl").touch()
    (config.run_dir / "notes.txt").write_text("to be kept")
    (config.run_dir / "checkpoints" / ".step_000001.tmp").mkdir(parents=True)
    assert prepare_run_dir(config, accelerator, resume=False, overwrite=False) is None
    assert (config.run_dir / "notes.txt").read_text() == "to be kept"


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_batch_script_puts_there_first_is_in_nobodys_way(config, accelerator, resume):
    config.run_dir.mkdir()
    files = ["STOP", "exit_status", *(["slurm.log"] if resume else [])]
    for name in files:
        (config.run_dir / name).write_text("2\n")
    assert prepare_run_dir(config, accelerator, resume=resume, overwrite=False) is None
    assert names(config.run_dir) == ["config.json", *files[1:]]


@pytest.mark.parametrize(
    ("name", "resume", "overwrite"),
    [
        ("thesis.tex", False, True),
        ("thesis.tex", False, False),
        ("config.json", False, True),
        ("config.json", False, False),
        ("config.json", True, False),
    ],
)
def test_a_folder_that_is_no_run_is_never_touched(config, accelerator, name, resume, overwrite):
    """A published model's folder has a config.json too."""
    config.run_dir.mkdir()
    (config.run_dir / name).write_text('{"model_type": "years of work"}')
    with pytest.raises(ValueError, match="is no run"):
        prepare_run_dir(config, accelerator, resume=resume, overwrite=overwrite)
    assert names(config.run_dir) == [name]


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


def test_settings_that_a_checkpoint_does_not_know_are_not_changes(config, accelerator):
    """It was saved by an earlier version, which had no such setting."""
    prepare_run_dir(config, accelerator, resume=True, overwrite=False)
    saved = read_json(config.run_dir / "config.json")
    del saved["model"]["compile"], saved["vision"]["tiles"]
    save(config.run_dir / "checkpoints", accelerator, 1, write=lambda folder: write_whole(folder, saved))
    assert prepare_run_dir(config, accelerator, resume=True, overwrite=False)


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


def test_what_a_kill_left_of_a_file_that_was_written_is_deleted(config, accelerator):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    saved, checkpoints = read_json(config.run_dir / "config.json"), config.run_dir / "checkpoints"
    save(checkpoints, accelerator, 1, write=lambda folder: write_whole(folder, saved))
    files = {path.relative_to(config.run_dir) for path in config.run_dir.rglob("*")}
    for path in (config.run_dir / "config.json", checkpoints / "step_000001" / "evaluation.json"):
        with pytest.raises(KeyboardInterrupt), replacing(path) as part:
            part.write_text("{")
            part.with_name(part.name.replace(".tmp", "2.tmp")).write_text("{")  # as a SIGKILL leaves it
            raise KeyboardInterrupt
    (checkpoints / ".best.tmp").symlink_to("step_000001")
    prepare_run_dir(config, accelerator, resume=True, overwrite=False)
    assert {path.relative_to(config.run_dir) for path in config.run_dir.rglob("*")} == files


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


def test_a_bit_that_flips_and_a_file_that_is_gone_are_noticed(config, accelerator, capsys):
    """In every file of a checkpoint, in the middle of weights too, where reading them would notice nothing."""
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    saved, checkpoints = read_json(config.run_dir / "config.json"), config.run_dir / "checkpoints"

    def write(folder: Path) -> None:
        write_whole(folder, saved)
        write_json(folder / "model" / "adapter_config.json", {"r": 16})
        (folder / "deepspeed").mkdir()
        (folder / "deepspeed" / "zero_pp_rank_1.pt").write_bytes(bytes(1000))

    for step in (1, 2):
        save(checkpoints, accelerator, step, write=write)
    files = [path for path in (checkpoints / "step_000002").rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[-1] ^= 4
        for damage in (bytes(flipped), content[:-4], None):
            if path.name == "checksums.json" and damage is None:
                continue  # then nobody can know: an earlier version's checkpoints have none
            path.unlink() if damage is None else path.write_bytes(damage)
            assert last_whole(checkpoints, print) == checkpoints / "step_000001", (path, damage)
            said = capsys.readouterr().out
            assert f"{path} " in said and "step_000002 is skipped for the last whole checkpoint" in said
            path.write_bytes(content)
    assert last_whole(checkpoints, print) == checkpoints / "step_000002"
    files[0].write_bytes(b"")
    (checkpoints / "step_000001" / "state.json").write_bytes(b"")
    with pytest.raises(ValueError, match="has no whole checkpoint.*bring the files back, or start anew"):
        prepare_run_dir(config, accelerator, resume=True, overwrite=False)


def test_a_bit_that_flips_in_what_an_evaluation_has_noted_has_it_done_again(tmp_path, accelerator):
    """It is added after the checksums; in most of its bits it would stay JSON, of another best."""
    save(tmp_path, accelerator, 2, write=lambda folder: write_json(folder / "state.json", state_of(2, 1)))
    record_evaluation(tmp_path, 2, {"step": 2, "loss": 5.25}, {"loss": 5.25}, 0)
    checkpoint, due = tmp_path / "step_000002", state_of(2, 1)
    whole = due | {"best": {"step": 2, "loss": 5.25}, "evaluation_due": False}
    assert read_state(checkpoint) == whole
    content = (checkpoint / "evaluation.json").read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (checkpoint / "evaluation.json").write_bytes(flipped)
        assert read_state(checkpoint) in (due, whole), (bit, bytes(flipped))
    write_json(checkpoint / "evaluation.json", {"best": {"step": 2}, "metrics": {}})  # as an earlier version wrote it
    assert read_state(checkpoint)["best"] == {"step": 2}


def test_a_checkpoint_of_an_earlier_version_is_taken_and_said(config, accelerator, capsys):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    saved, checkpoints = read_json(config.run_dir / "config.json"), config.run_dir / "checkpoints"
    save(checkpoints, accelerator, 1, write=lambda folder: write_whole(folder, saved))
    (checkpoints / "step_000001" / "checksums.json").unlink()
    assert prepare_run_dir(config, accelerator, resume=True, overwrite=False) == checkpoints / "step_000001"
    assert "step_000001 was saved without checksums, by an earlier version" in capsys.readouterr().out


def test_other_rows_are_refused_unless_accepted(config, accelerator, capsys):
    prepare_run_dir(config, accelerator, resume=False, overwrite=False)
    saved, checkpoints = read_json(config.run_dir / "config.json"), config.run_dir / "checkpoints"
    save(checkpoints, accelerator, 1, write=lambda folder: write_whole(folder, saved))
    for other in (
        replace(config, prompt=PromptConfig(format="plain")),
        replace(config, vision=VisionConfig(max_tokens_per_image=100)),
    ):
        with pytest.raises(ValueError, match="(prompt.format|vision.max_tokens_per_image) is .* --accept-changes"):
            prepare_run_dir(other, accelerator, resume=True, overwrite=False)
        assert prepare_run_dir(other, accelerator, True, False, accept_changes=True)
        assert "in the checkpoint, " in capsys.readouterr().out
    with pytest.raises(ValueError, match="the data's hash is b, a in the checkpoint: .* --accept-changes"):
        check_data({"dataset_hash": "a"}, {"dataset_hash": "b"}, accept_changes=False)
    check_data({"dataset_hash": "a"}, {"dataset_hash": "b"}, accept_changes=True)
    check_data({"dataset_hash": "a"}, {"dataset_hash": "a"}, accept_changes=False)


# kills


def run_until_killed(directory: Path, act, num_events: int) -> bool:
    """Whether `act` came to its end in a fork that ends at its `num_events`-th operation on files of `directory`."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    left = num_events

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        is_operation = event in ("open", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.mkdir")
        if is_operation and str(directory) in str(arguments[:2]) or (event in ("os.remove", "os.rmdir")):
            left -= 1
            if not left:
                os._exit(9)

    try:
        sys.addaudithook(count)
        act()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)


def state_of(step: int, best: int) -> dict:
    return {"step": step, "best": {"step": best} if best else {}, "evaluation_due": True}


def kill_everywhere(tmp_path, accelerator, before, act):
    """The checkpoints folder after a kill at every operation of `act`, one after another."""
    before(tmp_path / "before")
    for num_events in range(1, 500):
        directory = tmp_path / f"killed_{num_events}"
        shutil.copytree(tmp_path / "before", directory, symlinks=True)
        is_done = run_until_killed(directory, lambda directory=directory: act(directory), num_events)
        yield directory
        if is_done:
            assert num_events > 20
            return
    raise AssertionError("never came to its end")


def save_step(directory: Path, accelerator, step: int, best: int, new_best: int) -> None:
    save(directory, accelerator, step, keep=0, write=lambda f: write_json(f / "state.json", state_of(step, best)))
    record_evaluation(directory, step, {"step": new_best}, {}, keep=0)


def assert_whole_links(directory: Path) -> None:
    for name in ("last", "best"):
        assert (directory / name).is_dir() and find_damage(directory / name) is None, (directory, name)


def test_a_kill_at_any_moment_loses_neither_last_nor_best(tmp_path, accelerator):
    """Step 1 is the best, until step 3 is saved, evaluated and found to be better."""

    def before(directory):
        save_step(directory, accelerator, 1, best=0, new_best=1)
        save_step(directory, accelerator, 2, best=1, new_best=1)

    seen = set()
    act = lambda directory: save_step(directory, accelerator, 3, best=1, new_best=3)  # noqa: E731
    for directory in kill_everywhere(tmp_path, accelerator, before, act):
        assert_whole_links(directory)
        checkpoint = last_whole(directory, print)
        state = read_state(checkpoint)
        linked = (directory / "best").resolve().name
        seen.add((state["step"], state["evaluation_due"], state["best"]["step"], linked))
        point_links(checkpoint)  # what a resumed run does
        assert (directory / "best").resolve().name == f"step_{state['best']['step']:06d}"
        assert_whole_links(directory)
    assert seen == {
        (2, False, 1, "step_000001"),
        (3, True, 1, "step_000001"),
        (3, False, 3, "step_000001"),
        (3, False, 3, "step_000003"),
    }


def test_a_kill_while_steps_come_by_again_loses_neither(tmp_path, accelerator):
    """A run that goes on from step 1, although 2 and 3 were saved and 3 was the best."""

    def before(directory):
        save(directory, accelerator, 1, keep=9, write=lambda f: write_json(f / "state.json", state_of(1, 0)))
        record_evaluation(directory, 1, {"step": 1}, {}, keep=9)
        for step in (2, 3):
            save(directory, accelerator, step, keep=9, write=lambda f, s=step: write_json(f / "s.json", state_of(s, 1)))
            record_evaluation(directory, step, {"step": step}, {}, keep=9)

    def act(directory):
        point_links(directory / "step_000001")
        save_step(directory, accelerator, 2, best=1, new_best=2)

    for directory in kill_everywhere(tmp_path, accelerator, before, act):
        assert_whole_links(directory)


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
