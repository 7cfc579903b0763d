"""Plan the peak GPU memory of a config, and name the cheapest change that makes it fit. No GPU and no download.
Of a curriculum: every run of it, with rows, steps, memory, and hours where a rate was measured.

qwenvl-agent plan --config configs/safari_2b.json --gpu-gb 24
qwenvl-agent plan --config configs/safari_8b.json --gpu-gb 24 --gpus 4 --json
qwenvl-agent plan --config configs/safari_2b.json --gpu-gb 24 --row-tokens 4096 --image-tokens 2048
qwenvl-agent plan --config configs/safari_2b_curriculum.json --gpu-gb 24 --measured runs/safari_2b
qwenvl-agent plan --config configs/safari_2b.json --cards                                          # a table: what fits which

Status: 0 it fits, 1 it does not, 2 the config or a file is wrong.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.config import Config, load_config
from qwenvl_agent.planning.vram import (
    GIB,
    TYPICAL_TEXT,
    Architecture,
    Plan,
    RowShape,
    budget_row,
    by_characters,
    cheapest_fit,
    choose_checkpointing,
    data_row,
    find_architecture,
    plan_memory,
    planned_precision,
)

if TYPE_CHECKING:
    from qwenvl_agent.cli import plan_stages
    from qwenvl_agent.training.curriculum import PlannedRun


FORMER = {"--gpu": "--gpu-gb"}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("--config", required=True, help="a JSON file of configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting")
    parser.add_argument(
        "--gpu-gb", type=bounded(float, 0, 1e6), default=24, metavar="GB", help="memory of one card (default: 24)"
    )
    parser.add_argument("--gpus", type=int, default=1, help="how many cards (default: 1)")
    parser.add_argument("--model-config", metavar="DIR", help="folder or config.json of another architecture")
    parser.add_argument(
        "--row-tokens", type=bounded(int, 1), help="plan for rows of so many tokens, not for those of the data"
    )
    parser.add_argument(
        "--image-tokens", type=bounded(int, 0), help="vision tokens among them (default: by the config's budget)"
    )
    parser.add_argument(
        "--supervised", type=bounded(int, 1), help="supervised tokens among them (default: a typical turn)"
    )
    parser.add_argument(
        "--cards",
        action="store_true",
        help="a table of models, methods and cards, for rows as the config's budget allows",
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.add_argument(
        "--measured", type=Path, metavar="RUN", help="of a curriculum: reckon hours by this run's tokens a second"
    )
    return parser


@command("there is no plan")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    check_options(args, config)
    if config.stages:
        return plan_curriculum(args, config)
    if args.cards:
        show_cards(config, as_json=args.json)
        return 0
    arch = find_architecture(config.model.path, args.model_config)
    row_of = choose_rows(args, config, arch, load_rows(config) if not args.row_tokens else None)
    config, choice = choose_checkpointing(config, arch, row_of(config), args.gpus, args.gpu_gb)
    plan = plan_memory(config, arch, row_of(config), args.gpus)
    fits = plan.fits(args.gpu_gb)
    fix = None if fits else cheapest_fit(config, arch, row_of, args.gpus, args.gpu_gb)
    if args.json:
        print(json.dumps(report(config, plan, fix, args.gpu_gb)))
    else:
        show(config, plan, fix, args.gpu_gb, choice)
    return 0 if fits else 1


def check_options(args: argparse.Namespace, config: Config) -> None:
    """ValueError for what would change nothing."""
    if args.cards and config.stages:
        raise ValueError(
            "--cards with stages: the table is of one run's rows and settings, and a curriculum has several; give the "
            "config of a stage, or leave --cards out"
        )
    if args.measured and not config.stages:
        raise ValueError("--measured without stages: only a curriculum's plan has hours; leave it out")
    rows = {"--row-tokens": args.row_tokens, "--image-tokens": args.image_tokens, "--supervised": args.supervised}
    given = [option for option, value in rows.items() if value is not None]
    if args.cards and (given or args.model_config or args.gpus != 1):
        raise ValueError(
            f"--cards with {', '.join(given) or ('--model-config' if args.model_config else '--gpus')}: the table is of the "
            "published models on one card, for rows as the config's budget allows; leave it out"
        )
    if given and args.row_tokens is None:
        raise ValueError(f"{given[0]} without --row-tokens: the rows of the data are planned for; give both")


def plan_curriculum(args: argparse.Namespace, config: Config) -> int:
    """Of every run; 0 if all fit."""
    from qwenvl_agent.cli import plan_stages  # torch, which takes seconds
    from qwenvl_agent.training.curriculum import plan_runs

    runs = plan_runs(config)
    lines = [plan_stage(args, run) for run in runs]
    gates = [plan_stages.describe_gate(run) for run in runs]
    if args.json:
        print(json.dumps(plan_stages.as_json(config, lines, gates, args.gpu_gb)))
    else:
        plan_stages.show(config, lines, gates, args.gpu_gb)
    return 0 if all(line.plan.fits(args.gpu_gb) for line in lines) else 1


def plan_stage(args: argparse.Namespace, run: "PlannedRun") -> "plan_stages.Line":
    from qwenvl_agent.cli import plan_stages

    config = run.config
    arch, present = find_architecture(config.model.path, args.model_config), plan_stages.present_sources(run)
    rows = load_rows(present) if present.data.sources else None
    row_of = choose_rows(args, present, arch, rows)
    num_rows = None if rows is None or run.round else len(rows)
    num_steps, rate = plan_stages.num_steps(config, num_rows, args.gpus), plan_stages.rate_for(run, args.measured)
    hours = None
    if rate and rows and num_steps:
        tokens = plan_stages.mean_tokens(rows, config, arch, choose_counter(config))
        step_tokens = tokens * config.train.batch_size * config.train.accumulation * args.gpus
        hours = num_steps * step_tokens / rate.tokens_per_s / 3600
    return plan_stages.Line(
        name=config.name,
        begins_with=config.model.init_from or config.model.path,
        data=plan_stages.describe_data(run),
        num_rows=num_rows,
        num_steps=num_steps,
        hours=hours,
        rate=rate.run if rate else "",
        plan=plan_memory(
            choose_checkpointing(config, arch, row_of(config), args.gpus, args.gpu_gb)[0],
            arch,
            row_of(config),
            args.gpus,
        ),
    )


def show_cards(config: Config, *, as_json: bool) -> None:
    from qwenvl_agent.planning.cards import COMPILED, SHARE, SHARED_TOKENS, as_markdown, table, verdicts

    found = verdicts(config, budget_row)
    if as_json:
        print(json.dumps([asdict(verdict) for verdict in found]))
        return
    heading, *lines = table(found)
    if sys.stdout.isatty():
        shown = Table(*heading)
        for line in lines:
            shown.add_row(*line)
        Console(highlight=False).print(shown)
    else:
        print(as_markdown([heading, *lines]))
    print(
        f"\npeak GiB, layers computed again, predicted tokens/s, for micro-batches of {config.train.batch_size} rows as the "
        f"config's budget allows. Nothing of this is measured: memory by arithmetic; speed as {SHARE:.0%} of the card's "
        f"published rate, {COMPILED:.2f} times that with compiled blocks, without the time to unpack 4-bit weights or to wait "
        f"for an 8-bit optimizer. Packs are planned as their rows apart, and compute {SHARED_TOKENS} tokens once"
    )


def choose_rows(args: argparse.Namespace, config: Config, arch: Architecture, rows) -> Callable[[Config], RowShape]:
    """How long rows are under a config: as asked, as the data says, or as the budget allows."""
    if args.row_tokens:
        image_tokens = args.image_tokens
        if image_tokens is None:
            image_tokens = min(budget_row(config, arch).image_tokens, max(0, args.row_tokens - TYPICAL_TEXT["turn"]))
        supervised = args.supervised if args.supervised is not None else TYPICAL_TEXT["turn"]
        supervised = max(0, min(supervised, args.row_tokens - image_tokens))
        return lambda _: RowShape(args.row_tokens, image_tokens, supervised, source="as asked")
    if rows is None:
        return lambda changed: budget_row(changed, arch)
    count_tokens = choose_counter(config)
    return lambda changed: data_row(rows, rows.lengths, changed, arch, count_tokens)


def choose_counter(config: Config) -> Callable[[str], float]:
    """The checkpoint's tokenizer where it is on this disk: nothing is downloaded for a plan."""
    from qwenvl_agent.model.build import build_processor, checkpoint_path

    if not (Path(checkpoint_path(config.model.path)) / "tokenizer.json").exists():
        return by_characters
    return build_processor(config.model, config.vision).count_tokens


def load_rows(config: Config):
    """The training rows, or None if a source is not there: the plan is then of the budget, and says so."""
    from qwenvl_agent.data.dataset import build_rows  # not needed where sizes are given

    try:
        return build_rows(config.data, config.prompt).train
    except ValueError as error:
        print(f"no rows ({error}): planning for the config's budget with typical text", file=sys.stderr)
        return None


def report(config: Config, plan: Plan, fix, gpu_gb: float) -> dict:
    row = plan.row
    return {
        "config": config.name,
        "gpu_gb": gpu_gb,
        "gpus": plan.num_gpus,
        "fits": plan.fits(gpu_gb),
        "peak_bytes": plan.total,
        "moment": plan.moment,
        "precision": planned_precision(config.model).precision,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "parts": plan.parts,
        "moments": plan.moments,
        "host_bytes": plan.host_bytes,
        "row": {
            "tokens": row.tokens,
            "image_tokens": row.image_tokens,
            "supervised": row.supervised,
            "source": row.source,
        },
        "change": None if fix is None else {"set": fix[0].overrides, "cost": fix[0].cost, "peak_bytes": fix[1].total},
    }


def show(config: Config, plan: Plan, fix, gpu_gb: float, choice: str = "") -> None:
    """`choice`: what was chosen for the card and why, "" if nothing was."""
    console = Console(highlight=False, soft_wrap=True)
    row, train = plan.row, config.train
    console.print(
        f"{config.name}: {config.model.path}, {config.model.method}, ZeRO {train.zero_stage}"
        f"{' with CPU offload' if train.cpu_offload else ''}, {plan.num_gpus} x {gpu_gb:g} GB; micro-batch of "
        f"{train.batch_size} rows of {row.tokens} tokens ({row.image_tokens} vision, {row.supervised} supervised)"
    )
    console.print(f"rows: {row.source}", style="dim")
    for line in filter(None, (f"precision: {planned_precision(config.model).precision}", choice)):
        console.print(line, style="dim")
    table = Table("category", "GiB")
    table.columns[1].justify = "right"
    for name, size in plan.parts.items():
        if size:
            table.add_row(name, f"{size / GIB:.2f}")
    table.add_row("peak, a GPU", f"{plan.total / GIB:.2f}", style="bold")
    console.print(table)
    console.print(f"the peak is at the {plan.moment}")
    if plan.host_bytes:
        console.print(f"host memory, a rank: {plan.host_bytes / GIB:.1f} GiB")
    if plan.fits(gpu_gb):
        console.print(f"fits {gpu_gb:g} GB")
    elif fix is None:
        console.print(f"does not fit {gpu_gb:g} GB, and no change of this config would make it fit: take more memory")
    else:
        change, smaller = fix
        sets = " ".join(f"--set {override}" for override in change.overrides)
        console.print(f"does not fit {gpu_gb:g} GB; cheapest change: {sets}  ({change.cost}) ")
        console.print(f"with it: {smaller.total / GIB:.2f} GiB")


if __name__ == "__main__":
    run_command(main)
