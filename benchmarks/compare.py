"""Ours beside TRL on the same work: equal first, then how fast. Writes results.json and results.md, prints the table.

    python benchmarks/prepare.py --out generated/bench
    python benchmarks/compare.py --out generated/bench                      # everything, about half an hour on two cores
    python benchmarks/compare.py --out generated/bench --only equality      # under three minutes, no timing
    python benchmarks/compare.py --out generated/bench --only data train --repeats 3 --set model.attention=sdpa

Both sides are processes that stay loaded and take turns, so that what else the machine does hits both; a figure is the
median of the repeats and a ratio the median of the repeats' own ratios. Seconds are CPU seconds of the process (with one
thread the same as wall time on a quiet machine, and meaningful on a busy one); both are in results.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from prepare import bench_config
from rich.console import Console
from rich.table import Table

from qwenvl_agent.config import to_json

HERE = Path(__file__).parent
ROOT = HERE.parent
PEER_PYTHON = ROOT / "generated" / "peers" / "trl" / "bin" / "python"
EXACT = ("--set=model.dtype=float32", "--set=model.autocast=false", "--set=model.lora_dropout=0.0")
LOSS_TOLERANCE = 1e-3
NUM_EQUAL_ROWS = 16
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Figure:
    """One line of the table; `ratio` is how many times better ours is, None where there is no peer."""

    name: str
    unit: str
    ours: float
    peer: float | None
    ratio: float | None
    target: str
    met: bool | None
    """None: there is no target."""


@dataclass
class Results:
    """All that a run found out; plain JSON."""

    settings: dict
    machine: dict
    equality: dict = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    samples: dict = field(default_factory=dict)
    """What each repeat measured, by part."""


class Worker:
    """A process that answers commands (worker.py), started at once."""

    def __init__(self, python: str | Path, script: str, *options: str, threads: int, log: Path):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        self.log = log
        self.name = script
        self.started = time.monotonic()
        with open(log, "a", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [str(python), str(HERE / script), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=environment,
                text=True,
            )

    def __call__(self, command: str, **arguments: object) -> dict:
        """The command's answer; ValueError with the worker's error."""
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or "null")
        except BrokenPipeError:
            answer = None
        if answer is None:
            tail = "".join(self.log.read_text(encoding="utf-8").splitlines(keepends=True)[-20:])
            raise ValueError(f"{self.name} ended before it answered {command!r}: nothing is measured; its log:\n{tail}")
        if "error" in answer:
            raise ValueError(f"{self.name} failed at {command!r}: nothing is measured:\n{answer['error']}")
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Bench:
    """The two sides, and the results so far."""

    def __init__(self, args: argparse.Namespace, results: Results, console: Console):
        self.args, self.results, self.console = args, results, console

    def ours(self, *options: str) -> Worker:
        overrides = [f"--set={override}" for override in self.args.set]
        return self._worker(sys.executable, "ours.py", *options, *overrides)

    def trl(self, settings: dict) -> Worker:
        return self._worker(self.args.peer_python, "trl_peer.py", "--settings", json.dumps(settings))

    def _worker(self, python, script: str, *options: str) -> Worker:
        log = self.args.out / f"{script}.log"
        return Worker(python, script, "--out", str(self.args.out), *options, threads=self.args.threads, log=log)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def add(self, part: str, name: str, unit: str, ours, peer, *, more_is_better=True, target=None, shown="") -> None:
        """A line from what each repeat measured; `peer` None where ours is measured against nothing."""
        self.results.samples[f"{part}: {name}"] = {"ours": ours, "peer": peer}
        pairs = zip(ours, peer, strict=True) if peer else ()
        ratios = [a / b if more_is_better else b / a for a, b in pairs]
        ratio = statistics.median(ratios) if ratios else None
        value = statistics.median(ours) if ratio is None else ratio
        met = None if target is None else bool(value >= target)
        shown = shown or (f"{target:g}x" if target is not None else "")
        middle = statistics.median(peer) if peer else None
        figure = Figure(f"{part}: {name}", unit, statistics.median(ours), middle, ratio, shown, met)
        self.results.figures.append(figure)
        self.say(f"  {figure}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        check(args)
        results = run(args, console)
    except ValueError as error:
        console.print(f"error: {error}", markup=False)
        return 2
    text = json.dumps(asdict(results), indent=1)
    (args.out / "results.json").write_text(text + "\n", encoding="utf-8")
    (args.out / "results.md").write_text(markdown(results), encoding="utf-8")
    if args.json:
        print(text)
    else:
        Console(highlight=False).print(table(results))
        print(describe_equality(results.equality))
    return 0 if results.equality.get("passed", True) else 1


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=lambda text: Path(text).resolve(),
        default=ROOT / "generated" / "bench",
        help="folder of prepare.py",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure, in order")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps of a repeat")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1000, 10_000, 100_000], help="sizes of datasets to open"
    )
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON, help="of the environment with TRL")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="a setting of bench.json")
    parser.add_argument("--json", action="store_true", help="print results.json, and nothing else on stdout")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """ValueError for what is missing."""
    if not (args.out / "chat.jsonl").is_file():
        raise ValueError(f"{args.out} has no rows to measure with: run python benchmarks/prepare.py --out {args.out}")
    if not args.peer_python.is_file():
        raise ValueError(f"{args.peer_python}: there is no TRL to compare with: run make bench-peers, or --peer-python")


def run(args: argparse.Namespace, console: Console) -> Results:
    settings = {"parts": args.only, "repeats": args.repeats, "threads": args.threads, "overrides": args.set}
    bench = Bench(args, Results(settings, describe_machine()), console)
    for part in args.only:
        bench.say(f"{part} (load {os.getloadavg()[0]:.1f})")
        PARTS[part](bench)
        if not bench.results.equality.get("passed", True):
            break  # a ratio of different work means nothing
    return bench.results


def describe_machine() -> dict:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].partition(": ")[2] if model else "unknown",
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / GIB),
        "load_at_start": os.getloadavg()[0],
    }


def compare_rows(bench: Bench) -> None:
    """Ids, labels and pixels of rows, the loss of a micro-batch and greedy answers, all in float32."""
    with bench.ours(*EXACT) as ours, bench.trl(ours("describe")) as trl:
        settings = ours("describe")
        rows = ours("shuffled", num=min(NUM_EQUAL_ROWS, settings["num_rows"]))["indices"]
        paths = {side: str(bench.args.out / f"encoded_{side}.npz") for side in ("ours", "trl")}
        ours("encode", indices=rows, path=paths["ours"])
        trl("encode", indices=rows, path=paths["trl"])
        batch = rows[: settings["batch_size"]]
        losses = [side("loss", indices=batch)["loss"] for side in (ours, trl)]
        texts = [side("write", indices=batch[:2], max_new_tokens=8)["texts"] for side in (ours, trl)]
    different = different_rows(rows, *(np.load(path) for path in paths.values()))
    bench.results.equality = {
        "rows": len(rows),
        "different": different,
        "losses": losses,
        "texts": texts,
        "passed": not different and abs(losses[0] - losses[1]) < LOSS_TOLERANCE and texts[0] == texts[1],
    }
    bench.say(describe_equality(bench.results.equality))


def different_rows(rows: Sequence[int], ours, peer) -> list[str]:
    """`row/array` of every array that is not the same on both sides, in every element."""
    names = (f"{row}/{name}" for row in rows for name in ("input_ids", "labels", "pixel_values"))
    return [name for name in names if not np.array_equal(ours[name], peer[name])]


def describe_equality(equality: dict) -> str:
    if not equality:
        return "equality was not checked in this run"
    losses, verdict = equality["losses"], "equal" if equality["passed"] else "NOT EQUAL"
    return (
        f"{verdict}: {equality['rows']} rows, {len(equality['different'])} arrays of ids, labels and pixels differ "
        f"{equality['different'][:3] or ''}; first loss {losses[0]:.6f} and {losses[1]:.6f}; "
        f"greedy answers {'the same' if equality['texts'][0] == equality['texts'][1] else 'differ'}"
    )


def measure_data(bench: Bench) -> None:
    """Samples a second from rows on disk to tensors: rows never seen before, then the same again."""
    num, first, again, with_floats = 16, {"ours": [], "trl": []}, {"ours": [], "trl": []}, []
    for kept in (bench.args.out / "cache").glob("features-*"):
        shutil.rmtree(kept)  # of an earlier run, whose rows these are too
    with bench.ours() as ours, bench.trl(ours("describe")) as trl:
        rows = ours("shuffled", num=num * (bench.args.repeats + 1))["indices"]
        for repeat in range(bench.args.repeats + 1):
            indices = rows[repeat * num :][:num]
            for name, side in (("ours", ours), ("trl", trl)):
                for passes in (first, again):
                    done = side("collate", indices=indices)
                    passes[name].append(num / done["cpu_s"])
                    if passes is first and name == "ours":
                        with_floats.append(num / (done["cpu_s"] + done["floats_cpu_s"]))
    # The first repeat warms up both sides' lazy imports.
    bench.add("data", "first pass", "samples/s", first["ours"][1:], first["trl"][1:], target=5)
    bench.add("data", "first pass and pixels as floats", "samples/s", with_floats[1:], first["trl"][1:], target=5)
    bench.add("data", "again", "samples/s", again["ours"][1:], again["trl"][1:], target=10)


def measure_training(bench: Bench) -> None:
    """Supervised tokens a second and memory of optimizer steps, each side's own loop."""
    speeds, growths, peaks, padding = ([], []), ([], []), ([], []), []
    num_steps = bench.args.steps
    with bench.ours() as ours, bench.trl(ours("describe")) as trl:
        plan = ours("plan", num_steps=(num_steps + 1) * bench.args.repeats)["steps"]
        for repeat in range(bench.args.repeats):
            done = ours("steps", num_steps=num_steps)
            peer = trl("steps", steps=plan[repeat * (num_steps + 1) :][: num_steps + 1])
            padding.append(1 - done["tokens"] / done["places"])
            # The same rows, so the same supervised tokens.
            for i, figures in enumerate((done, peer)):
                speeds[i].append(done["supervised"] / figures["cpu_s"])
                growths[i].append(figures["growth"] / MIB)
                peaks[i].append(figures["peak"] / MIB)
    bench.add("training", "supervised tokens", "tokens/s", *speeds, target=2)
    bench.add("training", "memory above start", "MiB", *growths, more_is_better=False, target=2)
    bench.add("training", "peak memory of the process", "MiB", *peaks, more_is_better=False)
    bench.add("training", "padding", "share", padding, None, shown="< 0.02")


def measure_floor(bench: Bench) -> None:
    """The share of a step's time that its matrix products would need at this machine's best rate."""
    with bench.ours() as ours:
        done = [ours("floor") for _ in range(bench.args.repeats)]
    shares = [one["flops"] / one["flops_per_s"] / one["cpu_s"] for one in done]
    bench.add("training", "share of the matmul floor", "share", shares, None, target=0.6, shown="0.6")
    bench.add("training", "matmul rate", "GFLOP/s", [one["flops_per_s"] / 1e9 for one in done], None)


def measure_rollouts(bench: Bench) -> None:
    """Turns a second: all episodes in one batch against one after another with plain `generate`; and in the world."""
    batched, single, played = [], [], []
    with bench.ours() as ours, bench.trl(ours("describe")) as trl:
        rows = ours("shuffled", num=16 * bench.args.repeats)["indices"]
        for repeat in range(bench.args.repeats):
            indices = rows[repeat * 16 :][:16]
            for into, side, part in ((batched, ours, indices), (single, trl, indices[:4])):
                done = side("write", indices=part, max_new_tokens=32)
                into.append(done["turns"] / done["cpu_s"])
            done = ours("play", episodes=16, turns=2, batch_size=16)
            played.append(done["turns"] / done["cpu_s"])
    bench.add("rollouts", "answers of 32 tokens", "turns/s", batched, single, target=4)
    bench.add("rollouts", "turns in the world", "turns/s", played, None)


def measure_startup(bench: Bench) -> None:
    """From the command to the first answer: imports, rows, model, optimizer. Seconds of the clock."""
    seconds = ([], [])
    for _ in range(bench.args.repeats):
        with bench.ours() as ours:
            settings = ours("describe")
            seconds[0].append(time.monotonic() - ours.started)
        with bench.trl(settings) as trl:
            trl("collate", indices=[])
            seconds[1].append(time.monotonic() - trl.started)
    bench.add("start-up", "until ready to train", "s", *seconds, more_is_better=False)


def measure_ranks(bench: Bench) -> None:
    """Tokens a second of train.py on two ranks against one, one thread each."""
    one, two = [], []
    for _ in range(bench.args.repeats):
        one.append(train_ranks(bench, 1))
        two.append(train_ranks(bench, 2))
    bench.add("ranks", "two against one", "tokens/s", two, one, target=1.8)


def train_ranks(bench: Bench, num_ranks: int, num_steps: int = 3) -> float:
    """Tokens a second of the wall clock in the steps after the first."""
    name, path = f"ranks_{num_ranks}", bench.args.out / "ranks.json"
    overrides = [*bench.args.set, f"name={name}", f"train.max_steps={num_steps}", "train.log_every=1"]
    path.write_text(json.dumps(to_json(bench_config(bench.args.out, overrides))), encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_ranks)]
    # Without --multi_gpu one process would start (accelerate 1.15 on a CPU).
    launch += ["--multi_gpu"] if num_ranks > 1 else []
    done = subprocess.run(
        [*launch, str(ROOT / "train.py"), "--config", str(path), "--overwrite"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    if done.returncode:
        raise ValueError(f"train.py on {num_ranks} ranks failed: nothing is measured:\n{done.stderr[-2000:]}")
    lines = (bench.args.out / "runs" / name / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line).get("train/tokens_per_s") for line in lines]
    return statistics.median([speed for speed in speeds if speed][1:])


def measure_rows(bench: Bench) -> None:
    """Opening datasets of many rows in a fresh process, after they have been indexed once."""
    with bench.ours() as worker:
        settings = worker("describe")
    sides = {"ours": bench.ours, "trl": lambda: bench.trl(settings)}
    for num in bench.args.rows:
        seconds, anonymous = {side: [] for side in sides}, {side: [] for side in sides}
        for repeat in range(bench.args.repeats + 1):
            for (side, start), path in zip(sides.items(), repeat_rows(bench.args.out, num), strict=True):
                with start() as worker:
                    done = worker("open_rows", path=str(path), cache_dir=str(bench.args.out / f"rows_of_{side}"))
                assert done["num_rows"] == num, done
                if repeat:  # the first one indexes
                    seconds[side].append(done["wall_s"])
                    anonymous[side].append(done["anonymous"] / MIB)
        bench.add(f"rows {num:,}", "opened again", "s", *seconds.values(), more_is_better=False)
        bench.add(f"rows {num:,}", "anonymous memory", "MiB", *anonymous.values(), more_is_better=False)


def repeat_rows(out: Path, num: int) -> tuple[Path, Path]:
    """The rows over and over under new names until there are `num`, in our form and in the peer's."""
    sources = (out / "safari" / "dataset.jsonl", out / "chat.jsonl")
    paths = (out / "safari" / f"rows_{num}.jsonl", out / f"chat_{num}.jsonl")
    keys = ("episode_id", "id")
    for source, path, key in zip(sources, paths, keys, strict=True):
        if path.is_file():
            continue
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        with open(path, "w", encoding="utf-8") as file:
            for i in range(num):
                row = rows[i % len(rows)]
                row = {**row, key: f"{row[key]}_{i // len(rows)}"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return paths


PARTS: dict[str, Callable[[Bench], None]] = {
    "equality": compare_rows,
    "data": measure_data,
    "train": measure_training,
    "floor": measure_floor,
    "rollouts": measure_rollouts,
    "startup": measure_startup,
    "ranks": measure_ranks,
    "rows": measure_rows,
}


def cells(figure: Figure) -> tuple[str, ...]:
    met = {True: "met", False: "missed", None: ""}[figure.met]
    numbers = (f"{value:.4g}" if value is not None else "" for value in (figure.ours, figure.peer))
    ratio = f"{figure.ratio:.2f}x" if figure.ratio is not None else ""
    return (figure.name, figure.unit, *numbers, ratio, figure.target, met)


COLUMNS = ("what", "unit", "ours", "TRL", "ours is better by", "target", "")


def table(results: Results) -> Table:
    shown = Table(*COLUMNS)
    for figure in results.figures:
        shown.add_row(*cells(figure))
    return shown


def markdown(results: Results) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(figure))} |" for figure in results.figures]
    return "\n".join([describe_equality(results.equality), "", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
