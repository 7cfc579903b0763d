"""The picture of a view, and the way back: both go through the same table of tiles, so reading is exact.

A view is a (10, 10) array of symbols, row first. 75 symbols, hence 75 tile pictures of each size and sprite sheet, drawn
once: ground, tree, 64 animals, and the player on bare ground or on an animal's colour (the disc hides the kind, not the
colour).
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qwenvl_agent.worlds.safari.sprites import USUAL_SHEET, load_sheet
from qwenvl_agent.worlds.safari.world import COLOURS, KINDS, SPRITES, VIEW, Animal, Tile, World, view_corner

GROUND_RGB = "#FFFFFF"
LINE_RGB = "#F0F0F0"
PLAYER_RGB = "#3B82F6"
SPRITE_SHARE = 0.8
"""Of a tile's side."""
SUPERSAMPLE = 8
"""The player is drawn this much larger, then reduced."""
MAX_KNOWN_TILES = 64
"""Sizes and sheets whose tiles are kept: 150 KB at 16 px, 900 KB at 64, each twice."""

GROUND, TREE = 0, 1
FIRST_ANIMAL = 2
PLAYER = FIRST_ANIMAL + len(KINDS) * len(COLOURS)
"""On bare ground; PLAYER + 1 + i stands on colour i."""
NUM_SYMBOLS = PLAYER + 1 + len(COLOURS)

_COLOUR_NAMES = tuple(COLOURS)


def animal_symbol(animal: Animal) -> int:
    return FIRST_ANIMAL + KINDS.index(animal.kind) * len(COLOURS) + _COLOUR_NAMES.index(animal.colour)


def symbol_animal(symbol: int) -> Animal | None:
    """The animal that a symbol shows; None for ground, trees and the player's tile."""
    if not FIRST_ANIMAL <= symbol < PLAYER:
        return None
    kind, colour = divmod(symbol - FIRST_ANIMAL, len(COLOURS))
    return Animal(_COLOUR_NAMES[colour], KINDS[kind])


def player_colour(symbol: int) -> str:
    """The colour that shows around the player's disc; empty for bare ground."""
    return _COLOUR_NAMES[symbol - PLAYER - 1] if symbol > PLAYER else ""


def view_symbols(world: World, player: Tile) -> np.ndarray:
    """The (10, 10) symbols of what the player sees, row first."""
    left, top = view_corner(player, world.width, world.height)
    symbols = np.zeros((VIEW, VIEW), dtype=np.uint8)
    for row in range(VIEW):
        for column in range(VIEW):
            place = (left + column, top + row)
            if place in world.trees:
                symbols[row, column] = TREE
            elif place in world.animals:
                symbols[row, column] = animal_symbol(world.animals[place])
    under = world.animals.get(player)
    symbols[player[1] - top, player[0] - left] = PLAYER + (1 + _COLOUR_NAMES.index(under.colour) if under else 0)
    return symbols


@lru_cache(maxsize=MAX_KNOWN_TILES)
def tile_pictures(tile_px: int, sheet: str = USUAL_SHEET) -> np.ndarray:
    """(75, T, T, 3) uint8: the picture of every symbol at one tile size; ValueError if two of them look alike."""
    sprites = load_sprites(tile_px, sheet)
    tiles = [ground_tile(tile_px), with_sprite(ground_tile(tile_px), sprites["tree"])]
    for kind in KINDS:
        tiles += [with_sprite(Image.new("RGB", (tile_px, tile_px), rgb), sprites[kind]) for rgb in COLOURS.values()]
    tiles.append(with_player(ground_tile(tile_px)))
    tiles += [with_player(Image.new("RGB", (tile_px, tile_px), rgb)) for rgb in COLOURS.values()]
    assert len(tiles) == NUM_SYMBOLS
    if len({tile.tobytes() for tile in tiles}) < NUM_SYMBOLS:
        raise ValueError(
            f"sprites {sheet!r}: at {tile_px} px a tile some things look exactly alike, so no view could be read; use larger "
            "tiles or a sheet with nine different pictures"
        )
    return np.stack([np.asarray(tile) for tile in tiles])


def load_sprites(tile_px: int, sheet: str) -> dict[str, Image.Image]:
    """The sheet's pictures, reduced to their share of a tile."""
    side = round(tile_px * SPRITE_SHARE)
    cells = load_sheet(sheet, tuple(SPRITES))
    return {name: cell.resize((side, side), Image.Resampling.LANCZOS) for name, cell in cells.items()}


def ground_tile(tile_px: int) -> Image.Image:
    """White with the grid's lines on its upper and left edge."""
    tile = Image.new("RGB", (tile_px, tile_px), GROUND_RGB)
    ImageDraw.Draw(tile).line([(0, tile_px), (0, 0), (tile_px, 0)], fill=LINE_RGB)
    return tile


def with_sprite(tile: Image.Image, sprite: Image.Image) -> Image.Image:
    offset = (tile.width - sprite.width) // 2
    tile.paste(sprite, (offset, offset), sprite)
    return tile


def with_player(tile: Image.Image) -> Image.Image:
    """The disc of radius T/2-4 at 48 pixels (in proportion at other sizes) with a bold white P."""
    size = tile.width * SUPERSAMPLE
    radius = size * (24 - 4) / 48
    disc = Image.new("L", (size, size))
    letter = Image.new("L", (size, size))
    centre = size / 2
    box = (centre - radius, centre - radius, centre + radius, centre + radius)
    ImageDraw.Draw(disc).ellipse(box, fill=255)
    font = ImageFont.load_default(size * 0.5)
    ImageDraw.Draw(letter).text((centre, centre), "P", 255, font=font, anchor="mm", stroke_width=size // 40)
    for rgb, mask in ((PLAYER_RGB, disc), ("#FFFFFF", letter)):
        tile.paste(Image.new("RGB", tile.size, rgb), (0, 0), mask.resize(tile.size, Image.Resampling.BOX))
    return tile


def render_view(symbols: np.ndarray, tile_px: int, sheet: str = USUAL_SHEET) -> Image.Image:
    """The picture of a (10, 10) view, RGB, 10 tiles of `tile_px` a side."""
    tiles = tile_pictures(tile_px, sheet)[symbols]  # (rows, columns, T, T, 3)
    side = VIEW * tile_px
    return Image.fromarray(tiles.swapaxes(1, 2).reshape(side, side, 3))


@lru_cache(maxsize=MAX_KNOWN_TILES)
def _symbol_of_tile(tile_px: int, sheet: str) -> dict[bytes, int]:
    return {tile.tobytes(): symbol for symbol, tile in enumerate(tile_pictures(tile_px, sheet))}


def read_view(picture: Image.Image, sheet: str = USUAL_SHEET) -> np.ndarray:
    """The (10, 10) symbols of a picture that was rendered with this sheet, exactly; ValueError for any other picture."""
    tile_px, rest = divmod(picture.width, VIEW)
    if rest or picture.height != picture.width:
        raise ValueError(
            f"picture of {picture.width}x{picture.height}: not {VIEW}x{VIEW} square tiles, so it cannot be read; "
            "give a rendered safari view"
        )
    pixels = np.asarray(picture.convert("RGB")).reshape(VIEW, tile_px, VIEW, tile_px, 3).swapaxes(1, 2)
    symbol_of = _symbol_of_tile(tile_px, sheet)
    symbols = np.zeros((VIEW, VIEW), dtype=np.uint8)
    for row, column in np.ndindex(VIEW, VIEW):
        symbol = symbol_of.get(pixels[row, column].tobytes())
        if symbol is None:
            symbol = nearest_symbol(pixels[row, column], sheet)
        symbols[row, column] = symbol
    return symbols


MAX_TILE_DIFFERENCE = 8.0
"""Mean difference of a pixel's channel up to which a tile still counts as read: another Pillow smooths differently."""


def nearest_symbol(tile: np.ndarray, sheet: str = USUAL_SHEET) -> int:
    """The symbol whose picture is nearest to a (T, T, 3) tile; ValueError if none is near."""
    pictures = tile_pictures(len(tile), sheet).astype(np.int16)
    difference = np.abs(pictures - tile.astype(np.int16)).mean(axis=(1, 2, 3))
    symbol = int(difference.argmin())
    if difference[symbol] > MAX_TILE_DIFFERENCE:
        raise ValueError(
            f"a tile differs from every known tile by {difference[symbol]:.1f} a channel: the view cannot be read; "
            f"give a picture that was rendered here with the sprites {sheet!r} and saved without loss"
        )
    return symbol
