"""Published screen data sets -> one checked folder: dataset.jsonl, images/, rejects.jsonl and manifest.json.

    qwenvl-agent convert --layout screenspot_v2 --data screenspot_desktop_v2.json --pictures screenspotv2_image \
        --out generated/screenspot_v2
    qwenvl-agent convert --layout os_atlas --data web.json --pictures web_images --out generated/web \
        --keep-apart screenspot_v2 screenspot_desktop_v2.json screenspotv2_image
    qwenvl-agent convert --layouts

Where a layout finds what, and in which unit, is declared in qwenvl_agent/curation/convert.py. Rows that do not fit are counted
by reason and written to rejects.jsonl with their place. A training picture that shows the same as one of --keep-apart,
scaled or compressed though it be, is rejected.
"""

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from qwenvl_agent.cli.dataset import refuse_to_lose, write_manifest
from qwenvl_agent.command import bounded, command, run_command
from qwenvl_agent.curation.convert import LAYOUTS, convert, known_pictures
from qwenvl_agent.data.readers.computer import Sample, SampleWriter, summary


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", action="store_true", help="list the layouts and what they declare")
    parser.add_argument("--layout", help="form of the file; see --layouts")
    parser.add_argument("--data", type=Path, help="a .jsonl, .json or .parquet file")
    parser.add_argument("--pictures", type=Path, help="folder of its pictures (for .parquet: where they are saved)")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--limit", type=bounded(int, 1), help="stop after this many samples and rejects")
    parser.add_argument("--keep-apart", nargs=3, metavar=("LAYOUT", "DATA", "PICTURES"), help="an evaluation set")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder's dataset.jsonl")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    args = parser.parse_args(argv)
    if not args.layouts and not all((args.layout, args.data, args.pictures, args.out)):
        parser.error("--layout, --data, --pictures and --out are needed")
    return args


def write_dataset(args: argparse.Namespace) -> dict:
    """Convert everything; returns the manifest."""
    known = (
        known_pictures(Path(args.keep_apart[1]), args.keep_apart[0], Path(args.keep_apart[2]))
        if args.keep_apart
        else None
    )
    items = itertools.islice(convert(args.data, args.layout, args.pictures, known=known), args.limit)
    counts = {"samples": 0, "rejects": Counter(), "notes": Counter(), "actions": Counter()}
    with SampleWriter(args.out) as writer, open(args.out / "rejects.jsonl", "w", encoding="utf-8") as rejects:
        for item in track(items, description=str(args.data), disable=args.json, console=Console(stderr=True)):
            if isinstance(item, Sample):
                writer.write(item)
                counts["samples"] += 1
                counts["notes"].update(item.notes)
                counts["actions"].update(action.kind for action in item.actions)
            else:
                counts["rejects"][item.reason] += 1
                row = {"source": item.source, "reason": item.reason, "message": item.message}
                rejects.write(json.dumps(row, ensure_ascii=False) + "\n")
    return write_manifest(args.out, {"layout": args.layout, "data": args.data.name, **counts})


def layout_table() -> Table:
    table = Table("layout", "box", "point", "action", "split", "licence")
    for name, layout in LAYOUTS.items():
        box = f"{layout.box_order}, {layout.box_unit}" if layout.box else ""
        table.add_row(
            name,
            box,
            layout.point_unit if layout.point else "",
            layout.action_unit if layout.action else "click",
            layout.split,
            layout.licence or "not stated",
        )
    return table


@command("the data set is not whole; start again with --overwrite")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.layouts:
        Console().print(layout_table())
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
