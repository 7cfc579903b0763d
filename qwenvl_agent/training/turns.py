"""Work that the first rank does for all of them, however long it takes: the others wait outside of collectives.

A collective has a time limit (ten minutes with NCCL), and indexing of some million rows passes it. Here who waits looks
into the process group's store, to which who works says every few seconds that it is alive.
"""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed
from accelerate import Accelerator, PartialState
from torch.distributed import distributed_c10d

Made = TypeVar("Made")

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 60.0
"""Who says nothing for so long is taken to be dead."""
LOG_SECONDS = 60.0
"""Between two lines about the wait."""
_turns = itertools.count()
"""All ranks take the same turns, and the store forgets none."""


def in_turns(accelerator: Accelerator | PartialState, what: str, make: Callable[[], Made]) -> Made:
    """What `make` gives on every rank: made by the first rank, then by the first of each other node (which finds it in a
    shared folder, or makes it for its node), then by the others; all go on together. `what` is done, in words ("the data
    is indexed").

    ValueError on the other ranks if one fails or dies meanwhile; within SILENCE_SECONDS.
    """
    if not torch.distributed.is_initialized():
        return make()
    store, rank, turn = distributed_c10d._get_default_store(), accelerator.process_index, next(_turns)
    first_of_node = rank - accelerator.local_process_index
    with _telling(store, f"turn {turn}/{rank}"):
        if rank:
            _wait(store, turn, 0 if rank == first_of_node else first_of_node, what)
        made = make()
    for other in range(accelerator.num_processes):
        _wait(store, turn, other, what)
    return made


@contextmanager
def _telling(store: torch.distributed.Store, key: str) -> Iterator[None]:
    """Tell who waits that this rank is alive, and how the block ended."""
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(BEAT_SECONDS):
            store.add(f"{key}/beats", 1)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        store.set(f"{key}/end", f"failed: {type(error).__name__}: {error}")
        raise
    else:
        store.set(f"{key}/end", "done")
    finally:
        is_over.set()
        thread.join()


def _wait(store: torch.distributed.Store, turn: int, leader: int, what: str) -> None:
    key, beats, heard = f"turn {turn}/{leader}", 0, time.monotonic()
    said = heard
    while True:
        try:
            if store.check([f"{key}/end"]):
                break
            beats, before = store.add(f"{key}/beats", 0), beats
        except RuntimeError as error:  # the store lies in the first rank's process or in the launcher
            raise ValueError(
                f"rank {leader} is gone before {what}: nothing can be trained; see its own error"
            ) from error
        now = time.monotonic()
        heard = heard if beats == before else now
        if now - heard > SILENCE_SECONDS:
            raise ValueError(
                f"rank {leader} said nothing for {SILENCE_SECONDS:.0f} s before {what}: it is dead or stopped, and nothing can "
                "be trained; see its own error"
            )
        if now - said > LOG_SECONDS:
            said = now
            print(f"waiting until {what} by rank {leader}", file=sys.stderr)
        time.sleep(min(0.2, BEAT_SECONDS))
    end = store.get(f"{key}/end").decode()
    if end != "done":
        raise ValueError(f"rank {leader} ended before {what}: {end.removeprefix('failed: ')}")
