"""Record rollouts of the safari oracle as a dataset: dataset.jsonl, images/ and manifest.json.

    python scripts/generate_oracle.py --out generated/safari_tiny --episodes 2000 --set width=20 --set height=20 \
        --set num_trees=48 --set num_animals=10 --set max_turns=40 --max-path 6 --max-final-path 3 --noise 0.2

Episode i plays seed `seed-start + i`. With --noise p, random moves are played between the oracle's own turns, which
alone are recorded, so the data holds states that the oracle would never reach.
"""

import argparse
import hashlib
import json
import random
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from multiprocessing import Pool
from pathlib import Path

from rich.console import Console
from rich.progress import track

from qwenvl_agent.envs.safari.env import SafariEnv
from qwenvl_agent.envs.safari.oracle import SafariOracle, random_move
from qwenvl_agent.envs.safari.records import RowWriter
from qwenvl_agent.envs.safari.render import png_bytes
from qwenvl_agent.envs.safari.world import REPORT_SEEDS, SELECTION_SEEDS, TRAIN_SEEDS, SafariRules
from qwenvl_agent.schema import Request, Turn


def record_episode(seed: int, rules: dict, oracle: dict, noise: float) -> tuple[list[tuple[bytes, dict]], dict]:
    """The oracle's rows of one episode with their pictures as PNG, and the last info."""
    env = SafariEnv(SafariRules.from_json(rules))
    policy = SafariOracle(env.rules, **oracle)
    rng = random.Random(f"noise {seed}")
    observation, info = env.reset(seed=seed)
    rows = []
    for turn_index in range(env.rules.max_turns):
        if noise and rng.random() < noise:
            turn, is_recorded = Turn(tool_calls=(random_move(rng),)), False
        else:
            request = Request(env.system_prompt, env.tools, (), observation)
            turn, is_recorded = policy.act([request])[0].turn, True
        seen = observation
        observation, _, terminated, truncated, info = env.step(turn)
        if is_recorded:
            row = {
                "episode_id": f"{seed:08x}",
                "mission": env.mission.text,
                "turn_index": turn_index,
                "system_prompt": env.system_prompt,
                "context_text": seen.text,
                "turn": turn,
                "results": info["results"],
            }
            rows.append((png_bytes(seen.pictures[0].open()), row))
        if terminated or truncated:
            break
    return rows, info


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--seed-start", type=int, default=0)
    parser.add_argument("--world", type=json.loads, default={}, help="rules as one JSON object")
    parser.add_argument("--set", action="append", default=[], metavar="RULE=JSON", help="one rule, over --world")
    parser.add_argument("--noise", type=float, default=0.0, help="share of random moves between the recorded turns")
    parser.add_argument("--max-path", type=int, default=12)
    parser.add_argument("--max-final-path", type=int, default=12)
    parser.add_argument("--thought-form", default="tiles")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON and nothing else")
    return parser.parse_args()


def rules_from(args: argparse.Namespace) -> dict:
    """The rules' JSON values; a value that is not JSON is a string."""
    rules = dict(args.world)
    for item in args.set:
        key, _, value = item.partition("=")
        try:
            rules[key] = json.loads(value)
        except json.JSONDecodeError:
            rules[key] = value
    return rules


def seed_set(first: int, last: int) -> str:
    """The name of the seed set that holds all seeds; ValueError if they cross a border."""
    for name, seeds in (("train", TRAIN_SEEDS), ("selection", SELECTION_SEEDS), ("report", REPORT_SEEDS)):
        if first in seeds and last in seeds:
            return name
    raise ValueError(f"seeds {first} to {last} are not all of one seed set: data would leak; stay inside {TRAIN_SEEDS}")


def make_pool(workers: int):
    """A pool of processes, or None to work in this one."""
    return Pool(workers) if workers > 1 else nullcontext()


def main():
    args = parse_args()
    if (args.out / "dataset.jsonl").exists() and not args.overwrite:
        raise SystemExit(f"{args.out}/dataset.jsonl exists and would be lost; give another --out or --overwrite")
    rules = rules_from(args)
    oracle = {"max_path": args.max_path, "max_final_path": args.max_final_path, "thought_form": args.thought_form}
    seeds = range(args.seed_start, args.seed_start + args.episodes)
    record = partial(record_episode, rules=rules, oracle=oracle, noise=args.noise)
    counts = {"episodes": 0, "solved": 0, "rows": 0, "first_view_outside": 0}
    started = time.perf_counter()
    with RowWriter(args.out) as writer, make_pool(args.workers) as pool:
        episodes = pool.imap(record, seeds, chunksize=4) if pool else map(record, seeds)
        for rows, info in track(episodes, total=len(seeds), description=str(args.out), disable=args.json):
            for png, row in rows:
                writer.write(png, **row)
            counts["episodes"] += 1
            counts["rows"] += len(rows)
            counts["solved"] += info["success"]
            counts["first_view_outside"] += info["first_view_outside"]
    manifest = {
        "world": "safari",
        "rules": asdict(SafariRules.from_json(rules)),
        "oracle": oracle,
        "noise": args.noise,
        "seed_set": seed_set(seeds[0], seeds[-1]),
        "seeds": [seeds[0], seeds[-1]],
        **counts,
        "sha256": hashlib.sha256((args.out / "dataset.jsonl").read_bytes()).hexdigest(),
    }
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    seconds = time.perf_counter() - started
    if args.json:
        print(json.dumps(manifest, ensure_ascii=False))
    else:
        Console().print(f"{counts} in {seconds:.0f} s, {counts['rows'] / seconds:.0f} turns/s")


if __name__ == "__main__":
    main()
