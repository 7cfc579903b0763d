"""What `show` does: rows as tokens coloured by weight, or the mask of every row proved."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from qwenvl_agent.config import Config
from qwenvl_agent.curation.marks import marks_of
from qwenvl_agent.curation.samples import colour, pieces, to_json, write_samples
from qwenvl_agent.data.collator import Collator, Sample, build_collator
from qwenvl_agent.data.dataset import Rows, build_rows
from qwenvl_agent.data.masks import MaskAudit
from qwenvl_agent.data.unusable import drop_unusable
from qwenvl_agent.model.build import build_processor
from qwenvl_agent.progress import tracked
from qwenvl_agent.schema import Row

MAX_SHOWN_ERRORS = 10


def run(config: Config, args: argparse.Namespace) -> int:
    """The command's status."""
    rows = build_rows(config.data, config.prompt)
    collator = build_collator(build_processor(config.model, config.vision), config)
    if args.audit:
        return audit(config, rows, collator, as_json=args.json)
    rows = drop_unusable(rows, collator)
    samples = map(collator.sample, pick(rows, args.rows or (0 if args.json else 4)))
    if args.json:
        for sample in samples:
            print(json.dumps(to_json(sample, collator), ensure_ascii=False))
    else:
        show(list(samples), config, rows, args.out)
    return 0


def all_rows(rows: Rows) -> Iterator[Row]:
    for dataset in (rows.train, rows.held_out):
        for i in range(len(dataset)):
            yield dataset[i]


def pick(rows: Rows, num_rows: int) -> Iterable[Row]:
    """`num_rows` training rows at equal distances, or all rows, held-out ones included."""
    if not num_rows:
        return all_rows(rows)
    num_rows = min(num_rows, len(rows.train))
    return [rows.train[i * len(rows.train) // num_rows] for i in range(num_rows)]


def audit(config: Config, rows: Rows, collator: Collator, as_json: bool) -> int:
    """Check every row; the counts in one line, and status 1 if any row is wrong or cannot be used."""
    mask_audit = MaskAudit(collator.tokenizer, config.prompt.supervise_history, collator.family, collator.fmt.opening)
    counts: Counter = Counter()
    errors = []
    for row in tracked(all_rows(rows), "rows", len(rows.train) + len(rows.held_out)):
        counts["rows"] += 1
        try:
            sample = collator.sample(row)
            counts += check(sample, mask_audit)
        except ValueError as error:
            errors.append(str(error))
        except AssertionError as error:
            errors.append(f"{row.source or row.id}: {error}")
    report = summary(config, rows, collator, counts, len(errors))
    print(json.dumps(report) if as_json else f"audit: {', '.join(f'{key} {value}' for key, value in report.items())}")
    for message in errors[:MAX_SHOWN_ERRORS]:
        print(message, file=sys.stderr)
    if len(errors) > MAX_SHOWN_ERRORS:
        print(f"and {len(errors) - MAX_SHOWN_ERRORS} more", file=sys.stderr)
    return 1 if errors else 0


def check(sample: Sample, mask_audit: MaskAudit) -> Counter:
    encoded = sample.encoded
    counts = mask_audit.check(encoded.input_ids, sample.labels, sample.parts, encoded.spans, encoded.num_turns)
    counts["tokens"] = len(encoded.input_ids)
    return counts


def summary(config: Config, rows: Rows, collator: Collator, counts: Counter, num_wrong: int) -> dict:
    parts = {f"supervised_{part}": counts[part] for part in ("thought", "call", "text", "end")}
    return {
        "format": config.prompt.format,
        "rows": counts["rows"],
        "wrong": num_wrong,
        "tokens": counts["tokens"],
        "supervised": sum(parts.values()),
        **parts,
        "image_tokens": counts["image"],
        "dropped_images": collator.reductions["images"],
        "dropped_turns": collator.reductions["turns"],
        "rejected_rows": sum(source["num_rejects"] for source in rows.report["sources"]),
    }


def show(samples: Sequence[Sample], config: Config, rows: Rows, html_path: str) -> None:
    """Print the rows and write them as a page."""
    console = Console(highlight=False, soft_wrap=True)
    for sample in samples:
        console.rule(f"{sample.row.id}  {sample.row.source}")
        console.print(coloured(sample))
    marks = marks_of(rows.train)
    write_samples(html_path, samples, f"{config.name}: {config.prompt.format}", marks)
    console.print(rows.summary(), style="dim")
    if marks:
        console.print(f"click and box on {len(marks)} pictures: look at them first in {html_path}")
    console.print(f"pictures and mask: {html_path}")


def coloured(sample: Sample) -> Text:
    text = Text()
    heaviest = float(sample.weights.max()) or 1.0
    for piece in pieces(sample):
        shown = piece.text.replace("\n", "↵\n")
        if piece.part == "prompt":
            text.append(shown, style="dim")
        else:
            red, green, blue = colour(piece.part, piece.weight / heaviest)
            text.append(shown, style=f"black on rgb({red},{green},{blue})")
    return text
