"""The runner of attacks counts what held, what fell and what was not tried; and the attacks' first cases hold."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from loading import load_program

pytestmark = pytest.mark.loopback

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "torture.py"


PATHS = list(sys.path)
torture = load_program("scripts/torture.py")
sys.path[:] = [*PATHS, str(torture.FOLDER)]
ATTACKS = sorted(torture.find_attacks())

EXAMPLES = """
import os, signal, time
from attack import Attack, Outcome

def run(seed, cases, scratch):
    assert not list(scratch.iterdir())
    for case in cases:
        if case == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if case == 4:
            raise KeyError("a bug of the attack")
        if case == 6:
            time.sleep(60)
        yield Outcome("odd" if case % 2 else "even", held=case != 1, note="it is one" if case == 1 else "", tried=10)

ATTACK = Attack("examples", "what cases can come to", full=8, quick=2, seconds=120, run=run, patience=10)
"""


@pytest.fixture
def copy(tmp_path):
    """The script in a folder of its own, with one attack of its own."""
    (tmp_path / "scripts").mkdir()
    folder = tmp_path / "tests" / "torture"
    folder.mkdir(parents=True)
    (tmp_path / "scripts" / "torture.py").write_bytes(SCRIPT.read_bytes())
    (folder / "attack.py").write_bytes((ROOT / "tests" / "torture" / "attack.py").read_bytes())
    (folder / "examples.py").write_text(EXAMPLES)
    return tmp_path


def run(copy: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/torture.py", *words]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=120)


def outcomes(copy: Path) -> list[tuple]:
    lines = (copy / "generated" / "torture" / "examples.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [(entry["case"], entry["kind"], entry["held"]) for entry in entries]


def test_what_dies_hangs_or_fails_costs_the_case_in_hand_and_is_counted_as_fallen(copy):
    done = run(copy, "--json")
    assert done.returncode == 3, done.stderr
    assert outcomes(copy) == [
        (0, "even", True),
        (1, "odd", False),
        (2, "ends the attack itself", False),
        (3, "odd", True),
        (4, "ends the attack itself", False),
        (5, "odd", True),
        (6, "does not end", False),
        (7, "odd", True),
    ]
    counted = json.loads(done.stdout)["attacks"]["examples"]
    assert {kind["kind"]: (kind["tried"], kind["held"]) for kind in counted["kinds"]} == {
        "even": (10, 10),
        "odd": (40, 39),
        "ends the attack itself": (2, 0),
        "does not end": (1, 0),
    }
    assert "FELL: odd: it is one" in done.stderr and "SIGSEGV" in done.stderr and "a bug of the attack" in done.stderr
    assert "python scripts/torture.py --case examples:1 --seed 1" in done.stderr


def test_a_run_goes_on_where_it_was_and_other_code_begins_anew(copy):
    assert run(copy, "--quick").returncode == 3
    first = outcomes(copy)
    assert [case for case, *_ in first] == [0, 1]
    file = copy / "generated" / "torture" / "examples.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:1]) + '{"case": 1, "ki')
    assert run(copy, "--quick").returncode == 3 and outcomes(copy) == first
    (copy / "train.py").write_text("# other code\n")
    done = run(copy, "--quick")
    assert "2 outcomes of other code or another seed do not count" in done.stdout and outcomes(copy) == first * 2


def test_what_time_does_not_suffice_for_is_not_tried_and_never_held(copy):
    attack = copy / "tests" / "torture" / "examples.py"
    attack.write_text(EXAMPLES.replace("case == 6", "case == 0").replace("patience=10", "patience=30"))
    done = run(copy, "--quick", "--seconds", "4")
    assert done.returncode == 4 and "not tried for want of time: 2 of examples" in done.stdout


def test_cases_that_are_dealt_to_processes_are_each_tried_once(copy):
    """In the full form; each process has an empty folder, and one that dies costs its own case in hand alone."""
    attack = copy / "tests" / "torture" / "examples.py"
    code = EXAMPLES.replace("seconds=120,", "seconds=120, processes=3,").replace("time.sleep(60)", "time.sleep(0)")
    attack.write_text(code.replace("case == 4", "False"))
    done = run(copy, "--json")
    assert done.returncode == 3, done.stderr
    assert sorted(case for case, *_ in outcomes(copy)) == list(range(8))
    assert [(case, kind) for case, kind, held in sorted(outcomes(copy)) if not held] == [
        (1, "odd"),
        (2, "ends the attack itself"),
    ]
    counted = json.loads(done.stdout)["attacks"]["examples"]
    assert (counted["asked"], counted["tried"], counted["held"]) == (8, 71, 69)
    assert run(copy).returncode == 3 and len(outcomes(copy)) == 8
    (copy / "train.py").write_text("# other code\n")
    assert "8 outcomes of other code" in run(copy).stdout and len(outcomes(copy)) == 16


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_end_it_waits_for_no_case_and_leaves_no_attack(copy, number, status):
    attack = copy / "tests" / "torture" / "examples.py"
    code = EXAMPLES.replace("case == 6", "case == 1").replace("patience=10", "patience=300")
    attack.write_text(code.replace("time.sleep(60)", 'open("hangs", "w").write(str(os.getpid())); time.sleep(300)'))
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        [sys.executable, "scripts/torture.py"],
        **{"cwd": copy, "env": environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background would ignore it
    )
    try:
        eventually(lambda: (copy / "hangs").exists() and (copy / "hangs").read_text())
        process.send_signal(number)
        assert process.wait(timeout=30) == status
    finally:
        process.kill()
    child = int((copy / "hangs").read_text())
    eventually(lambda: not Path(f"/proc/{child}").exists())
    assert outcomes(copy) == [(0, "even", True)]


def eventually(is_so, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_training_whose_number_another_had_is_not_taken_as_ended():
    """Process numbers go round; a resumed run was started beside the one that it should go on from."""
    warm = object.__new__(load_program("tests/torture/trainings.py").Warm)
    lines = [{"started": 7}, {"ended": 7, "status": 2}, {"started": 7}]
    warm.process = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO("\n".join(map(json.dumps, lines))))
    warm.ended = {}
    assert warm.start([], Path("log")) == 7 and not warm.ended
    assert warm.start([], Path("log")) == 7 and not warm.ended


@pytest.mark.parametrize(("case", "status", "said"), [("0", 0, "held: even"), ("1", 3, "FELL: odd: it is one")])
def test_one_case_is_repeated_alone(copy, case, status, said):
    done = run(copy, "--case", f"examples:{case}")
    assert (done.returncode, done.stdout.strip()) == (status, f"examples:{case}: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such"], "error: no attack 'no_such': nothing was tried; use one of examples"),
        (["--case", "examples:8"], "error: --case examples:8: examples has the cases 0 to 7; give examples:NUMBER"),
    ],
)
def test_a_wrong_use_is_one_line(copy, words, said):
    done = run(copy, *words)
    assert (done.returncode, done.stderr.strip()) == (2, said)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_the_first_cases_hold(name, tmp_path):
    command = [sys.executable, str(SCRIPT), name, "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
