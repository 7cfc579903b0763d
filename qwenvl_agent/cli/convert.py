"""Published screen data sets -> one checked folder: dataset.jsonl, images/, rejects.jsonl and manifest.json.

    qwenvl-agent convert --layout screenspot_v2 --data screenspot_desktop_v2.json --pictures screenspotv2_image \
        --out generated/screenspot_v2
    qwenvl-agent convert --layout os_atlas --data web.json --pictures web_images --out generated/web \
        --keep-apart screenspot_v2 screenspot_desktop_v2.json screenspotv2_image
    qwenvl-agent convert --layout my_layout.json --data mine.jsonl --pictures . --out generated/mine
    qwenvl-agent convert --layouts
    qwenvl-agent convert --layout-keys

A layout says where a data set keeps what, and in which unit: a shipped one's name, or a file of your own
(--layout-keys lists what stands in it). Rows that do not fit are counted by reason and written to rejects.jsonl with
their place; if the places of many do not, the layout is not the file's, and that is an error. A training picture that
shows the same as one of --keep-apart, scaled or compressed though it be, is rejected.
"""

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from qwenvl_agent.cli.dataset import refuse_to_lose
from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.curation.convert import (
    LAYOUTS,
    MISPLACED,
    annotation_files,
    convert,
    known_pictures,
    picture_files,
    remedy_for,
)
from qwenvl_agent.curation.layout import Layout
from qwenvl_agent.data.readers.computer import Sample, SampleWriter, summary
from qwenvl_agent.files import write_manifest
from qwenvl_agent.progress import tracked
from qwenvl_agent.settings import list_settings, type_name

MIN_MISPLACED = 3
"""Fewer may be any file's."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--layouts", action="store_true", help="list the layouts and what they declare")
    parser.add_argument("--layout-keys", action="store_true", help="list what stands in a layout file")
    parser.add_argument("--layout", help="form of the file: a name of --layouts, or a layout file (.json)")
    parser.add_argument("--data", type=Path, help="a .jsonl, .json or .parquet file, or a folder of them")
    parser.add_argument("--pictures", type=Path, help="folder of its pictures (for .parquet: where they are saved)")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--limit", type=bounded(int, 1), help="stop after this many samples and rejects")
    parser.add_argument("--split", choices=("train", "test"), help="of all rows; by default what the layout says")
    parser.add_argument("--test-ids", type=Path, help="JSON file with the ids of test rows, in place of the layout's")
    parser.add_argument(
        "--max-misplaced",
        type=bounded(float, 0, 1),
        default=0.25,
        metavar="SHARE",
        help="of rows whose places are not on their pictures; more of them are an error (default: %(default)s)",
    )
    parser.add_argument("--keep-apart", nargs=3, metavar=("LAYOUT", "DATA", "PICTURES"), help="an evaluation set")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder's dataset.jsonl")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not (args.layouts or args.layout_keys) and not all((args.layout, args.data, args.pictures, args.out)):
        parser.error("--layout, --data, --pictures and --out are needed")
    return args


def write_dataset(args: argparse.Namespace) -> dict:
    """Convert everything; returns the manifest."""
    known = (
        known_pictures(Path(args.keep_apart[1]), args.keep_apart[0], Path(args.keep_apart[2]))
        if args.keep_apart
        else None
    )
    rows = convert(args.data, args.layout, args.pictures, known=known, split=args.split or "", test_ids=args.test_ids)
    items = itertools.islice(rows, args.limit)
    counts = {"samples": 0, "rejects": Counter(), "notes": Counter(), "actions": Counter(), "splits": Counter()}
    with SampleWriter(args.out) as writer, open(args.out / "rejects.jsonl", "w", encoding="utf-8") as rejects:
        for item in tracked(items, "rows", None, quiet=args.json):
            if isinstance(item, Sample):
                writer.write(item)
                counts["samples"] += 1
                counts["notes"].update(item.notes)
                counts["splits"][item.split] += 1
                counts["actions"].update(action.kind for action in item.actions)
            else:
                counts["rejects"][item.reason] += 1
                row = {"source": item.source, "reason": item.reason, "message": item.message}
                rejects.write(json.dumps(row, ensure_ascii=False) + "\n")
    check_places(args, counts["samples"], counts["rejects"])
    return write_manifest(args.out, {"layout": args.layout, "data": args.data.name, **counts})


def check_places(args: argparse.Namespace, num_samples: int, rejects: Counter) -> None:
    """ValueError if the places of so many rows are not on their pictures that those of the others cannot be trusted."""
    misplaced = {reason: rejects[reason] for reason in MISPLACED if rejects[reason]}
    total = sum(misplaced.values())
    if total < MIN_MISPLACED or total <= args.max_misplaced * (num_samples + total):
        return
    named = ", ".join(f"{reason} {count}" for reason, count in misplaced.items())
    remedy = remedy_for(annotation_files(args.data)[0], picture_files(args.pictures))
    raise ValueError(
        f"{args.data}: {total} of {num_samples + total} places are not on their pictures ({named}): layout {args.layout} "
        f"declares another unit, order or size than the file has, and the rest would be wrong, too; {remedy}, or raise "
        "--max-misplaced"
    )


def layout_table() -> Table:
    """`published`: whether published rows were tried, or files in their shape.

    As wide as a terminal: licences and where the facts stand are in docs/DATA.md.
    """
    table = Table(
        *(Column(name, no_wrap=True) for name in ("layout", "places", "action", "split", "published")), box=SIMPLE
    )
    for name, layout in LAYOUTS.items():
        box = f"box {layout.box_order}, {layout.box_unit}" if layout.box else ""
        point = f"point {layout.point_unit}" if layout.point and not layout.box else ""
        table.add_row(
            name,
            box or point,
            layout.action_unit if layout.action else "click",
            layout.split,
            layout.tried.removeprefix("published "),
        )
    return table


def key_table() -> Table:
    table = Table("key", "type", "meaning", show_lines=True)
    for setting in list_settings(Layout):
        table.add_row(setting.path, type_name(setting.hint), setting.meaning)
    return table


@command("the data set is not whole; start again with --overwrite")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.layouts:
        Console().print(layout_table())
        return 0
    if args.layout_keys:
        Console().print(key_table())
        return 0
    refuse_to_lose(args.out, args.overwrite)
    manifest = write_dataset(args)
    if args.json:
        print(json.dumps(manifest))
    else:
        print(summary(manifest["samples"], manifest["rejects"], manifest["notes"]))
    if not manifest["samples"]:
        raise ValueError(f"{args.data}: no row gave a sample: see {args.out}/rejects.jsonl")
    return 0


if __name__ == "__main__":
    run_command(main)
