"""Pictures: the recorded look, and exact reading of what was drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from qwenvl_agent.settings_reference import tables_of
from qwenvl_agent.worlds.recording import png_bytes
from qwenvl_agent.worlds.safari import SafariEnv
from qwenvl_agent.worlds.safari.render import (
    GROUND,
    NUM_SYMBOLS,
    PLAYER,
    TREE,
    animal_symbol,
    player_colour,
    read_view,
    render_view,
    symbol_animal,
    tile_pictures,
    view_symbols,
)
from qwenvl_agent.worlds.safari.sprites import SHEETS
from qwenvl_agent.worlds.safari.world import COLOURS, KINDS, Animal, SafariRules, World

RED_TIGER, RED_LION = Animal("red", "tiger"), Animal("red", "lion")


def random_symbols(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, NUM_SYMBOLS, (10, 10)).astype(np.uint8)


@pytest.mark.parametrize("tile_px", [16, 32, 48, 64])
def test_what_is_drawn_is_read_back(tile_px):
    for seed in range(4):
        symbols = random_symbols(seed)
        picture = render_view(symbols, tile_px)
        assert (picture.mode, picture.size) == ("RGB", (10 * tile_px, 10 * tile_px))
        assert (read_view(picture) == symbols).all()
    assert len({tile.tobytes() for tile in tile_pictures(tile_px)}) == NUM_SYMBOLS == 75


@pytest.mark.parametrize("sheet", SHEETS)
@pytest.mark.parametrize("tile_px", [8, 24, 48])
def test_every_sheet_is_read_back_and_taken_for_no_other(sheet, tile_px):
    symbols = np.arange(100).reshape(10, 10).astype(np.uint8) % NUM_SYMBOLS
    picture = render_view(symbols, tile_px, sheet)
    assert (read_view(picture, sheet) == symbols).all()
    for other in SHEETS.keys() - {sheet}:
        with pytest.raises(ValueError, match=f"rendered here with the sprites '{other}'"):
            read_view(picture, other)


def test_a_sheet_of_ones_own_is_drawn_from(tmp_path):
    """One with cells of another size, in which every picture is turned."""
    own = str(tmp_path / "own.png")
    with Image.open(SHEETS["noto"]) as sheet:
        sheet.transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((9 * 40, 40)).save(own)
    env = SafariEnv(SafariRules(sprites=own, tile_px=32, num_targets=[1]))
    observation, _ = env.reset(seed=1)
    assert (read_view(observation.pictures[0].open(), own) == env.view()).all()
    assert observation.pictures[0].open() != render_view(env.view(), 32)


@pytest.mark.parametrize(
    ("size", "colour", "message"),
    [
        (None, None, r"own.png.*No such file.* no animal can be drawn"),
        ((96, 96), None, r"96x96 px is no row of 9 square cells \(tree, tiger"),
        ((90, 10), None, "at 48 px a tile some things look exactly alike"),
    ],
)
def test_a_sheet_that_cannot_be_read_back_is_refused(tmp_path, size, colour, message):
    own = tmp_path / "own.png"
    if size:
        Image.new("RGBA", size, colour).save(own)
    with pytest.raises(ValueError, match=message):
        tile_pictures(48, str(own))


def test_rules_name_the_sheets_that_there_are():
    with pytest.raises(
        ValueError, match="sprites 'apple': no such sheet is shipped, .* fluent, noto, noto_mono, twemoji"
    ):
        SafariRules(sprites="apple")
    assert all(name in tables_of(SafariRules) for name in SHEETS)


def test_the_recorded_look():
    symbols = np.full((10, 10), GROUND, dtype=np.uint8)
    symbols[0, 1], symbols[0, 2], symbols[1, 0] = TREE, animal_symbol(Animal("orange", "pig")), PLAYER
    picture = render_view(symbols, 48)
    assert picture.size == (480, 480)
    assert picture.getpixel((24, 24)) == (255, 255, 255)
    assert picture.getpixel((24, 0)) == picture.getpixel((0, 24)) == (240, 240, 240)
    # the animal's colour fills its tile from edge to edge; sprites keep a tenth of a tile free all round
    assert picture.getpixel((96, 0)) == picture.getpixel((143, 47)) == (255, 165, 0)
    ink = np.asarray(picture)[0:48, 48:96].min(axis=2) < 200
    rows = np.flatnonzero(ink.any(axis=1))
    assert (rows[0], rows[-1]) == (5, 42)
    # the disc has radius 20 round the tile's centre, and a white letter on it
    assert picture.getpixel((24 + 19, 48 + 24)) == picture.getpixel((24, 48 + 6)) == (0x3B, 0x82, 0xF6)
    assert picture.getpixel((24 + 21, 48 + 24)) == (255, 255, 255)
    letter = (np.asarray(picture)[48 + 12 : 48 + 36, 12:36] == 255).all(axis=2)
    assert 40 < letter.sum() < 160


def test_the_disc_hides_the_kind_but_not_the_colour():
    def here(animals):
        return view_symbols(World(20, 20, frozenset(), animals, (10, 10)), (10, 10))[5, 5]

    tiger, lion, nothing = here({(10, 10): RED_TIGER}), here({(10, 10): RED_LION}), here({})
    assert tiger == lion != nothing == PLAYER
    assert (player_colour(tiger), player_colour(nothing)) == ("red", "")
    assert symbol_animal(tiger) is None


def test_the_view_shows_what_stands_where():
    animals = {(6, 5): RED_TIGER, (15, 5): RED_LION, (4, 5): RED_LION}
    symbols = view_symbols(World(20, 20, frozenset({(5, 14), (5, 15)}), animals, (10, 10)), (10, 10))
    assert {(column, row): int(symbols[row, column]) for row, column in np.argwhere(symbols)} == {
        (1, 0): animal_symbol(RED_TIGER),
        (0, 9): TREE,
        (5, 5): PLAYER,
    }


def test_every_animal_has_its_symbol():
    animals = [Animal(colour, kind) for kind in KINDS for colour in COLOURS]
    assert [symbol_animal(animal_symbol(animal)) for animal in animals] == animals
    assert len({animal_symbol(animal) for animal in animals}) == 64


def test_png_bytes_are_the_picture():
    picture = render_view(random_symbols(1), 32)
    with Image.open(io.BytesIO(png_bytes(picture))) as read:
        assert read.format == "PNG" and read.mode == "RGB"
        assert read.tobytes() == picture.tobytes()


def test_a_picture_that_was_smoothed_a_little_differently_is_read_still():
    symbols = random_symbols(2)
    pixels = np.asarray(render_view(symbols, 48)).astype(np.int16)
    noise = np.random.default_rng(0).integers(-3, 4, pixels.shape)
    other = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    assert (read_view(other) == symbols).all()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (480, 320)), "not 10x10 square tiles"),
        (Image.new("RGB", (485, 485)), "not 10x10 square tiles"),
        (Image.new("RGB", (160, 160), "#123456"), "differs from every known tile"),
    ],
)
def test_a_foreign_picture_is_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        read_view(picture)
