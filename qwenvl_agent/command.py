"""How every command ends: with a status, and its reason on stderr.

    0    done
    2    what a user can change: one line, `error: value, consequence, remedy`
    1    a fault of this code: its traceback
    130  Ctrl-C; 143 SIGTERM

    @command("no result was written")
    def main(argv=None) -> int: ...

The rest of the code raises ValueError for what its own users cause; this module knows what any command can meet: disk,
memory, ports, packages that are not installed, data workers and other ranks that are gone. No torch here.
"""

import argparse
import errno
import functools
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NoReturn

LONGEST_END_S = 20
"""After an error SIGALRM ends the process, if threads or servers still hold it after that time."""

REMEDIES = {
    errno.ENOSPC: "the disk is full, so what was being written is not whole; make room or write elsewhere",
    errno.EDQUOT: "the quota is used up, so what was being written is not whole; make room or write elsewhere",
    errno.EROFS: "nothing can be written there; name a folder on another file system",
    errno.EACCES: "this user may not do that; correct the permissions or name another place",
    errno.EPERM: "this user may not do that; correct the permissions or name another place",
    errno.ENOENT: "there is nothing of that name; correct the path",
    errno.ENOTDIR: "part of that path is a file; correct the path",
    errno.EISDIR: "a folder is where a file is needed; correct the path",
    errno.EEXIST: "what is there would be lost; name another place",
    errno.ENAMETOOLONG: "no file can have that name; give a shorter one",
    errno.EADDRINUSE: "another process listens on that port; end it or choose another port",
    errno.EMFILE: "this process has too many files open; raise the limit (ulimit -n)",
    errno.EIO: "the disk fails, so what was read or written is not whole; look into the system's log",
}
OUT_OF_MEMORY = (
    "out of memory ({}): this process cannot go on; lower train.batch_size or eval.batch_size, "
    "vision.max_tokens_per_image or data.num_workers (qwenvl-agent plan says what a configuration needs)"
)
MEMORY = re.compile(r"out of memory|(can't|[Cc]annot) allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED")
FULL_DISK = re.compile(r"No space left on device|\bcode: 28\b|PytorchStreamWriter failed writing")
DEAD_WORKER = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by|exited unexpectedly)")
DEAD_PROCESS = re.compile(r"process pool (was terminated|is not usable)")
LOST_RANK = re.compile(r"gloo|NCCL|TCPStore|Connection (closed|reset) by peer|Broken pipe|Socket Timeout")
WORKERS_ERROR = re.compile(r"Caught (\w+) in DataLoader worker process")


in_charge: Callable | None = None
"""The command that is this whole process, if its module is not the one that was started."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever cleans up after Ctrl-C cleans up after it too."""


def bounded(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
    """`type` of an argparse argument: an int or float from `least` to `most`; NaN is none."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            limits = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text} means nothing here; use {limits}")
        return value

    parse.__name__ = kind.__name__  # what argparse calls the text that is no number
    return parse


class Parser(argparse.ArgumentParser):
    """Of a command: its module's docstring as it stands; `former` names of its options are still understood, and said."""

    def __init__(self, description: str | None, former: Mapping[str, str] = MappingProxyType({})):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.former = former

    def parse_known_args(self, args=None, namespace=None):
        given = list(sys.argv[1:] if args is None else args)
        for i, word in enumerate(given):
            name, equals, value = word.partition("=")
            if name in self.former:
                given[i] = f"{self.former[name]}{equals}{value}"
                print(f"note: {name} is {self.former[name]} now", file=sys.stderr)
        return super().parse_known_args(given, namespace)


def command(interrupted: str) -> Callable[[Callable[..., int | None]], Callable[..., int]]:
    """Decorator of a command's `main(argv)`; `interrupted`: what Ctrl-C has cost, unless the exception says it."""

    def decorate(main: Callable[..., int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        def framed(*args, **kwargs) -> int:
            is_process = framed is in_charge or main.__module__ == "__main__"  # and not a test that calls it
            if is_process and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                signal.signal(signal.SIGTERM, _terminate)  # whoever started us with it ignored answers it for us
            try:
                status = main(*args, **kwargs) or 0
                sys.stdout.flush()  # which may fail too, and would do so after the end
                return status
            except KeyboardInterrupt as error:
                if is_process:
                    limit_the_end()
                status = 143 if isinstance(error, Terminated) else 130
                say(f"{'ended by SIGTERM' if status == 143 else 'interrupted'}: {error if error.args else interrupted}")
            except Exception as error:
                if is_process:
                    limit_the_end()
                status, text = 2, reason(error)
                if text is None:
                    raise
                say(f"error: {rank()}{text}")
            return status

        return framed

    return decorate


def run_command(main: Callable[..., int]) -> NoReturn:
    """End this process with the status of `main`, a command of another module, which signals then end in its way."""
    global in_charge
    in_charge = main
    sys.exit(main())


def reason(error: Exception) -> str | None:
    """What a user can change, in one line; None for a fault of this code."""
    text = in_one_line(error)
    if isinstance(error, OSError):
        drop_output()
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or MEMORY.search(text):
        return OUT_OF_MEMORY.format(text[:200] or "MemoryError")
    if FULL_DISK.search(text):
        return f"{place(error)}{REMEDIES[errno.ENOSPC]}"
    if DEAD_WORKER.search(text) or came_through(error, "resource_sharer.py"):
        dead = text.rstrip(". ") if DEAD_WORKER.search(text) else "a DataLoader worker was killed with a batch in hand"
        return (
            f"{dead}: its rows are lost, so training cannot go on; if the kernel was short of memory (see "
            "dmesg), lower data.num_workers or train.batch_size; --resume goes on from the last checkpoint"
        )
    if DEAD_PROCESS.search(text):
        return (
            "a process that worked for this one was killed: what it had in hand is lost; if the kernel was short of memory "
            "(see dmesg), use fewer --workers"
        )
    if isinstance(error, OSError):
        return of_the_system(error, text)
    if isinstance(error, ValueError):
        return text
    if isinstance(error, RecursionError) and "JSON" in text:
        return "a JSON text that was given is nested too deep to be read: nothing was done with it; flatten it"
    if isinstance(error, ImportError) and not (error.name or "").startswith("qwenvl_agent"):
        return f"{text}: a package is missing or broken; install it, or leave out what asks for it"
    if is_of(error, "playwright"):
        return f"the browser failed ({text}): nothing more can be shown in it; start again"
    if is_of(error, "safetensors"):
        return f"a .safetensors file is damaged or cut off ({text}): its weights cannot be used; copy it again"
    if is_of(error, "subprocess"):
        return f"{text}: what it was to do is not done; its own output says why"
    if isinstance(error, RuntimeError) and int(os.environ.get("WORLD_SIZE", "1")) > 1 and LOST_RANK.search(text):
        return (
            f"another rank is gone ({text[:200]}): no step can be taken without it; its own message says why it ended"
        )
    return None


def in_one_line(error: Exception) -> str:
    """The error's text; of one that a data worker raised, without the worker's traceback."""
    text = str(error)
    found = WORKERS_ERROR.search(text)
    if found:
        head = re.compile(rf"^(?:[\w.]+\.)?{found[1]}: ", re.MULTILINE)
        text = text[[*head.finditer(text)][-1].end() :] if head.search(text) else text
    if is_of(error, "playwright"):
        text = text.strip().partition("\n")[0]  # then comes a drawing
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def of_the_system(error: OSError, text: str) -> str:
    if isinstance(error, BrokenPipeError):
        return "what reads this output has ended: the rest of it is not shown; leave it open"
    if error.errno is None:
        return text
    remedy = REMEDIES.get(error.errno, "the system refuses it; correct what it names")
    return f"{place(error)}{error.strerror}: {remedy}"


def drop_output() -> None:
    """If nothing can be written to it any more: Python would try once more at its end, and say so at length."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def place(error: Exception) -> str:
    name = getattr(error, "filename", None)
    return f"{name}: " if isinstance(name, str) else ""


def came_through(error: Exception, file: str) -> bool:
    return any(frame.filename.endswith(file) for frame in traceback.extract_tb(error.__traceback__))


def is_of(error: Exception, package: str) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(error).__mro__)


def rank() -> str:
    """`rank 1: ` where there are several."""
    return f"rank {os.environ.get('RANK', '0')}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def limit_the_end() -> None:
    """From here on signals end the process at once, and time does too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(LONGEST_END_S)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _terminate(number: int, frame) -> None:
    raise Terminated
