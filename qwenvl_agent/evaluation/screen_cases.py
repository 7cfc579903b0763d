"""Records of screens for the page: the screenshot, smaller, and what is drawn over it in its own pixels."""

import base64
import io
from collections.abc import Sequence

from qwenvl_agent.computer import Action
from qwenvl_agent.computer.dialects import to_seed
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.evaluation.clicks import ClickRecord, judge
from qwenvl_agent.evaluation.elements import ElementsRecord, matches
from qwenvl_agent.images import read_rgb

SHOWN_PX = 960
"""Longer side of a screenshot on the page."""


def screen_view(records: Sequence[ClickRecord] | Sequence[ElementsRecord]) -> dict:
    """One screen with the records of several results on it, marked made0, made1 ... in the order of `records`."""
    first = records[0]
    view = {"width": first.width_px, "height": first.height_px, **shown_picture(first.picture)}
    if isinstance(first, ElementsRecord):
        return view | elements_view(records)
    return view | clicks_view(records)


def clicks_view(records: Sequence[ClickRecord]) -> dict:
    first = records[0]
    return {
        "title": first.instruction,
        "facts": ", ".join(f"{key} {value}" for key, value in first.details.items() if isinstance(value, str)),
        "boxes": [rectangle(box, "due") for box in ([first.box_px] if first.box_px else first.hit_boxes_px or [])],
        "expected": written(first.expected_actions, first.screen),
        "points": [
            {"x": point[0], "y": point[1], "kind": kind}
            for point, kind in [
                (first.expected_point_px, "due"),
                *((r.point_px, f"made{min(i, 5)}") for i, r in enumerate(records)),
            ]
            if point
        ],
        "turns": [
            {
                "done": written(record.actions, record.screen),
                "off": None if (off := judge(record).distance_px) is None else round(off, 1),
                "thought": record.thought,
                "error": record.error,
                "text": record.text if record.error or record.repairs else "",
                "repairs": record.repairs,
            }
            for record in records
        ],
    }


def elements_view(records: Sequence[ElementsRecord]) -> dict:
    """Of the first result all boxes are drawn."""
    first = records[0]
    boxes = [rectangle(element["box_px"], "due") for element in first.expected]
    return {
        "title": first.case_id,
        "facts": f"{len(first.expected)} elements",
        "boxes": boxes + [rectangle(element["box_px"], "made0") for element in first.found],
        "expected": [],
        "points": [],
        "turns": [
            {
                "done": [f"{len(record.found)} listed, {len(matches(record))} of them right"],
                "off": None,
                "thought": "",
                "error": record.error,
                "text": record.text,
                "repairs": record.repairs,
            }
            for record in records
        ],
    }


def rectangle(box: Sequence[float], kind: str) -> dict:
    x1, y1, x2, y2 = box
    return {"x": x1, "y": y1, "width": max(0, x2 - x1), "height": max(0, y2 - y1), "kind": kind}


def written(actions: Sequence[Action], screen: Screen) -> list[str]:
    return [" ".join(str(value) for value in to_seed(action, screen).values()) for action in actions]


def shown_picture(path: str) -> dict:
    """{"picture": JPEG in base64}; empty with the reason if the file is gone since."""
    try:
        image = read_rgb(path, path)
    except ValueError as error:
        return {"picture": "", "missing": str(error)}
    image.thumbnail((SHOWN_PX, SHOWN_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return {"picture": base64.b64encode(file.getvalue()).decode(), "missing": ""}
