"""Sprite sheets: the emoji of a font, drawn once (`scripts/build_sprites.py`).

A sheet is one row of square cells with transparent ground, in the order of `world.SPRITES`. Those in `assets/sprites` are
named by their file's stem (assets/CREDITS.md says whose they are); any other by its path, `my/sheet.png`.
"""

from functools import lru_cache
from pathlib import Path

from PIL import Image

SHEETS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "assets" / "sprites").glob("*.png"))}
USUAL_SHEET = "noto"


@lru_cache(maxsize=64)
def load_sheet(name: str, kinds: tuple[str, ...]) -> dict[str, Image.Image]:
    """The RGBA picture of each of `kinds`, as large as the sheet has it; ValueError if there is no such sheet."""
    path = sheet_path(name)
    try:
        with Image.open(path) as picture:
            sheet = picture.convert("RGBA")
    except OSError as error:
        raise ValueError(f"sprites {name!r}: {error}: no animal can be drawn; name a sheet that is there") from None
    side = sheet.height
    if sheet.width != side * len(kinds):
        raise ValueError(
            f"sprites {name!r}: {sheet.width}x{side} px is no row of {len(kinds)} square cells ({', '.join(kinds)}): what a "
            "cell shows cannot be told; make the sheet with scripts/build_sprites.py"
        )
    return {kind: sheet.crop((i * side, 0, (i + 1) * side, side)) for i, kind in enumerate(kinds)}


def sheet_path(name: str) -> Path:
    """ValueError if no sheet can have that name."""
    if name not in SHEETS and not name.endswith(".png"):
        raise ValueError(
            f"sprites {name!r}: no such sheet is shipped, so no animal can be drawn; use one of {', '.join(SHEETS)}, or "
            "the path of a .png (scripts/build_sprites.py)"
        )
    return SHEETS.get(name, Path(name))
