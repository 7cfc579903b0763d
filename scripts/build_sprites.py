"""Draw the safari's emoji once into a sprite sheet, such as those that the package ships (qwenvl_agent/assets/sprites).

    python scripts/build_sprites.py --font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf --out noto.png
    npm pack @iconify-json/twemoji && tar xzf iconify-json-twemoji-*.tgz
    python scripts/build_sprites.py --icons package --out twemoji.png

A sheet is one row of square RGBA cells, in the order of `qwenvl_agent.worlds.safari.world.SPRITES`. A font is a file: Noto
Color Emoji has bitmaps at one size only, so every picture is drawn at that size and cropped; a font of outlines is drawn in
black. `--icons` is the folder of an icon set in Iconify's form (icons.json, chars.json), drawn by Chromium.
"""

import argparse
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from qwenvl_agent.command import command
from qwenvl_agent.json_input import read_json
from qwenvl_agent.worlds.safari.world import SPRITES

CELL_PX = 96
"""Side of a cell."""
FONT_SIZE = 109
"""The only size that Noto Color Emoji has bitmaps for."""
ICON_PX = 512
"""Icons are drawn so large, then reduced."""


def draw_glyph(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    canvas = Image.new("RGBA", (3 * FONT_SIZE, 3 * FONT_SIZE))
    ImageDraw.Draw(canvas).text((FONT_SIZE, FONT_SIZE), emoji, fill="black", font=font, embedded_color=True)
    return canvas


def icon_svg(icons: dict, chars: dict, emoji: str) -> str:
    """The drawing of an emoji; ValueError if the set has none."""
    name = chars.get(f"{ord(emoji):x}")
    if name not in icons["icons"]:
        raise ValueError(f"the icons have no {emoji} (U+{ord(emoji):X}): a sheet would lack it; choose another set")
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    view = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" width="{ICON_PX}">{icon["body"]}</svg>'


def draw_icons(folder: Path) -> list[Image.Image]:
    """The pictures of SPRITES, drawn by Chromium."""
    from playwright.sync_api import sync_playwright

    from qwenvl_agent.worlds.browser.chromium import find_chromium

    icons, chars = (read_json((folder / name).read_text(encoding="utf-8")) for name in ("icons.json", "chars.json"))
    drawings = [icon_svg(icons, chars, emoji) for emoji in SPRITES.values()]
    pictures = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": ICON_PX, "height": ICON_PX})
        for drawing in drawings:
            page.set_content(f"<body style='margin:0;background:transparent'>{drawing}")
            pictures.append(Image.open(io.BytesIO(page.screenshot(omit_background=True))).convert("RGBA"))
        browser.close()
    return pictures


def as_cell(picture: Image.Image) -> Image.Image:
    """What is drawn, centred on a transparent cell, as large as fits."""
    picture = picture.crop(picture.getbbox())
    scale = CELL_PX / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    cell = Image.new("RGBA", (CELL_PX, CELL_PX))
    cell.paste(picture.resize(size, Image.Resampling.LANCZOS), ((CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2))
    return cell


def draw_font(path: Path) -> list[Image.Image]:
    """The pictures of SPRITES, drawn with a font."""
    font = ImageFont.truetype(str(path), FONT_SIZE)
    return [draw_glyph(emoji, font) for emoji in SPRITES.values()]


@command("no sheet was written")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--font", type=Path, help="a font file with the emoji")
    source.add_argument("--icons", type=Path, help="the folder of an icon set with icons.json and chars.json")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    draw: Callable[[], list[Image.Image]] = (
        partial(draw_font, args.font) if args.font else partial(draw_icons, args.icons)
    )
    named = args.font or args.icons / "icons.json"
    if not named.is_file():
        raise ValueError(f"{named} does not exist: there is nothing to draw with; install it, or name another")
    sheet = Image.new("RGBA", (CELL_PX * len(SPRITES), CELL_PX))
    for index, picture in enumerate(draw()):
        sheet.paste(as_cell(picture), (index * CELL_PX, 0))
    sheet.save(args.out, optimize=True)
    print(f"{args.out}: {len(SPRITES)} sprites, {args.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
