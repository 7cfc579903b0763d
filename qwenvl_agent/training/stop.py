"""A request to stop between two steps: a STOP file in the folder of the run or of its curriculum, a signal, or the
launcher's death.

All of them end in the file, so a batch script's trap, a person's `touch` and a handler need not know each other.
Signals alone would not do: a killed `accelerate launch` forwards nothing and leaves the trainer running.
"""

import os
import signal
from pathlib import Path

import torch
from accelerate import Accelerator

from qwenvl_agent.training.checkpoint import curriculum_of

STOP = "STOP"
"""The file's name."""
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask a training to save and end; SIGUSR1 is a scheduler's warning ahead of its time limit."""


class StopRequest:
    """Watches for a stop; `is_set` is one rank's view, `is_agreed` that of all ranks.

    One rank stops after the step in which it was asked. Several have to stop after the same step, and the host must not
    wait for the device to learn of it: `share`, before a step, sends each rank's view along with the step's work, and the
    answer is there before the step is. So several ranks stop after the step in which they were asked or after the next.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator | None = None):
        """`accelerator` None: there is one rank."""
        self.path = run_dir / STOP
        curriculum = curriculum_of(run_dir)
        self.paths = [self.path, curriculum / STOP] if curriculum else [self.path]
        self.accelerator = accelerator if accelerator and accelerator.num_processes > 1 else None
        self.owner = os.getpid()
        # A process that a launcher started ends with it; one started from a shell may outlive the shell.
        self.launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    def install(self) -> None:
        """Turn signals into the file; a second SIGINT interrupts at once."""
        for number in ASKING:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self.owner:
            return  # a worker that was forked with this handler
        self.path.touch()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def is_set(self) -> bool:
        return any(path.exists() for path in self.paths) or (
            self.launcher is not None and os.getppid() != self.launcher
        )

    def share(self) -> None:
        """Ask all ranks, which all call this; nobody waits for the answer."""
        if not self.accelerator:
            return
        device = self.accelerator.device
        flag = torch.full((), float(self.is_set()), device=device)
        self._answer = torch.empty((), pin_memory=device.type == "cuda")
        self._answer.copy_(self.accelerator.reduce(flag, "sum"), non_blocking=True)
        self._arrival = torch.cuda.Event() if device.type == "cuda" else None
        if self._arrival:
            self._arrival.record()

    def is_agreed(self) -> bool:
        """Whether any rank was asked to stop, the same on all of them: by the views of the last `share`, or of now if this
        is the only rank."""
        if not self.accelerator:
            return self.is_set()
        if self._arrival:
            self._arrival.synchronize()  # with what was queued before the step; the step itself runs on
        return self._answer.item() > 0
