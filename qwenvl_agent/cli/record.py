"""Record a world's oracle as a dataset: dataset.jsonl, images/ and manifest.json, which names world, rules and tools.

    qwenvl-agent record --config configs/safari_tiny.json --out generated/safari_tiny --episodes 2000 \
        --oracle max_path=6 --oracle max_final_path=3 --noise 0.2
    qwenvl-agent record --rule rules=catch --out generated/safari --episodes 3000 --workers 8
    qwenvl-agent record --world path/to/world.py:make_world --out generated/mine --episodes 1000
    qwenvl-agent record --task perception --out generated/perception --episodes 5000
    qwenvl-agent record --run runs/safari_tiny --out generated/own --episodes 1000 --oracle max_path=4

The world is --world, else the config's (eval.suite, if that is a world), else safari. Episode i plays the world of seed
`seed-start + i`. With --noise p, random turns are played between the oracle's own, which alone are recorded, so the data
holds states that the oracle would never reach. With --resets p it is put into another state before that share of its turns,
half of them near a goal (--near), where the world offers such states. --vary draws rules of the world anew for each
episode (`worlds/variation.py`): `--vary width=15..30 --vary sprites=noto,twemoji`; rows name theirs. --reuse leaves the
dataset that these options ask for as it is if it is there, by its manifest and checksum. `--task` records what else a world offers: the safari's `perception` are
questions about views, with exact answers.

With --run, --model or --policy that policy plays, at --temperature, and every state that it comes to is recorded once, with
the turn that the oracle would take there; the oracle also plays where an answer cannot be read, where a turn would lose the
mission, and at the third visit of a state. Seeds are training seeds that are in none of the run's data. The same command
records the same, whatever --batch-size is, as far as the model's logits are the same in another batch. With --attempts K no
oracle is asked (expert iteration): every mission is played K times, and of the shortest that was won the policy's own turns
are recorded, those left out that could not be read, were refused or changed nothing.

    qwenvl-agent record --run runs/frozen_lake --attempts 8 --episodes 200 --out generated/won
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from qwenvl_agent.cli import record_policy
from qwenvl_agent.cli.dataset import digest, find_recorded, refuse_to_lose, written_whole
from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.config import VisionConfig, load_config
from qwenvl_agent.files import write_manifest
from qwenvl_agent.inference.load import Source
from qwenvl_agent.processes import parallel_map
from qwenvl_agent.progress import tracked
from qwenvl_agent.settings import apply_override
from qwenvl_agent.worlds import World, known_worlds, make_world
from qwenvl_agent.worlds.recording import RowWriter, encode, record_episode
from qwenvl_agent.worlds.variation import Variation, check_variations, draw_rules, read_variations, varied_manifest

AGENT = "agent"
"""The task that every world with an oracle has: its episodes."""
Recorded = tuple[list[tuple[list[bytes], dict]], dict[str, int]]
"""Rows with their pictures as PNG, and what to count."""


@lru_cache(maxsize=1)
def world_of(name: str, rules: str) -> World:
    """Once a process: a world need not be able to go from one to another."""
    return make_world(name, json.loads(rules))


def record(
    seed: int,
    name: str,
    rules: dict,
    variations: tuple[Variation, ...],
    tools: list,
    task: str,
    settings: dict,
    noise: float,
    resets: float,
    near: float,
    states: dict,
) -> Recorded:
    """The rows of one seed; varied ones name their rules, and their tools where these are not `tools`."""
    own = draw_rules(variations, seed)
    world = world_of(name, json.dumps(rules | own))
    if task == AGENT:
        turns, counts = record_episode(world, seed, settings, noise, resets, near, states)
        rows = [encode(turn) for turn in turns]
    else:
        rows, counts = [encode(turn) for turn in world.recording_tasks()[task](seed, **settings)], {}
    if own:
        said = {"rules": own} | ({"tools": others} if (others := tools_of(world)) != tools else {})
        rows = [(pngs, row | said) for pngs, row in rows]
    return rows, counts


FORMER = {"--set": "--rule"}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    parser.add_argument(
        "--reuse", action="store_true", help="do nothing if that very dataset is there; another one is an error"
    )
    parser.add_argument("--episodes", type=bounded(int, 1), required=True, help="how many are recorded")
    parser.add_argument("--seed-start", type=bounded(int, 0), help="default: 0; of a policy, behind those of its data")
    parser.add_argument("--config", type=Path, help="take the world from eval.suite and its rules from eval.world")
    parser.add_argument(
        "--world", metavar="NAME", help=f"{', '.join(known_worlds())}, or path/to/file.py:make_world; over --config"
    )
    parser.add_argument("--rules", type=json.loads, default={}, help="all rules as one JSON object, under --rule")
    parser.add_argument("--rule", action="append", default=[], metavar="RULE=VALUE", help="one rule of the world")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="RULE=VALUES",
        help="a rule drawn for each episode: 15..30, a,b,c, a JSON list or {value: weight}; or a JSON file of such",
    )
    parser.add_argument("--task", default=AGENT, help="agent: the oracle's episodes; or another of the world's")
    parser.add_argument(
        "--oracle", action="append", default=[], metavar="KEY=VALUE", help="one setting of the oracle, or of the task"
    )
    parser.add_argument(
        "--noise", type=bounded(float, 0, 1), default=0.0, help="share of random turns between the recorded ones"
    )
    parser.add_argument(
        "--resets",
        type=bounded(float, 0, 1),
        default=0.0,
        help="share of turns in another state, which the world draws",
    )
    parser.add_argument("--near", type=bounded(float, 0, 1), default=0.5, help="share of these that are near a goal")
    parser.add_argument(
        "--state", action="append", default=[], metavar="KEY=VALUE", help="one setting of these states, the world's own"
    )
    parser.add_argument("--workers", type=bounded(int, 1), default=1, help="processes")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON and nothing else")
    record_policy.add_options(parser)
    return parser


def overridden(overrides: Sequence[str], values: Mapping[str, object] = MappingProxyType({})) -> dict:
    """`values` with `KEY=VALUE`s over them."""
    changed = dict(values)
    for override in overrides:
        apply_override(changed, override)
    return changed


def vision_of(args: argparse.Namespace) -> VisionConfig | None:
    return load_config(args.config).vision if args.config else None


def asked_world(args: argparse.Namespace, source: Source | None) -> tuple[str, dict]:
    """Name and rules: the config's, or those of the policy's run."""
    of_policy = source.config.eval if source else None
    eval_cfg = load_config(args.config).eval if args.config else of_policy
    suite = eval_cfg.suite if eval_cfg else ""
    name = args.world or (suite if suite in known_worlds() or ":" in suite else "safari")
    values = dict(eval_cfg.world) if eval_cfg and name in (suite, "safari") else {}
    return name, overridden(args.rule, values | args.rules)


def check_task(world: World, name: str, task: str, settings: dict, resets: float, states: dict) -> None:
    """ValueError for what the world cannot have recorded, before anything is written."""
    tasks = world.recording_tasks()
    if states and not resets:
        raise ValueError(
            f"--state {min(states)} without --resets: no other state is drawn; give --resets, or leave it out"
        )
    world.check_state_settings(states)
    if resets and (task != AGENT or type(world).draw_state is World.draw_state):
        whose = f"task {task}" if task != AGENT else f"world {name}"
        raise ValueError(f"--resets {resets}: {whose} draws no other states, so nothing would be reset; leave it out")
    if task == AGENT and world.make_oracle(**settings) is None:
        raise ValueError(f"world {name} has no oracle: there is no one to record; give its make_oracle")
    if task not in (AGENT, *tasks):
        raise ValueError(
            f"world {name} has no task {task!r}: nothing would be recorded; use {', '.join((AGENT, *tasks))}"
        )


def seed_set(world: World, seeds: range) -> str:
    """The set that holds all seeds; ValueError if none does, as data would leak from one to another."""
    name = world.seeds.name_of([seeds[0], seeds[-1]])
    if name == "mixed":
        raise ValueError(
            f"seeds {seeds.start} to {seeds.stop - 1} are not all of one seed set: training would see worlds of an "
            f"evaluation; stay within one of {world.seeds}"
        )
    return name


def write_episodes(
    out: Path, seeds: Sequence[int], record: Callable[[int], Recorded], workers: int, quiet: bool
) -> Counter:
    """Record every seed's rows in the order of the seeds; returns counts."""
    counts = Counter(episodes=0, rows=0)
    with RowWriter(out) as writer, parallel_map(workers) if workers > 1 else nullcontext(map) as mapped:
        for rows, counted in tracked(mapped(record, seeds), f"episodes of {out.name}", len(seeds), quiet=quiet):
            for pngs, row in rows:
                writer.write_encoded(pngs, row)
            counts.update(episodes=1, rows=len(rows), **counted)
    return counts


@command("the data set is not whole; start again with --overwrite")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if not args.reuse:
        refuse_to_lose(args.out, args.overwrite)
    record_policy.check_options(args)
    source = record_policy.find_source(args)
    name, values = asked_world(args, source)
    first = args.seed_start or 0
    variations, seeds = read_variations(args.vary), range(first, first + args.episodes)
    check_variations(variations, name, values, seeds, overridden(args.rule, args.rules), vision_of(args))
    world = make_world(name, values | draw_rules(variations, first))
    settings, states = overridden(args.oracle), overridden(args.state)
    about = {"world": name, "task": args.task, "rules": dict(world.rules), "oracle": settings}
    about |= {"tools": tools_of(world)}
    if record_policy.is_asked(args):
        return record_policy.record_policy(args, world, settings, about | {"seed_set": "training"}, source)
    check_task(world, name, args.task, settings, args.resets, states)
    about |= {"seed_set": seed_set(world, seeds), "noise": args.noise}
    if args.resets:
        about |= {"resets": args.resets, "near": args.near} | ({"states": states} if states else {})
    about |= varied_manifest(variations, world.rules, seeds)
    of_seed = partial(
        record,
        name=name,
        rules=values,
        variations=variations,
        tools=about["tools"],
        task=args.task,
        settings=settings,
        noise=args.noise,
        resets=args.resets,
        near=args.near,
        states=states,
    )
    about |= {"seeds": [seeds[0], seeds[-1]]}
    if args.reuse and (manifest := find_recorded(args.out, about)):
        print(json.dumps(manifest) if args.json else f"{args.out} is there: {manifest['rows']} rows")
        return 0
    started = time.perf_counter()
    with written_whole(args.out, args.reuse) as out:
        counts = write_episodes(out, seeds, of_seed, args.workers, quiet=args.json)
        seconds = time.perf_counter() - started
        manifest = write_manifest(out, about | {"asked": digest(about), **counts})
    if args.json:
        print(json.dumps(manifest))
    else:
        for rule, counted in manifest.get("varied", {}).items():
            print(f"{rule}: {', '.join(f'{value} {count}' for value, count in counted.items())}")
        Console().print(f"{dict(counts)} in {seconds:.0f} s, {counts['rows'] / seconds:.0f} rows/s")
    return 0


def tools_of(world: World) -> list[dict]:
    env = world.make_env()
    env.close()
    return [tool.to_json() for tool in env.tools]


if __name__ == "__main__":
    run_command(main)
