"""Pages drawn from a seed: what stands on them, in which language, theme, font, size and device scale.

A family is a row of settings (FAMILIES), a page is a list of blocks, and a block is a function here that draws its
content and a macro of the same name in `templates/blocks.html.jinja` that writes it as HTML. Elements carry what an
instruction may speak of and no browser could know, such as `data-intent` and `data-picture`.

`Page.html` needs no network and no file: pictures are SVG inside the page.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment

from qwenvl_agent.html_templates import templates_in
from qwenvl_agent.worlds.browser.words import LANGUAGES, pick, picture_word, words

TRAIN_SEEDS = range(0, 1_000_000)
SELECTION_SEEDS = range(1_000_000, 2_000_000)
REPORT_SEEDS = range(2_000_000, 3_000_000)

PALETTES = {
    "muted": {
        "red": "#d32f2f",
        "orange": "#f57c00",
        "yellow": "#fbc02d",
        "green": "#2e7d32",
        "cyan": "#00acc1",
        "blue": "#1565c0",
        "purple": "#7b1fa2",
        "pink": "#ec407a",
    },
    "vivid": {
        "red": "#ff0000",
        "orange": "#ffa500",
        "yellow": "#ffff00",
        "green": "#00ff00",
        "cyan": "#00ffff",
        "blue": "#0000ff",
        "purple": "#800080",
        "pink": "#ff00ff",
    },
}
FONTS = ("sans-serif", "serif", "DejaVu Sans Condensed, sans-serif", "monospace", "Noto Sans CJK SC, sans-serif")
# First, as other fonts have some of the pictures in black and white.
EMOJI_FONTS = "Noto Color Emoji, Apple Color Emoji, Segoe UI Emoji, sans-serif"
CONTENT = ("hero", "article", "cards", "gallery", "form", "table", "choices", "settings", "rows", "faq", "pager")
OVERLAYS = ("dialog", "cookies", "dropdown", "toast", "floating")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the pages of a family have in common; everything else is drawn from the page's seed."""

    screens: tuple[tuple[int, int, float], ...]
    """Width and height in CSS px, device scale."""
    blocks: tuple[str, ...] = CONTENT
    """What the main column is drawn from."""
    num_blocks: tuple[int, int] = (2, 6)
    frame: tuple[str, ...] = ("topbar", "footer")
    """What stands around the main column: some of topbar, sidebar, footer."""
    overlays: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OVERLAYS, 0.12))
    """Chance of each block that lies over the others."""
    palette: str = "muted"
    fonts: tuple[str, ...] = FONTS
    font_px: tuple[int, int] = (13, 19)
    dark: float = 0.4
    scrolled: float = 0.35
    """Chance that the page was scrolled down."""
    pictures: tuple[str, ...] = ()
    """Keys of what pictures show; all if empty."""
    actions: tuple[str, ...] = ()
    """Keys of what the buttons of a board say; all if empty."""
    offered_actions: tuple[str, ...] = ()
    """What the tool offers beside these pictures; all if empty. Fewer make a shorter prompt."""
    grid_px: int = 16
    """Elements of a board stand on multiples of it."""
    num_items: tuple[int, int] = (2, 5)
    """Elements of a board."""
    item_cells: tuple[tuple[int, int], ...] = ((5, 3), (7, 3), (7, 3))
    """Sizes of a board's elements in cells of the grid."""
    word_cells: int = 7
    """Elements of a board with fewer cells across show pictures only: words would be cut."""


BOARD: dict[str, Any] = {
    "offered_actions": ("left_click",),
    "blocks": ("board",),
    "num_blocks": (1, 1),
    "frame": (),
    "overlays": {},
    "palette": "vivid",
    "fonts": ("DejaVu Sans, sans-serif",),
    "font_px": (18, 18),
    "dark": 0.5,
    "scrolled": 0.0,
    "pictures": ("kitten", "elephant", "giraffe", "monkey", "zebra", "lion", "pig", "koala", "penguin"),
    "actions": ("login", "search", "buy", "delete", "menu", "play", "share", "print", "copy", "download"),
}
FAMILIES = {
    "desktop": Family(
        screens=(
            (1280, 800, 1),
            (1366, 768, 1),
            (1024, 768, 1),
            (1440, 900, 1),
            (1600, 900, 1),
            (1280, 720, 1.5),
            (960, 600, 2),
        ),
        frame=("topbar", "sidebar", "footer"),
    ),
    "mobile": Family(
        screens=((390, 844, 2), (360, 740, 2), (412, 914, 1.5), (320, 568, 2)),
        font_px=(14, 18),
        num_blocks=(2, 5),
    ),
    "tablet": Family(screens=((768, 1024, 1), (820, 1180, 1), (1024, 768, 1.25))),
    # For models that see little: a few large buttons and pictures, cut into patches the same way wherever they stand.
    "simple": Family(screens=((256, 256, 1),), **BOARD),
    "simple_wide": Family(screens=((320, 240, 1),), **BOARD),
}


@dataclass(frozen=True)
class Page:
    """A page to be rendered. `scroll` is how far down it was scrolled, as a share of what can be scrolled."""

    family: str
    seed: int
    language: str
    theme: dict
    width: int
    height: int
    scale: float
    scroll: float
    html: str


@dataclass(frozen=True)
class Draw:
    """What the functions that draw blocks draw with."""

    rng: random.Random
    language: str
    family: Family
    width: int
    height: int

    def word(self, table: str) -> str:
        return self.some(table, 1)[0]

    def some(self, table: str, number: int) -> list[str]:
        """Different words of a table."""
        entries = words()[table]
        return [pick(entry, self.language, self.rng) for entry in self.rng.sample(entries, min(number, len(entries)))]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def colour(self) -> str:
        return self.rng.choice(list(PALETTES[self.family.palette]))

    def action(self, key: str, *, item: str = "", picture: str = "", style: str = "plain", icon: float = 0.0) -> dict:
        """A button or link that does something, to `item` or to what the picture shows. `icon`: chance of no words."""
        labels, _ = words()["actions"][key]
        return {
            "label": pick(labels, self.language, self.rng),
            "intent": key,
            "item": item,
            "picture": picture,
            "style": style,
            "icon": words()["icons"][key][0] if key in words()["icons"] and self.chance(icon) else "",
            "icon_key": key,
        }

    def field(self, key: str) -> dict:
        """A text field with a label; one of three is filled in."""
        labels, _, kind = words()["fields"][key]
        example = self.example(kind)
        return {
            "label": pick(labels, self.language, self.rng),
            "intent": f"field {key}",
            "item": self.word("queries") if key == "search" else "",
            "type": "password" if kind == "password" else "text",
            "is_long": kind == "long",
            "value": example if self.chance(0.35) else "",
            "placeholder": example if self.chance(0.4) and kind != "password" else "",
        }

    def example(self, kind: str) -> str:
        """A value that a field of this kind might hold."""
        number = self.rng.randrange(10_000, 99_999)
        tables = {
            "person": "people",
            "city": "cities",
            "headline": "headlines",
            "query": "queries",
            "long": "sentences",
        }
        if kind in tables:
            return self.word(tables[kind])
        return {
            "email": f"{self.rng.choice(words()['site_names']).lower().replace(' ', '')}{number % 100}@example.org",
            "password": "x" * self.rng.randint(6, 12),
            "phone": f"0{number % 90 + 10}-{number}",
            "street": f"{self.rng.choice(words()['site_names'])} {number % 200}",
            "company": self.rng.choice(words()["site_names"]),
            "date": f"2026-{number % 12 + 1:02}-{number % 28 + 1:02}",
            "number": str(number),
            "code": f"SPRING{number % 100}",
        }[kind]

    def select(self, key: str) -> dict:
        labels, options = words()["selects"][key]
        return {
            "label": pick(labels, self.language, self.rng),
            "intent": f"select {key}",
            "options": options[LANGUAGES.index(self.language)],
        }

    def options(self, number: int) -> list[dict]:
        """Things to be switched on and off; the id joins a switch to its words."""
        labels = self.some("options", number)
        return [
            {"id": f"option-{self.rng.randrange(10**9)}", "label": label, "on": self.chance(0.5)} for label in labels
        ]

    def picture(self, key: str) -> dict:
        """A picture on a backdrop whose colour has a name."""
        backdrop = self.colour()
        return {
            "key": key,
            "word": picture_word(key, self.language),
            "backdrop": backdrop,
            "source": picture_source(words()["pictures"][key][0], PALETTES[self.family.palette][backdrop]),
        }

    def pictures(self, number: int, *groups: str) -> list[dict]:
        """Pictures of different things; of the family's own, or of these groups (all if none is given)."""
        table = words()["pictures"]
        known = self.family.pictures or [key for key in table if not groups or table[key][-1] in groups]
        return [self.picture(key) for key in self.rng.sample(list(known), min(number, len(known)))]


def picture_source(emoji: str, colour: str) -> str:
    """A square picture as the address of an image."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96"><rect width="96" height="96" fill="{colour}"/>'
        f'<text x="48" y="70" font-size="64" font-family="{EMOJI_FONTS}" text-anchor="middle">{emoji}</text></svg>'
    )
    return "data:image/svg+xml," + quote(svg)


# The frame.


def topbar(draw: Draw) -> dict:
    keys = draw.rng.sample(["cart", "account", "notifications", "settings"], draw.rng.randint(1, 3))
    is_narrow = draw.width < 600
    return {
        "site": draw.rng.choice(words()["site_names"]),
        "links": [] if is_narrow else draw.some("nav", draw.rng.randint(3, min(7, draw.width // 180))),
        "menu": draw.action("menu", icon=1.0) if is_narrow or draw.chance(0.3) else None,
        "search": None if is_narrow or draw.chance(0.4) else draw.field("search"),
        "search_button": draw.action("search", icon=0.6),
        "actions": [draw.action(key, icon=0.8, style="bare") for key in keys],
        "is_sticky": draw.chance(0.5),
    }


def sidebar(draw: Draw) -> dict:
    return {"links": draw.some("nav", draw.rng.randint(4, 8)), "current": draw.rng.randrange(4)}


def footer(draw: Draw) -> dict:
    return {
        "links": draw.some("nav", draw.rng.randint(3, 5)),
        "newsletter": draw.field("newsletter") if draw.chance(0.4) else None,
        "subscribe": draw.action("subscribe", style="outline"),
    }


# The main column.


def hero(draw: Draw) -> dict:
    keys = draw.rng.sample(["login", "signup", "search", "play", "continue"], 2)
    return {
        "title": draw.word("headlines"),
        "text": draw.word("sentences"),
        "actions": [draw.action(keys[0], style="strong"), draw.action(keys[1], style="outline")][
            : draw.rng.randint(1, 2)
        ],
    }


def article(draw: Draw) -> dict:
    """Text with links inside, which may break over two lines."""
    title = draw.word("headlines")
    return {
        "title": title,
        "parts": [
            {"text": text, "link": draw.word("headlines") if draw.chance(0.4) else ""}
            for text in draw.some("sentences", draw.rng.randint(2, 6))
        ],
        "more": draw.action("read_more", item=title, style="link") if draw.chance(0.6) else None,
    }


def cards(draw: Draw) -> dict:
    key = draw.rng.choice(["cart_add", "buy"])
    per_row = max(1, min(4, draw.width // 240))
    return {
        "columns": per_row,
        "cards": [
            {
                "picture": picture,
                "price": f"${draw.rng.randint(5, 300)}.{draw.rng.choice(['00', '50', '90'])}",
                "action": draw.action(key, picture=picture["key"], style=draw.rng.choice(["strong", "outline"])),
                "favourite": draw.action("favourite", picture=picture["key"], style="bare", icon=1.0),
            }
            for picture in draw.pictures(draw.rng.randint(2, 2 * per_row), "product", "food")
        ],
    }


def gallery(draw: Draw) -> dict:
    """Pictures that are links themselves, or that have a button each; some tell in words what they show."""
    pictures = draw.pictures(draw.rng.randint(3, 8), *draw.rng.choice([("animal",), ("nature", "vehicle"), ()]))
    if draw.chance(0.3):
        pictures.append(draw.picture(draw.rng.choice(pictures)["key"]))  # the same thing on another backdrop
    draw.rng.shuffle(pictures)
    key = draw.rng.choice(["download", "open_picture"])
    has_buttons, has_captions = draw.chance(0.5), draw.chance(0.4)
    tiles = []
    for picture in pictures:
        action = draw.action(key, picture=picture["key"], style="outline", icon=0.3)
        tiles.append({"picture": picture, "caption": picture["word"] if has_captions else "", "action": action})
    return {"tiles": tiles, "has_buttons": has_buttons, "size": draw.rng.choice([88, 112, 144, 176])}


def form(draw: Draw) -> dict:
    keys = draw.rng.sample([key for key in words()["fields"] if key not in ("search", "newsletter")], 5)
    final = draw.rng.choice(["save", "submit", "continue", "login", "signup"])
    return {
        "title": draw.word("sections"),
        "fields": [draw.field(key) for key in keys[: draw.rng.randint(2, 5)]],
        "selects": [draw.select(key) for key in draw.rng.sample(list(words()["selects"]), draw.rng.randint(0, 2))],
        "options": draw.options(draw.rng.randint(0, 2)),
        "forgot": draw.action("forgot", style="link") if final == "login" else None,
        "actions": [draw.action(final, style="strong"), draw.action("dismiss", style="outline")],
        "columns": draw.rng.randint(1, 2) if draw.width > 700 else 1,
        "label_left": draw.width > 700 and draw.chance(0.3),
    }


def table(draw: Draw) -> dict:
    keys = draw.rng.sample(["delete", "edit", "details", "download"], 2 if draw.width > 600 else 1)
    style, icon = draw.rng.choice([("link", 0.0), ("outline", 0.0), ("bare", 1.0)])
    is_narrow = draw.width < 600
    rows = []
    for person in draw.some("people", draw.rng.randint(3, 7)):
        actions = [draw.action(key, item=person, style=style, icon=icon) for key in keys if key != "download"]
        cells = [] if is_narrow else [draw.word("cities"), str(draw.rng.randint(10, 900)), draw.word("status")]
        rows.append({"name": person, "cells": cells, "actions": actions, "on": draw.chance(0.3)})
    columns = [pick(entry, draw.language, draw.rng) for entry in words()["columns"]]
    return {
        "columns": columns[:1] + ([] if is_narrow else columns[1:4]) + columns[4:],
        "rows": rows,
        "has_boxes": draw.chance(0.5),
        "new": draw.action("new", style="strong", icon=0.3) if draw.chance(0.5) else None,
        "filter": draw.action("filter", style="outline", icon=0.5) if draw.chance(0.4) else None,
    }


def choices(draw: Draw) -> dict:
    labels = draw.some("choices", draw.rng.randint(2, 4))
    return {"title": draw.word("sections"), "labels": labels, "current": draw.rng.randrange(len(labels))}


def settings(draw: Draw) -> dict:
    return {
        "title": draw.word("sections"),
        "tabs": draw.some("tabs", draw.rng.randint(3, 4)) if draw.chance(0.5) else [],
        "current": draw.rng.randrange(3),
        "options": draw.options(draw.rng.randint(3, 6)),
        "is_switch": draw.chance(0.6),
        "select": draw.select(draw.rng.choice(list(words()["selects"]))) if draw.chance(0.5) else None,
        "save": draw.action("save", style="strong"),
    }


def rows(draw: Draw) -> dict:
    """A list of messages, each a link."""
    return {
        "rows": [
            {"person": person, "title": title, "action": draw.action("delete", item=title, style="bare", icon=1.0)}
            for person, title in zip(
                draw.some("people", 6), draw.some("headlines", draw.rng.randint(3, 6)), strict=False
            )
        ]
    }


def faq(draw: Draw) -> dict:
    number = draw.rng.randint(2, 4)
    titles, texts = draw.some("headlines", number), draw.some("sentences", number)
    return {"entries": [{"title": t, "text": s, "open": draw.chance(0.3)} for t, s in zip(titles, texts, strict=True)]}


def pager(draw: Draw) -> dict:
    first = draw.rng.randint(1, 6)
    numbers = list(range(first, first + (5 if draw.width > 500 else 3)))
    return {
        "previous": draw.action("previous_page", style="link"),
        "numbers": numbers,
        "current": draw.rng.choice(numbers),
        "next": draw.action("next_page", style="link"),
        "sort": draw.select("sort") if draw.chance(0.4) else None,
    }


# What lies over the page.


def dialog(draw: Draw) -> dict:
    return {
        "title": draw.word("dialogs"),
        "text": draw.word("sentences"),
        "actions": [draw.action("confirm", style="strong"), draw.action("dismiss", style="outline")],
        "close": draw.action("close", style="bare", icon=1.0) if draw.chance(0.6) else None,
        "is_modal": draw.chance(0.7),
        "left": draw.rng.randint(5, 45),
        "top": draw.rng.randint(10, 50),
    }


def cookies(draw: Draw) -> dict:
    keys = ["accept", "reject", "cookie_settings"][: draw.rng.randint(1, 3)]
    styles = ["strong", "outline", "link"]
    return {
        "text": draw.word("cookies"),
        "actions": [draw.action(key, style=style) for key, style in zip(keys, styles, strict=False)],
        "is_bar": draw.chance(0.6),
    }


def dropdown(draw: Draw) -> dict:
    keys = draw.rng.sample(["rename", "copy", "print", "move_to", "share", "logout", "upload"], draw.rng.randint(3, 5))
    return {
        "actions": [draw.action(key, item="") for key in keys if key != "share"],
        "left": draw.rng.randint(5, 70),
        "top": draw.rng.randint(8, 60),
    }


def toast(draw: Draw) -> dict:
    return {"text": draw.word("toasts"), "undo": draw.action("undo", style="link"), "at_top": draw.chance(0.5)}


def floating(draw: Draw) -> dict:
    return {"action": draw.action("new", style="strong", icon=1.0), "left": draw.chance(0.2)}


# A board: few large elements on a grid, for models that see little.


def board(draw: Draw) -> dict:
    """Buttons, pictures and a field at places of a grid, each of another colour, word or picture."""
    number = draw.rng.randint(*draw.family.num_items)
    places = draw_places(draw, number)
    colours = draw.rng.sample(list(PALETTES[draw.family.palette]), len(places))
    actions = draw.rng.sample(list(draw.family.actions or words()["actions"]), len(places))
    things = []
    for place, colour, action, picture in zip(places, colours, actions, draw.pictures(len(places)), strict=False):
        is_wide = place["width"] >= draw.family.word_cells * draw.family.grid_px
        kind = draw.rng.choice(["button", "button", "picture"]) if is_wide else "picture"
        source = picture_source(words()["pictures"][picture["key"]][0], PALETTES[draw.family.palette][colour])
        things.append(
            {
                "kind": kind,
                "place": place,
                "colour": colour,
                "action": draw.action(action),
                "intent": draw.rng.choice(["open_picture", "download"]),
                "picture": picture | {"backdrop": colour, "source": source},
            }
        )
    return {"things": things}


def draw_places(draw: Draw, number: int, sizes: Sequence[tuple[int, int]] = ()) -> list[dict]:
    """Rectangles in CSS px on the grid that keep a cell of distance; fewer than asked for if they do not fit.

    `sizes` in cells; those of the family if empty.
    """
    cell = draw.family.grid_px
    columns, lines = draw.width // cell, draw.height // cell
    places: list[tuple[int, int, int, int]] = []
    for _ in range(200):
        wide, high = draw.rng.choice(sizes or draw.family.item_cells)
        x, y = draw.rng.randint(0, columns - wide), draw.rng.randint(0, lines - high)
        if all(x >= a + w + 1 or a >= x + wide + 1 or y >= b + h + 1 or b >= y + high + 1 for a, b, w, h in places):
            places.append((x, y, wide, high))
        if len(places) == number:
            break
    return [dict(zip(("x", "y", "width", "height"), (cell * v for v in place), strict=True)) for place in places]


BLOCKS = {
    block.__name__: block
    for block in (
        *(topbar, sidebar, footer),
        *(hero, article, cards, gallery, form, table, choices, settings, rows, faq, pager),
        *(dialog, cookies, dropdown, toast, floating),
        board,
    )
}


@cache
def templates() -> Environment:
    environment = templates_in(Path(__file__).parent / "templates")
    environment.globals["palettes"] = PALETTES
    return environment


def draw_theme(family: Family, rng: random.Random) -> dict:
    is_dark = rng.random() < family.dark
    grey = rng.randint(0, 12)
    low, high = (17 + grey, 32 + grey) if is_dark else (255 - grey, 250 - grey)
    return {
        "is_dark": is_dark,
        "accent": rng.choice(list(PALETTES[family.palette])),
        "palette": family.palette,
        "page": f"rgb({low},{low},{low + (rng.randint(0, 8) if is_dark else 0)})",
        "surface": f"rgb({high},{high},{high})",
        "text": "#f2f2f2" if is_dark else "#1c1c1c",
        "line": "#666" if is_dark else "#bbb",
        "radius": rng.choice([0, 4, 8, 14, 24]),
        "gap": rng.choice([8, 12, 16, 20]),
        "font": rng.choice(family.fonts),
        "font_px": rng.randint(*family.font_px),
        "has_shadow": rng.random() < 0.5,
    }


def draw_page(family: str, seed: int, languages: Iterable[str] = LANGUAGES) -> Page:
    """The page of a seed; ValueError for a family or language that does not exist."""
    languages = tuple(languages)
    for name, known in ((family, FAMILIES), *((language, LANGUAGES) for language in languages)):
        if name not in known:
            raise ValueError(f"{name!r} is unknown: no page can be drawn; choose one of {', '.join(known)}")
    settings_ = FAMILIES[family]
    rng = random.Random(f"page {family} {seed}")
    language = rng.choice(languages)
    width, height, scale = rng.choice(settings_.screens)
    draw = Draw(rng, language, settings_, width, height)
    frame = [name for name in settings_.frame if draw.chance(0.75 if name != "sidebar" else 0.3)]
    main = [rng.choice(settings_.blocks) for _ in range(rng.randint(*settings_.num_blocks))]
    over = [name for name, share in settings_.overlays.items() if draw.chance(share)]
    theme = draw_theme(settings_, rng)
    html = render_html(language, theme, [(name, BLOCKS[name](draw)) for name in (*frame, *main, *over)])
    scroll = rng.random() if draw.chance(settings_.scrolled) else 0.0
    return Page(family, seed, language, theme, width, height, scale, scroll, html)


def render_html(language: str, theme: dict, blocks: list[tuple[str, dict]]) -> str:
    """The page of these blocks, in order; those named topbar, sidebar, footer and OVERLAYS go to their own places."""
    values = {"language": language, "theme": theme, "blocks": blocks, "overlays": OVERLAYS}
    return templates().get_template("page.html.jinja").render(values)
