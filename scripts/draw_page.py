"""Draw a page of results (report.html, samples.html ...) as a picture for the docs: what a Chromium window shows of it.

    python scripts/draw_page.py report.html --height 560 --out docs/images/report.webp
    python scripts/draw_page.py report.html --open "details.case" --scheme dark --out docs/images/replay.webp

`--open` unfolds the first element that the CSS selector names, and begins the picture there.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from qwenvl_agent.command import bounded, command, run_command
from qwenvl_agent.worlds.browser.chromium import open_browser

MAX_BYTES = 150_000
SHOW = """(element, above) => {
  for (let one = element; one; one = one.parentElement) if (one.tagName === 'DETAILS') one.open = true;
  scrollTo(0, element.getBoundingClientRect().top + scrollY - above);
}"""
UNPIN = "() => document.querySelectorAll('.filters').forEach(one => { one.style.position = 'static'; })"
"""What stays at the window's top while one scrolls would lie over what is drawn."""


@command("no picture was written")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, metavar="PAGE", help="an HTML file")
    parser.add_argument("--width", type=bounded(int, 200, 4000), default=1200, help="pixels (default: %(default)s)")
    parser.add_argument("--height", type=bounded(int, 100, 4000), default=700, help="pixels (default: %(default)s)")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light", help="(default: %(default)s)")
    parser.add_argument("--open", metavar="SELECTOR", help="begin at this element, unfolded")
    parser.add_argument(
        "--above", type=bounded(int, 0, 4000), default=8, help="pixels of the page before it (default: %(default)s)"
    )
    parser.add_argument("--quality", type=bounded(int, 1, 100), default=70, help="of WebP (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a .webp file")
    args = parser.parse_args(argv)
    if not args.page.is_file():
        raise ValueError(f"{args.page} is not there: nothing to draw; give an HTML file")
    picture = draw(args.page, (args.width, args.height), args.scheme, args.open, args.above)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out, quality=args.quality, method=6)
    if args.out.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{args.out}: {args.out.stat().st_size} bytes, too many for a page; give less --height or --quality"
        )
    print(f"{args.out}: {picture.width}x{picture.height}, {args.out.stat().st_size / 1e3:.0f} kB")
    return 0


def draw(page: Path, size: tuple[int, int], scheme: str, selector: str | None, above: int) -> Image.Image:
    """The window's picture, without a scroll bar."""
    with open_browser() as browser:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        tab = context.new_page()
        tab.goto(page.resolve().as_uri())
        if selector:
            tab.evaluate(UNPIN)
            found = tab.query_selector(selector)
            if found is None:
                raise ValueError(
                    f"{page} has no {selector!r}: it cannot be shown; look into the page's source for its elements"
                )
            found.evaluate(SHOW, above)
        tab.evaluate("() => Promise.all([...document.images].map(image => image.decode().catch(() => null)))")
        with Image.open(io.BytesIO(tab.screenshot())) as shot:
            return shot.convert("RGB")


if __name__ == "__main__":
    run_command(main)
