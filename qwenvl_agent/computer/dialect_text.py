"""Text in which actions stand -> plain values (`dialects` reads those). Code is parsed, never run.

| found in the text | value |
|---|---|
| JSON, perhaps in a ``` fence or among words | as it stands |
| a Python literal, such as ShowUI's dict with single quotes | as it stands |
| calls, such as pyautogui.click(300, 80) or UI-TARS' click(start_box='(300, 80)') | {"action": "click", ...} |
| OS-Atlas' CLICK <point>[[300, 80]]</point>, TYPE [text], COMPLETE | {"action": "click", ...} |
| only coordinates, such as (300, 80), [[280, 70, 320, 90]] or <point>300 80</point> | [300, 80] |
"""

import ast
import json
import re

MAX_CHARS = 20_000
"""Longer texts are not searched: no action is that long, and parsers are slow on nonsense."""
# No two neighbours below can take the same characters: an engine that tries all the ways to share them takes for ever.
THOUGHT = re.compile(r"(?i)\s*(?:thoughts?|reasoning)\s*:")
ACTION_LINE = re.compile(r"(?im)^[^\S\n]*actions?\s*:")
PREFIX = re.compile(r"(?i)^\s*(?:[-*]\s+|\d+[.)]\s+)?(?:(?:next\s+)?actions?\s*:\s*)?")
FENCE = "```"
LANGUAGE = re.compile(r"[a-z]*")
CALL_LINE = re.compile(r"[A-Za-z_][\w.]*\s*\(.*\)", re.DOTALL)
POINT_TAG = re.compile(
    r"<(?:point|box)>([^<]*)</(?:point|box)>|<\|(?:point|box)_start\|>([^<]*)<\|(?:point|box)_end\|>"
)
OBJECT = re.compile(r"\[\s*(?=\{)|\{")
ATLAS_NAMES = "CLICK|DOUBLE_CLICK|RIGHT_CLICK|LONG_PRESS|TYPE|SCROLL|DRAG|OPEN_APP|PRESS_[A-Z]+|ENTER|WAIT|COMPLETE"
UPPER_CALL = re.compile(rf"(?m)^[^\S\n]*({ATLAS_NAMES})\b[ \t]*(.*)$")
NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
BETWEEN_NUMBERS = r"(?:\s*,\s*|[^\S ]* \s*)"
NUMBERS = re.compile(rf"[(\[]\s*({NUMBER}(?:{BETWEEN_NUMBERS}{NUMBER}){{1,3}})\s*[)\]]")

# The names of what stands without one, by function; the rest of a signature is of no use here.
POINT = ("x", "y")
SIGNATURES = {
    "click": (*POINT, "clicks", "interval", "button"),
    "scroll": ("notches", *POINT),
    "vscroll": ("notches", *POINT),
    "hscroll": ("notches", *POINT),
    "write": ("text", "interval"),
    "typewrite": ("text", "interval"),
    "type": ("text",),
    "press": ("keys", "presses", "interval"),
    "sleep": ("time",),
    "wait": ("time",),
    "terminate": ("status", "answer"),
    "answer": ("text",),
    "finished": ("text",),
}
TIMING = ("interval", "duration", "tween", "pause", "logScreenshot", "_pause")
"""Of pyautogui; how fast an action is done is no part of it here."""
RENAMED = {"message": "text", "clicks": "notches", "secs": "time"}
"""pyautogui's names of arguments, where they mean something else in other dialects (`clicks` of a click is a count)."""


class NotLiteralError(Exception):
    """Code whose arguments are not written out."""


def split_thought(text: str) -> tuple[str, str]:
    """(thought, rest) of a text that starts with "Thought:"."""
    head = THOUGHT.match(text)
    if not head:
        return "", text
    action = ACTION_LINE.search(text, head.end())
    if not action:
        return text[head.end() :].strip(), ""
    return text[head.end() : action.start()].strip(), text[action.end() :]


def values_of(text: str) -> tuple[list, str]:
    """The values and the name of what they were written as; ([], "") if there are none. NotLiteralError: see there."""
    text = text.strip()
    if len(text) > MAX_CHARS:
        return [], ""
    text = _unfenced(text)
    for name, find in (
        ("json_text", _json),
        ("python_literal", _literal),
        ("python_call", _calls),
        ("upper_case_call", _upper_case),
        ("bare_coordinates", _coordinates),
    ):
        values = find(text)
        if values:
            return values, name
    return [], ""


def _unfenced(text: str) -> str:
    """What stands in the first code fence, or the text."""
    _, opening, rest = text.partition(FENCE)
    inside, closing, _ = rest.partition(FENCE)
    language = LANGUAGE.match(inside)
    assert language is not None, "it matches nothing, too"
    return inside[language.end() :].strip() if opening and closing else text


def _json(text: str) -> list:
    """The list that is all of the text, or else the objects in it."""
    decoder, values, at = json.JSONDecoder(), [], 0
    try:
        whole = json.loads(text) if text.startswith("[") else None
        while whole is None and (start := OBJECT.search(text, at)):
            value, at = decoder.raw_decode(text, start.start())
            values.append(value)
    except (ValueError, RecursionError):
        pass  # what stands before the fault counts
    else:
        values = [whole] if whole else values
    return values


def _literal(text: str) -> list:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return []
    try:
        value = ast.literal_eval(text[start : end + 1])
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return []
    return [value] if isinstance(value, dict) else []


def _calls(text: str) -> list:
    """Every call of the program, or of the lines that are one."""
    tree = _parse(text)
    if tree is None:
        lines = (PREFIX.sub("", line, count=1).strip() for line in text.splitlines())
        trees = [_parse(line) for line in lines if CALL_LINE.fullmatch(line)]
        statements = [statement for tree in trees if tree for statement in tree.body]
    else:
        statements = tree.body
    calls = [s.value for s in statements if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    others = [s for s in statements if not isinstance(s, ast.Expr | ast.Import | ast.ImportFrom | ast.Pass)]
    if others and (calls or any(isinstance(node, ast.Call) for s in others for node in ast.walk(s))):
        raise NotLiteralError(ast.unparse(others[0])[:80])
    return [_call_value(call) for call in calls]


def _parse(code: str) -> ast.Module | None:
    try:
        return ast.parse(PREFIX.sub("", code, count=1).strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _call_value(call: ast.Call) -> dict:
    name = ast.unparse(call.func).rpartition(".")[2]
    try:
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    except (ValueError, TypeError):
        raise NotLiteralError(ast.unparse(call)[:80]) from None
    if name == "hotkey" and positional:
        return {"action": "key", "keys": positional[0] if isinstance(positional[0], list) else positional}
    if len(positional) == 1 and isinstance(positional[0], list | tuple) and name not in SIGNATURES:
        named["coordinate"] = positional.pop()
    names = SIGNATURES.get(name, (*POINT, "duration"))
    is_scroll = "notches" in names
    value = dict(zip(names, positional, strict=False)) | named
    renamed = {RENAMED.get(key, key) if is_scroll or key != "clicks" else key: item for key, item in value.items()}
    return {"action": name} | {key: item for key, item in renamed.items() if key not in TIMING}


def _upper_case(text: str) -> list:
    values = []
    for name, rest in UPPER_CALL.findall(text):
        tag = POINT_TAG.search(rest)
        start, end = rest.find("["), rest.rfind("]")
        inside = rest[start + 1 : end] if 0 <= start < end else None
        if tag:
            values.append({"action": name, "coordinate": _inside(tag)})
        elif inside is not None and name.startswith("SCROLL"):
            values.append({"action": name, "direction": inside})
        elif inside is not None:
            values.append({"action": name, "text": inside})
        elif not rest.strip():
            values.append({"action": name})
    return values


def _coordinates(text: str) -> list:
    tag = POINT_TAG.search(text)
    if tag:
        return [numbers_of(_inside(tag))]
    match = NUMBERS.search(text)
    return [numbers_of(match.group(1))] if match else []


def _inside(tag: re.Match) -> str:
    return tag.group(1) if tag.group(1) is not None else tag.group(2)


def numbers_of(text: str) -> list[float]:
    """The numbers in a text such as "(300, 80)", whole ones as int."""
    return [float(n) if re.search(r"[.eE]", n) else int(n[:18]) for n in re.findall(NUMBER, text)]
