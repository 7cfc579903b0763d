"""What `record` does with a policy: its own states as a dataset, with the turns that the world's oracle would take there."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from qwenvl_agent.command import bounded
from qwenvl_agent.evaluation.own_states import NewStates, make_teacher, play_own_states
from qwenvl_agent.evaluation.won_missions import MAX_ATTEMPTS, play_to_win
from qwenvl_agent.files import write_manifest
from qwenvl_agent.inference.load import Source, dataset_hash, find, find_run, open_policy
from qwenvl_agent.progress import Bar
from qwenvl_agent.records import EpisodeRecord
from qwenvl_agent.schema import Policy
from qwenvl_agent.worlds import World
from qwenvl_agent.worlds.recording import free_seeds, recorded_seeds

OF_THE_ORACLE = {"reuse": False, "noise": 0.0, "resets": 0.0, "workers": 1, "task": "agent", "vary": [], "state": []}
"""Options without a meaning here, with their defaults."""
DEFAULTS = {"oracle_share": 0.0, "keep_agreed": 1.0}


class Players(NamedTuple):
    """Who plays: a policy for each seed of its answers, how many episodes at once, and what the manifest says of it."""

    of_seed: Callable[[int], Policy]
    batch_size: int
    about: dict


def add_options(parser: argparse.ArgumentParser) -> None:
    policy = parser.add_argument_group("a policy's own states", "who plays (one of), in place of the oracle alone")
    who = policy.add_mutually_exclusive_group()
    who.add_argument("--run", type=Path, help="folder of a run, such as runs/safari_2b")
    who.add_argument("--model", help="hub id, local folder or `tiny`: a model as it is")
    who.add_argument("--policy", metavar="NAME", help="a baseline of the world, such as noisy_oracle")
    policy.add_argument("--checkpoint", help="of --run: best | last | step_000500 (default: best, else last)")
    policy.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible server of --model, http://HOST:PORT/v1")
    policy.add_argument("--device", help="default: cuda if there is one, else cpu")
    policy.add_argument("--temperature", type=bounded(float, 0, 100), default=1.0, help="of its answers (default: 1)")
    policy.add_argument("--batch-size", type=bounded(int, 1), help="episodes at once (default: its eval.batch_size)")
    policy.add_argument("--draw-seed", type=bounded(int, 0), default=0, help="of its answers (default: 0)")
    policy.add_argument(
        "--oracle-share", type=bounded(float, 0, 1), default=0.0, help="share of turns that the oracle plays anyhow"
    )
    policy.add_argument(
        "--keep-agreed",
        type=bounded(float, 0, 1),
        default=1.0,
        help="share of the states recorded in which the policy calls the very same as the oracle",
    )
    policy.add_argument(
        "--attempts",
        type=bounded(int, 0, MAX_ATTEMPTS),
        default=0,
        help="try each mission so often and record, in place of the oracle's turns, the policy's own where it won",
    )
    policy.add_argument("--keep", type=bounded(int, 1), default=1, help="won attempts of a mission, the shortest first")


def is_asked(args: argparse.Namespace) -> bool:
    return bool(args.run or args.model or args.policy)


def check_options(args: argparse.Namespace) -> None:
    """ValueError for options that do not go together."""
    for option, default in OF_THE_ORACLE.items() if is_asked(args) else ():
        if getattr(args, option) != default:
            raise ValueError(
                f"--{option} {getattr(args, option)} with a policy: it is of the oracle's own recordings and would change "
                "nothing here; leave it out"
            )
    for option in ("oracle_share", "keep_agreed") if args.attempts else ():
        if getattr(args, option) != DEFAULTS[option]:
            raise ValueError(
                f"--{option.replace('_', '-')} with --attempts: no oracle is asked there, so it would change nothing; leave it out"
            )
    if args.attempts and args.oracle:
        raise ValueError("--oracle with --attempts: no oracle is asked there, so it would change nothing; leave it out")
    if args.attempts and not is_asked(args):
        raise ValueError(
            f"--attempts {args.attempts} without a policy: nobody would try; give --run, --model or --policy"
        )
    if args.endpoint and not args.model:
        raise ValueError("--endpoint without --model: a server may have several models; give --model as it names it")
    if args.device and (args.endpoint or not (args.run or args.model)):
        raise ValueError(
            f"--device {args.device!r} without a model of this process: it would change nothing; leave it out"
        )
    if args.checkpoint and not args.run:
        raise ValueError(f"--checkpoint {args.checkpoint!r} without --run: there is no run to take it from; give --run")


def find_source(args: argparse.Namespace) -> Source | None:
    """The model that plays; None for a baseline, or for the oracle alone."""
    overrides = [f"eval.temperature={args.temperature}"]
    overrides += [f"eval.batch_size={args.batch_size}"] if args.batch_size else []
    if args.run:
        return find_run(args.run, checkpoint=args.checkpoint or "", overrides=overrides)
    if args.model:
        return find(args.model, endpoint=args.endpoint or "", config=args.config, overrides=overrides)
    return None


def seeds_to_play(args: argparse.Namespace, world: World, source: Source | None) -> range:
    """So many training seeds that none of the policy's data was recorded with; ValueError if those asked for are others."""
    paths = [Path(cfg.path) for cfg in source.config.data.sources] if source else []
    for path in paths:
        if recorded_seeds(path) is None:
            note = (
                f"note: {path} has no manifest.json with seeds: which worlds the policy was taught there is not known"
            )
            print(note, file=sys.stderr)
    return free_seeds(world, paths, args.episodes, args.seed_start)


def find_players(args: argparse.Namespace, world: World, source: Source | None) -> Players:
    if source is None:
        return Players(partial(baseline, world, args.policy), args.batch_size or 32, {"policy": args.policy})
    if source.config.prompt.history_steps:
        raise ValueError(
            f"the policy is shown {source.config.prompt.history_steps} earlier steps (prompt.history_steps), and a row of its "
            "own states stands alone: it would be learned from other prompts than it is played with; record a policy with "
            "prompt.history_steps=0"
        )
    about: dict = {"policy": str(source.run or source.path), "temperature": source.config.eval.temperature}
    about |= {"endpoint": source.endpoint} if source.endpoint else {}
    if source.run:
        about |= {"checkpoint": Path(source.path).name, "dataset_hash": dataset_hash(source.run)}
    policy = open_policy(source, device=args.device, draws_each=True)
    return Players(policy.with_seed, source.config.eval.batch_size, about | {"draw_seed": args.draw_seed})


def baseline(world: World, name: str, seed: int) -> Policy:
    """Those that draw, by this seed."""
    return world.make_policy(name, **({"seed": seed} if name in ("random", "noisy_oracle") else {}))


def record_policy(args: argparse.Namespace, world: World, settings: dict, about: dict, source: Source | None) -> int:
    """Play, record and say what was found; `about` is what the manifest says of the world."""
    teacher = None if args.attempts else make_teacher(world, settings)
    seeds = seeds_to_play(args, world, source)
    players = find_players(args, world, source)
    started = time.perf_counter()
    with (
        NewStates(args.out) as states,
        Bar(f"episodes of {args.out.name}", len(seeds) * (args.attempts or 1), quiet=args.json) as bar,
    ):

        def on_record(_: EpisodeRecord) -> None:
            bar.advance()

        if teacher:
            play_own_states(
                world,
                players.of_seed(args.draw_seed),
                teacher,
                seeds,
                oracle_share=args.oracle_share,
                keep_agreed=args.keep_agreed,
                batch_size=players.batch_size,
                on_episode=states.add,
                on_record=on_record,
            )
        else:
            for mission in play_to_win(
                world,
                players.of_seed,
                seeds,
                attempts=args.attempts,
                keep=args.keep,
                draw_seed=args.draw_seed,
                batch_size=players.batch_size,
                on_record=on_record,
            ):
                states.add(mission)
    states.refuse_nothing()
    seconds = time.perf_counter() - started
    names = ("oracle_share", "keep_agreed") if teacher else ("attempts", "keep")
    about |= players.about | {name: getattr(args, name) for name in names}
    manifest = write_manifest(args.out, about | {"seeds": [seeds[0], seeds[-1]], **states.told()})
    if args.json:
        print(json.dumps(manifest))
    else:
        show(states, seconds)
    return 0


def show(states: NewStates, seconds: float) -> None:
    """Counts, and how often policy and oracle call alike, by tool."""
    console = Console()
    if states.agreement():
        table = Table("tool", "states", "alike %", title="policy and oracle", title_justify="left")
        for tool, found in states.agreement().items():
            table.add_row(tool, str(found["states"]), f"{100 * found['agreed'] / found['states']:.1f}")
        console.print(table)
    console.print(f"{dict(states.counts)} in {seconds:.0f} s, {states.counts['episodes'] / seconds:.1f} episodes/s")
