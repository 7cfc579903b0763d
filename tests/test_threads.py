"""OpenMP's threads sleep while they wait, whoever starts the process, unless its user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_agent.threads import describe_threads

REPOSITORY = Path(__file__).parent.parent
UNSET = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


def settings_read_by_openmp(program: str, **environment: str) -> str:
    """What the runtime that torch loads says about itself."""
    environment = UNSET | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("module", ["train", "eval"])
def test_threads_wait_asleep(module):
    said = settings_read_by_openmp(f"import {module}, torch")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in said
    assert "GOMP_SPINCOUNT = '0'" in said


def test_the_users_own_setting_stands():
    said = settings_read_by_openmp("import qwenvl_agent, torch", OMP_WAIT_POLICY="ACTIVE", GOMP_SPINCOUNT="100")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in said and "GOMP_SPINCOUNT = '100'" in said


def test_idle_cores_are_named():
    assert describe_threads(2, 1, 2) == "threads: 2 on 2 cores"
    assert describe_threads(1, 2, 2) == "threads: 1 on 2 cores, as in 2 ranks"
    assert describe_threads(1, 1, 8) == (
        "threads: 1 on 8 cores; OMP_NUM_THREADS=8 before the command uses them (accelerate launch sets 1)"
    )
