"""One rank of a group whose collectives may take 3 seconds, and whose first rank indexes for longer: run by test_turns.py.

RANK=0 WORLD_SIZE=2 ... python tests/turns_worker.py FOLDER quick|slow|fails|dies
"""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator, InitProcessGroupKwargs

from qwenvl_agent.training import turns


def main(folder: Path, way: str) -> None:
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=3))])
    turns.BEAT_SECONDS, turns.SILENCE_SECONDS = 0.2, 4.0
    rank = accelerator.process_index

    def make() -> str:
        found = (folder / "cache").exists()
        if not found:
            time.sleep(0 if way == "quick" else 6)
            if way == "fails":
                raise ValueError("all 5 rows are rejected")
            if way == "stops" and rank == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
            if way == "dies" and rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            (folder / "cache").touch()
        return "found" if found else "made"

    print(rank, turns.in_turns(accelerator, "the data is indexed", make), flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
