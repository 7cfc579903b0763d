"""What can be clicked on a page, as the browser itself sees it: role, name, visible region and a point that hits.

A box from the document alone lies where something else is on top. So every element is sampled with elementFromPoint:
the box is what is left of it after the viewport, clipping ancestors and whatever lies over it (of a region that is no
rectangle, the largest rectangle in it), and the point was seen to reach the element. What a click cannot reach anywhere
is not an element of the picture. Roles and accessible names are those of the browser's own accessibility tree.

Boxes and points are pixels of the picture, that is CSS px times the device scale. Shadow roots and frames are not read.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

NAMELESS = {"role": "generic", "name": ""}
# Names that the browser's tree has for what ARIA calls otherwise, or not at all.
ROLES = {"DisclosureTriangle": "summary", "img": "image", "MenuListOption": "option", "ListBoxOption": "option"}
SCRIPT_PATH = Path(__file__).with_name("elements.js")
# Of an answer with nodes: their ids in the protocol, by which the accessibility tree names them, too.
NODE_IDS = {
    "serialization": "deep",
    "maxDepth": 2,
    "additionalParameters": {"maxNodeDepth": 0, "includeShadowTree": "none"},
}


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
def reading_function() -> str:
    """The function of a page that `read_answer` takes the answer of, as JavaScript."""
    return SCRIPT_PATH.read_text(encoding="utf-8")


def read_layout(page: "Page", session: "CDPSession | None" = None) -> Layout:
    """The elements of the page's viewport as it is now; `width` and `height` are the picture's, in pixels.

    `session` is a protocol session of the page, opened if none is given.
    """
    session = session or page.context.new_cdp_session(page)
    frame = session.send("Page.getFrameTree")["frameTree"]["frame"]["id"]
    # Beside the page's own scripts, which may have replaced what the function calls.
    world = session.send("Page.createIsolatedWorld", {"frameId": frame, "worldName": "layout"})
    return read_answer(session, f"({reading_function()})()", contextId=world["executionContextId"])


def evaluate(session: "CDPSession", expression: str, **settings) -> dict:
    """What the page answers, as the protocol's RemoteObject: cheaper than Playwright's evaluate, which copies by a script.

    `settings` are those of the protocol's Runtime.evaluate.
    """
    from playwright.sync_api import Error

    answer = session.send("Runtime.evaluate", {"expression": expression, "awaitPromise": True, **settings})
    if "exceptionDetails" in answer:
        raise Error(answer["result"].get("description", "the page threw what is no error"))
    return answer["result"]


def read_answer(session: "CDPSession", expression: str, **settings) -> Layout:
    """As `read_layout`, by an expression that ends in a call of `reading_function`; `settings` as of `evaluate`."""
    answer = evaluate(session, expression, serializationOptions=NODE_IDS, objectGroup="layout", **settings)
    session.send("Runtime.releaseObjectGroup", {"objectGroup": "layout"})  # else the nodes outlive their page
    facts, nodes = (part["value"] for part in answer["deepSerializedValue"]["value"])
    ids = [node["value"]["backendNodeId"] for node in nodes]
    found, spoken = json.loads(facts), _accessible(session)
    scale = found["scale"]
    width, height = round(found["width"] * scale), round(found["height"] * scale)
    elements = tuple(
        _element(values | spoken.get(ids[values.pop("node")], NAMELESS), scale, width, height)
        for values in found["elements"]
    )
    groups = tuple(
        Group(role=spoken.get(ids[values.pop("node")], NAMELESS)["role"], **values) for values in found["groups"]
    )
    return Layout(elements, groups, found["hidden"], width, height, scale)


def _accessible(session: "CDPSession") -> dict[int, dict]:
    """Role and name of every node by its id, for the whole page at once.

    element.computedRole and computedName would build the tree anew for every element.
    """
    spoken = {}
    for node in session.send("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value", "")
        name = " ".join(node.get("name", {}).get("value", "").split())
        spoken[node.get("backendDOMNodeId")] = {"role": ROLES.get(role, role), "name": name}
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
