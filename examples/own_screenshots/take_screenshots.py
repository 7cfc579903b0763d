"""Take the pictures of this example: each page of pages/ in Chromium at 1280x720, with labels.json beside them.

    python examples/own_screenshots/take_screenshots.py screens

It stands for what you do by hand: a folder of screenshots, and one JSON list that says what to do on each and where.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import command, run_command
from qwenvl_agent.worlds.browser.chromium import open_browser, open_context

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1280, 720


@command("no pictures were taken")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FOLDER", help="where pictures and labels.json go")
    out = parser.parse_args(argv).out
    take_screenshots(out)
    print(f"{out}: {len(list(out.glob('*.png')))} pictures, labels.json")
    return 0


def take_screenshots(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with open_browser(reach="own") as browser:
        tab = open_context(browser, width=WIDTH, height=HEIGHT).new_page()
        for page in sorted((HERE / "pages").glob("*.html")):
            tab.set_content(with_style(page))
            tab.screenshot(path=str(out / f"{page.stem}.png"))
    shutil.copyfile(HERE / "labels.json", out / "labels.json")


def with_style(page: Path) -> str:
    """The page with its style inside: no server, no file that the browser must fetch."""
    style = (page.parent / "style.css").read_text(encoding="utf-8")
    return page.read_text(encoding="utf-8").replace(
        '<link rel="stylesheet" href="style.css">', f"<style>{style}</style>"
    )


if __name__ == "__main__":
    run_command(main)
