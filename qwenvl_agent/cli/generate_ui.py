"""Render pages in Chromium and write what can be clicked on them as data.

    qwenvl-agent generate-ui --out generated/ui --pages 2000
    qwenvl-agent generate-ui --out generated/ui_simple --families simple --pages 5000 --rows-per-page 2
    qwenvl-agent generate-ui --out generated/ui_test --pages 500 --seed-start 2000000 --draw-first 20

The folder holds dataset.jsonl (instruction, screenshot and click, in pixels), elements.jsonl (all elements of every
picture, in pixels), questions.jsonl (conversations about the pictures), images/ and manifest.json. With --draw-first also
drawn/: the first pictures with their boxes and click points, to be looked at.

Page i has seed `seed-start + i` and the i-th of the families in turn; the same seed gives the same page. Chromium and
Playwright are needed: pip install 'qwenvl-agent[browser]' and apt-get install chromium fonts-noto-color-emoji
fonts-noto-cjk.
"""

import argparse
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from rich.console import Console

from qwenvl_agent.cli.dataset import refuse_to_lose
from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.files import write_manifest
from qwenvl_agent.processes import parallel_map
from qwenvl_agent.progress import Bar
from qwenvl_agent.worlds.browser.camera import Camera, Shot
from qwenvl_agent.worlds.browser.chromium import open_browser
from qwenvl_agent.worlds.browser.pages import FAMILIES, REPORT_SEEDS, SELECTION_SEEDS, TRAIN_SEEDS, draw_page
from qwenvl_agent.worlds.browser.samples import action_rows, elements_row, question_rows, sample_id
from qwenvl_agent.worlds.browser.words import LANGUAGES

PAGES_PER_BROWSER = 100
SEED_SETS = {"training": TRAIN_SEEDS, "selection": SELECTION_SEEDS, "report": REPORT_SEEDS}
FILES = ("dataset", "elements", "questions")


class Recorded(NamedTuple):
    """One page: its picture, the rows of each of FILES, and what to count."""

    name: str
    png: bytes
    drawn: bytes
    rows: dict[str, list[dict]]
    counts: Counter


def record(shot: Shot, rows: int, questions: int, languages: tuple[str, ...], draw_until: int) -> Recorded:
    """`draw_until`: pages with a smaller seed are drawn, too."""
    name = sample_id(shot)
    screenshot = f"images/{name}.png"
    rng = random.Random(f"rows {name}")
    found = {
        "dataset": action_rows(shot, screenshot, rows, languages, rng),
        "elements": [elements_row(shot, screenshot)],
        "questions": question_rows(shot, screenshot, questions, languages, rng),
    }
    counts = Counter(pages=1, elements=len(shot.layout.elements), covered_elements=shot.layout.num_hidden)
    counts.update(pages_without_elements=not shot.layout.elements, rows=len(found["dataset"]))
    counts.update(questions=len(found["questions"]))
    counts.update(f"kind {row['details']['kind']}" for row in found["dataset"])
    counts.update(f"language {row['details']['language']}" for row in found["dataset"])
    drawn = draw_boxes(shot) if shot.page.seed < draw_until else b""
    return Recorded(name, shot.png, drawn, found, counts)


def draw_boxes(shot: Shot) -> bytes:
    """The picture as PNG with the box of every element (orange: partly covered or cut) and its click point."""
    image = Image.open(io.BytesIO(shot.png)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for element in shot.layout.elements:
        x1, y1, x2, y2 = element.box
        x, y = element.point
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline="red" if element.visible > 0.95 else "orange", width=2)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="lime", outline="black")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def record_chunk(pages: list[tuple[str, int]], languages: tuple[str, ...], settings: dict) -> Iterator[Recorded]:
    """Pages given by family and seed, in one browser."""
    with open_browser(reach="own") as browser:
        camera = Camera(browser, ("emoji", *languages))
        for family, seed in pages:
            yield record(camera.shoot(draw_page(family, seed, languages)), languages=languages, **settings)


def record_list(pages: list[tuple[str, int]], **settings) -> list[Recorded]:
    """A generator cannot return from another process."""
    return list(record_chunk(pages, **settings))


def recorded_pages(pages: list[tuple[str, int]], workers: int, **settings) -> Iterator[Recorded]:
    """In the order of `pages`, however many processes render."""
    size = PAGES_PER_BROWSER if workers == 1 else max(1, min(PAGES_PER_BROWSER, len(pages) // (4 * workers)))
    chunks = [pages[start : start + size] for start in range(0, len(pages), size)]
    with ExitStack() as stack:
        if workers == 1:
            lists: Iterator = (record_chunk(chunk, **settings) for chunk in chunks)
        else:
            lists = stack.enter_context(parallel_map(workers, "spawn"))(partial(record_list, **settings), chunks)
        for found in lists:
            yield from found


def write_folder(out: Path, pages: list[tuple[str, int]], recorded: Iterator[Recorded], on_page: Callable) -> Counter:
    (out / "images").mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(out / f"{name}.jsonl", "w", encoding="utf-8")) for name in FILES}
        for page in recorded:
            (out / "images" / f"{page.name}.png").write_bytes(page.png)
            if page.drawn:
                (out / "drawn").mkdir(exist_ok=True)
                (out / "drawn" / f"{page.name}.png").write_bytes(page.drawn)
            for name, file in files.items():
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in page.rows[name])
            counts.update(page.counts)
            on_page()
    return counts


def seed_set(seeds: range) -> str:
    """The set that holds all seeds; ValueError if none does, as data would leak from one to another."""
    for name, known in SEED_SETS.items():
        if seeds and seeds[0] in known and seeds[-1] in known:
            return name
    raise ValueError(
        f"seeds {seeds.start} to {seeds.stop - 1} are not all of one seed set: training would see pages of an "
        f"evaluation; stay within one of {SEED_SETS}"
    )


FORMER = {
    "--draw": "--draw-first",
    "--family": "--families",
    "--language": "--languages",
    "--rows": "--rows-per-page",
    "--questions": "--questions-per-page",
}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    parser.add_argument("--pages", type=bounded(int, 1), required=True, help="how many are rendered")
    parser.add_argument("--seed-start", type=bounded(int, 0), default=0, help="of the first page (default: 0)")
    parser.add_argument(
        "--families",
        nargs="+",
        choices=sorted(FAMILIES),
        default=["desktop", "mobile", "tablet"],
        help="of pages, in turn (default: desktop mobile tablet)",
    )
    parser.add_argument(
        "--languages", nargs="+", choices=LANGUAGES, default=list(LANGUAGES), help="of pages (default: all)"
    )
    parser.add_argument(
        "--rows-per-page", type=bounded(int, 0), default=6, help="instructions a page at most (default: 6)"
    )
    parser.add_argument(
        "--questions-per-page", type=bounded(int, 0), default=3, help="questions a page at most (default: 3)"
    )
    parser.add_argument(
        "--draw-first", type=bounded(int, 0), default=0, metavar="N", help="draw the boxes of the first N pages"
    )
    parser.add_argument("--workers", type=bounded(int, 1), default=1, help="browsers")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON and nothing else")
    return parser


def generate(args: argparse.Namespace) -> tuple[dict, float]:
    """The manifest that was written, and the seconds it took."""
    refuse_to_lose(args.out, args.overwrite)
    seeds = range(args.seed_start, args.seed_start + args.pages)
    about = {"world": "browser", "families": args.families, "languages": args.languages, "seed_set": seed_set(seeds)}
    pages = [(args.families[i % len(args.families)], seed) for i, seed in enumerate(seeds)]
    settings = {
        "rows": args.rows_per_page,
        "questions": args.questions_per_page,
        "draw_until": seeds.start + args.draw_first,
    }
    recorded = recorded_pages(pages, args.workers, languages=tuple(args.languages), settings=settings)
    started = time.perf_counter()
    with Bar(f"pages of {args.out.name}", len(pages), quiet=args.json) as bar:
        counts = write_folder(args.out, pages, recorded, bar.advance)
    seconds = time.perf_counter() - started
    return write_manifest(args.out, about | {"seeds": [seeds[0], seeds[-1]], **counts}), seconds


@command("the data set is not whole; start again with --overwrite")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    manifest, seconds = generate(args)
    if args.json:
        print(json.dumps(manifest))
    else:
        Console().print(manifest)
        Console().print(f"{manifest['pages'] / seconds:.1f} screenshots/s, {manifest['rows'] / seconds:.1f} rows/s")
    return 0


if __name__ == "__main__":
    run_command(main)
