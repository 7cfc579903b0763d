"""What a format is: one way to write a turn as text, and to read it back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from qwenvl_agent.families import DEFAULT, Family
from qwenvl_agent.schema import Answer, Tool, ToolResult, Turn


class Span(NamedTuple):
    """A piece of text and what it is: prompt | thought | call | text | end."""

    part: str
    text: str


class Format(Protocol):
    """A form of turns for one family of models.

    `parse(join(render(turn)), tools)` is `Answer(project(turn))` without repairs, whatever the language or quotes.

    The law holds for every turn with calls, and for free text that has none of the format's own delimiters.
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Family:
        """Of the models that read and write it: their template and their syntax of calls."""

    @property
    def opening(self) -> str:
        """What the turn to be written begins with, behind its role: part of the prompt, and of no earlier turn."""

    @property
    def closing(self) -> str:
        """What the model writes behind a thought in a block; "" in formats without one."""

    @property
    def uses_template_tools(self) -> bool:
        """Whether the tools stand in the chat template's "# Tools" block; if not, `instructions` lists them."""

    def instructions(self, tools: Sequence[Tool]) -> str:
        """What follows the system prompt after a blank line: how calls are written, and what to say before them.

        "" without tools.
        """

    def syntax_instructions(self, tools: Sequence[Tool]) -> str:
        """Of `instructions` how calls are written, where the template does not say it; nothing about the thought."""

    def render(self, turn: Turn) -> list[Span]:
        """The assistant's text without its end token."""

    def render_past(self, turn: Turn) -> list[Span]:
        """An earlier turn, as later prompts show it."""

    def render_midway(self, turn: Turn) -> list[Span]:
        """An earlier turn that only tools have answered since: it is shown with its think block, which is prompt."""

    def to_message(self, turn: Turn) -> dict:
        """The chat message of which the model's own template makes the text of `render`."""

    def parse(self, text: str, tools: Sequence[Tool]) -> Answer:
        """Read a model's answer. Never raises."""

    def grammar(self, tools: Sequence[Tool]) -> str:
        """Of the turns with calls of these tools (at least one), as `render` writes them: see `grammar`."""

    def project(self, turn: Turn) -> Turn:
        """What is left of a turn that was written in this format."""

    def render_results(self, results: Sequence[ToolResult]) -> list[dict]:
        """Chat messages that tell the model what its calls led to."""


@dataclass(frozen=True)
class OfFamily:
    """What formats have in common: turns begin as their family's do, and stay as they were written."""

    family: Family = DEFAULT

    @property
    def opening(self) -> str:
        return self.family.template.opening

    @property
    def closing(self) -> str:
        return ""

    def render(self, turn: Turn) -> list[Span]:
        raise NotImplementedError

    def render_past(self, turn: Turn) -> list[Span]:
        return self.render(turn)

    def render_midway(self, turn: Turn) -> list[Span]:
        opening = [Span("prompt", self.opening)] if self.opening else []
        return opening + self.render(turn)
