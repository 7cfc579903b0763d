"""Places of an action, drawn on the picture that it is meant for."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

MARK_SHARE = 0.015
"""Radius of a mark, of the picture's longer side."""


def draw_action(image: Image.Image, result: Mapping) -> Image.Image:
    """The picture with what `Agent.act` gave: a mark at every place of the answer, and lines from each to the next."""
    return draw_places(image, [(one["x"], one["y"]) for one in (result, *result.get("then", ())) if "x" in one])


def draw_places(image: Image.Image, places_px: Sequence[tuple[float, float]]) -> Image.Image:
    """A copy with a ring and a dot at every place (x, y), and lines from each to the next."""
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    radius = max(6, round(MARK_SHARE * max(image.size)))
    width = max(2, radius // 4)
    draw.line(list(places_px), fill="red", width=width)
    for x, y in places_px:
        for grown, colour in ((width, "white"), (0, "red")):
            ring = (x - radius - grown, y - radius - grown, x + radius + grown, y + radius + grown)
            draw.ellipse(ring, outline=colour, width=width + grown)
        draw.ellipse((x - width, y - width, x + width, y + width), fill="red", outline="white")
    return marked
