"""Conversations that nobody would write, drawn from a seed: what a prompt has to survive to equal a published template's.

Each is a request and the turn to learn: with a system prompt or none, none to four tools in the spellings that authors use,
none to five steps of history, each with none to four pictures, with text or none, with a thought, free text or nothing at
all, with one to four calls, and with as many results, fewer, or none. A step without text and pictures that follows results
is an assistant that goes on after its tools. Values nest, keys are odd, and texts hold control tokens, Jinja, white space
of many kinds, two forms of Unicode and tags of the families' own syntaxes.
"""

import random
from collections.abc import Callable, Iterator

from qwenvl_agent.schema import Observation, Picture, Request, Step, Tool, ToolCall, ToolResult, Turn

WRITABLE = (
    *("Go.", "the tiger", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\x0b", "\u00a0", "\u2028", "\u3000", "\ufeff"),
    *("호랑이", "老虎（左）", "tigre\u0301", "t\u00e9", "🐯\u200d🔥", "مرحبا", "\u0000"),
    *('"', "'", "\\", "\\n", "\\u0041", "&lt;", "<b>", "</", "<", ">", "{", "}", "{{ messages }}", "{% endif %}", "{#"),
    *("True", "null", "1e5", "-0.0", "assistant\n", "Action", "```json", "name=", "Picture 1: "),
)
READ = (
    *WRITABLE,
    *(
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<|image_pad|>",
        "<|vision_start|>",
        "<think>",
        "</think>",
        "<think>\n\n",
    ),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "<function=f>", "</parameter>"),
    *("Thought: ", "\nAction: f()", "\ud83d\udc2f".encode("utf-16", "surrogatepass").decode("utf-16")),
)
"""What a model may meet and is not to write."""
UNWRITABLE = "</parameter>"
"""In a value: Qwen3.5's syntax of calls cannot write it."""
NAMES = ("f", "move", "update_notepad", "a.b-c", "_", "computer_use", "F2")
KEYS = ("x", "y", "actions", "content", "a.b-c", "_", "type", "items")
NUMBERS = (0, -1, 7, 2**70, 0.1, -0.0, 1e22, 1e-7, 1.5, 123456789.123456789)


def conversations(num: int, seed: int) -> Iterator[tuple[Request, Turn]]:
    for i in range(num):
        yield conversation(random.Random(f"{seed} {i}"))


def conversation(draw: random.Random) -> tuple[Request, Turn]:
    tools = tuple(tool(draw) for _ in range(draw.choice((0, 1, 1, 2, 4))))
    history = tuple(step(draw) for _ in range(draw.choice((0, 0, 1, 2, 3, 5))))
    system = draw.choice(("", "You play.", text(draw, READ), text(draw, READ)))
    request = Request(system, tools, history, observation(draw), draw.random() < 0.5)
    return request, turn(draw, draw.choice(("thought", "thought", "calls", "text")))


def text(draw: random.Random, words: tuple[str, ...], most: int = 8) -> str:
    return "".join(draw.choices(words, k=draw.randint(0, most)))


def value(draw: random.Random, words: tuple[str, ...], depth: int = 0) -> object:
    kind = draw.choice(("text", "text", "number", "literal", "list", "object"))
    if depth == 3 and kind in ("list", "object"):
        kind = "text"
    makers: dict[str, Callable[[], object]] = {
        "text": lambda: text(draw, words),
        "number": lambda: draw.choice(NUMBERS),
        "literal": lambda: draw.choice((None, True, False)),
        "list": lambda: [value(draw, words, depth + 1) for _ in range(draw.randint(0, 3))],
        "object": lambda: {text(draw, words): value(draw, words, depth + 1) for _ in range(draw.randint(0, 3))},
    }
    return makers[kind]()


def call(draw: random.Random) -> ToolCall:
    words = (*WRITABLE, UNWRITABLE) if draw.random() < 0.05 else WRITABLE
    keys = draw.sample(KEYS, draw.randint(0, 3))
    return ToolCall(draw.choice(NAMES), {key: value(draw, words) for key in keys})


def turn(draw: random.Random, kind: str) -> Turn:
    if kind == "nothing":
        return Turn()
    if kind == "text":
        return Turn(text=text(draw, WRITABLE) + "So.")
    thought = text(draw, WRITABLE) if kind == "thought" else ""
    return Turn(thought, tuple(call(draw) for _ in range(draw.choice((1, 1, 2, 4)))))


def observation(draw: random.Random) -> Observation:
    pictures = (Picture(32, 32, path="not read"),) * draw.choice((0, 1, 1, 2, 4))
    return draw.choice((Observation(""), Observation(text(draw, READ)), Observation(text(draw, READ), pictures)))


def step(draw: random.Random) -> Step:
    taken = turn(draw, draw.choice(("thought", "thought", "calls", "text", "nothing")))
    most = max(1, len(taken.tool_calls))
    results = [ToolResult(name, result(draw)) for name in [*(c.name for c in taken.tool_calls), "f"][:most]]
    return Step(observation(draw), taken, tuple(results[: draw.choice((0, 1, most, most, most))]))


def result(draw: random.Random) -> dict:
    return {text(draw, READ): value(draw, READ) for _ in range(draw.choice((0, 1, 1, 3)))}


def tool(draw: random.Random) -> Tool:
    """In one of the spellings of `Tool.from_json`."""
    parameters = {"type": "object", "properties": {key: schema(draw) for key in draw.sample(KEYS, draw.randint(0, 3))}}
    function = {"name": draw.choice(NAMES), "description": text(draw, READ), "parameters": parameters}
    if draw.random() < 0.3:
        function = dict(draw.sample(list(function.items()), 3)) | {"strict": True, "x": value(draw, READ)}
    entry = draw.choice(
        (
            {"type": "function", "function": function},
            {"function": function, "type": "function"},
            function,
            {"name": "bare"},
        )
    )
    return Tool.from_json(entry)


def schema(draw: random.Random) -> dict:
    kind = draw.choice(("string", "integer", "object", "array", "enum", "other"))
    if kind == "enum":
        return {"enum": [text(draw, WRITABLE) for _ in range(2)], "description": text(draw, READ)}
    if kind == "other":
        return {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/P"}], "$defs": {"P": {}}, "default": value(draw, READ)}
    return {"description": text(draw, READ), "type": kind}
