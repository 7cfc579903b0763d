"""`no_thought`: `native` without the thought, to measure what the thought is worth."""

from collections.abc import Sequence
from dataclasses import replace

from ..schema import Answer, Tool, ToolCall, Turn
from .calls import parse_answer
from .format import Span
from .native import Native
from .native import read as read_native
from .repair import Repairs

INSTRUCTIONS = "Call one or more functions. Write nothing else."


class NoThought(Native):
    name = "no_thought"

    def instructions(self, tools: Sequence[Tool]) -> str:
        return INSTRUCTIONS if tools else ""

    def render(self, turn: Turn) -> list[Span]:
        return super().render(self.project(turn))

    def to_message(self, turn: Turn) -> dict:
        return super().to_message(self.project(turn))

    def parse(self, text: str, tools: Sequence[Tool]) -> Answer:
        return parse_answer(text, tools, _read)

    def project(self, turn: Turn) -> Turn:
        return replace(turn, thought="")


def _read(text: str, tools: Sequence[Tool], repairs: Repairs) -> tuple[str, list[ToolCall]] | None:
    found = read_native(text, tools, repairs)
    if not found:
        return None
    head, calls = found
    if head:
        repairs.add("text_before_call")
    return "", calls
