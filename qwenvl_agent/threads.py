"""How OpenMP's threads wait for one another: asleep. Imported with the package, which train.py imports before torch.

Torch's wheels bring GNU OpenMP, whose threads spin for milliseconds at the end of each parallel loop, of which a step
has thousands. Beside one busy process a thread that spins keeps the one that it waits for from its core, and training
crawls; asleep it costs a share. OpenMP reads the variable when torch loads it, so it is set here and not by torch.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # GOMP_SPINCOUNT, where somebody sets it, goes before


def describe_threads(num_threads: int, num_processes: int, num_cores: int) -> str:
    """A line about this process's threads beside its machine's cores and processes; what would use idle cores."""
    line = f"threads: {num_threads} on {num_cores} cores" + (f", as in {num_processes} ranks" * (num_processes > 1))
    if num_cores // num_processes > num_threads:
        line += (
            f"; OMP_NUM_THREADS={num_cores // num_processes} before the command uses them (accelerate launch sets 1)"
        )
    return line


def count_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
