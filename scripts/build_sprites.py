"""Draw the safari emoji once into the sprite sheet that the package ships.

    python scripts/build_sprites.py --font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

The sheet is one row of square RGBA cells, in the order of `qwenvl_agent.worlds.safari.world.SPRITES`. Noto Color Emoji has
bitmaps at one size only, so every picture is drawn at that size and cropped; the renderer scales it to a tile.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from qwenvl_agent.command import command
from qwenvl_agent.worlds.safari.render import CELL_PX, SHEET_PATH
from qwenvl_agent.worlds.safari.world import SPRITES

FONT_SIZE = 109
"""The only size that Noto Color Emoji has bitmaps for."""


def draw_emoji(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The emoji centred on a transparent cell, as large as fits."""
    canvas = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(canvas).text((0, 0), emoji, font=font, embedded_color=True)
    picture = canvas.crop(canvas.getbbox())
    scale = CELL_PX / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    cell = Image.new("RGBA", (CELL_PX, CELL_PX))
    cell.paste(picture.resize(size, Image.Resampling.LANCZOS), ((CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2))
    return cell


@command("no sheet was written")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
    parser.add_argument("--out", type=Path, default=SHEET_PATH)
    args = parser.parse_args()
    if not args.font.is_file():
        raise ValueError(
            f"{args.font} does not exist: there is nothing to draw with; install Noto's emoji, or give --font"
        )
    font = ImageFont.truetype(str(args.font), FONT_SIZE)
    sheet = Image.new("RGBA", (CELL_PX * len(SPRITES), CELL_PX))
    for index, emoji in enumerate(SPRITES.values()):
        sheet.paste(draw_emoji(emoji, font), (index * CELL_PX, 0))
    sheet.save(args.out, optimize=True)
    print(f"{args.out}: {len(SPRITES)} sprites, {args.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
