"""Which dialects have a unit of their own: forms whose places are thousandths where they come from.

They say so of a form, not of a file: Qwen2.5-VL and UI-TARS 1.5 write the same words in pixels. So a file of them must
declare its unit; `data.readers.units` asks.
"""

import re

from qwenvl_agent.computer.tool import ARGUMENTS, GRID_TOOLS, KINDS

OWN_FORM = "the tool's own arguments, as {'action': 'left_click', 'coordinate': [500, 300]}"
"""Anthropic's tool has the same in pixels: a suspicion, where the others are as good as a statement."""
CALL_FORM = "a call of computer_use"
TEXT_FORMS = (
    (CALL_FORM, re.compile(r"""["']name["']\s*:\s*["'](?:computer|mobile)_use["']""")),
    ("UI-TARS' start_box, end_box or point", re.compile(r"\b(?:start|end)_(?:box|point)\s*=|\bpoint\s*=\s*['\"]?<")),
    ("tags, as <point> or <box>", re.compile(r"<(?:point|box)>|<\|(?:point|box)_start\|>")),
)
QWEN_KEYS = ("bbox_2d", "point_2d")
MAX_DEPTH = 5
MAX_CHARS = 20_000


def thousandths_form(value: object, depth: int = 0) -> str:
    """The name of the form that an action is written in, if its places are thousandths elsewhere; else ""."""
    if depth > MAX_DEPTH:
        return ""
    if isinstance(value, str):
        return next((name for name, pattern in TEXT_FORMS if pattern.search(value[:MAX_CHARS])), "")
    if isinstance(value, list | tuple):
        return next(filter(None, (thousandths_form(item, depth + 1) for item in value[:10])), "")
    return _form_of_object(value, depth) if isinstance(value, dict) else ""


def _form_of_object(value: dict, depth: int) -> str:
    if value.get("name") in GRID_TOOLS:
        return CALL_FORM
    if any(key in value for key in QWEN_KEYS) or (str(value.get("action")) in KINDS and _is_grid_like(value)):
        return OWN_FORM
    return next(filter(None, (thousandths_form(item, depth + 1) for item in value.values())), "")


def _is_grid_like(value: dict) -> bool:
    """Whether these are arguments of the tool with a whole-numbered `coordinate`, and nothing besides."""
    place = value.get("coordinate")
    known = ("action", "reasoning", "thought", *ARGUMENTS)
    return isinstance(place, list) and all(type(n) is int for n in place) and all(key in known for key in value)
