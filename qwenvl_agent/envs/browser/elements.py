"""What can be clicked on a page, as the browser itself sees it: role, name, visible region and a point that hits.

A box from the document alone lies where something else is on top. So every element is sampled with elementFromPoint:
the box is what is left of it after the viewport, clipping ancestors and whatever lies over it (of a region that is no
rectangle, the largest rectangle in it), and the point was seen to reach the element. What a click cannot reach anywhere
is not an element of the picture. Roles and accessible names are those of the browser's own accessibility tree.

Boxes and points are pixels of the picture, that is CSS px times the device scale. Shadow roots and frames are not read.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

MARK = "data-qwenvl-mark"
UNMARK = "mark => document.querySelectorAll(`[${mark}]`).forEach(node => node.removeAttribute(mark))"
NAMELESS = {"role": "generic", "name": ""}
# Names that the browser's tree has for what ARIA calls otherwise, or not at all.
ROLES = {"DisclosureTriangle": "summary", "img": "image", "MenuListOption": "option", "ListBoxOption": "option"}
SCRIPT_PATH = Path(__file__).with_name("elements.js")


@dataclass(frozen=True, kw_only=True)
class Group:
    """What an element stands in: a row, card, form, dialog, navigation bar ... `parent` is the group around it, or -1."""

    role: str
    title: str
    is_title_seen: bool
    parent: int


@dataclass(frozen=True, kw_only=True)
class Element:
    """One element that a click at `point` reaches."""

    role: str
    """The browser's computed role, such as button, link, textbox, checkbox or image."""
    name: str
    """The browser's accessible name; it need not be written on the page."""
    text: str
    """What is written on it."""
    value: str
    """What is typed or selected in it; empty for a password."""
    placeholder: str
    """The hint that an empty field shows."""
    label: str
    is_label_seen: bool
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 in pixels of the picture; x2 and y2 are exclusive."""
    point: tuple[int, int]
    """A pixel of the picture; a click in its middle reaches the element."""
    visible: float
    """Share of the element's area that can be seen and clicked."""
    hit_boxes: tuple[tuple[int, int, int, int], ...]
    """Boxes in pixels, apart from each other, in whose union a click reaches the element; `point` is in one of them."""
    group: int
    """Index in the shot's groups, or -1."""
    picture: str
    """Key of what its picture shows, on pages of our own."""
    picture_text: str
    """The alternative text of its picture."""
    backdrop: str
    icon: str
    intent: str
    """What it is for, on pages of our own; `item` and `item_picture` say what it does that to."""
    item: str
    item_picture: str
    background: tuple[int, int, int] | None
    """Red, green, blue of its own background, None if that is transparent."""
    state: tuple[str, ...]
    """Some of disabled, checked, selected, expanded, focused."""

    @property
    def shown(self) -> str:
        """The words by which a person would call it: what is written on it, beside it or as a hint in it."""
        return self.text or (self.label if self.is_label_seen else "") or self.placeholder


@dataclass(frozen=True)
class Layout:
    """The elements of a viewport; `num_hidden` counts those inside it that no click reaches."""

    elements: tuple[Element, ...]
    groups: tuple[Group, ...]
    num_hidden: int
    width: int
    height: int
    scale: float


@cache
def _script() -> str:
    return SCRIPT_PATH.read_text(encoding="utf-8")


def read_layout(page: "Page", session: "CDPSession | None" = None) -> Layout:
    """The elements of the page's viewport as it is now; `width` and `height` are the picture's, in pixels.

    `session` is a protocol session of the page, opened if none is given.
    """
    layout = read_marked(page, session or page.context.new_cdp_session(page))
    page.evaluate(UNMARK, MARK)
    return layout


def read_marked(page: "Page", session: "CDPSession") -> Layout:
    """As `read_layout`, for a page that is not needed any more: its elements stay marked."""
    found = page.evaluate(_script(), MARK)
    spoken = _accessible(session)
    scale = found["scale"]
    width, height = round(found["width"] * scale), round(found["height"] * scale)
    elements = tuple(
        _element(values | spoken.get(f"e{i}", NAMELESS), scale, width, height)
        for i, values in enumerate(found["elements"])
    )
    groups = tuple(
        Group(**values, role=spoken.get(f"g{i}", NAMELESS)["role"]) for i, values in enumerate(found["groups"])
    )
    return Layout(elements, groups, found["hidden"], width, height, scale)


def _accessible(session: "CDPSession") -> dict[str, dict]:
    """Role and name of every marked node, by its mark.

    Two calls for the whole page: element.computedRole and computedName build the tree anew for every element.
    """
    marks = {}
    pending = [session.send("DOM.getDocument", {"depth": -1})["root"]]
    while pending:
        node = pending.pop()
        attributes = node.get("attributes", ())
        if MARK in attributes:
            marks[node["backendNodeId"]] = attributes[attributes.index(MARK) + 1].split()
        pending += node.get("children", ())
    session.send("DOM.disable")  # else every later change of the page is reported to this session
    spoken = {}
    for node in session.send("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value", "")
        name = " ".join(node.get("name", {}).get("value", "").split())
        for mark in marks.get(node.get("backendDOMNodeId"), ()):
            spoken[mark] = {"role": ROLES.get(role, role), "name": name}
    return spoken


def _element(values: dict, scale: float, width: int, height: int) -> Element:
    (x, y) = values["point"]

    def in_pixels(box: dict) -> tuple[int, int, int, int]:
        return pixel_box([box[side] * scale for side in ("left", "top", "right", "bottom")], width, height)

    return Element(
        **values
        | {
            "box": in_pixels(values["box"]),
            "hit_boxes": tuple(in_pixels(box) for box in values["hit_boxes"]),
            "point": (min(math.floor(x * scale), width - 1), min(math.floor(y * scale), height - 1)),
            "background": parse_rgb(values["background"]),
            "state": tuple(values["state"]),
        }
    )


def pixel_box(box: list[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The nearest whole pixels, inside the picture and not empty."""
    x1, y1, x2, y2 = (round(value) for value in box)
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return x1, y1, min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)


def parse_rgb(colour: str) -> tuple[int, int, int] | None:
    """Of a computed `rgb(1, 2, 3)`; None for `rgba(...)`, which lets through what lies behind, and other notations."""
    if not colour.startswith("rgb("):
        return None
    red, green, blue = (round(float(part)) for part in colour[4:-1].split(","))
    return red, green, blue
