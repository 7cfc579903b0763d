"""Record rollouts of the safari oracle as a dataset: dataset.jsonl, images/ and manifest.json.

    qwenvl-agent record --config configs/safari_tiny.json --out generated/safari_tiny --episodes 2000 \
        --max-path 6 --max-final-path 3 --noise 0.2
    qwenvl-agent record --set rules=catch --out generated/safari --episodes 3000 --workers 8
    qwenvl-agent record --task perception --out generated/perception --episodes 5000

Episode i plays the world of seed `seed-start + i`. With --noise p, random moves are played between the oracle's own
turns, which alone are recorded, so the data holds states that the oracle would never reach. `--task perception` records
questions about views, with exact answers, from random places of each world.
"""

import argparse
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from qwenvl_agent.command import bounded, command, run_command
from qwenvl_agent.config import load_config
from qwenvl_agent.processes import parallel_map
from qwenvl_agent.schema import Request, Turn
from qwenvl_agent.settings import apply_override
from qwenvl_agent.worlds.safari import SafariEnv, SafariOracle, SafariRules
from qwenvl_agent.worlds.safari.baselines import random_move
from qwenvl_agent.worlds.safari.perception import perception_rows
from qwenvl_agent.worlds.safari.records import RowWriter
from qwenvl_agent.worlds.safari.render import png_bytes, render_view
from qwenvl_agent.worlds.safari.thoughts import THOUGHT_FORMS
from qwenvl_agent.worlds.safari.world import REPORT_SEEDS, SELECTION_SEEDS, TRAIN_SEEDS

SEED_SETS = {"training": TRAIN_SEEDS, "selection": SELECTION_SEEDS, "report": REPORT_SEEDS}
Recorded = tuple[list[tuple[bytes, dict]], dict[str, int]]
"""Rows with their pictures as PNG, and what to count."""


def record_episode(seed: int, rules: SafariRules, oracle: dict, noise: float) -> Recorded:
    """The oracle's own turns of one episode."""
    env, policy = SafariEnv(rules), SafariOracle(rules, **oracle)
    rng = random.Random(f"noise {seed}")
    observation, info = env.reset(seed=seed)
    rows = []
    for turn_index in range(rules.max_turns):
        is_noise = rng.random() < noise
        request = Request(env.system_prompt, env.tools, (), observation)
        turn = Turn(tool_calls=(random_move(rng),)) if is_noise else policy.act([request])[0].turn
        following, _, terminated, truncated, info = env.step(turn)
        if not is_noise:
            row = {
                "episode_id": f"{seed:08x}",
                "mission": env.mission.text,
                "turn_index": turn_index,
                "system_prompt": env.system_prompt,
                "context_text": observation.text,
                "turn": turn,
                "results": info["results"],
            }
            rows.append((png_bytes(observation.pictures[0].open()), row))
        if terminated or truncated:
            break
        observation = following
    return rows, {"solved": info["success"], "first_view_outside": info["first_view_outside"]}


def record_questions(seed: int, rules: SafariRules, thought_form: str) -> Recorded:
    """Questions about one world."""
    questions = perception_rows(rules, seed, THOUGHT_FORMS[thought_form])
    return [(png_bytes(render_view(symbols, rules.tile_px)), row) for symbols, row in questions], {}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    parser.add_argument("--episodes", type=bounded(int, 1), required=True)
    parser.add_argument("--seed-start", type=bounded(int, 0), default=0)
    parser.add_argument("--config", type=Path, help="take the rules from eval.world of this config")
    parser.add_argument("--world", type=json.loads, default={}, help="rules as one JSON object, over --config")
    parser.add_argument("--set", action="append", default=[], metavar="RULE=VALUE", help="one rule, over --world")
    parser.add_argument("--task", choices=("agent", "perception"), default="agent")
    parser.add_argument(
        "--noise", type=bounded(float, 0, 1), default=0.0, help="share of random moves between the recorded turns"
    )
    parser.add_argument("--max-path", type=bounded(int, 1), default=12, help="tiles walked in a turn")
    parser.add_argument(
        "--max-final-path", type=bounded(int, 1), default=12, help="tiles walked in the turn that declares"
    )
    parser.add_argument("--thought-form", choices=sorted(THOUGHT_FORMS), default="tiles")
    parser.add_argument("--workers", type=bounded(int, 1), default=1, help="processes")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON and nothing else")
    return parser.parse_args(argv)


def rules_of(args: argparse.Namespace) -> SafariRules:
    values = dict(load_config(args.config).eval.world) if args.config else {}
    values |= args.world
    for override in args.set:
        apply_override(values, override)
    return SafariRules.from_json(values)


def seed_set(seeds: range) -> str:
    """The set that holds all seeds; ValueError if none does, as data would leak from one to another."""
    for name, known in SEED_SETS.items():
        if seeds and seeds[0] in known and seeds[-1] in known:
            return name
    raise ValueError(
        f"seeds {seeds.start} to {seeds.stop - 1} are not all of one seed set: training would see worlds of an "
        f"evaluation; stay within one of {SEED_SETS}"
    )


def write_episodes(out: Path, seeds: range, record: Callable[[int], Recorded], workers: int, quiet: bool) -> Counter:
    """Record every seed's rows in the order of the seeds; returns counts."""
    counts = Counter(episodes=0, rows=0)
    with RowWriter(out) as writer, parallel_map(workers) if workers > 1 else nullcontext(map) as mapped:
        for rows, counted in track(mapped(record, seeds), total=len(seeds), description=str(out), disable=quiet):
            for png, row in rows:
                writer.write(png, **row)
            counts.update(episodes=1, rows=len(rows), **counted)
    return counts


@command("the data set is not whole; start again with --overwrite")
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if (args.out / "dataset.jsonl").exists() and not args.overwrite:
        raise ValueError(f"{args.out}/dataset.jsonl exists and would be lost; give another --out or --overwrite")
    rules = rules_of(args)
    seeds = range(args.seed_start, args.seed_start + args.episodes)
    about = {"world": "safari", "task": args.task, "rules": asdict(rules), "seed_set": seed_set(seeds)}
    if args.task == "agent":
        oracle = {
            "max_path": args.max_path,
            "max_final_path": args.max_final_path,
            "thought_form": args.thought_form,
        }
        record = partial(record_episode, rules=rules, oracle=oracle, noise=args.noise)
        about |= {"oracle": oracle, "noise": args.noise}
    else:
        record = partial(record_questions, rules=rules, thought_form=args.thought_form)
        about |= {"thought_form": args.thought_form}
    started = time.perf_counter()
    counts = write_episodes(args.out, seeds, record, args.workers, quiet=args.json)
    seconds = time.perf_counter() - started
    digest = hashlib.sha256((args.out / "dataset.jsonl").read_bytes()).hexdigest()
    manifest = about | {"seeds": [seeds[0], seeds[-1]], **counts, "sha256": digest}
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(manifest))
    else:
        Console().print(f"{dict(counts)} in {seconds:.0f} s, {counts['rows'] / seconds:.0f} rows/s")
    return 0


if __name__ == "__main__":
    run_command(main)
