"""What a worker process of the benchmarks needs, ours or a peer's: requests on stdin, answers on stdout, meters.

Standard library only, because peers have environments of their own; where torch is loaded and has a GPU, meters are the
GPU's.
"""

import ctypes
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

CLEAR_PEAK = "5"
"""Written to /proc/self/clear_refs, this sets VmHWM back to the present resident memory (proc(5))."""


def claim_stdout() -> TextIO:
    """Stdout for the caller alone: what anything else prints goes to stderr from now on."""
    claimed = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return claimed


def serve(commands: Mapping[str, Callable[..., dict]], answers: TextIO | None = None) -> None:
    """Answer requests, one JSON object a line, until stdin ends: {"command": name, ...} -> that function's result.

    What libraries print goes to stderr, or did already where `answers` is a claimed stdout. An error is an answer too:
    {"error": traceback}.
    """
    answers = answers or claim_stdout()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = commands[request.pop("command")](**request)
        except Exception:
            answer = {"error": traceback.format_exc()}
        give_back_memory()  # the others need it, while this one waits
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


@contextmanager
def measured() -> Iterator[dict]:
    """Fills the yielded dict at the end: seconds, wall_s, cpu_s (of all threads) and, in bytes, peak and growth of memory.

    `seconds` are those that count: of the CPU, whatever else the machine does; on a GPU of the wall, when all that was
    started there is done. Memory is the process's, on a GPU that of its tensors. `growth` is the peak above what was
    held at the start, after the allocator has given back what it held for nothing.
    """
    figures: dict = {}
    give_back_memory()
    held = reset_peak()
    start, wall, cpu = clock(), time.perf_counter(), time.process_time()
    yield figures
    figures["seconds"] = clock() - start
    figures["wall_s"], figures["cpu_s"] = time.perf_counter() - wall, time.process_time() - cpu
    figures["peak"] = cuda().max_memory_allocated() if cuda() else status_bytes("VmHWM")
    figures["growth"] = figures["peak"] - held


def clock() -> float:
    """Seconds that count, see `measured`."""
    if cuda():
        cuda().synchronize()
        return time.perf_counter()
    return time.process_time()


def cuda():
    """The module torch.cuda, if there is a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() else None


def reset_peak() -> int:
    """Let the peak be counted from now on; the bytes held now."""
    if cuda():
        cuda().reset_peak_memory_stats()
        return cuda().memory_allocated()
    Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
    return status_bytes("VmRSS")


def give_back_memory() -> None:
    """What the allocator holds for nothing."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def status_bytes(key: str) -> int:
    """A memory figure of this process, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {key} in /proc/self/status")


def anonymous_bytes() -> int:
    """Memory that cannot be dropped: no file stands behind it."""
    return status_bytes("RssAnon")
