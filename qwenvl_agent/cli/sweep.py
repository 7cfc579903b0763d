"""Run a sweep: print its commands, submit it to Slurm or run it here, see how far it is, collect its results.

    qwenvl-agent sweep configs/sweeps/safari_2b_lora.json                # dry run: every command, nothing started
    qwenvl-agent sweep configs/sweeps/safari_2b_lora.json --submit --max-running 4 --sbatch='--time=12:00:00'
    qwenvl-agent sweep configs/sweeps/safari_tiny.json --local 2         # without Slurm, two cells at a time
    qwenvl-agent sweep configs/sweeps/safari_2b_lora.json --status
    qwenvl-agent sweep configs/sweeps/safari_2b_lora.json --collect      # results.csv, a table, plots

--submit and --local start the cells that are missing, stopped or failed; one that has a checkpoint goes on from it.
Cells that are done, run or wait are left alone. A sweep's file: qwenvl_agent/studies/cells.py. All runs in one
TensorBoard, with their hyper-parameters: tensorboard --logdir runs/NAME.
"""

import argparse
import csv
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.studies.cells import Cell, Sweep, load_sweep
from qwenvl_agent.studies.local import local_log, run_cells, running_cells
from qwenvl_agent.studies.programs import program
from qwenvl_agent.studies.progress import (
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    STARTABLE,
    Progress,
    check_metric,
    read_progress,
    result_row,
    state_of,
)
from qwenvl_agent.studies.slurm import log_path, queued_cells, submit

COLOURS = {DONE: "green", RUNNING: "cyan", QUEUED: "blue", FAILED: "red"}


@command("what still runs saves a checkpoint and ends")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run(args)


FORMER = {"--limit": "--max-running"}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("sweep", type=Path, metavar="SWEEP.json", help="a file of configs/sweeps/")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--submit", action="store_true", help="submit an sbatch array of the cells")
    what.add_argument(
        "--local", type=bounded(int, 1), metavar="N", help="run the cells here, N at a time; GPUs are shared out"
    )
    what.add_argument("--status", action="store_true", help="a table: state, step, loss, best metric")
    what.add_argument("--collect", action="store_true", help="write results.csv and plots, print a table")
    parser.add_argument(
        "--cells", nargs="+", metavar="CELL", help="start only these (default: missing, stopped, failed)"
    )
    parser.add_argument(
        "--max-running", type=bounded(int, 1), default=4, help="of --submit: cells at a time (default: %(default)s)"
    )
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="of --submit: sbatch's, --sbatch='--mem=64G'")
    parser.add_argument("--json", action="store_true", help="of --status: JSON on stdout")
    return parser


def run(args: argparse.Namespace) -> int:
    sweep = load_sweep(args.sweep)
    progresses = {cell.name: read_progress(cell.config.run_dir) for cell in sweep.cells}
    check_metric(sweep, progresses.values())
    hands = queued_cells(sweep) | running_cells(sweep)
    states = {name: state_of(progress, hands.get(name)) for name, progress in progresses.items()}
    rows = [result_row(sweep, cell, progresses[cell.name], states[cell.name]) for cell in sweep.cells]
    if args.status and args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif args.status:
        show_table(sweep, rows)
    elif args.collect:
        collect(sweep, rows, progresses)
    else:
        cells = choose_cells(sweep, states, args.cells)
        if args.local:
            ended = run_cells(sweep, cells, args.local)
            print(describe(Counter(ended.values())))
            return 0 if len(ended) == len(cells) and set(ended.values()) <= {DONE} else 1
        if args.submit and cells:
            job_id = submit(sweep, cells, args.max_running, shlex.split(args.sbatch))
            print(
                f"job {job_id}: {len(cells)} cells, at most {args.max_running} at a time; logs in {sweep.directory}/logs"
            )
        elif args.submit:
            print(f"nothing to submit: {describe(Counter(states.values()))}")
        else:
            show_commands(sweep, cells, states)
    return 0


def choose_cells(sweep: Sweep, states: dict[str, str], names: Sequence[str] | None) -> list[Cell]:
    """The named cells, or all that can be started; ValueError for a name that cannot."""
    for name in names or ():
        if name not in states:
            raise ValueError(f"{name!r} is no cell: there is nothing to start; the cells are {', '.join(states)}")
        if states[name] not in STARTABLE:
            raise ValueError(f"cell {name} is {states[name]}: it would be trained twice; leave it out")
    wanted = names or [name for name, state in states.items() if state in STARTABLE]
    return [cell for cell in sweep.cells if cell.name in wanted]


def show_commands(sweep: Sweep, cells: Sequence[Cell], states: dict[str, str]) -> None:
    """The commands on stdout, the rest on stderr."""
    for cell in cells:
        settings = [part for setting in cell.settings for part in ("--set", setting)]
        print(
            shlex.join(
                ["accelerate", "launch", *program("train.py"), "--config", sweep.config_path, *settings, "--resume"]
            )
        )
    print(
        f"{describe(Counter(states.values()))}; to run: {len(cells)}. "
        "Nothing was started: --submit or --local N starts them",
        file=sys.stderr,
    )


def describe(counts: Counter) -> str:
    """`9 cells: 7 done, 2 failed`."""
    return f"{counts.total()} cells: " + (", ".join(f"{n} {state}" for state, n in counts.most_common()) or "none")


def show_table(sweep: Sweep, rows: Sequence[dict]) -> None:
    """The table, and for each failed cell where to look."""
    table = Table(title=f"{sweep.name}: {describe(Counter(row['state'] for row in rows))}", title_justify="left")
    table.add_column("cell", overflow="fold")
    table.add_column("state")
    for name in ("step", "loss", sweep.metric, "at step"):
        table.add_column(name, justify="right")
    best = best_row(sweep, rows)
    for row in rows:
        cells = [f"{row['step']}/{row['max_steps'] or '?'}", number(row["loss"]), number(row[sweep.metric])]
        state = Text(row["state"], style=COLOURS.get(row["state"], "yellow"))
        style = "bold" if row is best else ""
        table.add_row(row["cell"], state, *cells, number(row["best_step"]), style=style)
    # A table into a file or a pipe needs no narrow terminal's line breaks.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for row in rows:
        if row["state"] == FAILED:
            print(f"{row['cell']} failed: {newest_log(sweep, row['cell'])}")


def newest_log(sweep: Sweep, name: str) -> Path:
    """Slurm's or that of --local, whichever was written last."""
    logs = [path for path in (log_path(sweep, name), local_log(sweep, name)) if path and path.exists()]
    return max(logs, key=lambda path: path.stat().st_mtime, default=sweep.directory / "logs")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:#.4g}" if isinstance(value, float) else str(value)


def best_row(sweep: Sweep, rows: Sequence[dict]) -> dict | None:
    best = None
    for row in rows:
        value = row[sweep.metric]
        if value is not None and (best is None or sweep.is_better(value, best[sweep.metric])):
            best = row
    return best


def collect(sweep: Sweep, rows: Sequence[dict], progresses: dict[str, Progress]) -> None:
    from qwenvl_agent.studies.sweep_plots import plot_curves, plot_metric

    sweep.directory.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(sweep.directory / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(
            {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()} for row in rows
        )
    show_table(sweep, rows)
    written = [sweep.directory / "results.csv"]
    if best := best_row(sweep, rows):
        plot_curves(sweep.directory / "curves.png", sweep, progresses)
        plot_metric(sweep.directory / "metric.png", sweep, rows, best)
        written += [sweep.directory / "curves.png", sweep.directory / "metric.png"]
        print(f"best: {best['cell']}, {sweep.metric} {best[sweep.metric]:.4g} at step {best['best_step']}")
    else:
        print(f"no plots: no run has logged {sweep.metric} yet")
    print(*written, sep="\n")


if __name__ == "__main__":
    run_command(main)
