"""Ours beside TRL, LLaMA-Factory and ms-swift on the same work: equal first, then how fast.

Writes results.json and results.md, prints the table.

    python benchmarks/prepare.py --out generated/bench
    python benchmarks/compare.py --out generated/bench                      # everything, about half an hour on two cores
    python benchmarks/compare.py --out generated/bench --only equality      # under three minutes, no timing
    python benchmarks/compare.py --out generated/bench --only data train --repeats 3 --peers trl swift

All sides are processes that stay loaded and take turns, so that what else the machine does hits all; a figure is the
median of the repeats and a ratio the median of the repeats' own ratios. Seconds are CPU seconds of the process (with one
thread the same as wall time on a quiet machine, and meaningful on a busy one), on a GPU those of the wall until the device
is done; both are in results.json. Memory is the process's, on a GPU that of the tensors there.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from prepare import bench_config, prepare_history
from rich.console import Console
from rich.table import Table

from qwenvl_agent.config import to_json

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS_DIR = ROOT / "generated" / "peers"
EXACT = (
    "--set=model.dtype=float32",
    "--set=model.autocast=false",
    "--set=model.lora_dropout=0.0",
    "--set=model.compile=false",
)
LOSS_TOLERANCE = 1e-3
NUM_EQUAL_ROWS = 16
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Peer:
    """Somebody else's framework: benchmarks/KEY_peer.py in the environment PEERS_DIR/KEY (`make bench-peers`)."""

    title: str
    writes: bool = False
    """Whether it answers prompts and opens large files of rows too."""
    pixel_tolerance: float = 0.0
    """What a pixel value may differ by."""


ONE_LEVEL = 2 / 255 + 1e-6
"""A step of 255 in a pixel value, which goes from -1 to 1."""
PEERS = {
    "trl": Peer("TRL", writes=True),
    "llamafactory": Peer("LLaMA-Factory"),
    "swift": Peer("ms-swift", pixel_tolerance=ONE_LEVEL),  # shrinks pictures with Pillow
}
FIRST = "trl"
"""Always measured: targets are beside it."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    unit: str
    ours: float
    peers: dict[str, float]
    ratios: dict[str, float]
    """How many times better ours is, by peer; empty where there is none."""
    target: str
    met: bool | None
    """Beside the first peer; None: there is no target."""


@dataclass
class Results:
    """All that a run found out; plain JSON."""

    settings: dict
    machine: dict
    equality: dict[str, dict] = field(default_factory=dict)
    """By peer."""
    figures: list[Figure] = field(default_factory=list)
    samples: dict = field(default_factory=dict)
    """What each repeat measured, by line and side."""

    @property
    def passed(self) -> bool:
        return all(equality["passed"] for equality in self.equality.values())


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
    """The sides, and the results so far."""

    def __init__(self, args: argparse.Namespace, results: Results, console: Console):
        self.args, self.results, self.console = args, results, console

    def ours(self, *options: str) -> Worker:
        overrides = [f"--set={override}" for override in self.args.set]
        return self._worker(sys.executable, "ours.py", *options, *overrides)

    def peer(self, name: str, settings: dict) -> Worker:
        python = environment_python(self.args.peers_dir, name)
        return self._worker(python, f"{name}_peer.py", "--settings", json.dumps(settings))

    @contextmanager
    def sides(self, *options: str) -> Iterator[tuple[Worker, dict[str, Worker]]]:
        """Ours and every peer, loaded with the same settings."""
        with ExitStack() as stack:
            ours = stack.enter_context(self.ours(*options))
            settings = ours("describe")
            yield ours, {name: stack.enter_context(self.peer(name, settings)) for name in self.args.peers}

    def _worker(self, python, script: str, *options: str) -> Worker:
        log = self.args.out / f"{script}.log"
        return Worker(python, script, "--out", str(self.args.out), *options, threads=self.args.threads, log=log)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def add(
        self,
        part: str,
        name: str,
        unit: str,
        samples: Mapping[str, list],
        *,
        more_is_better=True,
        target=None,
        shown="",
    ) -> None:
        """A line from what each repeat measured, by side: "ours" and the names of peers."""
        ours, peers = samples["ours"], {side: values for side, values in samples.items() if side != "ours"}
        self.results.samples[f"{part}: {name}"] = dict(samples)
        ratios = {}
        for peer, values in peers.items():
            pairs = zip(ours, values, strict=True)
            ratios[peer] = statistics.median(a / b if more_is_better else b / a for a, b in pairs)
        middle = statistics.median(ours)
        value = next(iter(ratios.values()), middle)
        met = None if target is None else bool(value >= target)
        shown = shown or (f"{target:g}x" if target is not None else "")
        medians = {peer: statistics.median(values) for peer, values in peers.items()}
        figure = Figure(f"{part}: {name}", unit, middle, medians, ratios, shown, met)
        self.results.figures.append(figure)
        self.say(f"  {figure}")


def environment_python(peers_dir: Path, name: str) -> Path:
    return peers_dir / name / "bin" / "python"


def is_installed(peers_dir: Path, name: str) -> bool:
    """Whether `make bench-peers` came to its end: it touches this file last."""
    return (peers_dir / name / "installed").is_file()


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
        if results.figures:
            Console(highlight=False).print(table(results))
        print(describe_equality(results.equality))
    return 0 if results.passed else 1


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
    parser.add_argument(
        "--peer-rows",
        type=int,
        default=100_000,
        help="the largest dataset that a peer has to open (it indexes it first)",
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), help="default: all that are installed")
    parser.add_argument("--peers-dir", type=Path, default=PEERS_DIR, help="folder of their environments")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="a setting of bench.json")
    parser.add_argument("--json", action="store_true", help="print results.json, and nothing else on stdout")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """ValueError for what is missing; `args.peers` becomes those to measure, the first one first."""
    if not (args.out / "text.jsonl").is_file():
        raise ValueError(f"{args.out} has no rows to measure with: run python benchmarks/prepare.py --out {args.out}")
    installed = [name for name in PEERS if is_installed(args.peers_dir, name)]
    for name in {FIRST, *(args.peers or ())} - set(installed):
        title = PEERS[name].title
        raise ValueError(
            f"{args.peers_dir / name} is not set up: there is no {title} to compare with: make bench-peers"
        )
    args.peers = [name for name in installed if name == FIRST or name in (args.peers or installed)]


def run(args: argparse.Namespace, console: Console) -> Results:
    settings = {"parts": args.only, "repeats": args.repeats, "threads": args.threads, "overrides": args.set}
    settings["peers"] = args.peers
    bench = Bench(args, Results(settings, describe_machine()), console)
    for part in args.only:
        bench.say(f"{part} (load {os.getloadavg()[0]:.1f})")
        PARTS[part](bench)
        if not bench.results.passed:
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
    with bench.sides(*EXACT) as (ours, peers):
        settings, workers = ours("describe"), {"ours": ours, **peers}
        rows = ours("shuffled", num=min(NUM_EQUAL_ROWS, settings["num_rows"]))["indices"]
        batch = rows[: settings["batch_size"]]
        encoded, losses, texts = {}, {}, {}
        for side, worker in workers.items():
            path = bench.args.out / f"encoded_{side}.npz"
            worker("encode", indices=rows, path=str(path))
            encoded[side], losses[side] = np.load(path), worker("loss", indices=batch)["loss"]
            if side == "ours" or PEERS[side].writes:
                texts[side] = worker("write", indices=batch[:2], max_new_tokens=8)["texts"]
    for peer in peers:
        different = difference(rows, encoded["ours"], encoded[peer])
        bench.results.equality[peer] = different | {
            "rows": len(rows),
            "losses": [losses["ours"], losses[peer]],
            "answers": texts[peer] == texts["ours"] if peer in texts else None,
        }
        judge(bench.results.equality[peer], PEERS[peer])
    bench.say(describe_equality(bench.results.equality))


def judge(equality: dict, peer: Peer) -> None:
    """Sets `passed`: the same work, up to what is known of the peer."""
    ours, theirs = equality["losses"]
    equality["passed"] = bool(
        equality["tokens"] == 0
        and equality["furthest_pixel"] <= peer.pixel_tolerance
        and abs(ours - theirs) < LOSS_TOLERANCE
        and equality["answers"] is not False
    )


def difference(rows: Sequence[int], ours: Mapping, peer: Mapping) -> dict:
    """How much is not the same on both sides, of encoded rows.

    `tokens` have another id or label, or are missing, up to the last learned one. What comes after that, the `tail`, has
    no influence on the loss: only its length is said, by side.
    """
    found = {"tokens": 0, "num_tokens": 0, "tail": [0, 0], "pixels": 0, "num_pixels": 0, "furthest_pixel": 0.0}
    for row in rows:
        heads = []
        for i, side in enumerate((ours, peer)):
            both = np.concatenate([side[f"{row}/input_ids"], side[f"{row}/labels"]])  # (2, length)
            end = int(np.flatnonzero(both[1] != -100)[-1]) + 1
            heads.append(both[:, :end])
            found["tail"][i] += both.shape[1] - end
        common = min(head.shape[1] for head in heads)
        found["tokens"] += int((heads[0][:, :common] != heads[1][:, :common]).any(0).sum())
        found["tokens"] += abs(heads[0].shape[1] - heads[1].shape[1])
        found["num_tokens"] += heads[0].shape[1]
        pixels = ours[f"{row}/pixel_values"], peer[f"{row}/pixel_values"]
        found["num_pixels"] += pixels[0].size
        if pixels[0].shape != pixels[1].shape:
            found["pixels"], found["furthest_pixel"] = found["pixels"] + pixels[0].size, float("inf")
            continue
        distances = np.abs(pixels[0] - pixels[1])
        found["pixels"] += int(np.count_nonzero(distances))
        found["furthest_pixel"] = max(found["furthest_pixel"], float(distances.max()))
    return found


def describe_equality(equality: Mapping[str, dict]) -> str:
    """A line for each peer."""
    if not equality:
        return "equality was not checked in this run"
    lines = []
    for peer, found in equality.items():
        answers = {True: "; greedy answers the same", False: "; greedy answers DIFFER", None: ""}[found["answers"]]
        lines.append(
            f"{PEERS[peer].title}: {'equal' if found['passed'] else 'NOT EQUAL'} in {found['rows']} rows: "
            f"{found['tokens']} of {found['num_tokens']:,} tokens up to the last learned one differ, "
            f"after it ours has {found['tail'][0]} and it {found['tail'][1]}; "
            f"{found['pixels'] / found['num_pixels']:.2%} of pixel values differ, by at most "
            f"{found['furthest_pixel']:.4f}; first loss {found['losses'][0]:.6f} and {found['losses'][1]:.6f}{answers}"
        )
    return "\n".join(lines)


def by_side(peers: Mapping[str, Worker]) -> dict[str, list[float]]:
    """Room for what the repeats measure."""
    return {side: [] for side in ("ours", *peers)}


def measure_data(bench: Bench) -> None:
    """Samples a second from rows on disk to tensors: rows never seen before, then the same again."""
    num = 16
    drop_features(bench)
    with bench.sides() as (ours, peers):
        first, again, with_floats = by_side(peers), by_side(peers), []
        rows = ours("shuffled", num=num * (bench.args.repeats + 1))["indices"]
        for repeat in range(bench.args.repeats + 1):
            indices = rows[repeat * num :][:num]
            for side, worker in {"ours": ours, **peers}.items():
                for passes in (first, again):
                    done = worker("collate", indices=indices)
                    passes[side].append(num / done["seconds"])
                    if passes is first and side == "ours":
                        with_floats.append(num / (done["seconds"] + done["floats_s"]))
    first, again, floats = (
        {side: values[1:] for side, values in samples.items()}  # the first repeat warms up lazy imports
        for samples in (first, again, first | {"ours": with_floats})
    )
    bench.add("data", "first pass", "samples/s", first, target=5)
    bench.add("data", "first pass and pixels as floats", "samples/s", floats, target=5)
    bench.add("data", "again", "samples/s", again, target=10)


def measure_training(bench: Bench) -> None:
    """Supervised tokens a second and memory of optimizer steps, each side's own loop; ours also with kept features."""
    drop_features(bench)
    with bench.sides() as (ours, peers):
        speeds, growths, peaks, padding = by_side(peers), by_side(peers), by_side(peers), []
        later = []
        for steps in warmed_up(ours, bench.args):
            done = {"ours": ours("steps", steps=steps)}
            done |= {name: peer("steps", steps=steps) for name, peer in peers.items()}
            again = ours("steps", steps=steps)
            padding.append(1 - done["ours"]["tokens"] / done["ours"]["places"])
            later.append(again["supervised"] / again["seconds"])
            for side, figures in done.items():
                # The same rows, so the same supervised tokens.
                speeds[side].append(done["ours"]["supervised"] / figures["seconds"])
                growths[side].append(figures["growth"] / MIB)
                peaks[side].append(figures["peak"] / MIB)
    bench.add("training", "supervised tokens", "tokens/s", speeds, target=2)
    bench.add("training", "the same, later epochs", "tokens/s", speeds | {"ours": later}, target=3)
    bench.add("training", "memory above start", "MiB", growths, more_is_better=False, target=2)
    bench.add("training", "peak memory of the process", "MiB", peaks, more_is_better=False)
    bench.add("training", "padding", "share", {"ours": padding}, shown="< 0.02")


def warmed_up(ours: Worker, args: argparse.Namespace) -> list[list[list[int]]]:
    """The rows of each optimizer step of each repeat; steps on others are done, in which blocks were compiled."""
    num_steps = args.steps + 1  # a worker does not count the first
    plan = ours("plan", num_steps=num_steps * (args.repeats + 1))["steps"]
    warm_up, *repeats = (plan[start : start + num_steps] for start in range(0, len(plan), num_steps))
    ours("steps", steps=warm_up)
    return repeats


def drop_features(bench: Bench) -> None:
    """What an earlier run kept, whose rows these are too."""
    for kept in (bench.args.out / "cache").glob("features-*"):
        shutil.rmtree(kept)


def measure_lengths(bench: Bench) -> None:
    """Training on longer rows of more pictures: up to 0, 1, 3 and 7 earlier steps are shown, each with its picture."""
    args = bench.args
    for history in (0, 1, 3, 7):
        out = args.out / f"history_{history}"
        prepare_history(out, args.out, history)
        bench.args = argparse.Namespace(
            **vars(args) | {"out": out, "set": [*args.set, f"prompt.history_steps={history}"]}
        )
        drop_features(bench)
        with bench.ours() as ours, bench.peer(FIRST, ours("describe")) as peer:
            speeds, growths, tokens, pictures = by_side({FIRST: peer}), by_side({FIRST: peer}), [], []
            for steps in warmed_up(ours, args):
                done = {"ours": ours("steps", steps=steps), FIRST: peer("steps", steps=steps)}
                size = ours("size", indices=sum(steps[1:], []))
                tokens.append(size["tokens"])
                pictures.append(size["pictures"])
                for side, figures in done.items():
                    speeds[side].append(done["ours"]["supervised"] / figures["seconds"])
                    growths[side].append(figures["growth"] / MIB)
        name = f"rows of {statistics.mean(tokens):,.0f} tokens, {statistics.mean(pictures):.1f} pictures"
        bench.add(name, "supervised tokens", "tokens/s", speeds)
        bench.add(name, "memory above start", "MiB", growths, more_is_better=False)
        shutil.rmtree(out)
    bench.args = args


def measure_floor(bench: Bench) -> None:
    """The share of a step's time that its matrix products would need at this machine's best rate."""
    with bench.ours() as ours:
        done = [ours("floor") for _ in range(bench.args.repeats)]
    shares = [one["flops"] / one["flops_per_s"] / one["seconds"] for one in done]
    bench.add("training", "share of the matmul floor", "share", {"ours": shares}, target=0.6, shown="0.6")
    bench.add("training", "matmul rate", "GFLOP/s", {"ours": [one["flops_per_s"] / 1e9 for one in done]})


def measure_rollouts(bench: Bench) -> None:
    """Turns a second: all episodes in one batch against one after another with plain `generate`; and in the world."""
    with bench.ours() as ours, bench.peer(FIRST, ours("describe")) as peer:
        answered, played = by_side({FIRST: peer}), []
        rows = ours("shuffled", num=16 * bench.args.repeats)["indices"]
        for repeat in range(bench.args.repeats):
            indices = rows[repeat * 16 :][:16]
            for side, worker, part in (("ours", ours, indices), (FIRST, peer, indices[:4])):
                done = worker("write", indices=part, max_new_tokens=32)
                answered[side].append(done["turns"] / done["seconds"])
            done = ours("play", episodes=16, turns=2, batch_size=16)
            played.append(done["turns"] / done["seconds"])
    bench.add("rollouts", "answers of 32 tokens", "turns/s", answered, target=4)
    bench.add("rollouts", "turns in the world", "turns/s", {"ours": played})


def measure_startup(bench: Bench) -> None:
    """From the command to the first answer: imports, rows, model, optimizer. Seconds of the clock."""
    seconds = {side: [] for side in ("ours", *bench.args.peers)}
    for _ in range(bench.args.repeats):
        with bench.ours() as ours:
            settings = ours("describe")
            seconds["ours"].append(time.monotonic() - ours.started)
        for name in bench.args.peers:
            with bench.peer(name, settings) as peer:
                peer("collate", indices=[])
                seconds[name].append(time.monotonic() - peer.started)
    bench.add("start-up", "until ready to train", "s", seconds, more_is_better=False)


def measure_ranks(bench: Bench) -> None:
    """Tokens a second of train.py on two ranks against one, one thread each."""
    one, two = [], []
    for _ in range(bench.args.repeats):
        one.append(train_ranks(bench, 1))
        two.append(train_ranks(bench, 2))
    bench.add("ranks", "two", "tokens/s", {"ours": two})
    bench.add("ranks", "two against one", "x", {"ours": [a / b for a, b in zip(two, one, strict=True)]}, target=1.8)


def train_ranks(bench: Bench, num_ranks: int, num_steps: int = 3) -> float:
    """Tokens a second of the wall clock in the steps after the first."""
    name, path = f"ranks_{num_ranks}", bench.args.out / "ranks.json"
    # Not compiled, which would take longer than these steps.
    overrides = [*bench.args.set, f"name={name}", f"train.max_steps={num_steps}", "train.log_every=1"]
    overrides.append("model.compile=false")
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
    """Opening datasets of many rows in a fresh process: the first time, which indexes them, and again."""
    with bench.ours() as worker:
        settings = worker("describe")
    sides = {"ours": bench.ours, FIRST: lambda: bench.peer(FIRST, settings)}
    for num in bench.args.rows:
        done = {
            side: open_repeatedly(bench, num, side, start)
            for side, start in sides.items()
            if side == "ours" or num <= bench.args.peer_rows
        }
        report_opening(bench, f"rows {num:,}", done)


def open_repeatedly(bench: Bench, num: int, side: str, start: Callable[[], Worker]) -> list[dict]:
    """What a fresh worker answers each time; rows and cache, gigabytes of them, are removed at the end."""
    path, cache = repeat_rows(bench.args.out, num, side), bench.args.out / f"rows_of_{side}"
    shutil.rmtree(cache, ignore_errors=True)
    answers = []
    try:
        for _ in range(bench.args.repeats + 1):
            with start() as worker:
                answers.append(worker("open_rows", path=str(path), cache_dir=str(cache)))
            assert answers[-1]["num_rows"] == num, answers
    finally:
        path.unlink()
        shutil.rmtree(cache, ignore_errors=True)
    return answers


def report_opening(bench: Bench, part: str, done: dict[str, list[dict]]) -> None:
    """Lines from what each side answered; the first one indexed."""
    indexing = {side: [answers[0]["wall_s"]] for side, answers in done.items()}
    seconds = {side: [answer["wall_s"] for answer in answers[1:]] for side, answers in done.items()}
    growth = {side: [answer["anonymous"] / MIB for answer in answers[1:]] for side, answers in done.items()}
    process = {"ours": [answer["process"] / MIB for answer in done["ours"][1:]]}
    bench.add(part, "opened first", "s", indexing, more_is_better=False)
    bench.add(part, "opened again", "s", seconds, more_is_better=False)
    bench.add(part, "anonymous memory", "MiB", growth, more_is_better=False)
    bench.add(part, "anonymous memory of the whole process", "MiB", process, more_is_better=False)


REPEATED = {
    "ours": ("safari/dataset.jsonl", "safari/rows_{}.jsonl", "episode_id"),
    FIRST: ("chat.jsonl", "chat_{}.jsonl", "id"),
}
"""The rows in each side's form, a name for more of them, and the key that tells them apart."""


def repeat_rows(out: Path, num: int, side: str) -> Path:
    """A file of the rows over and over under new names until there are `num`; their pictures are the same ones."""
    source, name, key = REPEATED[side]
    rows = [json.loads(line) for line in (out / source).read_text(encoding="utf-8").splitlines()]
    path = out / name.format(num)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(num):
            row = rows[i % len(rows)]
            file.write(json.dumps({**row, key: f"{row[key]}_{i // len(rows)}"}, ensure_ascii=False) + "\n")
    return path


PARTS: dict[str, Callable[[Bench], None]] = {
    "equality": compare_rows,
    "data": measure_data,
    "train": measure_training,
    "lengths": measure_lengths,
    "floor": measure_floor,
    "rollouts": measure_rollouts,
    "startup": measure_startup,
    "ranks": measure_ranks,
    "rows": measure_rows,
}


def columns(results: Results) -> tuple[str, ...]:
    titles = (PEERS[name].title for name in results.settings["peers"])
    return ("what", "unit", "ours", *titles, "target", "")


def cells(figure: Figure, peers: Sequence[str]) -> tuple[str, ...]:
    """A line of the table; behind a peer's figure, how many times better ours is."""
    met = {True: "met", False: "missed", None: ""}[figure.met]
    shown = (f"{figure.peers[name]:.4g} ({figure.ratios[name]:.2f}x)" if name in figure.peers else "" for name in peers)
    return (figure.name, figure.unit, f"{figure.ours:.4g}", *shown, figure.target, met)


def table(results: Results) -> Table:
    shown = Table(*columns(results), caption=CAPTION)
    for figure in results.figures:
        shown.add_row(*cells(figure, results.settings["peers"]))
    return shown


CAPTION = f"In brackets: how many times better ours is. Targets are beside {PEERS[FIRST].title}."


def markdown(results: Results) -> str:
    head = columns(results)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cells(figure, results.settings['peers']))} |" for figure in results.figures]
    return "\n".join([describe_equality(results.equality), "", CAPTION, "", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
