"""Attack this code as tests/torture says, and count what held.

    python scripts/torture.py                       # every attack in full: at most two hours on two cores (make torture)
    python scripts/torture.py --quick               # five minutes at most (make torture-quick)
    python scripts/torture.py kills bit_flips --seed 7
    python scripts/torture.py --case kills:137      # one case again, here, with its output

Each outcome is appended to OUT/ATTACK.jsonl as it comes, so a run that was stopped goes on where it was; outcomes of
other code than this are forgotten, and the run says how many. An attack runs in processes of its own: one that crashes
or hangs costs the case in hand, which has fallen. What the time does not suffice for is "not tried", never held.

Status: 0 all held; 3 something fell (the last lines repeat it); 4 nothing fell, but not all was tried; 2 a wrong use.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwenvl_agent.command import bounded, command
from qwenvl_agent.files import write_json

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "torture"
# Behind all others: an attack may be named as a module of Python's is.
sys.path += [str(FOLDER), str(ROOT / "tests"), str(ROOT)]

from attack import Attack, Outcome  # noqa: E402

QUICK_S, FULL_S = 300, 7200
CODE = ("qwenvl_agent/**/*", "tests/torture/*", "tests/*.py", "train.py", "eval.py")
"""What an outcome is of; of another state of these files it would be another."""
SHOWN_EVERY_S = 30


@dataclass
class Work:
    """One attack of this run or a part of it: its cases, those of them that are done, and where their outcomes are."""

    attack: Attack
    cases: Sequence[int]
    out: Path
    seed: int
    code: str
    deadline: float
    """Of time.monotonic."""
    done: dict[int, dict] = field(default_factory=dict)
    num_forgotten: int = 0
    is_under_way: bool = False
    num_read: int = 0
    """Bytes of the file."""

    @property
    def path(self) -> Path:
        return self.out / f"{self.attack.name}.jsonl"

    def read(self) -> None:
        """What came since the last reading: outcomes of this code and seed; a line that a kill has cut off is none."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.num_read)
            lines = [line for line in file if line.endswith(b"\n")]
        self.num_read += sum(map(len, lines))
        for line in lines:
            entry = json.loads(line)
            if (entry["seed"], entry["code"]) != (self.seed, self.code):
                self.num_forgotten += 1
            elif entry["case"] in self.cases:
                self.done[entry["case"]] = entry

    def parts(self) -> "list[Work]":
        """Those of its processes, each with its share of the cases."""
        num = 1 if len(self.cases) < self.attack.full else self.attack.processes
        parts = [replace(self, cases=self.cases[i::num], done={}, num_read=0) for i in range(num)]
        for part in parts:
            part.read()
        return parts

    def left(self) -> list[int]:
        return [case for case in self.cases if case not in self.done]

    def add(self, case: int, outcome: Outcome, seconds: float) -> None:
        add_outcome(self.path, self.seed, self.code, case, outcome, seconds)


@command("outcomes until now are kept; the same command goes on")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", nargs="*", help="of those in tests/torture; default: all")
    parser.add_argument("--quick", action="store_true", help="the first cases of each, five minutes in all")
    parser.add_argument("--seed", type=int, default=1, help="other cases of the same kinds")
    parser.add_argument("--case", metavar="NAME:I", help="run one case again, here")
    parser.add_argument(
        "--seconds", type=bounded(float, 1), help=f"for all together; default {FULL_S}, quick {QUICK_S}"
    )
    parser.add_argument(
        "--jobs", type=bounded(int, 1), default=5, help="processes at a time; most of an attack is waiting"
    )
    parser.add_argument("--out", type=Path, default=Path("generated/torture"), help="outcomes and the summary")
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout, in place of the table")
    parser.add_argument("--list", action="store_true", help="the attacks, and how often each is tried")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return run_child(json.loads(args.child))
    attacks = find_attacks()
    if args.list:
        for attack in attacks.values():
            print(f"{attack.name:16} {attack.full:9,} ({attack.quick:,} quick)  {attack.says}")
        return 0
    if args.case:
        return repeat(attacks, args.case, args.seed)
    chosen = [known(attacks, name) for name in dict.fromkeys(args.attack or sorted(attacks))]
    works = begin(chosen, args)
    console = Console(stderr=args.json)
    attack_all(works, args.jobs, console)
    for work in works:
        work.read()
    summary = summarise(works, args)
    write_json(args.out / "summary.json", summary)
    if args.json:
        print(json.dumps(summary, indent=1))
    else:
        show(works, console)
    return verdict(works, args, console)


# the attacks


def find_attacks() -> dict[str, Attack]:
    """By name, of every file of tests/torture but the one that says what an attack is."""
    found: dict[str, Attack] = {}
    for file in sorted(FOLDER.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"torture_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        for attack in (*getattr(module, "ATTACKS", ()), *([module.ATTACK] if hasattr(module, "ATTACK") else [])):
            assert attack.name not in found, attack.name
            assert 0 < attack.quick <= attack.full, attack.name
            found[attack.name] = attack
    return found


def known(attacks: dict[str, Attack], name: str) -> Attack:
    if name not in attacks:
        raise ValueError(f"no attack {name!r}: nothing was tried; use one of {', '.join(sorted(attacks))}")
    return attacks[name]


def repeat(attacks: dict[str, Attack], text: str, seed: int) -> int:
    name, _, number = text.partition(":")
    attack = known(attacks, name)
    if not number.isdigit() or int(number) >= attack.full:
        raise ValueError(f"--case {text}: {name} has the cases 0 to {attack.full - 1}; give {name}:NUMBER")
    with scratch_folder(attack) as scratch:
        (outcome,) = attack.run(seed, [int(number)], Path(scratch))
    print(f"{text}: {'held' if outcome.held else 'FELL'}: {outcome.kind}{': ' if outcome.note else ''}{outcome.note}")
    return 0 if outcome.held else 3


def scratch_folder(attack: Attack) -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix=f"torture_{attack.name}_", ignore_cleanup_errors=True)


def code_digest() -> str:
    """Of the files whose behaviour is counted."""
    digest = hashlib.sha256()
    paths = {path for pattern in CODE for path in ROOT.glob(pattern) if path.is_file() and path.suffix != ".pyc"}
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def begin(attacks: Sequence[Attack], args: argparse.Namespace) -> list[Work]:
    args.out.mkdir(parents=True, exist_ok=True)
    whole = args.seconds or (QUICK_S if args.quick else FULL_S)
    now, code, works = time.monotonic(), code_digest(), []
    for attack in attacks:
        cases = range(attack.quick if args.quick else attack.full)
        works.append(Work(attack, cases, args.out, args.seed, code, now + whole))
        cut_half_line(works[-1].path)
        works[-1].read()
    return works


def cut_half_line(path: Path) -> None:
    """What a kill has left of an outcome's line; the next one would be joined to it."""
    if path.exists() and not (whole := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, whole.rfind(b"\n") + 1)


# a child: the cases of one attack in a process of its own


def run_child(order: dict) -> int:
    attack = find_attacks()[order["attack"]]
    started, cases = time.monotonic(), iter(order["cases"])
    for outcome in attack.run(order["seed"], order["cases"], Path(order["scratch"])):
        now = time.monotonic()
        add_outcome(Path(order["path"]), order["seed"], order["code"], next(cases), outcome, now - started)
        started = now
    return 0


def add_outcome(path: Path, seed: int, code: str, case: int, outcome: Outcome, seconds: float) -> None:
    entry = {"case": case, **asdict(outcome), "seconds": round(seconds, 3), "seed": seed, "code": code}
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(entry) + "\n")


# the parent


def attack_all(works: list[Work], num_jobs: int, console: Console) -> None:
    """Those that may have company side by side, the longest first; then the others one by one."""
    for work in works:
        if work.num_forgotten:
            console.print(
                f"{work.attack.name}: {work.num_forgotten} outcomes of other code or another seed do not count"
            )
    parts = [part for work in works for part in work.parts()]
    together = sorted((part for part in parts if not part.attack.alone), key=lambda part: -part.attack.seconds)
    for group, jobs in ((together, num_jobs), ([part for part in parts if part.attack.alone], 1)):
        with ThreadPoolExecutor(jobs) as pool:
            left = [pool.submit(carry_out, work) for work in group]
            try:
                follow(left, group, console)
            except BaseException:  # asked to end: no case in hand is waited for
                for part in parts:
                    part.deadline = 0.0
                raise


def follow(left: list[Future], group: list[Work], console: Console) -> None:
    """Show how far they are until all are done."""
    started = shown = time.monotonic()
    while not all(one.done() for one in left):
        time.sleep(0.2)
        if time.monotonic() > shown + SHOWN_EVERY_S:
            shown = time.monotonic()
            console.print(progress(group, shown - started), highlight=False)
    for one in left:
        one.result()


def progress(works: list[Work], seconds: float) -> str:
    done, cases = Counter[str](), Counter[str]()
    for work in works:
        done[work.attack.name] += len(work.done)
        cases[work.attack.name] += len(work.cases)
    under_way = dict.fromkeys(work.attack.name for work in works if work.is_under_way)
    words = [f"{name} {done[name]}/{cases[name]}" for name in under_way]
    limit = max(work.deadline for work in works) - time.monotonic()
    return f"{seconds:.0f} s, at most {max(0.0, limit):.0f} s left: {', '.join(words)}"


def carry_out(work: Work) -> None:
    """Run the cases that are left, in a new process after each that died or hung, until all are done or time is up."""
    if not work.left():
        return
    work.deadline = min(work.deadline, time.monotonic() + work.attack.seconds)
    work.is_under_way = True
    with scratch_folder(work.attack) as scratch:
        while work.left() and time.monotonic() < work.deadline:
            run_until_it_ends(work, Path(scratch))
    work.is_under_way = False


def run_until_it_ends(work: Work, scratch: Path) -> None:
    """One process; where it ends before its cases do, the case in hand has fallen."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    order = {"attack": work.attack.name, "cases": work.left(), "seed": work.seed, "code": work.code}
    order |= {"scratch": str(scratch), "path": str(work.path.resolve())}
    words = [sys.executable, __file__, "--child", json.dumps(order)]
    log_path, begun = work.out / f"{work.attack.name}.log", time.monotonic()
    with open(log_path, "a") as log:
        child = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            ended = watch(child, work)
        finally:
            end_group(child)
    work.read()
    if ended and work.left():
        work.add(work.left()[0], Outcome(*ended), time.monotonic() - begun)
        work.read()


def watch(child: subprocess.Popen, work: Work) -> tuple[str, bool, str] | None:
    """The outcome of the case in hand if the child came to a bad end; None if all is done or time is up."""
    last, num_done = time.monotonic(), len(work.done)
    while child.poll() is None:
        time.sleep(0.2)
        now = time.monotonic()
        if now > work.deadline:
            return None
        work.read()
        if len(work.done) > num_done:
            last, num_done = now, len(work.done)
        elif now > last + work.attack.patience:
            return "does not end", False, f"no outcome within {work.attack.patience} s"
    if child.returncode == 0:
        return ("gives no outcome", False, "the attack has ended without one") if len(work.left()) else None
    number = -child.returncode
    how = signal.Signals(number).name if number > 0 else f"status {child.returncode}"
    return "ends the attack itself", False, f"{how}; {last_line(work.out / f'{work.attack.name}.log')}"


def last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was said"


def end_group(child: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


# for people


def groups_of(work: Work) -> Iterator[tuple[str, int, int, float]]:
    """(kind, tried, held, seconds) in the order in which the kinds first came."""
    entries = [work.done[case] for case in sorted(work.done)]
    tried, held, seconds = Counter(), Counter(), Counter()
    for entry in entries:
        tried[entry["kind"]] += entry["tried"]
        held[entry["kind"]] += entry["tried"] - num_fallen(entry)
        seconds[entry["kind"]] += entry["seconds"]
    for kind in tried:
        yield kind, tried[kind], held[kind], seconds[kind]


def num_fallen(entry: dict) -> int:
    if entry["held"]:
        return 0
    return 1 if entry["fallen"] is None else entry["fallen"]


def summarise(works: list[Work], args: argparse.Namespace) -> dict:
    attacks = {}
    for work in works:
        kinds = [dict(zip(("kind", "tried", "held", "seconds"), group, strict=True)) for group in groups_of(work)]
        counts = {key: sum(kind[key] for kind in kinds) for key in ("tried", "held", "seconds")}
        attacks[work.attack.name] = counts | {"asked": len(work.cases), "says": work.attack.says, "kinds": kinds}
    about = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "seed": args.seed,
    }
    return about | {"quick": args.quick, "code": works[0].code if works else "", "attacks": attacks}


def show(works: list[Work], console: Console) -> None:
    table = Table()
    for name in ("attack", "kind", "tried", "held", "seconds"):
        table.add_column(name, justify="right" if name in ("tried", "held", "seconds") else "left")
    for work in works:
        groups = list(groups_of(work))
        for kind, tried, held, seconds in groups:
            table.add_row(work.attack.name, kind, f"{tried:,}", f"{held:,}", f"{seconds:.1f}")
        totals = [sum(group[i] for group in groups) for i in (1, 2, 3)]
        table.add_row(work.attack.name, "all", *(f"{n:,}" for n in totals[:2]), f"{totals[2]:.1f}", end_section=True)
    console.print(table)


def verdict(works: list[Work], args: argparse.Namespace, console: Console) -> int:
    fallen = [(work, entry) for work in works for entry in work.done.values() if not entry["held"]]
    for work, entry in fallen:
        again = f"python scripts/torture.py --case {work.attack.name}:{entry['case']} --seed {work.seed}"
        console.print(
            f"FELL: {entry['kind']}: {entry['note']}\n    {again}", markup=False, highlight=False, soft_wrap=True
        )
    missing = {work.attack.name: len(work.left()) for work in works if work.left()}
    for name, number in missing.items():
        console.print(f"not tried for want of time: {number} of {name}; the same command goes on", highlight=False)
    return 3 if fallen else 4 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
