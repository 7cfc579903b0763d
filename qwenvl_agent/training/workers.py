"""The processes that read data ahead of the training loop, from their start to their certain end.

They ignore SIGTERM, SIGINT and SIGUSR1, which a terminal or Slurm sends to the whole process group and which are the trainer's
to answer: it finishes its step and saves, and needs them until then. So nothing but the trainer ends them, and it has
to, or it waits for them at its own end for ever. (Torch's workers look every 5 s whether the trainer still lives.)
"""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from qwenvl_agent.processes import kill
from qwenvl_agent.training.stop import ASKING


@contextmanager
def workers_ended() -> Iterator[None]:
    """On every way out the workers that were started inside are gone, and signals are answered as before."""
    before = set(multiprocessing.active_children())
    handlers = {number: signal.getsignal(number) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        left = set(multiprocessing.active_children()) - before
        if left:  # torch would take each death for another error
            answer = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            kill(left)
            signal.signal(signal.SIGCHLD, answer)


def ignore_signals(_worker: int) -> None:
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
