"""One rank's error ends the others: a rank that waits in a collective learns nothing of it by itself.

Gloo notices a closed connection; NCCL waits for the process group's timeout, hours. So a rank that ends with an error
says so in the store through which the ranks found each other, and a thread of each looks there.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import distributed

from qwenvl_agent.command import rank

LOOK_EVERY_S = 2.0
GRACE_S = 5.0
"""For an end of its own: the backend may have noticed too, and a rank that was done may be on its way out."""
KEY = "qwenvl_agent/failed"


@contextmanager
def ranks_ended_together() -> Iterator[None]:
    """An error in the block ends the process in which another rank runs it, within some seconds, with status 2."""
    is_over = threading.Event()
    threading.Thread(target=_watch, args=(is_over,), daemon=True).start()
    try:
        yield
    except BaseException as error:
        if distributed.is_initialized():
            with suppress(RuntimeError, ValueError):  # the rank that holds the store is gone too
                _store().set(KEY, f"{rank()}{str(error) or type(error).__name__}"[:300])
        raise
    finally:
        is_over.set()


def end_ranks() -> None:
    """Leave the process group, at the end of all that this process trains."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _watch(is_over: threading.Event) -> None:
    failure = ""
    while not failure:
        if is_over.wait(LOOK_EVERY_S):
            return
        failure = _failure() if distributed.is_initialized() else ""
    if not is_over.wait(GRACE_S):
        line = " ".join(failure.split())
        print(f"error: {rank()}another rank has ended ({line}): no step can be taken without it", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)


def _failure() -> str:
    """What a rank that failed has said; "" while all are well."""
    try:
        return _store().get(KEY).decode() if _store().check([KEY]) else ""
    except RuntimeError:
        return "the one that holds the store"
    except ValueError:  # the group is just being taken down
        return ""


def _store():
    return distributed.distributed_c10d._get_default_store()
