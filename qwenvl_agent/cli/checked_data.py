"""What `check-data` does: look at a file, read it as training would, and say what was found."""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwenvl_agent.cli.configs import CONFIGS_DIR
from qwenvl_agent.config import Config, EvalConfig, SourceConfig, build_config, load_config
from qwenvl_agent.curation.checkup import (
    QUANTILES,
    Counts,
    FirstRow,
    Lengths,
    Size,
    first_row,
    geometry_of,
    marked_lines,
    measure,
    open_source,
    proposed,
    sizes_of,
)
from qwenvl_agent.curation.recognition import Recognition, find_data_files, recognise
from qwenvl_agent.data.dataset import SourceCache
from qwenvl_agent.data.processor import Processor
from qwenvl_agent.files import write_text
from qwenvl_agent.settings import apply_override, build, read_values, to_json

DEFAULT_MODEL = "Qwen/Qwen3-VL-2B-Instruct"
SOURCE_OPTIONS = ("unit", "box_unit", "box_order", "world")
"""Of a source: passed on as they are given."""
SIZES_SHOWN = 5
LEGIBLE_SHARE = 0.6
"""Of its width: a screenshot that is made smaller than that has small text that no model can read."""


def run(args: argparse.Namespace) -> int:
    """The command's status."""
    config = base_config(args)
    found = recognise(args.data) if not args.kind else None
    if found and not found.kind:
        return say_convert(found, args.json)
    source = source_of(args, found)
    cache, counts = open_source(source, config)
    too_many = counts.share_rejected > config.data.max_rejected
    report = {"file": str(source.path), **facts_of(found, source), "counts": dataclasses.asdict(counts)}
    if cache is not None:
        processor, missing = find_processor(args, config)
        fitted = with_fitting_suite(proposed(config, cache, processor))
        report |= measured(cache, config, fitted, processor) | {"no_tokenizer": missing}
        if args.write:
            write_config(args, fitted)
    report |= {"max_rejected": config.data.max_rejected, "can_be_trained_on": cache is not None and not too_many}
    print(json.dumps(plain(report), ensure_ascii=False) if args.json else "\n".join(lines_of(report, found, args)))
    return 0 if report["can_be_trained_on"] else 1


def base_config(args: argparse.Namespace) -> Config:
    """The config that was named, or defaults; with what the command line says."""
    overrides = [*args.set, *([f"model.path={args.model}"] if args.model else [])]
    if args.max_rejected is not None:
        overrides.append(f"data.max_rejected={args.max_rejected}")
    if args.config:
        return load_config(config_path(args.config), overrides)
    return build_config(with_overrides({"name": "own", "model": {"path": DEFAULT_MODEL}}, overrides))


def with_overrides(values: dict, overrides: Sequence[str]) -> dict:
    for override in overrides:
        apply_override(values, override)
    return values


def config_path(name: str) -> Path:
    """A file, or one of the package's own by its name."""
    shipped = CONFIGS_DIR / f"{name.removesuffix('.json')}.json"
    return shipped if not Path(name).exists() and shipped.is_file() else Path(name)


def source_of(args: argparse.Namespace, found: Recognition | None) -> SourceConfig:
    """The entry of data.sources."""
    files = found.files if found else find_data_files(args.data)
    path = files[0] if len(files) == 1 and files[0].name != "dataset.jsonl" else args.data
    given = {name: getattr(args, name) for name in SOURCE_OPTIONS if getattr(args, name)}
    return build(SourceConfig, {"path": str(path), "kind": args.kind or (found.kind if found else ""), **given}, "--")


def find_processor(args: argparse.Namespace, config: Config) -> tuple[Processor | None, str]:
    """The processor that counts, or why there is none."""
    if not args.config and not args.model:
        return None, "no --config or --model names a tokenizer"
    from qwenvl_agent.model.build import build_processor

    try:
        return build_processor(config.model, config.vision), ""
    except (ValueError, OSError) as error:
        return None, str(error)


def with_fitting_suite(config: Config) -> Config:
    """With clicks, or no world played in training, if the config's suite cannot judge this data; held-out rows still are."""
    others = [dataclasses.replace(config.eval, suite=name, world={}) for name in ("clicks", "none")]
    fitting = (eval_config for eval_config in (config.eval, *others) if can_judge(config, eval_config))
    return dataclasses.replace(config, eval=next(fitting, config.eval))


def can_judge(config: Config, eval_config: EvalConfig) -> bool:
    """Conversations may be of any world, and do not say of which: none is played unless somebody asks for it."""
    from qwenvl_agent.evaluation.suites import check_suite, is_world

    if is_world(eval_config.suite) and all(source.kind == "chat" for source in config.data.sources):
        return False
    try:
        check_suite(dataclasses.replace(config, eval=eval_config))
    except ValueError:
        return False
    return True


def measured(cache: SourceCache, config: Config, fitted: Config, processor: Processor | None) -> dict:
    """What is known only of rows: the first, their pictures and lengths under the settings as they are and as they fit."""
    geometry = geometry_of(processor)
    return {
        "first_row": first_row(cache, fitted, processor),
        "pictures": sizes_of(cache, fitted.vision, geometry),
        "lengths": measure(cache, fitted, processor),
        "limits": {
            "max_row_tokens": fitted.vision.max_row_tokens,
            "max_tokens_per_row": fitted.vision.max_tokens_per_row,
        },
        "config": config_lines(config, fitted),
        "changed": changed(config, fitted),
    }


def config_lines(config: Config, fitted: Config) -> dict:
    """What to paste: the source, and every setting that must differ from the config's."""
    lines: dict = {"data": {"sources": [source_lines(source) for source in fitted.data.sources]}}
    for path in changed(config, fitted):
        group, name = path.split(".")
        lines.setdefault(group, {})[name] = to_json(fitted)[group][name]
    return lines


def source_lines(source: SourceConfig) -> dict:
    """Path, kind, and what differs from the defaults."""
    plain_source, defaults = to_json(source), to_json(SourceConfig(path=source.path, kind=source.kind))
    return {key: value for key, value in plain_source.items() if key in ("path", "kind") or value != defaults[key]}


def changed(config: Config, fitted: Config) -> list[str]:
    """Paths of the settings that the file needs otherwise; its source is not one of them."""
    before, after = to_json(config), to_json(fitted)
    return [
        f"{group}.{name}"
        for group in ("prompt", "vision", "eval")
        for name in after[group]
        if after[group][name] != before[group][name]
    ]


def write_config(args: argparse.Namespace, fitted: Config) -> None:
    """The config file as it was, with the lines laid over it."""
    overrides = [*args.set, *([f"model.path={args.model}"] if args.model else [])]
    values = read_values(config_path(args.config), overrides)
    values.pop("$schema", None)
    lines = config_lines(load_config(config_path(args.config), overrides), fitted)
    for group, settings in lines.items():
        values[group] = {**values.get(group, {}), **settings}
    values["name"] = args.write.stem
    build_config(values)
    write_text(args.write, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def facts_of(found: Recognition | None, source: SourceConfig) -> dict:
    """What the file is."""
    if found is None:
        return {"kind": source.kind, "why": "--kind says so", "layouts": []}
    return {"kind": source.kind, "container": found.container, "why": found.why, "layouts": list(found.layouts)}


def say_convert(found: Recognition, as_json: bool) -> int:
    """A published layout: what it could be, and the command that makes a source of it. Status 1."""
    if as_json:
        about = {"kind": "", "container": found.container, "layouts": list(found.layouts), "fields": dict(found.fields)}
        print(json.dumps({"file": str(found.files[0]), **about, "can_be_trained_on": False}))
        return 1
    print("\n".join(convert_lines(found)))
    return 1


def convert_lines(found: Recognition) -> list[str]:
    several = len(found.layouts) > 1
    which = (
        "its fields fit several published layouts, which differ in unit or split" if several else "a published layout"
    )
    data = found.files[0]
    return [
        f"{data}: {found.container}, {which}: {', '.join(found.layouts)} ({found.why})",
        "it is no source as it stands; convert it, and check what comes out:",
        f"  qwenvl-agent convert --layout {found.layouts[0] if not several else 'LAYOUT'} --data {data} --pictures {data.parent} --out converted",
        "  qwenvl-agent check-data converted",
        "units and orders of boxes are declared by the layout, and not guessed from its numbers: qwenvl-agent convert --layouts",
    ]


def lines_of(report: dict, found: Recognition | None, args: argparse.Namespace) -> Iterator[str]:
    """The report for people."""
    container = f"{report['container']}, " if "container" in report else ""
    yield f"{report['file']}: {container}kind {report['kind']} ({report['why']})"
    if found and found.layouts:
        yield f"  its fields also fit {', '.join(found.layouts)}: if it is that, convert it first (qwenvl-agent convert)"
    yield from count_lines(Counts(**report["counts"]) if isinstance(report["counts"], dict) else report["counts"])
    if "first_row" in report:
        yield from row_lines(report["first_row"])
        if report["kind"] == "computer":
            unit = report["config"]["data"]["sources"][0].get("unit", "px")
            yield f"  places are read as {unit}; if they are in another unit, say --unit (px, fraction, percent, thousand)"
            yield "  click and box on the pictures themselves: qwenvl-agent show --config CONFIG writes samples.html"
        yield from picture_lines(report["pictures"])
        yield from length_lines(report["lengths"], report["limits"], report["no_tokenizer"])
        yield ""
        yield "config lines:" if not args.write else f"written to {args.write}, over {args.config}:"
        yield json.dumps(report["config"], indent=2, ensure_ascii=False)
    yield verdict(report)


def count_lines(counts: Counts) -> Iterator[str]:
    taken = counts.records - counts.rejected
    yield (
        f"{counts.records} records: {taken} give {counts.rows} rows of {counts.episodes} episodes, {counts.rejected} rejected"
        + (f" ({counts.left_out} of them mark themselves as not to be learned)" if counts.left_out else "")
    )
    if counts.shown_only:
        yield f"  {counts.shown_only} answers of weight 0 stand in the history and are no rows"
    for fault in counts.faults:
        source, message = fault[2][0]
        yield f"  rejected {fault[1]} x: {message}"
        yield f"    at {', '.join(place for place, _ in fault[2])}{', ...' if fault[1] > len(fault[2]) else ''}"
    for name, number in counts.notes.items():
        yield f"  note {name}: {number}"


def row_lines(first: FirstRow) -> Iterator[str]:
    yield ""
    yield f"first row ({first.source}), as the model sees it; what it is to write is marked by >"
    for is_learned, line in marked_lines(first.rendered.spans):
        yield f"{'>' if is_learned else ' '} {line}".rstrip()
    for picture in first.rendered.pictures:
        yield f"  picture: {picture.path or 'embedded'}, {picture.width}x{picture.height} px"


def picture_lines(sizes: Sequence[Size]) -> Iterator[str]:
    yield ""
    if not sizes:
        yield "pictures: none"
    for size in sizes[:SIZES_SHOWN]:
        about = f"pictures: {size.number} of {size.width}x{size.height} px"
        if not size.tokens:
            yield f"{about} fit no size of the budget: their rows cannot be used; raise vision.max_tokens_per_image"
            continue
        share = size.shown_width / size.width
        said = ": small text may be lost; raise vision.max_tokens_per_image" if share < LEGIBLE_SHARE else ""
        yield f"{about}, shown as {size.shown_width}x{size.shown_height} in {size.tokens} tokens ({share:.0%} wide{said})"
    if len(sizes) > SIZES_SHOWN:
        rest = sizes[SIZES_SHOWN:]
        yield f"pictures: {sum(size.number for size in rest)} of {len(rest)} other sizes, {sum(not s.tokens for s in rest)} of which fit none"


def length_lines(lengths: Lengths, limits: dict, no_tokenizer: str) -> Iterator[str]:
    how = "text estimated at 3 characters a token" if lengths.is_estimated else "by the tokenizer"
    at = ", ".join(f"p{q} {value}" for q, value in zip(QUANTILES, lengths.row, strict=True))
    yield f"tokens a row ({how}, {lengths.num_measured} rows, pictures exact): {at}; vision at most {lengths.vision[-1]}"
    if lengths.is_estimated:
        yield f"  no tokenizer: {no_tokenizer}"
    limit = ", ".join(f"vision.{name} {value}" for name, value in limits.items())
    yield f"  {lengths.num_over} of {lengths.num_measured} over the budget ({limit})" + (
        ": they lose history, or are dropped and counted" if lengths.num_over else ""
    )


def verdict(report: dict) -> str:
    if report["can_be_trained_on"]:
        return "can be trained on"
    counts = Counts(**report["counts"])
    if "first_row" not in report:
        return "cannot be trained on: no row is left to learn; correct the records above"
    return (
        f"cannot be trained on as it is: {counts.share_rejected:.1%} of the records are rejected, and data.max_rejected is "
        f"{report['max_rejected']:.1%}; correct them, or allow it with --max-rejected and in the config"
    )


def plain(report: dict) -> dict:
    """For JSON: the first row as spans."""
    if "first_row" not in report:
        return report
    first: FirstRow = report["first_row"]
    spans = [{"part": span.part, "text": span.text} for span in first.rendered.spans]
    pictures = [{"path": p.path, "width": p.width, "height": p.height} for p in first.rendered.pictures]
    return report | {
        "first_row": {"source": first.source, "spans": spans, "pictures": pictures},
        "pictures": [size._asdict() for size in report["pictures"]],
        "lengths": dataclasses.asdict(report["lengths"]) | {"quantiles": list(QUANTILES)},
    }
