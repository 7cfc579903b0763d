"""What several ranks lose: a run's steps on one rank and on more, each part's own work and its waiting, rank by rank.

    python benchmarks/ranks.py --config CONFIG --set KEY=VALUE --out generated/ranks            # two ranks beside one
    python benchmarks/ranks.py --config CONFIG --ranks 4 --steps 30

The steps are train.py's own, in processes that `accelerate launch` starts, one thread each; CPU seconds are of that thread,
in which forward and backward run. What the clock shows beyond them is waiting: for other ranks, for what is sent (gloo
has threads of its own), or for a core where others use them. So work and balance mean something on a busy machine, and
waiting and the speed-up only on free cores. Prints tables, writes OUT/ranks.json.

Without a GPU: there a thread's seconds say nothing of the kernels that it starts (train.py's profile.steps does).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PARTS = ("data", "token count of all ranks", "forward", "backward", "clip", "optimizer", "everything else")
WARMUP_STEPS = 2


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a JSON file of configs/, or benchmarks/bench.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting")
    parser.add_argument("--ranks", type=int, default=2, help="beside one (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help=f"after {WARMUP_STEPS} others (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("generated/ranks"), help="default: %(default)s")
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)  # a process that this program has started
    args = parser.parse_args(argv)
    if args.rank_of:
        measure(args)
        return
    if args.ranks < 2 or args.steps < 1:
        parser.error("two ranks and one step, at least: nothing would be compared")
    args.out.mkdir(parents=True, exist_ok=True)
    measured = {num: launch(args, num) for num in (1, args.ranks)}
    (args.out / "ranks.json").write_text(json.dumps(measured) + "\n", encoding="utf-8")
    print(describe(measured[1], measured[args.ranks]))


def launch(args: argparse.Namespace, num_ranks: int) -> list[list[dict]]:
    """Of each rank its steps."""
    options = [f"--set={override}" for override in args.set] + [
        f"--steps={args.steps}",
        f"--out={args.out}",
        f"--rank-of={num_ranks}",
    ]
    # Without --multi_gpu a single process would start (accelerate 1.15 on a CPU).
    kind = ["--multi_gpu"] if num_ranks > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_ranks), *kind]
    command += ["--main_process_port", "0", __file__, "--config", args.config, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{num_ranks} ranks failed: nothing is measured:\n{done.stderr[-3000:]}")
    return [json.loads((args.out / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(num_ranks)]


# a rank


class Clock:
    """Seconds of this thread and of the wall, by part, of one step."""

    def __init__(self):
        self.parts: dict[str, list[float]] = {}

    def timed(self, part: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.add(part, time.thread_time() - cpu, time.perf_counter() - wall)

        return call

    def add(self, part: str, cpu: float, wall: float) -> None:
        so_far = self.parts.setdefault(part, [0.0, 0.0])
        self.parts[part] = [so_far[0] + cpu, so_far[1] + wall]


def measure(args: argparse.Namespace) -> None:
    """This rank's steps, into OUT/rank_R.json."""
    import train
    from qwenvl_agent.config import load_config
    from qwenvl_agent.training.setup import set_up

    name = f"ranks_{args.rank_of}"
    ends = [f"train.max_steps={WARMUP_STEPS + args.steps}", "eval.suite=none", "train.trackers=[]"]
    run = set_up(
        load_config(args.config, [*args.set, f"name={name}", f"runs_dir={args.out}/runs", *ends]), overwrite=True
    )
    clock, steps = Clock(), []
    accelerator, optimizer = run.accelerator, run.optimizer
    accelerator.reduce = clock.timed("token count of all ranks", accelerator.reduce)
    accelerator.backward = clock.timed("backward", accelerator.backward)
    accelerator.clip_grad_norm_ = clock.timed("clip", accelerator.clip_grad_norm_)
    optimizer.step = clock.timed("optimizer", optimizer.step)
    train.token_losses = clock.timed("forward", train.token_losses)
    fetch = clock.timed("data", lambda: [next(run.batches) for _ in range(run.config.train.accumulation)])
    for number in range(WARMUP_STEPS + args.steps):
        clock.parts = {}
        cpu, wall = time.thread_time(), time.perf_counter()
        batches = train.prepare(run, fetch(), 0.0)
        clip = run.config.train.max_grad_norm
        train.train_step(accelerator, run.model, optimizer, batches, run.findings, number, clip)
        run.findings.read()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        known = [sum(part[i] for part in clock.parts.values()) for i in (0, 1)]
        clock.add("everything else", cpu - known[0], wall - known[1])
        tokens, places = (
            sum(batch[key] if key == "num_tokens" else batch[key].numel() for batch in batches)
            for key in ("num_tokens", "input_ids")
        )
        steps.append({"tokens": tokens, "places": places, "wall": wall, "parts": clock.parts})
    path = args.out / f"rank_{accelerator.process_index}.json"
    path.write_text(json.dumps(steps[WARMUP_STEPS:]), encoding="utf-8")
    accelerator.end_training()


# for people


def describe(one: Sequence[list[dict]], several: Sequence[list[dict]]) -> str:
    """Tables in Markdown."""
    heads = ["one rank", *(f"rank {rank}" for rank in range(len(several)))]
    lines = [
        f"| ms a step | {' | '.join(f'{head}: work | waiting' for head in heads)} |",
        "|---" * (1 + 2 * len(heads)) + "|",
    ]
    for part in PARTS:
        cells = [
            f"{1e3 * cpu:.0f} | {1e3 * (wall - cpu):.0f}" for cpu, wall in (mean_of(r, part) for r in (*one, *several))
        ]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    speed, work = ([rate(ranks, kind) for ranks in (one, several)] for kind in ("wall", "work"))
    places = [statistics.mean(step["places"] for step in rank) for rank in several]
    return "\n".join(
        [
            *lines,
            "",
            f"computed tokens a step, by rank: {', '.join(f'{num:.0f}' for num in places)}",
            f"balance: ranks do {balance(several):.1%} of what the slowest one of each step does",
            f"speed-up by work alone, as if nobody waited but for the slowest: {work[1] / work[0]:.2f}x",
            f"speed-up by the clock: {speed[1] / speed[0]:.2f}x ({speed[0]:.0f} and {speed[1]:.0f} tokens/s)",
        ]
    )


def mean_of(steps: Sequence[dict], part: str) -> tuple[float, float]:
    """CPU and wall seconds of a part, a step."""
    spent = [step["parts"].get(part, (0.0, 0.0)) for step in steps]
    return statistics.mean(cpu for cpu, _ in spent), statistics.mean(wall for _, wall in spent)


def work_of(step: dict) -> float:
    return sum(cpu for cpu, _ in step["parts"].values())


def rate(ranks: Sequence[list[dict]], kind: str) -> float:
    """Tokens a second of all ranks; by "work" a step takes as long as its slowest rank's CPU."""
    seconds = sum(max(work_of(s) if kind == "work" else s["wall"] for s in step) for step in zip(*ranks, strict=True))
    return sum(step["tokens"] for rank in ranks for step in rank) / seconds


def balance(ranks: Sequence[list[dict]]) -> float:
    """Mean over the slowest, of the ranks' work in each step."""
    steps = [[work_of(s) for s in step] for step in zip(*ranks, strict=True)]
    return sum(map(statistics.mean, steps)) / sum(map(max, steps))


if __name__ == "__main__":
    main()
