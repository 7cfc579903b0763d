"""Evaluate a run, a model without any training, or a baseline; compare results.

    python eval.py --run runs/safari_2b --suite safari --episodes 200
    python eval.py --model Qwen/Qwen3-VL-2B-Instruct --format native --config configs/safari_2b.json
    python eval.py --endpoint http://127.0.0.1:8000/v1 --model exports/2b --config exports/2b/qwenvl_agent.json
    python eval.py --policy oracle --world width=20 --world height=20
    python eval.py --policy oracle --suite browser --episodes 280 --world 'tasks=["own"]'
    python eval.py --run runs/computer_use_2b --suite clicks --data generated/ui_test
    python eval.py --run runs/computer_use_2b --suite screenspot --data ScreenSpot-Pro --layout screenspot_pro
    python eval.py --run runs/computer_use_2b --suite elements --data generated/ui_test
    python eval.py --compare runs/safari_2b/eval/safari runs/oracle/eval/safari

A result is a folder with records.jsonl, metrics.json and report.html (see qwenvl_agent/evaluation/suites.py).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qwenvl_agent.command import bounded, command
from qwenvl_agent.config import FORMAT_NAMES, Config, to_json
from qwenvl_agent.evaluation import screens, suites
from qwenvl_agent.evaluation.browser import play_browser, write_replay
from qwenvl_agent.evaluation.clicks import predict_clicks
from qwenvl_agent.evaluation.elements import ListOracle, predict_elements, read_elements
from qwenvl_agent.evaluation.report import SCREENS, compare, comparison_table, metrics_table, write_report
from qwenvl_agent.evaluation.step_metrics import predict_rows
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
from qwenvl_agent.schema import Observation, Policy, Request
from qwenvl_agent.worlds import WORLDS, browser, make_env, make_oracle
from qwenvl_agent.worlds.safari import NoisyOracle, RandomAgent, SafariRules
from qwenvl_agent.worlds.safari.counterfactuals import COUNTERFACTUALS
from qwenvl_agent.worlds.safari.world import REPORT_SEEDS

STEP_ROWS = 1000
"""Of the suite steps, if --rows is not given."""
POLICIES = ("oracle", "noisy_oracle", "random")


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a policy, the config it comes with, and what the result says about it."""

    name: str
    policy: Policy | None
    """None: a baseline that is made of the data."""
    config: Config
    directory: Path
    about: dict
    weights: str = ""
    """Tells the weights from others of the same name."""


@command("no result was written")
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return show_comparison(args) if args.compare else evaluate(args, Console(stderr=True))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what (one of)").add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="folder of a run, such as runs/safari_2b")
    what.add_argument("--model", help="hub id, local folder or `tiny`: a model as it is, zero-shot")
    what.add_argument("--policy", choices=POLICIES, help="a baseline")
    what.add_argument("--compare", type=Path, nargs="+", metavar="DIR", help="results, each against the first")
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", help="best | last | step_000500 (default: best, else last)")
    model.add_argument("--format", choices=FORMAT_NAMES, help="action format of --model (default: the config's)")
    model.add_argument("--config", type=Path, help="settings for --model and --policy: world, budget, data")
    model.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the config")
    model.add_argument(
        "--endpoint",
        metavar="URL",
        help="OpenAI-compatible server of --model, http://HOST:PORT/v1; its key, if any: ENDPOINT_API_KEY",
    )
    model.add_argument(
        "--field", action="append", default=[], metavar="KEY=VALUE", help="further field of each request to --endpoint"
    )
    model.add_argument("--blank-pictures", action="store_true", help="show white pictures: does the text leak?")
    suite = parser.add_argument_group("suite")
    suite.add_argument(
        "--suite",
        choices=suites.RECORD_KINDS,
        default="safari",
        help="safari, browser: closed loop; steps: held-out rows; clicks, screenspot: labelled screens; elements: all "
        "elements of a screen",
    )
    suite.add_argument("--episodes", type=bounded(int, 1), default=200, help="of a closed loop (default: %(default)s)")
    suite.add_argument(
        "--seed-start", type=bounded(int, 0), default=REPORT_SEEDS.start, help="first seed (default: %(default)s)"
    )
    suite.add_argument("--world", action="append", default=[], metavar="KEY=VALUE", help="rule, over the config's")
    suite.add_argument("--oracle", action="append", default=[], metavar="KEY=VALUE", help="setting of the reference")
    suite.add_argument(
        "--counterfactual",
        choices=[name for name in COUNTERFACTUALS if name != "picture_blank"],
        default="",
        help="of the suite safari: change the missions and see what it costs (for pictures: --blank-pictures)",
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
    screen.add_argument("--layout", choices=screens.SCREENSPOT_LAYOUTS, help="of screenspot: which version's files")
    screen.add_argument("--pictures", type=Path, help="of screenspot: folder where its picture names start")
    suite.add_argument(
        "--time-limit", type=bounded(float, 0, 1e9), metavar="SECONDS", help="running episodes fail after that"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, help="folder of the result (default: in the run's folder, eval/SUITE)")
    output.add_argument("--no-pictures", action="store_true", help="keep no pictures of the turns: a page without them")
    output.add_argument("--json", action="store_true", help="print metrics.json on stdout, and nothing else there")
    args = parser.parse_args(argv)
    return args


def evaluate(args: argparse.Namespace, messages: Console) -> int:
    """Play or predict, then write the result and print it."""
    check_data_options(args)
    subject = build_subject(args)
    name = (args.counterfactual or args.suite) + ("_blank" if args.blank_pictures else "")
    name += "_constrained" if subject.config.eval.constrained and subject.name not in POLICIES else ""
    directory = args.out or subject.directory / "eval" / name
    start = time.monotonic()
    run_suite = {"steps": run_steps, **dict.fromkeys(SCREENS, run_screens)}.get(args.suite, run_episodes)
    records, about = run_suite(subject, args, directory, messages)
    about = suites.describe(
        args.suite, subject.name, **(subject.about | about), seconds=round(time.monotonic() - start, 1)
    )
    refuse_failures(records, directory)
    metrics = suites.metrics_of(args.suite, records)
    with replaced(directory):
        suites.write_result(directory, about, records, metrics)
    if args.suite == "browser":
        facts = [subject.name, f"{len(records)} episodes in a live browser", suites.describe_failures(records)]
        write_replay(directory / "report.html", directory, ", ".join(filter(None, facts)), records)
    else:
        write_report(directory / "report.html", [directory])
    if args.json:
        print((directory / "metrics.json").read_text(encoding="utf-8"), end="")
    else:
        Console().print(metrics_table(f"{subject.name}, {args.suite}", suites.metrics_json(metrics)))
        print(directory / "report.html")
    return 0


def refuse_failures(records: Sequence, directory: Path) -> None:
    """ValueError if every case ended by no doing of the policy's."""
    cause = suites.common_failure(records)
    if cause:
        raise ValueError(
            f"all {len(records)} cases ended with an error, so no figure would say anything about the policy; the first: "
            f"{cause}; their records are in {set_aside(directory)}; mend that and evaluate again"
        )


def check_data_options(args: argparse.Namespace) -> None:
    """ValueError for options that the suite would ignore, or lacks."""
    takers = {"data": SCREENS, "split": ("clicks",), "layout": ("screenspot",), "pictures": ("screenspot",)}
    for name, takes in takers.items():
        if getattr(args, name) is not None and args.suite not in takes:
            raise ValueError(
                f"--{name} with --suite {args.suite}: it would change nothing; it is of {', '.join(takes)}"
            )
    for name in ("data", "layout"):
        if args.suite in takers[name] and args.suite != "clicks" and getattr(args, name) is None:
            raise ValueError(f"--suite {args.suite} without --{name}: there is nothing to measure on; give it")


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
    if args.checkpoint and not args.run:
        raise ValueError(f"--checkpoint {args.checkpoint!r} without --run: there is no run to take it from; give --run")
    return build_baseline(args) if args.policy else load_subject(args)


def load_subject(args: argparse.Namespace) -> Subject:
    settings = {"config": args.config, "format": args.format or "", "overrides": args.set}
    if args.run:
        source = find_run(args.run, checkpoint=args.checkpoint or "", **settings)
    else:
        source = find(args.model, endpoint=args.endpoint or "", **settings)
    check_world(args, source.config)
    policy = open_policy(source, blank_pictures=args.blank_pictures, fields=with_overrides({}, args.field))
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
    check_world(args, config)
    if args.blank_pictures:
        raise ValueError("--blank-pictures with --policy: baselines have no blank variant; use --run or --model")
    policy = None if args.suite in SCREENS else build_policy(args, with_overrides(config.eval.world, args.world))
    about = {"config": {"eval": to_json(config.eval)}}
    return Subject(args.policy, policy, config, Path(config.runs_dir) / args.policy, about)


def build_policy(args: argparse.Namespace, world: dict) -> Policy:
    """The baseline of --policy in the suite's world."""
    if args.suite == "browser":
        rules = browser.BrowserRules.from_json(world)
        policies = {"oracle": browser.BrowserOracle(), "random": browser.RandomAgent(rules)}
    else:
        oracle = make_oracle("safari", world)
        policies = {"oracle": oracle, "noisy_oracle": NoisyOracle(oracle)}
        policies["random"] = RandomAgent(SafariRules.from_json(world))
    return pick_policy(args, policies)


def pick_policy(args: argparse.Namespace, policies: dict[str, Policy]) -> Policy:
    if args.policy not in policies:
        raise ValueError(f"--policy {args.policy} does not play the suite {args.suite}: use {', '.join(policies)}")
    return policies[args.policy]


def check_world(args: argparse.Namespace, config: Config) -> None:
    """ValueError, before a model is loaded, if the suite's world cannot be built by the config and --world."""
    if args.suite in WORLDS:
        make_env(args.suite, **with_overrides(config.eval.world, args.world))


def run_episodes(subject: Subject, args: argparse.Namespace, directory: Path, messages: Console) -> tuple[list, dict]:
    world = with_overrides(subject.config.eval.world, args.world)
    is_safari = args.suite == "safari"
    changes = {"counterfactual": args.counterfactual, "oracle": with_overrides({}, args.oracle)}
    if not is_safari and any(changes.values()):
        raise ValueError("--counterfactual and --oracle are of the suite safari: leave them out, or use --suite safari")
    play = partial(suites.play_safari, **changes) if is_safari else play_browser
    seeds = range(args.seed_start, args.seed_start + args.episodes)
    seed_set = suites.seed_set(seeds)
    if seed_set != "report":
        messages.print(
            f"note: the seeds {seeds.start} to {seeds.stop - 1} are of the set '{seed_set}', not for reports"
        )
    env = make_env(args.suite, **world)
    about = {**(changes if is_safari else {}), "world": to_json(env.rules)}
    empty = Request(env.system_prompt, env.tools, (), Observation(""))
    about |= {"prompt_hash": suites.prompt_hash(empty, subject.config.prompt.format)}
    with unfinished(subject, args, directory, about, messages) as under_way:
        records = play_missing(subject, play, world, seeds, args, messages, under_way)
    if len(records) < len(seeds):
        messages.print(f"note: the time limit left {len(seeds) - len(records)} of {len(seeds)} seeds unstarted")
    return records, about | {"seeds": {"start": seeds.start, "count": len(seeds), "set": seed_set}}


def play_missing(
    subject: Subject,
    play: Callable[..., list],
    world: dict,
    seeds: Sequence[int],
    args: argparse.Namespace,
    messages: Console,
    under_way: Unfinished,
) -> list:
    """Records in the order of the seeds; those of an earlier start are not played again."""
    records = {record.seed: record for record in under_way.kept if record.seed in seeds}
    columns = (TextColumn(subject.name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[won]} won"), console=messages) as progress:
        won = sum(record.success for record in records.values())
        task = progress.add_task("", total=len(seeds), completed=len(records), won=won)

        def on_progress(record) -> None:
            nonlocal won
            under_way.add([record])
            won += record.success
            progress.update(task, advance=1, won=won)

        played = play(
            subject.policy,
            world,
            [seed for seed in seeds if seed not in records],
            batch_size=subject.config.eval.batch_size,
            history_steps=subject.config.prompt.history_steps,
            time_limit_s=args.time_limit,
            picture_dir=None if args.no_pictures else under_way.picture_dir,
            on_progress=on_progress,
        )
    records |= {record.seed: record for record in played}
    return [records[seed] for seed in seeds if seed in records]


def unfinished(
    subject: Subject, args: argparse.Namespace, directory: Path, about: dict, messages: Console
) -> Unfinished:
    """The records of this evaluation under way; how many episodes are asked for does not change any of them."""
    settings = {"suite": args.suite, "policy": subject.name, "weights": subject.weights}
    settings |= {"pictures": not args.no_pictures, **subject.about, **about}
    say = partial(messages.print, markup=False, highlight=False, soft_wrap=True)
    return Unfinished(directory, suites.RECORD_KINDS[args.suite], settings, say)


def run_steps(subject: Subject, args: argparse.Namespace, directory: Path, messages: Console) -> tuple[list, dict]:
    from qwenvl_agent.data.dataset import build_rows
    from qwenvl_agent.data.unusable import drop_unusable, usable_rows

    rows = drop_unusable(build_rows(subject.config.data, subject.config.prompt), subject.policy.collator)
    messages.print(rows.summary(), markup=False, highlight=False)
    drawn = suites.pick_rows(rows.held_out, args.rows or STEP_ROWS)
    picked = usable_rows(subject.policy.collator, drawn)
    if not picked:
        raise ValueError("no rows are held out: there is nothing to compare with; raise data.eval_fraction")
    about = {"dataset_hash": rows.report["dataset_hash"], "num_held_out": len(rows.held_out)}
    about["num_unusable"] = len(drawn) - len(picked)
    about |= {"prompt_hash": suites.prompt_hash(picked[0].request, subject.config.prompt.format)}
    with unfinished(subject, args, directory, about | {"num_rows": len(picked)}, messages) as under_way:
        records = predict(subject, subject.policy, picked, args, messages, under_way)
    return records, about | {"num_rows": len(records)}


def run_screens(subject: Subject, args: argparse.Namespace, directory: Path, messages: Console) -> tuple[list, dict]:
    """The suites clicks, screenspot and elements: one answer to each screen of the data."""
    if args.suite == "elements":
        tasks, rejected, about = read_elements(args.data)
        baselines = {"oracle": ListOracle(tasks)}
        answer = predict_elements
    else:
        task_set = read_screens(subject, args, messages)
        tasks, rejected, about = list(task_set.tasks), task_set.rejected, task_set.about
        baselines = {"oracle": screens.LabelOracle(tasks), "random": screens.RandomClicker()}
        answer = predict_clicks
    messages.print(screens.summary(tasks, rejected, about), markup=False, highlight=False, soft_wrap=True)
    policy = pick_policy(args, baselines) if subject.policy is None else subject.policy
    picked = suites.pick_rows(tasks, args.rows or len(tasks))
    about = about | {"prompt_hash": suites.prompt_hash(picked[0].request, subject.config.prompt.format)}
    with unfinished(subject, args, directory, about | {"num_rows": len(picked)}, messages) as under_way:
        records = predict(subject, policy, picked, args, messages, under_way, answer)
    return records, about | {"num_rows": len(records)}


def read_screens(subject: Subject, args: argparse.Namespace, messages: Console) -> screens.TaskSet:
    """What --data names; for clicks without it, the screens that the config's data holds out."""
    if args.suite == "screenspot":
        return screens.read_screenspot(args.data, args.layout, args.pictures)
    own = [Path(source.path) for source in subject.config.data.sources if source.kind == "computer"]
    if args.data:
        found = screens.read_tasks(args.data, args.split or "")
        if found.about["split"] != "test" and args.data.resolve() in [path.resolve() for path in own]:
            messages.print(f"note: {args.data} is what the run was trained on; without --data it is what was held out")
        return found
    if not own:
        raise ValueError("--suite clicks without --data, and the config has no data of kind computer: give --data")
    from qwenvl_agent.data.dataset import build_rows

    held_out = build_rows(subject.config.data, subject.config.prompt).held_out
    return screens.read_held_out(own, [row.source for row in held_out])


def predict(
    subject: Subject,
    policy: Policy,
    picked: Sequence,
    args: argparse.Namespace,
    messages: Console,
    under_way: Unfinished,
    answer: Callable[[Policy, Sequence], list] = predict_rows,
) -> list:
    """Records of the rows or screens that are begun before --time-limit, those of an earlier start first."""
    kept = under_way.kept[: len(picked)]
    limit_s = float("inf") if args.time_limit is None else args.time_limit
    with Progress(TextColumn(subject.name), BarColumn(), MofNCompleteColumn(), console=messages) as progress:
        task = progress.add_task("", total=len(picked), completed=len(kept))

        def on_progress(records: Sequence) -> None:
            under_way.add(records)
            progress.advance(task, len(records))

        rest = picked[len(kept) :]
        batch_size = subject.config.eval.batch_size
        records = kept + suites.predict_in_time(policy, rest, batch_size, limit_s, on_progress, answer)
    if len(records) < len(picked):
        messages.print(f"note: the time limit left {len(picked) - len(records)} of {len(picked)} unasked")
    return records


if __name__ == "__main__":
    sys.exit(main())
