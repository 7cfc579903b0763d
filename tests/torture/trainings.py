"""Small trainings in processes that cost no start: each is forked from one that has imported all that train.py imports.

What a fork changes: the imports are done, and the C library is the one that was preloaded. It is a process of its own all
the same, in a group of its own, with train.py's `main` as its command, its own log, environment and signals; nothing of torch
has run before. Two of them are two ranks, as two processes are without a launcher.

    trainings = Trainings(scratch)
    with trainings.warm() as warm:
        child = warm.start(["--config", path], log, strike=Strike(folder, nth=7, signal=SIGKILL))
        status = warm.wait(child)
"""

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
LONGEST_S = 600
"""That a training here may take, seconds as they are on a busy machine."""


@dataclass(frozen=True)
class Strike:
    """When and how a training is hit. By the number of its file operations, or of its forward passes."""

    folder: str = ""
    """Whose files count."""
    nth: int = 0
    """File operation, from 1; 0: none of them."""
    signal: int = 0
    error: int = 0
    """In place of a signal: from the nth operation on all fail with this errno."""
    delay_us: int = 0
    log: str = ""
    """Gets a line for each operation: `s` where it is one of saving, else `-`."""
    forward: int = 0
    """In place of nth: forward pass, from 1."""
    training: bool = True
    """Whether forward passes of training are meant, or those of evaluations."""
    worker: bool = False
    """Whether the signal goes to one of the trainer's data workers."""


@dataclass(frozen=True)
class Poison:
    """What is wrong with one forward pass of a training, and what it makes of the numbers."""

    forward: int
    """From 1."""
    factor: str
    """nan, inf, or a number: the losses of all tokens are multiplied by it."""
    in_gradient: bool = False
    """Added to the gradient of one parameter instead."""
    log: str = ""
    """Gets the ids of the rows that the pass was of."""


def build_library(scratch: Path) -> Path:
    """file_operations.c, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise ValueError("no C compiler (cc, gcc): file operations cannot be struck at; install one (make system)")
    path = scratch / "file_operations.so"
    if not path.exists():
        words = [compiler, "-O1", "-shared", "-fPIC", "-o", str(path), str(FOLDER / "file_operations.c"), "-ldl"]
        subprocess.run(words, check=True)
    return path


class Warm:
    """The process that trainings are forked from."""

    def __init__(self, library: Path):
        words = [sys.executable, "-P", str(Path(__file__).resolve()), str(library)]
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # As in a set of names, whose order is in adapter_config.json.
        environment |= {"DS_ACCELERATOR": "cpu", "PYTHONHASHSEED": "0"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        self.ended: dict[int, int] = {}
        # One thread that is Python's; that of pyarrow's allocator is begun anew in a fork.
        assert self._read()["ready"] <= 2

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        assert line, "the process that trainings are forked from has ended"
        return json.loads(line)

    def start(self, argv: Sequence[str], log: Path, harm: Strike | Poison | None = None, **environment: str) -> int:
        """Its process id, which is also its group's."""
        order = {"argv": list(map(str, argv)), "log": str(log), "environment": environment}
        harms = {type(harm).__name__: asdict(harm)} if harm else {}
        print(json.dumps(order | {"harms": harms}), file=self.process.stdin, flush=True)
        while True:
            answer = self._read()
            if "started" in answer:
                # Its number may have been another training's, whose end is not this one's.
                self.ended.pop(answer["started"], None)
                return answer["started"]
            self.ended[answer["ended"]] = answer["status"]

    def is_over(self, pid: int) -> bool:
        while select.select([self.process.stdout], [], [], 0)[0]:
            answer = self._read()
            self.ended[answer["ended"]] = answer["status"]
        return pid in self.ended

    def wait(self, pid: int, seconds: float = LONGEST_S) -> int | None:
        """Its status, negative for a signal; None if it does not end, after which it is killed."""
        deadline = time.monotonic() + seconds
        while pid not in self.ended:
            if time.monotonic() > deadline:
                kill_group(pid)
                return None
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                answer = self._read()
                self.ended[answer["ended"]] = answer["status"]
        return self.ended[pid]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def warm_process(scratch: Path) -> Iterator[Warm]:
    warm = Warm(build_library(scratch))
    try:
        yield warm
    finally:
        warm.close()


def members(group: int) -> set[int]:
    """Living processes of a group."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.add(int(stat.parent.name))
    return found


def is_gone(group: int, seconds: float = 60) -> bool:
    """Whether all processes of the group end within that time."""
    deadline = time.monotonic() + seconds
    while members(group):
        if time.monotonic() > deadline:
            kill_group(group)
            return False
        time.sleep(0.1)
    return True


def kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def two_ranks() -> list[dict[str, str]]:
    """What tells two processes of each other without a launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


# the process that is forked from


def serve(library: str) -> None:
    sys.path.insert(0, str(ROOT))
    warm_up()
    print(json.dumps({"ready": len(os.listdir("/proc/self/task"))}), flush=True)
    pending = b""
    while True:
        if select.select([0], [], [], 0.02)[0]:
            pending += (read := os.read(0, 1 << 16))
            if not read:
                return
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            order = json.loads(line)
            pid = os.fork()
            if not pid:
                become_training(order, library)
            print(json.dumps({"started": pid}), flush=True)
        with suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                print(json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status)}), flush=True)


def warm_up() -> None:
    """Import what a training imports in its course."""
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration  # noqa: F401

    import train  # noqa: F401


def become_training(order: dict, library: str) -> None:
    """In the fork: train.py's process from here on."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    if "Strike" in order["harms"]:
        arm(Strike(**order["harms"]["Strike"]), library)
    if "Poison" in order["harms"]:
        poison(Poison(**order["harms"]["Poison"]))
    import train
    from qwenvl_agent.command import run_command

    status = 1
    sys.argv = ["train.py", *order["argv"]]
    try:
        run_command(train.main)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    end_of_interpreter(status)


def end_of_interpreter(status: int) -> None:
    """As at the end of a program: threads are waited for, what was registered is called."""
    import atexit
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def arm(strike: Strike, library: str) -> None:
    if strike.forward:
        strike_at_forward(strike)
    else:
        c = ctypes.CDLL(library)
        log = strike.log.encode() or None
        c.torture_arm(
            strike.folder.encode(),
            ctypes.c_long(strike.nth),
            strike.signal,
            strike.error,
            ctypes.c_long(strike.delay_us),
            log,
        )


def strike_at_forward(strike: Strike) -> None:
    from torch.nn.modules.module import register_module_forward_pre_hook

    owner, seen = os.getpid(), 0

    def count(module, _) -> None:
        nonlocal seen
        is_model = type(module).__name__.endswith("ForConditionalGeneration") and os.getpid() == owner
        if not is_model or module.training != strike.training:
            return
        seen += 1
        if strike.log:
            with open(strike.log, "a") as file:
                file.write("t\n" if module.training else "e\n")
        if seen == strike.forward:
            os.kill(child_of(owner) if strike.worker else owner, strike.signal)

    register_module_forward_pre_hook(count)


def poison(harm: Poison) -> None:
    """The losses, or the gradient of one trained parameter, of one forward pass."""
    import torch
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    seen, ids, models = 0, [], []

    def look(module, inputs) -> None:
        if type(module).__name__.endswith("ForConditionalGeneration"):
            models[:] = [module]
        elif isinstance(module, torch.nn.Embedding) and inputs and inputs[0].dim() == 2:
            ids[:] = inputs[0].flatten().tolist()

    def spoil(module, inputs, losses):
        nonlocal seen
        if type(module).__name__ != "Head" or not module.training or module.targets is None:
            return None
        seen += 1
        if seen != harm.forward:
            return None
        Path(harm.log).write_text(json.dumps(ids))
        if not harm.in_gradient:
            return losses * float(harm.factor)
        trained = [parameter for parameter in models[0].parameters() if parameter.requires_grad]
        once(trained[len(trained) // 2], float(harm.factor))
        return None

    def once(parameter, amount: float) -> None:
        handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient + amount)[1])

    register_module_forward_pre_hook(look)
    register_module_forward_hook(spoil)


def child_of(pid: int) -> int:
    """The last of its data workers."""
    import multiprocessing

    return max(child.pid for child in multiprocessing.active_children())


if __name__ == "__main__":
    serve(sys.argv[1])
