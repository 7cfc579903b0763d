"""The one schema: what a tool, a turn, a step and an episode are. Frozen and torch-free.

Every source (recorded files, chat files, environments, people) becomes these classes at the door; nothing behind the
door knows where data came from. The door is the constructor: it normalises text to Unicode NFC (the tokenizer does so
anyway), escapes the spellings of control tokens in text that the model reads (`clean`), and refuses them in text that
the model is to write (`check_written`), because there an escaped spelling would be taught.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qwenvl_agent.families import control_words
from qwenvl_agent.images import picture_errors, read_rgb, read_size, to_rgb

if TYPE_CHECKING:
    from PIL import Image

# Every control token of every family is spelled one of these two ways; the second kind is not "special" to tokenizers,
# so split_special_tokens would not protect against it.
CONTROL_SPELLING = re.compile(rf"<(?=\|[A-Za-z0-9_]+\|>|/?(?:{'|'.join(control_words())})>)")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# A line that starts like this is structure in the plain and hybrid formats.
MARKER_LINE = re.compile(r"(?m)^[ \t]*(?:Thought|Action):")
TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
MAX_NESTING = 64
"""Of lists and objects in one another: what is deeper, the parsers could not mend and Python's recursion not walk."""


def clean(text: str) -> str:
    """NFC, with a backslash after the `<` of every control token's spelling: `<|im_end|>` reads `<\\|im_end|>`.

    Idempotent: what was escaped no longer matches.
    """
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return CONTROL_SPELLING.sub(r"<\\", text) if "<" in text else text


def clean_json(value: Any, depth: int = 0) -> Any:
    """`clean` applied to every string in a JSON value, keys included; ValueError for one nested too deep."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, (list, tuple)):
        check_nesting(depth)
        return [clean_json(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        check_nesting(depth)
        return {clean(str(key)): clean_json(item, depth + 1) for key, item in value.items()}
    return value


def check_nesting(depth: int) -> None:
    if depth >= MAX_NESTING:
        raise ValueError(
            f"a value with more than {MAX_NESTING} lists and objects in one another: no format could be sure to read "
            "it back; flatten it"
        )


def check_written(text: str, what: str) -> str:
    """NFC text that the model is taught to write; ValueError if it holds a control token's spelling."""
    if not text.isascii():
        half = LONE_SURROGATE.search(text)
        if half:
            raise ValueError(
                f"{what} holds {half.group()!r}, which no tokenizer takes: it is half a character: correct the text"
            )
        text = unicodedata.normalize("NFC", text)
    found = CONTROL_SPELLING.search(text) if "<" in text else None
    if found:
        spelling = text[found.start() : text.index(">", found.start()) + 1]
        raise ValueError(
            f"{what} holds the control token {spelling!r}: trained on, it would break the turn's structure; "
            "remove it from the data"
        )
    return text


def check_written_json(value: object, what: str, depth: int = 0) -> object:
    """`check_written` applied to every string in a JSON value; ValueError for what JSON cannot hold."""
    if isinstance(value, str):
        return check_written(value, what)
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        check_nesting(depth)
        return [check_written_json(item, f"{what}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        check_nesting(depth)
        return {
            check_written(key, what): check_written_json(item, f"{what}.{key}", depth + 1)
            for key, item in value.items()
        }
    raise ValueError(f"{what} is {value!r}: JSON has no such value, so no format could write it; use a finite number")


@dataclass(frozen=True)
class Tool:
    """A function that the agent may call; `parameters` is a JSON schema of type object.

    Its name is refused with a control token in it, because the model is to write it; all else is cleaned.
    """

    name: str
    description: str
    parameters: dict
    entry: dict | None = None
    """The entry of `tools` as its author wrote it (cleaned), None for the usual form: see `from_json`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_written(self.name, "tool name"))
        object.__setattr__(self, "description", clean(self.description))
        object.__setattr__(self, "parameters", clean_json(self.parameters))

    @classmethod
    def from_json(cls, entry: Mapping) -> "Tool":
        """The tool of one entry of `tools`, OpenAI's form or the flat one; prompts show the entry with its own keys.

        A server that is given the same `tools` writes them as they stand: another order of keys is another prompt.
        """
        name = entry.get("function", entry)["name"]
        cleaned = clean_json(entry)
        function = cleaned.get("function", cleaned)
        tool = cls(
            name,
            str(function.get("description") or ""),
            function.get("parameters") or {"type": "object", "properties": {}},
        )
        # As text: dicts of another order are equal.
        return tool if json.dumps(cleaned) == json.dumps(tool.to_json()) else replace(tool, entry=cleaned)

    def to_json(self) -> dict:
        """The form that chat templates take as one entry of `tools`."""
        if self.entry is not None:
            return self.entry
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """One call; `arguments` is always an object, never a JSON string (templates would print that verbatim)."""

    name: str
    arguments: dict

    def __post_init__(self) -> None:
        if not TOOL_NAME.fullmatch(self.name):
            raise ValueError(f"tool name {self.name!r} cannot be written as a call; use letters, digits, '_', '-', '.'")
        if not isinstance(self.arguments, Mapping):
            raise ValueError(
                f"arguments of {self.name} are {self.arguments!r}, not an object: no schema could check them; "
                'give {"argument": value}'
            )
        for key in self.arguments:
            if not isinstance(key, str) or not TOOL_NAME.fullmatch(key):
                raise ValueError(f"argument name {key!r} of {self.name} cannot be written as name=value; rename it")
        object.__setattr__(self, "arguments", check_written_json(self.arguments, f"{self.name} arguments"))


@dataclass(frozen=True)
class ToolResult:
    """What the world answered to one call; read by the model, so it is cleaned."""

    name: str
    content: dict

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", clean(self.name))
        object.__setattr__(self, "content", clean_json(self.content))


@dataclass(frozen=True)
class Turn:
    """What the assistant says in one step: a thought and calls, or free text that is taken as it stands.

    A turn has either at least one call (and then perhaps a thought) or `text`; a thought that leads to nothing is
    text. A parser that found neither gives `Turn()`, which environments answer with no_tool_call.
    """

    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        object.__setattr__(self, "thought", check_written(self.thought, "thought").strip())
        object.__setattr__(self, "text", check_written(self.text, "assistant text").strip())
        marker = MARKER_LINE.search(self.thought)
        if marker:
            raise ValueError(
                f"thought has a line that starts with {marker.group().strip()!r}: plain and hybrid turns could not "
                "be read back; reword the line"
            )
        if self.text and (self.thought or self.tool_calls):
            raise ValueError("a turn is either free text or thought and calls: put the words into the thought")
        if self.thought and not self.tool_calls:
            raise ValueError(f"thought {self.thought!r} has no call after it: give it as the turn's text")


@dataclass(frozen=True)
class Picture:
    """A picture whose size is known before its pixels are: a file, or an image in memory.

    The size is that of the upright picture, and its pixels are RGB by the rules of images.py.
    """

    width: int
    height: int
    path: str = ""
    image: "Image.Image | None" = field(default=None, compare=False, repr=False)

    @classmethod
    def from_image(cls, image: "Image.Image") -> "Picture":
        with picture_errors("the picture"):
            image = to_rgb(image)
        return cls(image.width, image.height, image=image)

    @classmethod
    def from_file(cls, path: Path | str, name: str) -> "Picture":
        """The picture with its size from the file's header; no pixel is decoded. `name` is what errors call it."""
        return cls(*read_size(path, name), path=str(path))

    def open(self) -> "Image.Image":
        """RGB image of exactly (width, height); ValueError if the file has another size than was recorded."""
        if self.image is not None:
            return self.image.copy()
        image = read_rgb(self.path, self.path)
        if image.size != (self.width, self.height):
            raise ValueError(
                f"{self.path} is {image.size}, recorded as {(self.width, self.height)}: token counts and positions "
                "would be wrong; read the dataset again (delete its folder in data.cache_dir)"
            )
        return image


@dataclass(frozen=True)
class Observation:
    """What the agent sees in one step: pictures first, then text."""

    text: str
    pictures: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean(self.text))
        object.__setattr__(self, "pictures", tuple(self.pictures))


@dataclass(frozen=True)
class Step:
    """One observation, the turn taken on it, and the world's result for each call (fewer if the episode ended)."""

    observation: Observation
    turn: Turn
    results: tuple[ToolResult, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))
        if len(self.results) > max(1, len(self.turn.tool_calls)):
            raise ValueError(
                f"{len(self.results)} tool results for {len(self.turn.tool_calls)} calls: "
                "a result without its call cannot be placed; drop it or add the call"
            )


@dataclass(frozen=True)
class Request:
    """All that a decision may rest on: what a policy gets, and what the prompt is built from."""

    system_prompt: str
    tools: tuple[Tool, ...]
    history: tuple[Step, ...]
    observation: Observation
    asks_for_thought: bool = True
    """Whether the format's words about the thought follow the system prompt; not where that is a user's own."""
    draw: str = field(default="", compare=False)
    """No part of the prompt: what a policy that draws answers draws this one by, if it draws each by itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "system_prompt", clean(self.system_prompt))
        object.__setattr__(self, "tools", tuple(self.tools))
        object.__setattr__(self, "history", tuple(self.history))

    def draw_number(self, seed: int) -> int:
        """What to draw the answer by under this seed, in the 31 bits that every server takes."""
        return int.from_bytes(hashlib.sha256(f"{seed} {self.draw}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Row:
    """One training row: a request and the turn to learn. `source` is `file:line`; `weight` scales its loss."""

    id: str
    request: Request
    turn: Turn
    source: str = ""
    weight: float = 1.0


NO_ANSWER = "no_answer"


@dataclass(frozen=True)
class Answer:
    """What a policy returned: the turn, and for a model its raw text and how that was read.

    `error` names why no turn could be read (then `turn` is empty); `repairs` names what had to be mended, in order. The
    error NO_ANSWER is none of the model's doing: nothing came from its server, and `text` says why.
    """

    turn: Turn
    text: str = ""
    error: str = ""
    repairs: tuple[str, ...] = ()


class Policy(Protocol):
    """Decides for many episodes at once, so that a model can batch; answer i belongs to request i."""

    def act(self, requests: Sequence[Request]) -> list[Answer]: ...


class Env(Protocol):
    """Gymnasium's interface over turns. What `info` holds: `worlds.world`."""

    system_prompt: str
    tools: tuple[Tool, ...]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]: ...

    def step(self, turn: Turn) -> tuple[Observation, float, bool, bool, dict]: ...

    def close(self) -> None: ...


def tool_named(tools: Iterable[Tool], name: str) -> Tool | None:
    """The tool of that name, or None."""
    return next((tool for tool in tools if tool.name == name), None)
