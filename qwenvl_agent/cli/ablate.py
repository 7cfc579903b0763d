"""Run an ablation: arms x training seeds, paired missions, statistics, a report for a paper.

    qwenvl-agent ablate scripts/ablations/format.json                 # dry run: what is missing, as commands
    qwenvl-agent ablate scripts/ablations/format.json --local 1       # run all of it here, one cell at a time
    qwenvl-agent ablate scripts/ablations/format.json --local 1 --seeds 0 1 2
    qwenvl-agent ablate scripts/ablations/format.json --submit --max-running 8 --sbatch='--time=12:00:00'
    qwenvl-agent ablate scripts/ablations/format.json --status
    qwenvl-agent ablate scripts/ablations/format.json --report --out docs/results/format

--local does whatever is missing, in order: the files that cells need, trainings (one that was stopped goes on from its
checkpoint), evaluations, the report. It may be broken off and started again at any time. --submit sends the missing
trainings to Slurm as one array, and with them, after their end, --evaluate: what is missing of the evaluations, and
the report. An ablation's file: qwenvl_agent/studies/arms.py; what the report says and what it does not: docs/ABLATIONS.md.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.config import FORMAT_NAMES
from qwenvl_agent.progress import Bar
from qwenvl_agent.studies.ablation import Study, read_cell
from qwenvl_agent.studies.arms import Ablation, evaluation_command, is_evaluated, load_ablation
from qwenvl_agent.studies.cells import Cell
from qwenvl_agent.studies.fairness import prompt_differences
from qwenvl_agent.studies.local import interrupt_on_sigterm, locked, run_cells, running_cells
from qwenvl_agent.studies.programs import program
from qwenvl_agent.studies.progress import DONE, STARTABLE, read_progress, state_of
from qwenvl_agent.studies.slurm import queued_cells, submit

EVALUATE_SCRIPT = """#!/usr/bin/env bash
#SBATCH --nodes=1 --ntasks=1 --gpus-per-node=1 --time=24:00:00 --open-mode=append
set -euo pipefail
venv=${{VENV:-.venv}}
[[ ! -f $venv/bin/activate ]] || source "$venv/bin/activate"
exec {command}
"""


@command("start it again, it goes on with what is missing")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run(args)


FORMER = {"--limit": "--max-running"}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("ablation", type=Path, metavar="ABLATION.json", help="a file of scripts/ablations/")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--local", type=bounded(int, 1), metavar="N", help="do all that is missing here, N cells at a time"
    )
    what.add_argument("--submit", action="store_true", help="train under Slurm, then evaluate and report there")
    what.add_argument(
        "--evaluate", action="store_true", help="only the missing evaluations of trained cells, and the report"
    )
    what.add_argument("--report", action="store_true", help="only the report, of what there is")
    what.add_argument("--status", action="store_true", help="a table: what is done of each cell")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="only these training seeds of the file")
    parser.add_argument("--out", type=Path, help="folder of the report (default: the ablation's folder, report/)")
    parser.add_argument(
        "--max-running", type=bounded(int, 1), default=4, help="of --submit: cells at a time (default: %(default)s)"
    )
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="of --submit: sbatch's, --sbatch='--mem=64G'")
    parser.add_argument("--json", action="store_true", help="of --status: JSON on stdout")
    return parser


def run(args: argparse.Namespace) -> int:
    ablation = load_ablation(args.ablation, args.seeds)
    check_fairness(ablation)
    if args.status:
        show_status(ablation, args.json)
    elif args.local:
        return run_here(ablation, args)
    elif args.submit:
        submit_all(ablation, args)
    elif args.evaluate:
        return evaluate_and_report(ablation, args)
    elif args.report:
        report(ablation, args)
    else:
        show_missing(ablation, args)
    return 0


def check_fairness(ablation: Ablation) -> None:
    """ValueError if the arms' formats do not tell the model the same facts about the world."""
    formats = {cell.config.prompt.format for cell in ablation.sweep.cells}
    found = prompt_differences([name for name in FORMAT_NAMES if name in formats], ablation.world)
    if found:
        raise ValueError(
            f"the arms' prompts do not state the same facts, so a difference could come from that: {'; '.join(found)}; "
            "make the formats' instructions say the same"
        )


def states_of(ablation: Ablation) -> dict[str, str]:
    hands = queued_cells(ablation.sweep) | running_cells(ablation.sweep)
    return {
        cell.name: state_of(read_progress(cell.config.run_dir), hands.get(cell.name)) for cell in ablation.sweep.cells
    }


def missing_evaluations(ablation: Ablation, states: dict[str, str]) -> Iterator[tuple[Cell, str]]:
    """(cell, test) of trained cells: the missions of all, then their rows, then further plays."""
    trained = [cell for cell in ablation.sweep.cells if states[cell.name] == DONE]
    for test in ablation.tests:
        yield from ((cell, test) for cell in trained if not is_evaluated(ablation, cell, test))


def run_here(ablation: Ablation, args: argparse.Namespace) -> int:
    """Everything that is missing; 1 if something failed."""
    prepare(ablation)
    states = states_of(ablation)
    cells = [cell for cell in ablation.sweep.cells if states[cell.name] in STARTABLE]
    if cells:
        ended = run_cells(ablation.sweep, cells, args.local)
        if len(ended) < len(cells):
            return 130  # interrupted; run_cells has said so
    return evaluate_and_report(ablation, args)


def prepare(ablation: Ablation) -> None:
    """Run the commands whose files are missing, in the order of the file."""
    for file, words in ablation.prepare.items():
        if Path(file).exists():
            continue
        print(shlex.join(words), flush=True)
        done = subprocess.run([find_program(words[0]), *words[1:]])
        if done.returncode != 0 or not Path(file).exists():
            raise ValueError(f"{file} was not made: the cells cannot be trained; look at what {words[1]} said above")


def find_program(name: str) -> str:
    """The one of this interpreter's environment, active or not, if it has one."""
    if name == "python":
        return sys.executable
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        raise ValueError(f"there is no program {name}: what cells need cannot be made; install it, or make the files")
    return found


def evaluate_and_report(ablation: Ablation, args: argparse.Namespace) -> int:
    states = states_of(ablation)
    failed = evaluate(ablation, list(missing_evaluations(ablation, states)), args.local or 1)
    report(ablation, args)
    unfinished = Counter(state for state in states.values() if state != DONE)
    for state, number in unfinished.items():
        print(f"{number} cells are {state}", file=sys.stderr)
    return 1 if failed or unfinished else 0


def evaluate(ablation: Ablation, missing: Sequence[tuple[Cell, str]], num_at_once: int) -> int:
    """Play what is missing, some at a time; the number of evaluations that failed, each with its log named."""
    failed = 0
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_at_once))} | os.environ

    def play(cell: Cell, test: str) -> tuple[str, Path, int]:
        log = ablation.sweep.directory / "logs" / f"{cell.name}_{test}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as file:
            command = evaluation_command(ablation, cell, test)
            ended = subprocess.run(command, stdout=file, stderr=file, env=environment)
        return f"{cell.name}, {test}", log, ended.returncode

    with (
        locked(ablation.sweep),
        interrupt_on_sigterm(),
        Bar("evaluations", len(missing)) as bar,
        ThreadPoolExecutor(num_at_once) as pool,
    ):
        try:
            for ended in as_completed([pool.submit(play, cell, test) for cell, test in missing]):
                name, log, status = ended.result()
                if status != 0:
                    failed += 1
                    bar.console.print(f"{name}: failed, see {log}", highlight=False, soft_wrap=True)
                bar.advance()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def submit_all(ablation: Ablation, args: argparse.Namespace) -> None:
    """The trainings as an array, and after their end one job that evaluates and reports."""
    prepare(ablation)
    states = states_of(ablation)
    cells = [cell for cell in ablation.sweep.cells if states[cell.name] in STARTABLE]
    after = []
    options = shlex.split(args.sbatch)
    if cells:
        job = submit(ablation.sweep, cells, args.max_running, options)
        after = [f"--dependency=afterany:{job}"]
        print(f"job {job}: {len(cells)} trainings")
    elif not list(missing_evaluations(ablation, states)):
        print("nothing to submit: all is trained and evaluated; --report writes the report")
        return
    command = ["python", "-m", "qwenvl_agent.cli.ablate", str(args.ablation), "--evaluate"]
    command += ["--seeds", *map(str, args.seeds)] if args.seeds else []
    command += ["--out", str(args.out)] if args.out else []
    script = EVALUATE_SCRIPT.format(command=shlex.join(command))
    logs = ablation.sweep.directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    places = [f"--job-name={ablation.sweep.name}-evaluate", f"--output={logs}/evaluate_%j.log"]
    done = subprocess.run(
        ["sbatch", "--parsable", *after, *places, *options], input=script, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise ValueError(f"sbatch refused the evaluation; the trainings are submitted: {done.stderr.strip()}")
    print(f"job {done.stdout.strip().partition(';')[0]}: evaluations and report; logs in {logs}")


def read_study(ablation: Ablation) -> Study:
    states = states_of(ablation)
    cells = []
    for cell in ablation.sweep.cells:
        place = ablation.places[cell.name]
        run_dir = cell.config.run_dir
        cells.append(read_cell(cell.name, place.arm, place.seed, run_dir, states[cell.name], ablation.plays))
    return Study(
        ablation.sweep.name, ablation.question, ablation.baseline, ablation.arms, ablation.outcomes, tuple(cells)
    )


def report(ablation: Ablation, args: argparse.Namespace) -> None:
    from qwenvl_agent.studies.ablation_report import write_study  # matplotlib, which takes a second

    out = args.out or ablation.report_dir
    seeds = ["--seeds", *map(str, args.seeds)] if args.seeds else []
    command = shlex.join(["python", "scripts/ablate.py", str(args.ablation), *seeds, "--local", "1"])
    for path in write_study(out, read_study(ablation), command):
        print(path)


def show_missing(ablation: Ablation, args: argparse.Namespace) -> None:
    """The commands of all that is missing on stdout, a summary on stderr."""
    states = states_of(ablation)
    for file, words in ablation.prepare.items():
        if not Path(file).exists():
            print(shlex.join(words))
    untrained = [cell for cell in ablation.sweep.cells if states[cell.name] in STARTABLE]
    for cell in untrained:
        settings = [part for setting in cell.settings for part in ("--set", setting)]
        command = [
            "accelerate",
            "launch",
            *program("train.py"),
            "--config",
            ablation.sweep.config_path,
            *settings,
            "--resume",
        ]
        print(shlex.join(command))
    evaluations = [
        (cell, test)
        for cell in ablation.sweep.cells
        for test in ablation.tests
        if not is_evaluated(ablation, cell, test)
    ]
    for cell, test in evaluations:
        print(shlex.join(["python", *evaluation_command(ablation, cell, test)[1:]]))
    print(
        f"{len(states)} cells; to train: {len(untrained)}, to evaluate: {len(evaluations)}. "
        f"Nothing was started: --local N or --submit does it",
        file=sys.stderr,
    )


def show_status(ablation: Ablation, as_json: bool) -> None:
    states = states_of(ablation)
    rows = [
        {
            "cell": cell.name,
            "state": states[cell.name],
            "step": read_progress(cell.config.run_dir).step,
            "evaluated": [test for test in ablation.tests if is_evaluated(ablation, cell, test)],
        }
        for cell in ablation.sweep.cells
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title=f"{ablation.sweep.name}: {ablation.question}", title_justify="left")
    for heading in ("cell", "state", "step", "evaluated"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row["cell"], row["state"], str(row["step"]), ", ".join(row["evaluated"]) or "-")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    run_command(main)
