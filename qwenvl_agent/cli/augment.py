"""A few screens with actions -> the same and copies of them, seen in other ways: data for training on 10 to 50 samples.

    qwenvl-agent augment data/clicks --out data/clicks_x5 --copies 4
    qwenvl-agent augment data/clicks --out data/clicks_x5 --copies 4 --ways scale theme --least-part 0.8

A copy is a part of the screenshot that holds the target (crop), at another size (scale), darker or with its theme turned
(theme); positions and boxes follow exactly. The samples themselves are in the folder, too. Samples of a test split are
taken as they are, never copied. Copies stand on their origin's side of every split (`group`) and say what was done to
them (`details.augmented`). The folder holds dataset.jsonl, images/, rejects.jsonl and manifest.json, as that of
scripts/convert_data.py; the same seed gives the same folder.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from qwenvl_agent.cli.dataset import add_unit_options, refuse_to_lose
from qwenvl_agent.command import Parser, command, run_command
from qwenvl_agent.curation.augment import WAYS, Policy, augment
from qwenvl_agent.data.readers.computer import TEST, Sample, SampleWriter, read_samples, summary
from qwenvl_agent.data.readers.units import Declared
from qwenvl_agent.files import write_manifest
from qwenvl_agent.progress import tracked


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("data", type=Path, help="a folder with dataset.jsonl, or such a file")
    add_unit_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--copies", type=int, default=4, help="of each sample, beside itself")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of making a copy (default: all)")
    parser.add_argument("--least-part", type=float, default=Policy.least_part, help="of each side that a crop keeps")
    parser.add_argument(
        "--scales", type=float, nargs=2, default=Policy.scales, metavar=("LEAST", "MOST"), help="of sizes, drawn evenly"
    )
    parser.add_argument(
        "--lights",
        type=float,
        nargs=2,
        default=Policy.lights,
        metavar=("LEAST", "MOST"),
        help="of brightness, drawn evenly",
    )
    parser.add_argument("--turned", type=float, default=Policy.turned, help="share of copies with the theme turned")
    parser.add_argument("--seed", type=int, default=0, help="the same one makes the same copies (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON and nothing else")
    return parser


def check(args: argparse.Namespace) -> Policy:
    if args.copies < 1:
        raise ValueError(f"copies is {args.copies}: nothing would be added; give at least 1")
    if not args.data.exists():
        raise ValueError(f"{args.data} does not exist: there is nothing to copy; name a folder with dataset.jsonl")
    source = args.data if args.data.is_dir() else args.data.parent
    if source.resolve() == args.out.resolve():
        raise ValueError(f"{args.out} is the data's own folder: its samples would be lost; give another --out")
    refuse_to_lose(args.out, args.overwrite)
    return Policy(
        ways=tuple(args.ways),
        least_part=args.least_part,
        scales=tuple(args.scales),
        lights=tuple(args.lights),
        turned=args.turned,
    )


def write_dataset(args: argparse.Namespace, policy: Policy) -> dict:
    """Write the folder; returns the manifest."""
    rejects: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    numbers = Counter(samples=0, copies=0)
    declared = Declared(args.unit, args.box_unit, args.box_order)
    items = list(read_samples(args.data, declared, notes))  # of a file that is refused, nothing is written
    with SampleWriter(args.out) as writer, open(args.out / "rejects.jsonl", "w", encoding="utf-8") as file:
        for item in tracked(items, "samples", len(items), quiet=args.json):
            if not isinstance(item, Sample):
                rejects[item.reason] += 1
                row = {"source": item.source, "reason": item.reason, "message": item.message}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                continue
            is_test = item.split == TEST
            copies, left_out = ([], ["not_copied_test"]) if is_test else augment(item, args.copies, policy, args.seed)
            for sample in (item, *copies):
                writer.write(sample)
            numbers.update(samples=1, copies=len(copies))
            notes.update((*item.notes, *left_out))
    settings = {"seed": args.seed, "copies_asked": args.copies, "ways": args.ways, "least_part": args.least_part}
    settings |= {"scales": list(args.scales), "lights": list(args.lights), "turned": args.turned}
    about = {"data": args.data.name, **numbers, "rejects": rejects, "notes": notes, **settings}
    return write_manifest(args.out, about)


@command("the data set is not whole; start again")
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    manifest = write_dataset(args, check(args))
    if not manifest["samples"]:
        raise ValueError(f"{args.data}: no row gave a sample: see {args.out}/rejects.jsonl")
    if args.json:
        print(json.dumps(manifest))
    else:
        print(f"{manifest['copies']} copies of", summary(manifest["samples"], manifest["rejects"], manifest["notes"]))
    return 0


if __name__ == "__main__":
    run_command(main)
