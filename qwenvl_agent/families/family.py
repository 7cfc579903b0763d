"""What a model family is: all in which the models that this package trains differ, as one object.

A new family is one file that makes a `Family` and one row of `FAMILIES` (families/__init__.py). Nothing here imports
the rest of the package, torch or transformers; classes of transformers are named and loaded when they are needed.

Legend: T tokens.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from qwenvl_agent.families.architecture import Architecture
from qwenvl_agent.near_json import Repairs


class GrammarRules(Protocol):
    """The rules of a grammar that is being made (formats/grammar.py), as far as a call's syntax needs them."""

    def add(self, stem: str, body: str) -> str:
        """The name of a new rule."""

    def literal(self, text: str) -> str:
        """Text as it stands, tags as their tokens."""

    def value(self, schema: object, where: str) -> str:
        """Of the JSON values that fit a schema."""

    def members(self, parameters: dict, pair: Callable[[str, object], str], where: str) -> str:
        """Of the arguments of a schema in any order, each once, the required ones all; `pair` writes one, key and value."""

    def text_before(self, end: str, stop: str, schema: object, where: str) -> str:
        """Of any text that may be written and its end, without a match of the regular expression `stop` before it."""

    def json_call(self, name: str, parameters: dict, write: Callable[[str, Mapping], str]) -> str:
        """Of one tool's calls as `write` writes them, its arguments as pairs of key and JSON value."""


class CallSyntax(Protocol):
    """How a family writes a call between two tags, and how that is read back."""

    @property
    def open(self) -> str: ...

    @property
    def close(self) -> str: ...

    @property
    def gap(self) -> str:
        """Between a turn's words and its first call."""

    @property
    def between(self) -> str:
        """Between two calls."""

    @property
    def bare(self) -> re.Pattern:
        """The beginning of a call whose opening tag is missing.

        Where it has the groups `name` and `has_arguments`, a call with an unknown name counts only with arguments.
        """

    def write(self, name: str, arguments: Mapping) -> str:
        """One call with its tags, as the chat template writes it."""

    def pieces(self, arguments: Mapping) -> tuple[str, Iterable[tuple[bool, str]]]:
        """A call's arguments as they are written, and of that text in order (is a value, text) of every name and leaf."""

    def write_served(self, name: str, arguments: str) -> str:
        """One call as the model may have written it, of what a server made of it: arguments as JSON text, sound or not."""

    def read(
        self, body: str, is_closed: bool, parameters_of: Callable[[str], Mapping], repairs: Repairs
    ) -> Iterator[tuple[object, object]]:
        """(name, arguments) of each call that stands between two tags, of whatever type; what was mended is added.

        `is_closed`: the closing tag is there. `parameters_of` gives the schema of a tool's arguments, {} for an unknown
        one, where the syntax alone does not say what type a value has. ParseError for what is no call.
        """

    def expression(self, name: str, parameters: dict, rules: GrammarRules) -> str:
        """The grammar of one tool's calls, for constrained decoding."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """What a chat template writes around the words of a conversation."""

    turn_begin: str
    turn_end: str
    """Ends generation, and is learned with the turn."""
    after_role: str = "\n"
    after_turn: str = "\n"
    opening: str = ""
    """What the turn to be written begins with, after its role, in formats that do not think in a block: such as an empty
    one; earlier turns do not."""
    vision_start: str
    image_pad: str
    vision_end: str
    other_vision: tuple[str, ...] = ()
    """Further tokens that stand for pictures and films: never supervised."""
    result_begin: str
    """Around what a tool gave back, which stands in the user's turn."""
    result_end: str
    think_begin: str
    think_end: str
    tools_head: str
    """Before the tools, each of which has a line of its own."""
    tools_tail: str
    tools_before_text: bool = False
    """Whether the tools stand before the system prompt's text, or behind it."""
    shows_empty_thoughts: bool = False
    """Whether a turn that only tools have answered since is shown with its think block even without a thought."""
    strips_text: bool = False
    """Whether white space around a user's and the system's text goes."""

    @cached_property
    def image(self) -> str:
        """A picture before its pad is repeated."""
        return f"{self.vision_start}{self.image_pad}{self.vision_end}"

    @cached_property
    def assistant(self) -> str:
        """How an earlier turn of the model begins."""
        return self.begin("assistant")

    @property
    def vision_tokens(self) -> tuple[str, ...]:
        return (self.vision_start, self.vision_end, self.image_pad, *self.other_vision)

    @cached_property
    def message(self) -> re.Pattern:
        """(role, content) of each whole turn of a text."""
        begin, after_role, end, after_turn = map(
            re.escape, (self.turn_begin, self.after_role, self.turn_end, self.after_turn)
        )
        return re.compile(rf"{begin}(\w+){after_role}(.*?){end}{after_turn}", re.DOTALL)

    @cached_property
    def picture(self) -> re.Pattern:
        """A picture whose pad is repeated."""
        start, pad, end = map(re.escape, (self.vision_start, self.image_pad, self.vision_end))
        return re.compile(f"{start}(?:{pad})+{end}")

    def begin(self, role: str) -> str:
        return f"{self.turn_begin}{role}{self.after_role}"

    def turn(self, role: str, content: str) -> str:
        return f"{self.turn_begin}{role}{self.after_role}{content}{self.turn_end}{self.after_turn}"

    def system(self, text: str, tool_lines: Sequence[str] = ()) -> str:
        """The system's turn, with tools' definitions in the template's own block; "" if there is nothing to say."""
        text = text.strip() if self.strips_text else text
        if tool_lines:
            tools = self.tools_head + "".join(f"\n{line}" for line in tool_lines) + self.tools_tail
            parts = (tools, text) if self.tools_before_text else (text, tools)
            text = "\n\n".join(part for part in parts if part)
        return self.turn("system", text) if text else ""

    def user(self, num_pictures: int, text: str) -> str:
        content = self.image * num_pictures + text
        return self.turn("user", content.strip() if self.strips_text else content)

    def results(self, contents: Sequence[str]) -> str:
        """The results of one turn's calls, which share a user's turn; "" without any."""
        if not contents:
            return ""
        written = "".join(f"\n{self.result_begin}\n{content}\n{self.result_end}" for content in contents)
        return f"{self.turn_begin}user{written}{self.turn_end}{self.after_turn}"


@dataclass(frozen=True, kw_only=True)
class ModulePaths:
    """Where the parts of the model are, as `get_submodule` finds them."""

    language: str
    layers: str
    head: str
    vision: str
    """The tower and its mergers: a parameter below it belongs to them."""
    patch_projection: str
    adapters: Mapping[str, str]
    """Of each of `model.lora_places` that has linear layers a pattern of their full names; PROJECTION stands in it for
    one of `model.lora_targets`."""
    projections: tuple[str, ...]
    """The linear layers of a language layer, by their last names."""
    fused_experts: tuple[str, ...] = ()
    """Parameters that hold all experts of a layer, (experts, outputs, inputs), by the ends of their names."""
    frozen: str = ""
    """What of the language model never trains, whatever the method, such as a router: a part of its parameters' names."""

    def is_vision(self, parameter: str) -> bool:
        """Whether a parameter, by its name in a model that may be wrapped, belongs to the tower or its mergers."""
        return f"{self.vision}." in parameter

    def may_train(self, parameter: str) -> bool:
        return not (self.frozen and self.frozen in parameter)

    def is_expert(self, parameter: str) -> bool:
        return any(f".{name.rpartition('.')[0]}." in parameter for name in self.fused_experts)


PROJECTION = "PROJECTION"
OPENING = "OPENING"
"""In `Family.plain_chat_template`."""


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """Classes of transformers."""

    model: str
    config: str
    processor: str
    tokenizer: str
    image_processor: str
    video_processor: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A model family. Compared and hashed by identity: the registry holds one of each."""

    model_type: str
    """Of its checkpoints' config.json."""
    title: str
    """Of its checkpoints, for people: what to use where another one was given."""
    unfit: Mapping[str, str]
    """`model_type`s that are near, each with why it cannot be used and what to do."""
    template: Template
    calls: CallSyntax
    added_tokens: Mapping[str, bool]
    """The tokenizer's, in the order of their ids, and whether it calls them special."""
    padding: str
    control_words: tuple[str, ...]
    """Regular expressions of what stands between < and >, or </ and >, in a control token; `<|name|>` always is one."""
    paths: ModulePaths
    classes: ClassNames
    packs: bool = True
    """Whether a row of a pack is computed as if it stood alone: not where a layer's state runs on from row to row."""
    remark: str = ""
    """What a run says of how this family trains, "" if there is nothing that a user could not expect."""
    gathered_whole: tuple[str, ...] = ()
    """Modules whose parts not every rank runs, by class: ZeRO-3 gathers them as one, or ranks wait for each other for
    ever."""
    model_inputs: tuple[str, ...]
    """Keys of a batch that the model's forward takes; pictures are added as pixel_values."""
    positions: Callable[[np.ndarray, Sequence[tuple[int, int]]], np.ndarray]
    """(rows, T) position ids, of which tokens (T,) are pictures' and each picture's (rows, columns) of tokens."""
    published: Mapping[str, Architecture]
    """By hub id, so that a plan needs no download."""
    read_architecture: Callable[[dict], Architecture]
    """From a config.json's values; KeyError names what is missing."""
    only_thinks: Callable[[str, str | None], bool]
    """Whether the checkpoint of this path and chat template, None if it has none, begins every answer in a think block."""
    plain_chat_template: str
    """Jinja, for an export whose base has no chat template, or one that begins answers otherwise than the run: tools and
    calls stand in the text, and OPENING where an answer begins."""
    config_of: Callable[[Architecture], Any]
    """transformers' config of an architecture, with the published values of what no size depends on."""
    stored: Callable[[str, Any], Any] = lambda name, weight: weight
    """A weight as the published checkpoints store it, by its name: what other readers than transformers look for."""
    tiny_config: Callable[..., Any]
    """transformers' config of a small model for a tokenizer, of the sizes in `model.tiny.PRESETS`."""
    encode_pictures: Callable[[Any, Any, Any], list[dict]]
    """Of the base model, pixel values and their grids: of each picture what the tower makes of it, tensors by name."""
    join_features: Callable[[Sequence[dict]], Any]
    """Of such tensors what the model takes in place of pixels, as `mm_encoder_outputs["image"]`."""
    bind_pictures: Callable[[Any], None]
    """Let a base model take `picture_grids` and `picture_places` (data/collator.py), and then ask no device for them."""

    def load_class(self, kind: str) -> Any:
        """One of `classes`, from transformers."""
        return getattr(importlib.import_module("transformers"), getattr(self.classes, kind))

    def tag_tokens(self) -> tuple[str, ...]:
        """The tags of an answer that are tokens of their own."""
        tags = (self.calls.open, self.calls.close, self.template.think_end)
        return tuple(tag for tag in tags if tag in self.added_tokens)
