"""Text in which actions stand -> plain values (`dialects` reads those). Code is parsed, never run.

| found in the text | value |
|---|---|
| JSON, perhaps in ``` fences or among words | as it stands |
| a Python literal, such as ShowUI's dict with single quotes | as it stands |
| calls, such as pyautogui.click(300, 80) or UI-TARS' click(start_box='(300, 80)') | {"action": "click", ...} |
| OS-Atlas' CLICK <point>[[300, 80]]</point>, TYPE [text], COMPLETE | {"action": "click", ...} |
| only coordinates, such as (300, 80), [[280, 70, 320, 90]] or <point>300 80</point> | [300, 80] |
"""

import ast
import json
import re
import warnings
from typing import Any

from qwenvl_agent.computer.actions import ActionError
from qwenvl_agent.computer.places import NUMBER, numbers_of
from qwenvl_agent.computer.synonyms import ACTIONS, TOOLS, plain

MAX_CHARS = 20_000
"""Longer texts are not searched: no action is that long, and parsers are slow on nonsense."""
# No two neighbours below can take the same characters: an engine that tries all the ways to share them takes for ever.
THOUGHT = re.compile(r"(?i)\s*(?:thoughts?|reasoning)\s*:")
ACTION_LINE = re.compile(r"(?im)^[^\S\n]*actions?\s*:")
PREFIX = re.compile(r"(?i)^\s*(?:[-*]\s+|\d+[.)]\s+)?(?:(?:(?:next\s+)?actions?|grounded\s+operation)\s*:\s*)?")
FENCE = "```"
LANGUAGE = re.compile(r"(?:json|python|py|tool_code|text|[a-z]*(?=\n))?")
CALL_LINE = re.compile(r"[A-Za-z_][\w.]*\s*\(.*\)", re.DOTALL)
POINT_TAG = re.compile(
    r"<(?:point|box)>([^<]*)</(?:point|box)>|<\|(?:point|box)_start\|>([^<]*)<\|(?:point|box)_end\|>"
)
OBJECT = re.compile(r"\[\s*(?=\{)|\{")
KEYED_OBJECT = re.compile(r"""\{\s*["'][^"'\n]{1,80}["']\s*:""")
ATLAS_NAMES = (
    "CLICK|DOUBLE_CLICK|RIGHT_CLICK|LONG_PRESS|TYPE|SCROLL|SWIPE|DRAG|OPEN_APP|PRESS_[A-Z]+|ENTER|WAIT|COMPLETE|DONE|FAIL"
    "|IMPOSSIBLE"
)
UPPER_CALL = re.compile(rf"(?m)^[^\S\n]*({ATLAS_NAMES})\b[ \t]*(.*)$")
OTHER_ACTION = re.compile(
    r"(?i)\b(?:scroll|drag|swip|hover|long[ _-]?press|press and hold|(?:double|triple|right|middle)[ _-]?(?:click|tap))"
)
"""Of words beside a position: then it is no click."""
BETWEEN_NUMBERS = r"(?:\s*,\s*|[^\S ]* \s*)"
NUMBERS = re.compile(rf"[(\[]\s*({NUMBER}(?:{BETWEEN_NUMBERS}{NUMBER}){{1,3}})\s*[)\]]")

# The names of what stands without one, by function, plain. All others are to be named.
POINT = ("x", "y")
SIGNATURES = {
    "click": (*POINT, "clicks", "interval", "button", "duration"),
    "doubleclick": (*POINT, "interval", "button", "duration"),
    "tripleclick": (*POINT, "interval", "button", "duration"),
    **dict.fromkeys(("leftclick", "rightclick", "middleclick", "tap", "hover", "mousemove"), (*POINT, "duration")),
    "moveto": (*POINT, "duration", "tween"),
    "dragto": (*POINT, "duration", "tween", "button"),
    **dict.fromkeys(("swipe", "draganddrop"), ("start", "end")),
    **dict.fromkeys(("scroll", "vscroll", "hscroll"), ("notches", *POINT)),
    **dict.fromkeys(("write", "typewrite", "type"), ("text", "interval")),
    "press": ("keys", "presses", "interval"),
    **dict.fromkeys(("key", "keypress"), ("keys",)),
    **dict.fromkeys(("sleep", "wait"), ("time",)),
    "terminate": ("status", "answer"),
    **dict.fromkeys(("answer", "finish", "finished", "done", "respond"), ("text",)),
}
RELATIVE = ("move", "drag")
"""Of pyautogui: by so many pixels, not to a place; `to` is what others mean."""
TIMING = ("interval", "duration", "tween", "pause", "logScreenshot", "_pause")
"""Of pyautogui; how fast an action is done is no part of it here."""
RENAMED = {"message": "text", "secs": "time"}
"""pyautogui's names of arguments, where they mean something else in other dialects."""
MAX_REPEATS = 50
PADDED_BOX = re.compile(r"\[\[[\d, ]*\]\]")
"""CogAgent pads its numbers with zeros, which Python does not read."""
CALL_START = re.compile(r"([A-Za-z_][\w.]*)\(")


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
    """The values and the name of what they were written as; ([], "") if there are none.

    ActionError: not_literal (code whose arguments are not written out), not_json (an object that breaks off),
    no_action (positions of which it is not said which is meant, or what is done there).
    """
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
        if name == "python_call" and KEYED_OBJECT.search(text):
            raise ActionError("not_json", "the object breaks off or is no JSON: what it does is unknown; write it out")
    return [], ""


def _unfenced(text: str) -> str:
    """What stands in the code fences, or the text."""
    parts = text.split(FENCE)
    if len(parts) < 3:
        return text
    inside = []
    for part in parts[1::2]:
        language = LANGUAGE.match(part)
        assert language is not None, "it matches nothing, too"
        inside.append(part[language.end() :].strip())
    return "\n".join(inside)


def _json(text: str) -> list:
    """The list that is all of the text, or else the objects in it; none if one of them breaks off."""
    decoder, values, at = json.JSONDecoder(object_pairs_hook=_unique_keys), [], 0
    try:
        if text.startswith("["):
            return [value] if (value := decoder.decode(text)) else []
    except (ValueError, RecursionError):
        pass
    while start := OBJECT.search(text, at):
        try:
            value, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            if KEYED_OBJECT.search(text, start.start(), start.start() + 200):
                return []
            at = start.end()
            continue
        if CALL_START.search(text, max(0, start.start() - 60), start.start()) and text[start.start() - 1] == "(":
            return []  # the argument of a call
        values.append(value)
    return values


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """ValueError for a key that is there twice: which holds is unknown."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(pairs)
    return value


def _literal(text: str) -> list:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start or text[start - 1 : start] == "(" or KEYED_OBJECT.search(text, end):
        return []
    try:
        tree = _tree(text[start : end + 1], "eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                _unique_keys([(ast.dump(key) if key else "**", None) for key in node.keys])
        value = ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return []
    values = list(value) if isinstance(value, tuple) else [value]
    return values if all(isinstance(item, dict) for item in values) else []


def _calls(text: str) -> list:
    """Every call of the program, or of the lines that are one."""
    tree = None if ACTION_LINE.search(PREFIX.sub("", text, count=1)) else _parse(text)
    statements = tree.body if tree else [statement for line in text.splitlines() for statement in _line(line)]
    calls = [s.value for s in statements if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    others = [s for s in statements if not isinstance(s, ast.Expr | ast.Import | ast.ImportFrom | ast.Pass)]
    if others and (calls or any(isinstance(node, ast.Call) for s in others for node in ast.walk(s))):
        raise _not_literal(others[0])
    return [_call_value(call) for call in calls]


def _line(line: str) -> list[ast.stmt]:
    """The statements of a line that is code; ActionError for one that begins as an action and is none."""
    line = PREFIX.sub("", line, count=1).strip()
    tree = _parse(line) if CALL_LINE.fullmatch(line) else None
    if tree:
        return tree.body
    start = CALL_START.match(line)
    if start and plain(start.group(1).rpartition(".")[2]) in ACTIONS:
        raise ActionError("not_literal", f"{line[:80]!r} is no whole call: no action is read; write it out")
    return []


def _tree(code: str, mode: str) -> Any:
    """Without Python's remarks on its style, which go to stderr or, by a user's settings, end the program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(code, mode=mode)


def _parse(code: str) -> ast.Module | None:
    code = PREFIX.sub("", code, count=1).strip()
    for text in (code, PADDED_BOX.sub(_without_zeros, code)):
        try:
            return _tree(text, "exec")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            if text is code and "[[0" not in code and ",0" not in code:
                return None
    return None


def _without_zeros(box: re.Match) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", box.group())


def _not_literal(node: ast.AST) -> ActionError:
    code = " ".join(ast.unparse(node)[:80].split())
    return ActionError("not_literal", f"{code} is code to run, which is not done: write numbers out")


def _literal_value(node: ast.expr) -> object:
    """A literal, or one repeated: ["backspace"] * 3."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        value, times = ast.literal_eval(node.left), ast.literal_eval(node.right)
        if isinstance(value, list) and type(times) is int and 0 < times * len(value) <= MAX_REPEATS:
            return value * times
    return ast.literal_eval(node)


def _call_value(call: ast.Call) -> dict:
    module, _, name = ast.unparse(call.func).rpartition(".")
    try:
        positional = [_literal_value(argument) for argument in call.args]
        named = {keyword.arg or "**": _literal_value(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError):
        raise _not_literal(call) from None
    value = _with_names(name, positional) | named
    if module == "pyautogui":
        value = {key: item for key, item in value.items() if key not in TIMING}
        name = f"{name}Rel" if name in RELATIVE else name
    if name in TOOLS:
        return {"name": name, "arguments": value}
    is_scroll = "notches" in SIGNATURES.get(plain(name), ())
    renamed = RENAMED | ({"clicks": "notches"} if is_scroll else {})
    value = {renamed.get(key, key): item for key, item in value.items()}
    return {"action": "key" if name == "hotkey" and positional else name} | value


def _with_names(name: str, positional: list) -> dict:
    """Positional arguments by the names of the function's signature; what has none stands under "positional"."""
    if len(positional) == 1 and isinstance(positional[0], dict):
        return positional[0]
    if name == "hotkey" and positional:
        return {"keys": positional[0] if isinstance(positional[0], list) else positional}
    names = SIGNATURES.get(plain(name), ())
    if positional and isinstance(positional[0], list | tuple) and (not names or names[:2] == POINT):
        names = ("coordinate", *names[2:])
    value = dict(zip(names, positional, strict=False))
    return value | ({"positional": positional[len(names) :]} if len(positional) > len(names) else {})


def _upper_case(text: str) -> list:
    return [value for name, rest in UPPER_CALL.findall(text) if (value := _upper_value(name, rest))]


def _upper_value(name: str, rest: str) -> dict | None:
    points = [_inside(tag) for tag in POINT_TAG.finditer(rest)]
    start, end = rest.find("["), rest.rfind("]")
    inside = rest[start + 1 : end] if 0 <= start < end else None
    if len(points) > 1:
        return {"action": name, "path": [numbers_of(point) for point in points]}
    if points:
        return {"action": name, "coordinate": points[0]}
    if inside is not None:
        return {"action": name, "direction" if name.startswith(("SCROLL", "SWIPE")) else "text": inside}
    return None if rest.strip() else {"action": name}


def _coordinates(text: str) -> list:
    """The one position in a text that says nothing else of an action."""
    tags = list(POINT_TAG.finditer(text))
    found = [numbers_of(_inside(tag)) for tag in tags] or [numbers_of(m.group(1)) for m in NUMBERS.finditer(text)]
    if not found:
        return []
    if OTHER_ACTION.search(text) or not all(_is_click(text[max(0, i - 40) : i]) for i in _parentheses(text)):
        raise ActionError("no_action", f"{text[:60]!r} is a position and says more than a click: write the action")
    if any(numbers != found[0] for numbers in found):
        raise ActionError(
            "no_action", f"{len(found)} positions without an action: which is meant is unknown; write action"
        )
    return found[:1]


def _parentheses(text: str) -> list[int]:
    return [i for i, letter in enumerate(text) if letter == "("]


def _is_click(before: str) -> bool:
    """Whether a parenthesis after these characters is no call, or a click's."""
    word = re.search(r"[A-Za-z_]\w*\Z", before)
    return word is None or ACTIONS.get(plain(word.group()), ("",))[0] == "left_click"


def _inside(tag: re.Match) -> str:
    return tag.group(1) if tag.group(1) is not None else tag.group(2)
