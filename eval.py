"""Evaluate a run, a model without any training, or a baseline; compare results.

    python eval.py --run runs/safari_2b --suite safari --episodes 200
    python eval.py --model Qwen/Qwen3-VL-2B-Instruct --format native --config configs/safari_2b.json
    python eval.py --endpoint http://127.0.0.1:8000/v1 --model exports/2b --config exports/2b/qwenvl_agent.json
    python eval.py --policy oracle --rule width=20 --rule height=20
    python eval.py --policy oracle --suite browser --episodes 280 --rule 'tasks=["own"]'
    python eval.py --run runs/computer_use_2b --suite clicks --data generated/ui_test
    python eval.py --run runs/computer_use_2b --suite screenspot --data ScreenSpot-Pro --layout screenspot_pro
    python eval.py --run runs/computer_use_2b --suite elements --data generated/ui_test
    python eval.py --compare runs/safari_2b/eval/safari runs/oracle/eval/safari

    python eval.py --policy oracle --suite examples/worlds/NAME/world.py:make_world
    python eval.py --run runs/safari_2b --suites difficulty --episodes 200

A result is a folder with records.jsonl, metrics.json and report.html (see qwenvl_agent/evaluation/results.py).
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from qwenvl_agent.cli.dataset import add_unit_options
from qwenvl_agent.command import Parser, bounded, command
from qwenvl_agent.config import FORMAT_NAMES, Config, to_json
from qwenvl_agent.evaluation import results, screens
from qwenvl_agent.evaluation.figures import metrics_json
from qwenvl_agent.evaluation.report import compare, comparison_table, metrics_table, write_report
from qwenvl_agent.evaluation.set_report import set_table, write_set_report
from qwenvl_agent.evaluation.suite_sets import TABLE, Chosen, Part, choose, directory_of, seen_in_training, write_table
from qwenvl_agent.evaluation.suites import Options, Suite, Work, suite_for
from qwenvl_agent.evaluation.suites.episodes import NUM_EPISODES
from qwenvl_agent.evaluation.unfinished import Unfinished, replaced, set_aside
from qwenvl_agent.inference.load import (
    Source,
    describe,
    find,
    find_run,
    open_policy,
    settings_of,
    with_overrides,
)
from qwenvl_agent.progress import Bar
from qwenvl_agent.schema import Policy
from qwenvl_agent.worlds.world import Metrics


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a policy, the config it comes with, and what the result says about it."""

    name: str
    policy: Policy | None
    """None: a baseline, which the suite makes."""
    config: Config
    directory: Path
    about: dict
    weights: str = ""
    """Tells the weights from others of the same name."""


@command("no result was written")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return show_comparison(args) if args.compare else evaluate(args, Console(stderr=True))


FORMER = {"--world": "--rule"}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    what = parser.add_argument_group("what (one of)").add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="folder of a run, such as runs/safari_2b")
    what.add_argument("--model", help="hub id, local folder or `tiny`: a model as it is, zero-shot")
    what.add_argument("--policy", metavar="NAME", help="a baseline of the suite, such as oracle or random")
    what.add_argument("--compare", type=Path, nargs="+", metavar="DIR", help="results, each against the first")
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", help="best | last | step_000500 (default: best, else last)")
    model.add_argument("--format", choices=FORMAT_NAMES, help="action format of --model (default: the config's)")
    model.add_argument("--config", type=Path, help="settings for --model and --policy: world, budget, data")
    model.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override of the config")
    model.add_argument(
        "--endpoint",
        metavar="URL",
        help="OpenAI-compatible server of --model, http://HOST:PORT/v1; its key, if any: ENDPOINT_API_KEY",
    )
    model.add_argument(
        "--field", action="append", default=[], metavar="KEY=VALUE", help="further field of each request to --endpoint"
    )
    model.add_argument("--device", help="default: cuda if there is one, else cpu")
    model.add_argument("--blank-pictures", action="store_true", help="show white pictures: does the text leak?")
    suite = parser.add_argument_group("suite")
    suite.add_argument(
        "--suite",
        metavar="NAME|PATH:FUNCTION",
        default="",
        help="a world to play in: safari, browser, one of an installed package, or path/to/file.py:make_world; or steps: "
        "held-out rows; clicks, screenspot: labelled screens; elements: all elements of a screen (default: the config's "
        "eval.suite)",
    )
    suite.add_argument(
        "--suites",
        metavar="SET[/SUITE]",
        nargs="+",
        default=(),
        help="a set of held-out suites of that world, or some of it, with oracle and random beside, in one table: difficulty, "
        "of the safari; what an earlier start has finished is kept",
    )
    suite.add_argument("--episodes", type=bounded(int, 1), help=f"of a world (default: {NUM_EPISODES})")
    suite.add_argument(
        "--seed-start", type=bounded(int, 0), help="of a world: first seed (default: of its seeds for reports)"
    )
    suite.add_argument("--rule", action="append", default=[], metavar="RULE=VALUE", help="one rule of the world")
    suite.add_argument(
        "--oracle",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="setting of the reference, and of the policy oracle",
    )
    suite.add_argument(
        "--counterfactual",
        metavar="NAME",
        default="",
        help="one of the world's: change its missions and see what it costs (for pictures: --blank-pictures)",
    )
    suite.add_argument(
        "--rows", type=bounded(int, 1), help="at most so many rows or screens (default: steps 1000, others all)"
    )
    screen = parser.add_argument_group("screens")
    screen.add_argument(
        "--data",
        type=Path,
        help="of clicks, screenspot, elements: file or folder (default for clicks: what the run's own data holds out)",
    )
    screen.add_argument(
        "--split", choices=screens.SPLITS, help="of clicks (default: test where data is marked, or all)"
    )
    add_unit_options(screen)
    screen.add_argument("--layout", choices=screens.SCREENSPOT_LAYOUTS, help="of screenspot: which version's files")
    screen.add_argument("--pictures", type=Path, help="of screenspot: folder where its picture names start")
    suite.add_argument(
        "--time-limit", type=bounded(float, 0, 1e9), metavar="SECONDS", help="running episodes fail after that"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, help="folder of the result (default: in the run's folder, eval/SUITE)")
    output.add_argument("--no-pictures", action="store_true", help="keep no pictures of the turns: a page without them")
    output.add_argument("--json", action="store_true", help="print metrics.json on stdout, and nothing else there")
    return parser


def evaluate(args: argparse.Namespace, messages: Console) -> int:
    """Play or predict, then write the result and print it."""
    subject = build_subject(args)
    suite = choose_suite(args, subject.config)
    if args.suites:
        return evaluate_set(args, subject, choose(suite, args.suites), messages)
    directory = args.out or subject.directory / "eval" / variant_of(args.counterfactual or suite.name, args, subject)
    metrics = answer(subject, suite, read_options(args), directory, args, messages)
    write_report(directory / "report.html", [directory])
    if args.json:
        print((directory / "metrics.json").read_text(encoding="utf-8"), end="")
    else:
        Console().print(metrics_table(f"{subject.name}, {suite.name}", metrics_json(metrics), suite))
        print(directory / "report.html")
    return 0


def variant_of(name: str, args: argparse.Namespace, subject: Subject) -> str:
    name += "_blank" if args.blank_pictures else ""
    return name + ("_constrained" if subject.config.eval.constrained and subject.policy else "")


def evaluate_set(args: argparse.Namespace, subject: Subject, chosen: Chosen, messages: Console) -> int:
    """Every suite of a set in its turn, each with the world's own players beside, then one table over all."""
    directory = args.out or subject.directory / "eval" / variant_of(chosen.name, args, subject)
    for part in chosen.parts:
        seeds = part.held_out.seeds
        options = replace(read_options(args), seed_start=seeds.start)
        if (options.episodes or NUM_EPISODES) > len(seeds):
            raise ValueError(f"--episodes {options.episodes}: {part.name} has {len(seeds)} seeds of its own; lower it")
        messages.print(f"{part.name}: {part.held_out.title}", markup=False, highlight=False)
        place = directory_of(directory, part.name)
        answer(subject, part.suite, options, place, args, messages, is_kept=True)
        write_report(place / "report.html", [place])
        for player, policy in players_beside(part, subject, options).items():
            beside = Subject(player, policy, subject.config, directory, {})
            place = directory_of(directory, part.name, player)
            answer(beside, part.suite, options, place, args, messages, is_kept=True, keeps_pictures=False)
    run = subject.directory if "dataset_hash" in subject.about else None
    about = results.describe(chosen.name, subject.name, **subject.about, oracle=dict(read_options(args).oracle))
    about |= {"world_from": chosen.suite.source, "world": dict(chosen.suite.world.rules)}
    unseen = {p.name: seen_in_training(p, run, subject.config) if run else None for p in chosen.parts}
    table = write_table(directory, about, chosen, unseen)
    write_set_report(directory)
    if args.json:
        print((directory / TABLE).read_text(encoding="utf-8"), end="")
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(set_table(table))
        print(directory / "report.html")
    return 0


def players_beside(part: Part, subject: Subject, options: Options) -> dict[str, Policy]:
    """The oracle, with the settings that the command gives it, and the random player; without the one in focus."""
    world = part.suite.world
    oracle = world.make_oracle(**options.oracle)
    players = ({"oracle": oracle} if oracle else {}) | {"random": world.make_policy("random")}
    return {name: policy for name, policy in players.items() if name != subject.name}


def answer(
    subject: Subject,
    suite: Suite,
    options: Options,
    directory: Path,
    args: argparse.Namespace,
    messages: Console,
    *,
    is_kept: bool = False,
    keeps_pictures: bool = True,
) -> Metrics:
    """Ask and write the result; `is_kept`: one that is there already stays, if it is whole and of these settings."""
    start = time.monotonic()
    say = partial(messages.print, markup=False, highlight=False, soft_wrap=True)
    work = suite.prepare(subject.config, subject.policy, options, say)
    settings = {"suite": suite.name, "policy": subject.name, "weights": subject.weights}
    settings |= {"pictures": keeps_pictures and not args.no_pictures, **subject.about, **work.about}
    if is_kept and (kept := kept_records(directory, settings, work)):
        say(f"note: {directory} is kept: it has these {len(kept)} {suite.cases} already")
        return suite.metrics(kept)
    records = ask(subject.name, suite, work, settings, args.time_limit, directory, messages)
    seconds = round(time.monotonic() - start, 1)
    about = results.describe(suite.name, subject.name, **(subject.about | work.about | work.told(records)))
    refuse_failures(suite, records, directory)
    metrics = suite.metrics(records)
    with replaced(directory):
        results.write_result(directory, about | {"seconds": seconds, "settings": digest(settings)}, records, metrics)
    return metrics


def digest(settings: dict) -> str:
    """Tells settings that decide the records from others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def kept_records(directory: Path, settings: dict, work: Work) -> list:
    """The records of a whole result of just these settings and cases; none if there is no such result."""
    if not (directory / "metrics.json").is_file():
        return []
    result, records, _ = results.read_result(directory)
    places = [work.place(number, record) for number, record in enumerate(records)]
    is_whole = places == list(range(len(work.cases)))
    return records if is_whole and result["about"].get("settings") == digest(settings) else []


def refuse_failures(suite: Suite, records: Sequence, directory: Path) -> None:
    """ValueError if every case ended by no doing of the policy's."""
    cause = suite.common_failure(records)
    if cause:
        raise ValueError(
            f"all {len(records)} cases ended with an error, so no figure would say anything about the policy; the first: "
            f"{cause}; their records are in {set_aside(directory)}; mend that and evaluate again"
        )


def choose_suite(args: argparse.Namespace, config: Config) -> Suite:
    """The suite of --suite or of the config; ValueError for a world that cannot be built, and for options of others."""
    name = args.suite or config.eval.suite
    if name == "none":
        raise ValueError("the config's eval.suite is none: there is nothing to play; give --suite")
    suite = suite_for(name, config, with_overrides({}, args.rule))
    suite.check_options(read_options(args))
    if args.suites:
        choose(suite, args.suites)
        for option in ("seed_start", "counterfactual"):
            if getattr(args, option):
                raise ValueError(f"--{option.replace('_', '-')} with --suites: each suite has its own; leave it out")
    return suite


def read_options(args: argparse.Namespace) -> Options:
    return Options(
        baseline=args.policy or "",
        world=with_overrides({}, args.rule),
        oracle=with_overrides({}, args.oracle),
        counterfactual=args.counterfactual,
        episodes=args.episodes,
        seed_start=args.seed_start,
        rows=args.rows,
        data=args.data,
        split=args.split or "",
        unit=args.unit,
        box_unit=args.box_unit,
        box_order=args.box_order,
        layout=args.layout or "",
        pictures=args.pictures,
    )


def show_comparison(args: argparse.Namespace) -> int:
    """Results beside each other, each tested against the first on the seeds that both played."""
    comparison = compare(args.compare)
    if args.json:
        print(json.dumps(comparison, indent=1, ensure_ascii=False))
    else:
        # A table into a file or a pipe needs no narrow terminal's line breaks.
        Console(width=None if sys.stdout.isatty() else 120).print(comparison_table(comparison))
    return 0


def build_subject(args: argparse.Namespace) -> Subject:
    """The baseline, or the model of --run, --model or --endpoint; what does not go together is said before it loads."""
    if args.endpoint and not args.model:
        raise ValueError("--endpoint without --model: a server may have several models; give --model as it names it")
    if args.field and not args.endpoint:
        raise ValueError("--field without --endpoint: there is no request to put it into; give --endpoint")
    if args.device and (args.policy or args.endpoint):
        raise ValueError(
            f"--device {args.device!r} without a model of this process: it would change nothing; leave it out"
        )
    if args.checkpoint and not args.run:
        raise ValueError(f"--checkpoint {args.checkpoint!r} without --run: there is no run to take it from; give --run")
    return build_baseline(args) if args.policy else load_subject(args)


def load_subject(args: argparse.Namespace) -> Subject:
    settings = {"config": args.config, "format": args.format or "", "overrides": args.set}
    if args.run:
        source = find_run(args.run, checkpoint=args.checkpoint or "", **settings)
    else:
        source = find(args.model, endpoint=args.endpoint or "", **settings)
    choose_suite(args, source.config)  # before anything is loaded
    policy = open_policy(
        source, device=args.device, blank_pictures=args.blank_pictures, fields=with_overrides({}, args.field)
    )
    name, directory = name_of(source)
    name += (", blank" if args.blank_pictures else "") + (", constrained" if source.config.eval.constrained else "")
    return Subject(name, policy, source.config, directory, describe(source, policy), source.weights)


def name_of(source: Source) -> tuple[str, Path]:
    """(name, folder under which results go by default)"""
    if source.run:
        return source.run.name, source.run
    name, runs_dir = Path(source.path).name, Path(source.config.runs_dir)
    if source.endpoint:
        return f"{name} at {source.endpoint}", runs_dir / f"{name}_{source.config.prompt.format}_endpoint"
    return f"{name}, zero-shot", runs_dir / f"{name}_{source.config.prompt.format}"


def build_baseline(args: argparse.Namespace) -> Subject:
    config = settings_of("tiny", args.config, args.set)
    choose_suite(args, config)
    if args.blank_pictures:
        raise ValueError("--blank-pictures with --policy: baselines have no blank variant; use --run or --model")
    about = {"config": {"eval": to_json(config.eval)}}
    return Subject(args.policy, None, config, Path(config.runs_dir) / args.policy, about)


def ask(
    name: str, suite: Suite, work: Work, settings: dict, limit_s: float | None, directory: Path, messages: Console
) -> list:
    """The records in the order of their cases.

    Records of an earlier start are not made again; what is asked for in number changes none of them.
    """
    say = partial(messages.print, markup=False, highlight=False, soft_wrap=True)
    with Unfinished(directory, suite.record, settings, say) as under_way:
        picture_dir = under_way.picture_dir if settings["pictures"] else None
        records = finish(name, suite, work, under_way, picture_dir, limit_s, messages)
    if len(records) < len(work.cases):
        left = len(work.cases) - len(records)
        say(f"note: the time limit left {left} of {len(work.cases)} {suite.cases} unasked")
    return records


def finish(
    name: str,
    suite: Suite,
    work: Work,
    under_way: Unfinished,
    picture_dir: Path | None,
    limit_s: float | None,
    messages: Console,
) -> list:
    """All records that the time allows, with those that were there."""
    placed = {work.place(number, record): record for number, record in enumerate(under_way.kept)}
    placed.pop(None, None)
    won = sum(map(suite.is_success, placed.values()))
    with Bar(name, len(work.cases), done=len(placed), note=f"{won} won", console=messages) as bar:

        def on_records(records: Sequence) -> None:
            nonlocal won
            under_way.add(records)
            won += sum(map(suite.is_success, records))
            bar.advance(len(records), note=f"{won} won")

        rest = [case for place, case in enumerate(work.cases) if place not in placed]
        made = work.answer(rest, on_records, picture_dir, limit_s)
    placed |= {work.place(number, record): record for number, record in enumerate(made, len(placed))}
    return [placed[place] for place in sorted(placed)]


if __name__ == "__main__":
    sys.exit(main())
