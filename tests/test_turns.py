"""Two real ranks wait for the first one's work without a time limit, and end when it does."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

pytestmark = pytest.mark.loopback

WORKER = Path(__file__).with_name("turns_worker.py")


def start(tmp_path: Path, way: str, store: TCPStore | None = None) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = store.port if store else free.getsockname()[1]
    # As a launcher does: a store in the first rank's process stands still with it.
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"} if store else {}
    group = agent | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment = os.environ | group | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(WORKER.parent.parent)}
    return [
        subprocess.Popen(
            [sys.executable, WORKER, tmp_path, way],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_a_wait_longer_than_a_collective_may_take_ends_well(tmp_path):
    first, second = start(tmp_path, "slow")
    (out, err), (other, other_err) = (process.communicate(timeout=120) for process in (first, second))
    assert (first.returncode, second.returncode) == (0, 0), err + other_err
    assert (out, other) == ("0 made\n", "1 found\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("fails", "ValueError: rank 0 (ended before|is gone before) the data is indexed"),
        ("dies", "ValueError: rank 0 is gone before the data is indexed: nothing can be trained"),
        ("stops", "ValueError: rank 0 said nothing for 4 s before the data is indexed: it is dead or stopped"),
    ],
)
def test_the_end_of_who_works_ends_who_waits_by_name(tmp_path, way, message):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if way == "stops" else None
    first, second = start(tmp_path, way, store)
    started = time.monotonic()
    try:
        _, err = second.communicate(timeout=120)
        assert second.returncode == 1 and time.monotonic() - started < 60
        assert re.search(message, err), err
    finally:
        first.kill()
        first.communicate()
