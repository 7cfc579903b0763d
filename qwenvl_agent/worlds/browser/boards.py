"""Boards without a browser: the pixels that Chromium makes of a board, pasted together from pictures of its elements.

Elements of a board are opaque, stand on a grid and look the same wherever they stand, so one look at each of them is
enough (`take_sprites`, the only part that needs Chromium). After that a board takes a millisecond instead of a hundred:
what a tiny base learns to see is drawn this way, what an agent is trained and measured on is not. That both are equal,
pixels and labels, is tested.
"""

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qwenvl_agent.worlds.browser.elements import Element, Layout, parse_rgb
from qwenvl_agent.worlds.browser.pages import (
    FAMILIES,
    PALETTES,
    Draw,
    Family,
    Page,
    board,
    draw_theme,
    picture_source,
    render_html,
)
from qwenvl_agent.worlds.browser.words import LANGUAGES, picture_word, variants, words

if TYPE_CHECKING:
    from qwenvl_agent.worlds.browser.camera import Camera

Key = tuple[str, str, str, int, int]
"""Kind, label or key of the picture, colour, width, height: what an element looks like."""
Sprites = dict[Key, np.ndarray]
"""(height, width, 3) uint8 each."""
SHEET_PX = 1280


@dataclass(frozen=True)
class Board:
    """What stands on a board (`pages.board`), and the colour behind it."""

    things: tuple[dict, ...]
    language: str
    page: tuple[int, int, int]
    width: int
    height: int


def draw_board(
    family: str, rng: random.Random, languages: Sequence[str] = LANGUAGES, num_items: tuple[int, int] | None = None
) -> Board:
    """As the pages of the family are drawn; from a generator instead of a seed. `num_items`: other than the family's."""
    settings = FAMILIES[family]
    settings = replace(settings, num_items=num_items) if num_items else settings
    language = rng.choice(list(languages))
    width, height, _ = rng.choice(settings.screens)
    theme = draw_theme(settings, rng)
    things = board(Draw(rng, language, settings, width, height))["things"]
    return Board(tuple(things), language, parse_rgb(theme["page"].replace(",", ", ")), width, height)


def key_of(thing: dict) -> Key:
    place = thing["place"]
    shown = thing["picture"]["key"] if thing["kind"] == "picture" else thing["action"]["label"]
    return thing["kind"], shown, thing["colour"], place["width"], place["height"]


def paint(board: Board, sprites: Sprites) -> np.ndarray:
    """(height, width, 3) uint8."""
    pixels = np.empty((board.height, board.width, 3), np.uint8)
    pixels[:] = board.page
    for thing in board.things:
        place = thing["place"]
        pixels[place["y"] : place["y"] + place["height"], place["x"] : place["x"] + place["width"]] = sprites[
            key_of(thing)
        ]
    return pixels


def layout_of(board: Board) -> Layout:
    """What `elements.read_layout` reads of the board in a browser."""
    elements = tuple(_element(thing, board.language) for thing in board.things)
    return Layout(elements, (), 0, board.width, board.height, 1.0)


def _element(thing: dict, language: str) -> Element:
    place, action, picture = thing["place"], thing["action"], thing["picture"]
    is_picture = thing["kind"] == "picture"
    x, y, width, height = (place[name] for name in ("x", "y", "width", "height"))
    word = picture_word(picture["key"], language)
    colour = PALETTES["vivid"][thing["colour"]]
    return Element(
        role="button",
        name=word if is_picture else action["label"],
        text="" if is_picture else action["label"],
        value="",
        placeholder="",
        label="",
        is_label_seen=False,
        box=(x, y, x + width, y + height),
        point=(x + width // 2, y + height // 2),
        visible=1.0,
        hit_boxes=((x, y, x + width, y + height),),
        group=-1,
        picture=picture["key"] if is_picture else "",
        picture_text=word if is_picture else "",
        backdrop=thing["colour"] if is_picture else "",
        icon="",
        intent=thing["intent"] if is_picture else action["intent"],
        item="",
        item_picture=picture["key"] if is_picture else "",
        background=tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)),
        state=(),
    )


def looks(family: Family, language: str) -> Iterator[dict]:
    """Every element that a board of the family can hold in that language, at no place yet."""
    cells = [(w * family.grid_px, h * family.grid_px) for w, h in dict.fromkeys(family.item_cells)]
    colours = PALETTES[family.palette]
    for (width, height), colour, key in product(cells, colours, family.pictures):
        source = picture_source(words()["pictures"][key][0], colours[colour])
        picture = {"key": key, "word": picture_word(key, language), "backdrop": colour, "source": source}
        yield _look("picture", colour, width, height, picture=picture)
    wide = [(width, height) for width, height in cells if width >= family.word_cells * family.grid_px]
    for (width, height), colour, key in product(wide, colours, family.actions):
        for label in variants(words()["actions"][key][0], language):
            action = {"label": label, "intent": key, "item": "", "picture": ""}
            yield _look("button", colour, width, height, action=action)


def _look(kind: str, colour: str, width: int, height: int, **content: dict) -> dict:
    place = {"x": 0, "y": 0, "width": width, "height": height}
    return {"kind": kind, "colour": colour, "place": place, "intent": "open_picture", **content}


def take_sprites(camera: "Camera", family: str, languages: Sequence[str] = LANGUAGES) -> Sprites:
    """Pictures of all elements of a family's boards, taken in Chromium on one large page a language."""
    settings, sprites = FAMILIES[family], {}
    theme = draw_theme(settings, random.Random(0))
    stride_x = (max(w for w, _ in settings.item_cells) + 1) * settings.grid_px
    stride_y = (max(h for _, h in settings.item_cells) + 1) * settings.grid_px
    for language in languages:
        every, per_row = list(looks(settings, language)), SHEET_PX // stride_x
        rows = [every[i : i + per_row] for i in range(0, len(every), per_row)]
        things = [
            thing | {"place": thing["place"] | {"x": stride_x * column, "y": stride_y * line}}
            for line, row in enumerate(rows)
            for column, thing in enumerate(row)
        ]
        html = render_html(language, theme, [("board", {"things": things})])
        page = Page(family, 0, language, theme, SHEET_PX, stride_y * len(rows), 1, 0.0, html)
        sheet = np.asarray(Image.open(io.BytesIO(camera.shoot(page).png)).convert("RGB"))
        for thing in things:
            place = thing["place"]
            sprites[key_of(thing)] = sheet[
                place["y"] : place["y"] + place["height"], place["x"] : place["x"] + place["width"]
            ].copy()
    return sprites
