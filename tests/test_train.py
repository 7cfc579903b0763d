"""The loop, for real: a random tiny Qwen3-VL, a small dataset, every object as in a real run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config
from transformers import Qwen3VLForConditionalGeneration

import train
from qwenvl_agent.evaluation.suites import find_suite
from qwenvl_agent.training import evaluation, setup
from qwenvl_agent.training.best import is_better
from qwenvl_agent.training.lock import lock_run
from qwenvl_agent.training.stop import ASKING, StopRequest

REPOSITORY = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
CLOCKED = ("train/tokens_per_s", "train/data_wait_share")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(checkpoint, dataset.jsonl)"""
    directory = tmp_path_factory.mktemp("base")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")


@pytest.fixture
def configure(base, tmp_path):
    """Function from config groups to a Config whose runs lie in this test's folder."""
    return lambda **groups: tiny_config(tmp_path, *base, **groups)


def metrics_of(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in lines]


# ending


def test_patience_ends_a_run_that_gets_no_better(configure, capsys):
    """Without a learning rate the first evaluation, at step 2, stays the best."""
    settings = {"max_steps": 20, "learning_rate": 0.0, "eval_every": 2, "patience": 2}
    config = configure(model={"method": "full"}, train=settings)
    train.train(config)
    assert "no better evaluation since step 2: ended at step 6 of 20" in capsys.readouterr().out
    checkpoints = config.run_dir / "checkpoints"
    assert (checkpoints / "last").resolve().name == "step_000006"
    assert (checkpoints / "best").resolve().name == "step_000002"
    train.train(config, resume=True)  # is at its end
    assert (checkpoints / "last").resolve().name == "step_000006"


def test_an_evaluation_in_which_nothing_could_be_played_never_becomes_best():
    played, failed = {"rollout/success_rate": 0.0, "rollout/error_rate": 0.5}, {"rollout/error_rate": 1.0}
    safari = find_suite("safari")
    assert is_better(played, {}, safari) and not is_better(failed, {}, safari) and not is_better({}, {}, safari)
    assert is_better(played | {"rollout/success_rate": 0.1}, played, safari) and not is_better(played, played, safari)


# resuming


class CrashError(Exception):
    """An end that saves nothing."""


def interrupted_after(num_steps: int, *, by_crash: bool):
    """A StopRequest class that stops, or crashes, when it is asked for the `num_steps`-th time."""

    class Interrupted(StopRequest):
        num_asked = 0

        def is_set(self) -> bool:
            self.num_asked += 1
            if by_crash and self.num_asked == num_steps:
                raise CrashError
            return self.num_asked >= num_steps

    return Interrupted


RESUME = {
    "model": {"lora_dropout": 0.3, "gradient_checkpointing": True},
    "data": {"num_workers": 1},
    # 19 rows in steps of 4: step 5 begins the second epoch. A window of 4 log steps is cut at every place.
    "train": {"max_steps": 8, "log_every": 4, "eval_every": 3, "save_every": 2, "keep_checkpoints": 9},
}


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("whole"), *base, **RESUME)
    train.train(config)
    return config.run_dir


def crashing_at(name: str, num_calls: int):
    """`training.evaluation`'s function of that name, which is the end of the run when it is called for the `num_calls`-th time."""
    whole, calls = getattr(evaluation, name), []

    def crash(*args, **kwargs):
        calls.append(name)
        if len(calls) == num_calls:
            raise CrashError
        return whole(*args, **kwargs)

    return crash


INTERRUPTIONS = {
    "stopped mid-epoch": ({"StopRequest": lambda: interrupted_after(1, by_crash=False)}, 1),
    "stopped where an evaluation is due": ({"StopRequest": lambda: interrupted_after(3, by_crash=False)}, 3),
    "crashed between checkpoints": ({"StopRequest": lambda: interrupted_after(5, by_crash=True)}, 4),
    "crashed in an evaluation": ({"evaluate": lambda: crashing_at("evaluate", 1)}, 3),
    "crashed before an evaluation was noted": ({"record_evaluation": lambda: crashing_at("record_evaluation", 1)}, 3),
    "crashed in the last evaluation": ({"evaluate": lambda: crashing_at("evaluate", 3)}, 8),
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(configure, uninterrupted, monkeypatch, interruption):
    config, (changes, saved_step) = configure(**RESUME), INTERRUPTIONS[interruption]
    with monkeypatch.context() as patch:
        for name, change in changes.items():
            patch.setattr(setup if name == "StopRequest" else evaluation, name, change())
        try:
            train.train(config)
            assert "stopped" in interruption
        except CrashError:
            assert "crashed" in interruption
    last = config.run_dir / "checkpoints" / "last"
    assert last.resolve().name == f"step_{saved_step:06d}"
    torch.rand(7)  # a new process would have other random numbers
    train.train(config, resume=True)
    assert metrics_of(config.run_dir) == metrics_of(uninterrupted)
    whole = uninterrupted / "checkpoints" / "last"
    assert last.resolve().name == whole.resolve().name == "step_000008"
    for name in ("model/adapter_model.safetensors", "optimizer.safetensors"):
        ours, expected = load_file(last / name), load_file(whole / name)
        assert ours.keys() == expected.keys() and all(torch.equal(ours[key], expected[key]) for key in expected), name
    for name in ("state.json", "rank_0.json", "evaluation.json"):
        ours, expected = (json.loads((folder / name).read_text()) for folder in (last, whole))
        assert {k: v for k, v in ours.items() if k != "means"} == {k: v for k, v in expected.items() if k != "means"}
    best = [folder / "checkpoints" / "best" for folder in (config.run_dir, uninterrupted)]
    assert best[0].resolve().name == best[1].resolve().name


def test_dropout_is_on_in_those_runs(configure, uninterrupted):
    """Else the equality above would say nothing about random numbers."""
    config = configure(**(RESUME | {"model": {"lora_dropout": 0.0}}))
    train.train(config)
    assert metrics_of(config.run_dir)[0] != metrics_of(uninterrupted)[0]


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_other_methods_resume_too(configure, monkeypatch, method, tmp_path):
    groups = {"model": {"method": method, "autocast": True, "dtype": "bfloat16"}, "train": {"max_steps": 4}}
    whole, config = configure(name="whole", **groups), configure(**groups)
    train.train(whole)
    with monkeypatch.context() as patch:
        patch.setattr(setup, "StopRequest", interrupted_after(2, by_crash=False))
        train.train(config)
    train.train(config, resume=True)
    assert metrics_of(config.run_dir) == metrics_of(whole.run_dir)


@pytest.mark.slow
def test_a_kill_in_an_evaluation_costs_only_that(configure, tmp_path):
    groups = {"train": {"max_steps": 2}, "eval": {"max_new_tokens": 300}}
    whole, config = configure(name="whole", **groups), configure(**groups)
    train.train(whole)
    command = [sys.executable, str(REPOSITORY / "train.py"), "--config", str(save_config(config, tmp_path / "c.json"))]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: (config.run_dir / "checkpoints" / "last").exists())
        process.kill()
    saved = config.run_dir / "checkpoints" / "step_000002"
    assert not (saved / "evaluation.json").exists() and len(metrics_of(config.run_dir)) == 2
    metrics = train.train(config, resume=True)
    assert metrics_of(config.run_dir) == metrics_of(whole.run_dir) and len(metrics_of(config.run_dir)) == 3
    assert json.loads((saved / "evaluation.json").read_text())["metrics"] == metrics
    assert (config.run_dir / "checkpoints" / "best").resolve() == saved.resolve()


def test_resuming_on_other_data_is_refused_unless_accepted(base, tmp_path, capsys):
    dataset = save_dataset(tmp_path / "data")
    config = tiny_config(tmp_path, base[0], dataset, train={"max_steps": 1})
    train.train(config)
    lines = dataset.read_text().splitlines(keepends=True)
    dataset.write_text("".join(lines[:-4]))
    longer = tiny_config(tmp_path, base[0], dataset, train={"max_steps": 2})
    with pytest.raises(ValueError, match="the data's hash is .* in the checkpoint.*--resume --accept-changes"):
        train.train(longer, resume=True)
    train.train(longer, resume=True, accept_changes=True)
    assert (config.run_dir / "checkpoints" / "last").resolve().name == "step_000002"


# one run to a folder, and starts that come to nothing


@pytest.mark.parametrize("flag", [None, "--resume", "--overwrite"])
def test_a_second_run_is_refused_while_the_first_lives(configure, tmp_path, capsys, flag):
    config = configure()
    path = save_config(config, tmp_path / "config.json")
    code = (
        "import sys, pathlib; from qwenvl_agent.training.lock import lock_run; "
        "lock_run(pathlib.Path(sys.argv[1]), print); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(config.run_dir)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"locked\n"
        config.run_dir.mkdir()
        (config.run_dir / "mine").touch()
        assert train.main(["--config", str(path), *([flag] if flag else [])]) == 2
        error = capsys.readouterr().err
        assert f"belongs to a run that is alive (process {first.pid} on " in error and error.count("\n") == 1
        assert [entry.name for entry in config.run_dir.iterdir()] == ["mine"]
        first.kill()
    lock_run(config.run_dir, print)  # a kill has freed it


def test_a_start_that_failed_is_in_nobodys_way(configure, tmp_path):
    config = configure(train={"max_steps": 1}, eval={"step_rows": 0})
    path = str(save_config(config, tmp_path / "config.json"))
    wrong = ["--set", 'data.sources=[{"path": "no/such.jsonl", "kind": "chat"}]']
    assert train.main(["--config", path, *wrong]) == 2
    assert (config.run_dir / "config.json").exists()
    assert train.main(["--config", path, "--set", "model.path=no/such"]) == 2
    assert train.main(["--config", path]) == 0
    assert not list(config.run_dir.parent.glob(".*"))
    assert train.main(["--config", path]) == 2  # now there is something to lose


# stopping


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def has_logged(run_dir: Path) -> bool:
    path = run_dir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def saved_step(run_dir: Path) -> int:
    return json.loads((run_dir / "checkpoints" / "last" / "state.json").read_text())["step"]


def test_a_stop_file_saves_and_ends(configure):
    config = configure(train={"max_steps": 500})

    def touch():
        wait_for(lambda: has_logged(config.run_dir))
        (config.run_dir / "STOP").touch()

    thread = threading.Thread(target=touch)
    thread.start()
    train.train(config)
    thread.join()
    assert saved_step(config.run_dir) == len(metrics_of(config.run_dir)) < 500


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("launcher", [True, False], ids=["launcher", "trainer"])
def test_sigterm_saves_and_ends_whoever_gets_it(configure, tmp_path, launcher):
    config = configure(train={"max_steps": 2000}, data={"num_workers": 1})
    path = save_config(config, tmp_path / "config.json")
    command = [*(LAUNCH if launcher else [sys.executable]), str(REPOSITORY / "train.py"), "--config", str(path)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    wait_for(lambda: has_logged(config.run_dir) or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
    trainer = children_of(process.pid)[0] if launcher else process.pid
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=60)
    wait_for(lambda: not Path(f"/proc/{trainer}").exists(), seconds=60)
    assert launcher or status == 0
    assert saved_step(config.run_dir) == len(metrics_of(config.run_dir)) < 2000
    assert "--resume goes on" in (tmp_path / "log").read_text()


def test_a_stop_request_knows_file_launcher_and_owner(tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    stop = StopRequest(tmp_path)
    assert not stop.is_set()
    stop.launcher = os.getppid() + 1  # as if it had died and another process had adopted this one
    assert stop.is_set()
    stop.launcher = None
    stop.owner += 1  # as in a forked data worker
    stop._handle(signal.SIGTERM, None)
    assert not stop.is_set()
    stop.path.touch()
    assert stop.is_set()


@pytest.mark.parametrize("number", ASKING)
def test_what_asks_a_training_to_end_is_a_request_to_stop(tmp_path, number):
    before = {asking: signal.getsignal(asking) for asking in ASKING}
    stop = StopRequest(tmp_path)
    stop.install()
    try:
        os.kill(os.getpid(), number)
        assert stop.is_set()
    finally:
        for asking, handler in before.items():
            signal.signal(asking, handler)


# what is written


def test_reports(configure):
    config = configure(train={"max_steps": 2, "log_every": 1})
    metrics = train.train(config)
    first, second, evaluation = metrics_of(config.run_dir)
    assert (first["step"], second["step"], evaluation["step"]) == (1, 2, 2)
    for tag in ("loss", "loss_part/thought", "loss_part/call", "loss_part/end", "loss_tool/move", "gradient_norm"):
        assert first[f"train/{tag}"] > 0, tag
    assert 0 <= first["train/padding_share"] < 1 and first["train/epoch"] == pytest.approx(4 / 19)
    assert evaluation == {"step": 2, **metrics} and metrics["eval/token_loss/all"] > 0
    board = EventAccumulator(str(config.run_dir / "tensorboard")).Reload()
    assert {*CLOCKED, "train/learning_rate", "eval/token_loss/all"} <= set(board.Tags()["scalars"])
    assert "answers/0" in board.Tags()["images"]
    texts = [tag for tag in board.Tags()["tensors"] if tag.startswith("answers/0")]
    assert texts and b"--- truth" in board.Tensors(texts[0])[0].tensor_proto.string_val[0]
    assert (config.run_dir / "manifest.json").exists() and (config.run_dir / "data.json").exists()


def test_the_logged_loss_is_the_mean_over_all_tokens(configure):
    """Parts weighted by their tokens give the whole: 3 parts, one rank, weights of one."""
    config = configure(train={"max_steps": 1})
    train.train(config)
    line = metrics_of(config.run_dir)[0]
    parts = [line[f"train/loss_part/{part}"] for part in ("thought", "call", "end")]
    assert min(parts) < line["train/loss"] < max(parts)


def test_a_model_learns_what_it_is_shown(configure):
    """Untrained, the loss is that of a guess among 320 tokens: 5.8."""
    config = configure(
        model={"method": "full"},
        train={"max_steps": 40, "learning_rate": 5e-3, "batch_size": 4, "accumulation": 1, "log_every": 40},
    )
    metrics = train.train(config)
    assert metrics["eval/token_loss/all"] < 1.5


# mistakes


def test_a_non_finite_loss_names_the_rows_and_takes_no_step(configure, base, tmp_path):
    model = Qwen3VLForConditionalGeneration.from_pretrained(base[0])
    model.model.language_model.layers[0].mlp.up_proj.weight.data.fill_(float("nan"))
    for file in base[0].iterdir():
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"loss is nan at step 1: .*row\d+#\d+/0 \(.*dataset.jsonl:\d+\)"):
        train.train(configure(model={"path": str(tmp_path / "broken")}))


def test_a_users_mistake_is_one_line_and_status_2(configure, tmp_path, capsys):
    path = str(save_config(configure(), tmp_path / "config.json"))
    assert train.main(["--config", path, "--set", "train.lr=1"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown key 'train.lr'")
    assert train.main(["--config", path, "--set", 'data.sources=[{"path": "no/such.jsonl", "kind": "chat"}]']) == 2
    assert "no/such.jsonl: there is no such file" in capsys.readouterr().err
    # A row that a data worker finds to be over the budget: its place in the file, not the worker's traceback.
    options = ["--overwrite", "--set", "data.num_workers=1", "--set", "vision.max_row_tokens=50"]
    assert train.main(["--config", path, *options]) == 2
    error = capsys.readouterr().err
    assert "dataset.jsonl:" in error and "vision.max_row_tokens is 50" in error and error.count("\n") == 1


def test_settings_without_a_token_to_learn_are_refused(configure):
    with pytest.raises(ValueError, match="nothing to learn"):
        train.train(configure(train={"weight_thought": 0.0, "weight_call": 0.0}))


# the promise


def test_the_2b_config_takes_two_qlora_steps_on_a_cpu(base, tmp_path):
    checkpoint, dataset = base
    settings = {
        "model.path": checkpoint,
        "runs_dir": tmp_path,
        "data.sources": json.dumps([{"path": str(dataset), "kind": "chat"}]),
        "data.cache_dir": tmp_path / "cache",
        "vision.tiles": 0,
        "train.max_steps": 2,
        "train.log_every": 1,
        "eval.suite": "none",
        "eval.step_rows": 2,
        "eval.max_new_tokens": 4,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [*LAUNCH, str(REPOSITORY / "train.py"), "--config", str(REPOSITORY / "configs" / "safari_2b.json")]
    done = subprocess.run([*command, *overrides], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    run_dir = tmp_path / "safari_2b"
    entries = json.loads((run_dir / "manifest.json").read_text())
    assert sum(e["dtype"] == "uint8" for e in entries) == 14 and sum(e["trainable"] for e in entries) == 28
    losses = [line["train/loss"] for line in metrics_of(run_dir) if "train/loss" in line]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert (run_dir / "checkpoints" / "last" / "model" / "adapter_model.safetensors").exists()
