"""Every way out of a training: a status, the reason on stderr, and nothing left running; in real processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

REPOSITORY = Path(__file__).parent.parent
LONGEST_END_S = 30


@dataclass
class Command:
    """A process in a group of its own, so that what it leaves behind can be found."""

    process: subprocess.Popen
    log: Path

    def text(self) -> str:
        return self.log.read_text()

    def members(self) -> set[int]:
        """Living processes of the group."""
        found = set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.process.pid and fields[0] != "Z":
                found.add(int(stat.parent.name))
        return found

    def wait_for(self, condition, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline and self.process.poll() is None, self.text()[-3000:]
            time.sleep(0.05)

    def ended(self, text: str, seconds: float = 120) -> int:
        """The status; the process and all that it started are gone within 30 s of `text` in the log."""
        deadline = time.monotonic() + seconds
        while text not in self.text() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.text()[-3000:]
            time.sleep(0.05)
        status = self.process.wait(timeout=LONGEST_END_S)
        assert text in self.text(), self.text()[-3000:]
        deadline = time.monotonic() + 10
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.members()
        return status


@pytest.fixture
def start(tmp_path):
    """Function from a command's words to the running Command."""
    started = []

    def begin(*words, **environment) -> Command:
        variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
        log = tmp_path / f"log_{len(started)}"
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                cwd=REPOSITORY,
                env=variables,
                stdout=file,
                stderr=file,
                start_new_session=True,
                # Whoever runs the tests in the background has them, and what they start, ignore Ctrl-C.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )
        started.append(Command(process, log))
        return started[-1]

    yield begin
    for command in started:
        for pid in command.members():
            os.kill(pid, signal.SIGKILL)
        command.process.wait()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture
def training(base, tmp_path):
    """Function from config groups to the words of a training with one data worker."""
    dataset = save_dataset(tmp_path / "data")

    def words(**groups) -> list:
        groups["data"] = {"num_workers": 1} | groups.get("data", {})
        config = tiny_config(tmp_path, base, dataset, **groups)
        return ["train.py", "--config", save_config(config, tmp_path / "config.json")]

    return words


def test_an_error_in_a_data_worker_ends_it_all(start, training):
    command = start(*training(vision={"max_row_tokens": 50}))
    assert command.ended("error: ") == 2
    assert "dataset.jsonl:" in command.text() and "Traceback" not in command.text()


@pytest.mark.slow
def test_an_error_in_a_step_ends_it_all(start, training, base, tmp_path):
    broken = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    next(weight for name, weight in weights.items() if "up_proj" in name).fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    command = start(*training(model={"path": str(broken)}))
    assert command.ended("error: ") == 2
    assert "loss is nan at step 1: " in command.text() and "Traceback" not in command.text()


def has_logged(run_dir: Path) -> bool:
    path = run_dir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def children_of(pid: int) -> list[int]:
    """Of all its threads."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # ended meanwhile
            found += [int(child) for child in children.read_text().split()]
    return sorted(found)


LONG = {"max_steps": 100_000, "log_every": 1}


@pytest.mark.slow
def test_a_deleted_picture_ends_it_all(start, training, tmp_path):
    command = start(*training(train=LONG))
    command.wait_for(lambda: has_logged(tmp_path / "runs" / "run"))
    for picture in (tmp_path / "data").glob("*.png"):
        picture.unlink()
    assert command.ended("error: ") == 2
    assert "dataset.jsonl:" in command.text() and "Traceback" not in command.text()


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_ends_it_all(start, training, tmp_path):
    command = start(*training(train=LONG))
    command.wait_for(lambda: has_logged(tmp_path / "runs" / "run"))
    os.kill(children_of(command.process.pid)[-1], signal.SIGKILL)
    assert command.ended("error: ") == 2
    assert "lower data.num_workers" in command.text() and "Traceback" not in command.text()


@pytest.mark.slow
def test_no_memory_is_one_line(start, training, tmp_path):
    import resource

    command = start(*training(train=LONG))
    command.wait_for(lambda: has_logged(tmp_path / "runs" / "run"))
    resource.prlimit(command.process.pid, resource.RLIMIT_AS, (1, 1))
    assert command.ended("error: ") == 2
    assert "out of memory" in command.text() and "Traceback" not in command.text()


@pytest.mark.slow
def test_a_second_interrupt_ends_it_at_once(start, training, tmp_path):
    command = start(*training(train=LONG | {"accumulation": 500}))
    command.wait_for(lambda: len(children_of(command.process.pid)) > 0 and "plan" in command.text())
    time.sleep(1)
    for _ in range(2):
        os.killpg(command.process.pid, signal.SIGINT)
        time.sleep(0.3)
    assert command.ended("interrupted: ") == 130


@pytest.mark.slow
def test_sigterm_while_an_error_is_handled(start, training, tmp_path):
    command = start(*training(train=LONG))
    command.wait_for(lambda: has_logged(tmp_path / "runs" / "run"))
    os.kill(children_of(command.process.pid)[-1], signal.SIGKILL)
    command.wait_for(lambda: "error: " in command.text())
    os.killpg(command.process.pid, signal.SIGTERM)
    assert command.ended("error: ") in (2, -signal.SIGTERM)


@pytest.mark.slow
def test_a_killed_trainer_leaves_no_worker(start, training, tmp_path):
    command = start(*training(train=LONG))
    command.wait_for(lambda: has_logged(tmp_path / "runs" / "run"))
    assert children_of(command.process.pid)
    os.kill(command.process.pid, signal.SIGKILL)
    assert command.ended("") == -signal.SIGKILL


def two_ranks() -> list[dict[str, str]]:
    """What tells two processes of each other without a launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


WAITING = """
import sys, time
from torch import distributed
from qwenvl_agent.command import command
from qwenvl_agent.training.ranks import ranks_ended_together

@command("")
@ranks_ended_together()
def main():
    distributed.init_process_group("gloo")
    distributed.barrier()
    if distributed.get_rank() == FAILING:
        raise ValueError("its rows are gone")
    time.sleep(600)  # as in a collective that notices nothing

sys.exit(main())
"""


@pytest.mark.parametrize("failing", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["rank 0", "rank 1"])
def test_a_rank_that_notices_nothing_is_ended_by_anothers_error(start, failing):
    code = WAITING.replace("FAILING", str(failing))
    commands = [start("-c", code, **variables) for variables in two_ranks()]
    assert commands[failing].ended(f"error: rank {failing}: its rows are gone") == 2
    assert commands[1 - failing].ended(f"error: rank {1 - failing}: another rank has ended (") == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [True, False], ids=["accelerate launch", "two processes"])
def test_an_error_in_one_rank_ends_the_other(start, training, tmp_path, launcher):
    words = training(train=LONG)
    if launcher:
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0]
        commands = [start(*launch, *words)]
    else:
        commands = [start(*words, **variables) for variables in two_ranks()]
    commands[0].wait_for(lambda: has_logged(tmp_path / "runs" / "run"))
    trainer = children_of(commands[0].process.pid)[1] if launcher else commands[1].process.pid
    os.kill(children_of(trainer)[-1], signal.SIGKILL)
    statuses = [command.ended("error: ") for command in commands]
    assert statuses == ([1] if launcher else [2, 2])
    text = "".join(command.text() for command in commands)
    assert re.search("error: rank 1: (a )?DataLoader worker", text)


RECORDING = ["--episodes", 100_000, "--workers", 2, "--out"]
SCRIPT, DISPATCHED = ["scripts/generate_oracle.py"], ["-m", "qwenvl_agent", "record"]


@pytest.mark.parametrize(
    ("program", "number", "status", "said"),
    [
        (SCRIPT, signal.SIGINT, 130, "interrupted: "),
        pytest.param(SCRIPT, signal.SIGTERM, 143, "ended by SIGTERM: ", marks=pytest.mark.slow),
        pytest.param(DISPATCHED, signal.SIGTERM, 143, "ended by SIGTERM: ", marks=pytest.mark.slow),
        pytest.param(SCRIPT, signal.SIGKILL, -signal.SIGKILL, "", marks=pytest.mark.slow),
    ],
)
def test_a_pool_of_processes_ends_with_its_command(start, tmp_path, program, number, status, said):
    command = start(*program, *RECORDING, tmp_path / "out")
    command.wait_for(lambda: len(list((tmp_path / "out").glob("images/*"))) > 20)
    command.wait_for(lambda: len(command.members()) >= 3)
    # Ctrl-C is of all of them.
    (os.killpg if number == signal.SIGINT else os.kill)(command.process.pid, number)
    assert command.ended(said) == status and "Traceback" not in command.text()


@pytest.mark.slow
def test_a_killed_process_of_a_pool_is_not_waited_for(start, tmp_path):
    command = start(*SCRIPT, *RECORDING, tmp_path / "out")
    command.wait_for(lambda: len(list((tmp_path / "out").glob("images/*"))) > 20)
    os.kill(children_of(command.process.pid)[-1], signal.SIGKILL)
    assert command.ended("error: a process that worked for this one was killed: ") == 2
    assert "Traceback" not in command.text()


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def descendants_of(pid: int) -> set[int]:
    found, new = set(), [pid]
    while new:
        new = [child for parent in new for child in children_of(parent)]
        found |= set(new)
    return found


@pytest.mark.browser
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_evaluation_in_a_browser_leaves_none(start, tmp_path, number):
    """Chromium is in a group of its own."""
    out = tmp_path / "out"
    words = ["--policy", "oracle", "--suite", "browser", "--episodes", 200, "--out", out, "--no-pictures"]
    command = start("eval.py", *words)
    records = out / "unfinished" / "records.jsonl"
    command.wait_for(lambda: records.exists() and records.read_bytes().count(b"\n") > 1)
    command.wait_for(lambda: len(descendants_of(command.process.pid)) > 3)
    others = descendants_of(command.process.pid)
    command.process.send_signal(number)
    said = {signal.SIGINT: "interrupted: ", signal.SIGTERM: "ended by SIGTERM: "}.get(number, "")
    assert command.ended(said) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(is_alive, others)):
        time.sleep(0.1)
    assert not [pid for pid in others if is_alive(pid)]
