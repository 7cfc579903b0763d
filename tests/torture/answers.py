"""Answers that no model should give, through every parser of every family and every dialect of actions.

A case is BATCH answers of one kind. What must hold of each answer and each parser: no exception; errors and repairs that
the documentation names; time in proportion to its length; and nothing is lost unseen. An answer that is read without a
repair is written again and compared with what it was, letter by letter but for white space and the spelling of JSON's
strings and numbers; one that was mended is written again and read as the same turn.
"""

import contextlib
import json
import random
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attack import Attack, Outcome, random_of

from qwenvl_agent import formats
from qwenvl_agent.computer import build_tool, tool
from qwenvl_agent.computer.actions import ActionError, read_call, to_call
from qwenvl_agent.computer.dialects import read, read_turn
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.data.readers.chat.written_calls import read_written
from qwenvl_agent.evaluation.elements import read_list
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.families.calls import HERMES
from qwenvl_agent.formats import Format, formats_of, repair
from qwenvl_agent.schema import Answer, Tool, ToolCall, Turn, tool_named
from qwenvl_agent.tool_schema import argument_error
from qwenvl_agent.worlds.safari.judge import planned
from qwenvl_agent.worlds.safari.notepad import read_notes

BATCH = 500
SECONDS = 0.5
"""Of this process for a short answer, and for 64 KiB twice that; what is quadratic takes minutes."""
SCREEN = Screen(1280, 720)
REAL = json.loads((Path(__file__).parent / "real_answers.json").read_text(encoding="utf-8"))
"""Of tiny models in the safari, trained and not."""
PARSERS: list[Format] = [fmt for name in ("qwen3_vl", "qwen3_5") for fmt in formats_of(FAMILIES[name]).values()]
"""Of each template and syntax of calls that there is."""
ERRORS = set(re.findall(r"(?m)^\| (\w+) \|", formats.__doc__)) - {"error"}
REPAIRS = {name for row in re.findall(r"(?m)^\| ([\w, ]+) \|", repair.__doc__) for name in row.split(", ")} - {"repair"}

# tools, from plain to hostile


def made(name: str, required: Sequence[str] = (), **properties: object) -> Tool:
    return Tool(name, "", {"type": "object", "properties": properties, "required": list(required)})


STEP = {
    "type": "object",
    "properties": {"direction": {"enum": ["UP", "DOWN"]}, "steps": {"type": "integer"}},
    "required": ["direction", "steps"],
}
TOOLS: list[tuple[Tool, ...]] = [
    (
        made("move", ["actions"], actions={"type": "array", "items": STEP}),
        made("update_notepad", ["content"], content={"type": "string"}),
        made("declare_done", reason={"type": "string"}),
    ),
    (build_tool(),),
    (
        made("f", ["x"], x={"type": ["string", "null"]}, y={"anyOf": [{"type": "integer"}, {"type": "boolean"}]}),
        made("g", ["a", "b"], a={"enum": ["True", 1, None]}, b={"const": "1"}, c=True, d={"type": "object"}),
        Tool("h.i-j", "", {"type": "object", "additionalProperties": {"type": "number"}}),
    ),
    (),
]

# what answers are made of

TAGS = (
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>", "<|im_start|>", "<tool_response>"),
    *("<function=move>", "</function>", "<parameter=actions>", "</parameter>", "<parameter=x>\n", "\n</parameter>\n"),
    *("<image>", "<|image_pad|>", "<point>300 80</point>", "<|box_start|>(3,4)<|box_end|>", "<ref>a</ref>"),
)
WORDS = (
    *(
        "Thought:",
        "Action:",
        "Action Input:",
        "Thought: I go.\nAction: ",
        "move",
        "update_notepad",
        "computer_use",
        "f",
    ),
    *('{"name": "move", "arguments": ', '{"name": "f", "arguments": {"x": "', '"arguments"', "'name':", '"name":'),
    *("click(300, 80)", "pyautogui.click(x=3, y=4)", "CLICK <point>[[3,4]]</point>", "TYPE [a]", "SCROLL [UP]"),
    *("click(start_box='(3,4)')", '{"action": "left_click", "coordinate": [3, 4]}', "hotkey(key='ctrl c')"),
    *(
        "actions=",
        "content=",
        "None",
        "null",
        "true",
        "False",
        "NaN",
        "Infinity",
        "1e400",
        "-0",
        "0.1",
        "1" * 40,
        "2.0",
    ),
    *(
        "```json\n",
        "```",
        "finished()",
        "wait()",
        "terminate(status='success')",
        "호랑이",
        "红色",
        "é",
        "e\u0301",
        "🐯",
    ),
)
MARKS = (
    *"\"'{}[](),:;=<>/|\\`#*_+-. \n\t\r",
    "\u2028",
    "\ufeff",
    "\ud800",
    "\0",
    "\u0338",
    "\x1b",
    "\u200b",
    "\\u0022",
)
FRAGMENTS = (*TAGS, *WORDS, *MARKS)
ACTIONS = (
    *('{"action": "left_click", "coordinate": [300, 80]}', '{"action": "key", "keys": ["ctrl", "a"]}'),
    *(
        '{"action": "type", "text": "hi\\n", "enter": true}',
        '{"action": "scroll", "pixels": -40, "coordinate": [3, 4]}',
    ),
    *("pyautogui.moveTo(10, 20); pyautogui.dragTo(30, 40, 2, button='left')", "drag([1, 2], [3, 4])"),
    *("CLICK <point>[[300,80]]</point>", "SWIPE [UP]", "PRESS_HOME", "Action: click(start_box='(300,80)')"),
    *("{'action': 'INPUT', 'value': 'a', 'position': [0.1, 0.2]}", "SCROLL_DOWN(box=[[280,70,320,90]], step_count=5)"),
    *('{"name": "tap", "args": {"x": 3, "y": 4}}', '{"type": "scroll", "scroll_x": 0, "scroll_y": 300}'),
    *('{"thought": "t", "actions": [{"action": "click", "x": 3, "y": 4}]}', "wait(duration='2s')", "(300, 80)"),
    *("Grounded Operation: TYPE(box=[[1,2,3,4]], text='a')", '{"bbox_2d": [1, 2, 3, 4], "label": "Save"}'),
)


def text_of(rng: random.Random) -> str:
    return "".join(rng.choice(FRAGMENTS) for _ in range(rng.choice((0, 1, 2, 5))))


def value_of(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(8 if depth < 4 else 6)
    if kind == 6:
        return [value_of(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {text_of(rng): value_of(rng, depth + 1) for _ in range(rng.randrange(4))}
    scalars = (text_of(rng), rng.randrange(-9, 1000), rng.random() * 1000, rng.random() < 0.5, None, 10**18)
    return scalars[kind]


def call_of(rng: random.Random) -> ToolCall:
    own = [tool for tools in TOOLS for tool in tools]
    name = rng.choice(own).name if rng.random() < 0.8 else rng.choice(("look", "a.b", "_"))
    given = {
        "move": {"actions": [{"direction": rng.choice(("UP", "LEFT")), "steps": rng.randrange(9)}]},
        "computer_use": {"action": "left_click", "coordinate": [rng.randrange(1001), rng.randrange(1001)]},
    }
    if name in given and rng.random() < 0.7:
        return ToolCall(name, given[name])
    keys = rng.sample(("x", "y", "a", "b", "c", "content", "reason", "actions", "action"), rng.randrange(4))
    return ToolCall(name, {key: value_of(rng) for key in keys})


def turn_of(rng: random.Random) -> Turn:
    """A turn that the schema allows."""
    while True:
        with contextlib.suppress(ValueError):
            thought = rng.choice(("", "I go up.", "왼쪽.\n\nThen right.", text_of(rng)))
            return Turn(thought, tuple(call_of(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))))


# kinds of answers


def right(rng: random.Random) -> str:
    """As some format writes a turn."""
    while True:
        with contextlib.suppress(ValueError):  # an element cannot hold its own tags
            return "".join(span.text for span in rng.choice(PARSERS).render(turn_of(rng)))


def changed(rng: random.Random, text: str) -> str:
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        end = min(end, at + rng.choice((1, 2, 8, 40)))
        edits = (
            lambda at=at, end=end, text=text: text[:at] + text[end:],
            lambda at=at, text=text: text[:at],
            lambda at=at, end=end, text=text: text[:end] + text[at:],
            lambda at=at, text=text: text[:at] + rng.choice(FRAGMENTS) + text[at:],
            lambda at=at, end=end, text=text: text[:at] + rng.choice(FRAGMENTS) + text[end:],
            lambda at=at, end=end, text=text: text[:at] + text[at:end].swapcase() + text[end:],
            lambda at=at, text=text: text[at:] + text[:at],
        )
        text = rng.choice(edits)()
    return text


def near_json(rng: random.Random, depth: int = 0) -> str:
    """JSON as models write it, and worse."""
    if depth > 4 or rng.random() < 0.4:
        quote = rng.choice('""""\'')
        return rng.choice((f"{quote}{text_of(rng)}{quote}", rng.choice(WORDS), str(rng.randrange(99)), "True", "null"))
    items = [near_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    comma, close = rng.choice((", ", ",", ", ", " ", ",,")), rng.choice(("", "}", "]", "}", "]", "}}"))
    if rng.random() < 0.5:
        return f"[{comma.join(items)}{close or ']'}"
    keys = [rng.choice(('"name"', '"arguments"', "'x'", '"x"', "y", '"action"', '"function"')) for _ in items]
    return "{" + comma.join(f"{key}: {item}" for key, item in zip(keys, items, strict=True)) + (close or "}")


def json_call(rng: random.Random) -> str:
    head = rng.choice(("", "I go.\n", "Thought: I go.\nAction: ", "<think>\n\n</think>\n\n"))
    name = rng.choice(("move", "f", "update_notepad", "computer_use", "none", ""))
    inside = rng.choice(
        (
            f'{{"name": "{name}", "arguments": {near_json(rng)}}}',
            f'{{"name": "{name}", "parameters": {near_json(rng)}, "id": {near_json(rng, 4)}}}',
            f'{{"function": {{"name": "{name}", "arguments": {near_json(rng)}}}}}',
            f"<function={name}>\n<parameter=x>\n{near_json(rng)}\n</parameter>\n</function>",
            f"{name}(x={near_json(rng)}, y={near_json(rng)})",
            near_json(rng),
        )
    )
    return head + rng.choice(("<tool_call>\n", "")) + inside + rng.choice(("\n</tool_call>", "", "\n<tool_call>"))


def bytes_of(rng: random.Random) -> str:
    content = rng.randbytes(rng.choice((1, 3, 20, 200)))
    encoding, errors = rng.choice((("latin-1", "strict"), ("utf-8", "replace"), ("utf-8", "surrogateescape")))
    return content.decode(encoding, errors)


def characters(rng: random.Random) -> str:
    planes = (0x80, 0x300, 0x370, 0x2100, 0xD7FF, 0xFFFF, 0x10FFFF)
    return "".join(chr(rng.randrange(rng.choice(planes))) for _ in range(rng.choice((1, 4, 30))))


def long(rng: random.Random) -> str:
    """4 to 64 KiB of one or two fragments, behind a beginning."""
    repeated = rng.choice(FRAGMENTS) + rng.choice(("", rng.choice(FRAGMENTS)))
    size = rng.choice((2**12, 2**12, 2**12, 2**14, 2**16))
    return rng.choice(FRAGMENTS) + repeated * (size // len(repeated)) + rng.choice(FRAGMENTS)


KINDS: dict[str, Callable[[random.Random], str]] = {
    "as a format writes it": right,
    "that, changed": lambda rng: changed(rng, right(rng)),
    "real ones, changed": lambda rng: changed(rng, rng.choice(REAL)),
    "two real ones, spliced": lambda rng: splice(rng, rng.choice(REAL), rng.choice((right(rng), rng.choice(REAL)))),
    "calls in near-JSON": json_call,
    "calls in near-JSON, changed": lambda rng: changed(rng, json_call(rng)),
    "other models' actions, changed": lambda rng: changed(rng, rng.choice(ACTIONS)),
    "fragments": lambda rng: "".join(rng.choice(FRAGMENTS) for _ in range(rng.choice((1, 2, 3, 5, 9, 20)))),
    "bytes": bytes_of,
    "characters": characters,
}
LONG_EVERY = 100
"""Of so many answers one is long."""


def splice(rng: random.Random, first: str, second: str) -> str:
    return first[: rng.randrange(len(first) + 1)] + second[rng.randrange(len(second) + 1) :]


# what must hold


def faults(text: str, tools: tuple[Tool, ...], some: int) -> Iterator[str]:
    """What is wrong with how this answer is read, a line each; `some` picks what is tried on a part of them alone."""
    limit = SECONDS * (1 + len(text) / 2**16)
    for fmt in PARSERS:
        started = time.process_time()
        answer = fmt.parse(text, tools)
        if time.process_time() - started > limit:
            yield f"{fmt.family.model_type} {fmt.name} took {time.process_time() - started:.2f} s"
        yield from (f"{fmt.family.model_type} {fmt.name}: {fault}" for fault in faults_of(answer, fmt, text, tools))
        if answer.turn.tool_calls:
            yield from faults_of_actions(answer.turn)
    started = time.process_time()
    yield from faults_of_others(text, tools, some)
    if time.process_time() - started > 2 * limit:
        yield f"the others took {time.process_time() - started:.2f} s"


def faults_of(answer: Answer, fmt: Format, text: str, tools: Sequence[Tool]) -> Iterator[str]:
    turn = answer.turn
    if answer.error:
        if answer.error not in ERRORS or turn != Turn() or answer.repairs:
            yield f"error {answer.error} of {turn}, {answer.repairs}"
        return
    if unknown := set(answer.repairs) - REPAIRS:
        yield f"repairs {sorted(unknown)} are not documented"
    if turn == Turn():
        yield "neither a turn nor an error"
    try:
        written = "".join(span.text for span in fmt.render(turn))
    except ValueError as error:
        yield f"what was read cannot be written: {error}"
        return
    if not turn.tool_calls:
        if not answer.repairs and essence(written, fmt) != essence(text, fmt):
            yield f"words were lost: {written!r}"
        return
    again = fmt.parse(written, tools)
    if (again.repairs or again.error or not is_same(again.turn, turn, fmt, written)) and are_typed(turn, fmt, tools):
        yield f"written again as {written!r}, read as {again}"
    if not answer.repairs and essence(written, fmt) != essence(text, fmt):
        yield f"strict, but written again as {written!r}"


def are_typed(turn: Turn, fmt: Format, tools: Sequence[Tool]) -> bool:
    """Whether what the calls hold is of the types by which it would be read again: elsewhere elements promise nothing."""
    if fmt.family.calls is HERMES or fmt.name == "plain":
        return True
    known = [(tool_named(tools, call.name), call.arguments) for call in turn.tool_calls]
    return all(not argument_error(tool.parameters, arguments) for tool, arguments in known if tool)


def is_same(again: Turn, turn: Turn, fmt: Format, written: str) -> bool:
    """Of a syntax that leaves types to the tool's schema (`2` is a number or a text), what is written the same."""
    if again == fmt.project(turn) or fmt.family.calls is HERMES or fmt.name == "plain":
        return again == fmt.project(turn)
    return "".join(span.text for span in fmt.render(again)) == written


ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def essence(text: str, fmt: Format) -> str:
    """The letters of an answer, however JSON spells them: no white space, no escapes, numbers by value."""
    text = text.strip().removesuffix(fmt.family.template.turn_end).strip()
    text = ESCAPE.sub(lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "u" and len(m[1]) == 5 else m[1], text)
    text = "".join(text.split()).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = NUMBER.sub(lambda m: number(m[0]), text)
    return "".join(unicodedata.normalize("NFC", text).split())


def number(text: str) -> str:
    if text.lstrip("-").isdigit():
        return text.lstrip("-0") and ("-" * text.startswith("-") + text.lstrip("-0")) or "0"
    value = float(text)
    return repr(value if value else 0.0)


def faults_of_actions(turn: Turn) -> Iterator[str]:
    """Of a computer's actions: the strict reading writes the call again as it was."""
    read_turn(turn, SCREEN)
    for call in turn.tool_calls:
        if call.name != tool.NAME:
            continue
        try:
            action = read_call(call, SCREEN)
        except ActionError:
            continue
        if read_call(to_call(action, SCREEN), SCREEN) != action:
            yield f"strict action {call.arguments} is written again as {to_call(action, SCREEN).arguments}"


def faults_of_others(text: str, tools: Sequence[Tool], some: int) -> Iterator[str]:
    """Dialects, lists of elements, and what is read of an agent's own words."""
    reading = read(text, SCREEN, ("norm", "px", "fraction")[some % 3], clamp=some % 2 == 0)
    if bool(reading.error) == bool(reading.actions):
        yield f"dialect: {reading}"
    for action in reading.actions:
        with contextlib.suppress(ValueError):  # of a text that must not be written
            again = read_call(to_call(action, SCREEN), SCREEN)
            if again.kind != action.kind:
                yield f"dialect: {action} is written again as {again}"
    read_list(text, SCREEN)
    planned(text)
    read_notes(text, 50, 50)
    if some % 8 == 0:
        with contextlib.suppress(ValueError):
            read_written(text, tools, "messages[1]")


def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    names = list(KINDS)
    for case in cases:
        rng, kind = random_of(seed, case), names[case % len(names)]
        found = next(found_in(rng, KINDS[kind]), "")
        yield Outcome(kind, not found, found[:600], tried=BATCH)


def found_in(rng: random.Random, make: Callable[[random.Random], str]) -> Iterator[str]:
    for i in range(BATCH):
        text = long(rng) if i % LONG_EVERY == LONG_EVERY - 1 else make(rng)
        tools = rng.choice(TOOLS)
        try:
            fault = next(faults(text, tools, i), "")
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            shown = text if len(text) < 300 else f"{text[:150]}...{text[-150:]}"
            yield f"answer {i} {shown!r} with {[t.name for t in tools]}: {fault}"


ATTACK = Attack(
    "answers",
    f"answers through all parsers and dialects, {BATCH} a case",
    full=2000,
    quick=20,
    seconds=3600,
    run=run,
)
