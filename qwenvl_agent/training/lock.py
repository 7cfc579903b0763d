"""One run at a time in a run's folder: a lock that rank 0's process holds while its run lives.

The lock's file lies beside the folder, as runs/.NAME.lock, because --overwrite deletes the folder. The system frees the
lock when the process ends, however it ends. It is a POSIX lock (`lockf`), not a `flock`: data workers are forked, and
would hold on to a flock after their trainer was killed. Between nodes it holds where the file system keeps locks for all
of them: NFSv4, or NFSv3 with lockd, but not a mount with `nolock` or `local_lock`.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_held: dict[Path, IO] = {}


def lock_run(run_dir: Path, say: Callable[[str], None]) -> None:
    """Hold the folder's lock until `locks_released` or the end of the process; ValueError if another process has it."""
    folder = run_dir.resolve()
    path = folder.with_name(f".{folder.name}.lock")
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(_describe_holder(run_dir, file)) from None
            say(
                f"{path}: no lock can be held there ({error.strerror}): a second run into {run_dir} will not be noticed"
            )
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder has just deleted it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _held[path] = file


def _describe_holder(run_dir: Path, file: IO) -> str:
    file.seek(0)
    holder = file.read() or "another process"
    return (
        f"{run_dir} belongs to a run that is alive ({holder}): two would write over each other's checkpoints; wait for "
        f"its end, stop it (touch {run_dir}/STOP), or use another name"
    )


@contextmanager
def locks_released() -> Iterator[None]:
    """On every way out the locks that were taken inside are free again."""
    before = set(_held)
    try:
        yield
    finally:
        for path in set(_held) - before:
            path.unlink(missing_ok=True)
            _held.pop(path).close()
