"""A request to stop between two steps: a STOP file in the run folder, a signal, or the launcher's death.

All of them end in the file, so a batch script's trap, a person's `touch` and a handler need not know each other.
Signals alone would not do: a killed `accelerate launch` forwards nothing and leaves the trainer running.
"""

import os
import signal
from pathlib import Path


class StopRequest:
    """Watches for a stop; `is_set` is one rank's view, which the loop must share with the others."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / "STOP"
        self.owner = os.getpid()
        # A process that a launcher started ends with it; one started from a shell may outlive the shell.
        self.launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    def install(self) -> None:
        """Turn SIGTERM and SIGINT into the file; a second SIGINT interrupts at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self.owner:
            return  # a worker that was forked with this handler
        self.path.touch()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def is_set(self) -> bool:
        return self.path.exists() or (self.launcher is not None and os.getppid() != self.launcher)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
