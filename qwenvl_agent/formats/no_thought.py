"""`no_thought`: `native` without the thought, to measure what the thought is worth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenvl_agent.families import CallSyntax
from qwenvl_agent.formats.calls import parse_answer
from qwenvl_agent.formats.format import Span
from qwenvl_agent.formats.native import Native
from qwenvl_agent.formats.native import read as read_native
from qwenvl_agent.near_json import Repairs
from qwenvl_agent.schema import Answer, Tool, ToolCall, Turn

INSTRUCTIONS = "Call one or more functions. Write nothing else."


@dataclass(frozen=True)
class NoThought(Native):
    name = "no_thought"

    def instructions(self, tools: Sequence[Tool]) -> str:
        return INSTRUCTIONS if tools else ""

    def render(self, turn: Turn) -> list[Span]:
        return super().render(self.project(turn))

    def to_message(self, turn: Turn) -> dict:
        return super().to_message(self.project(turn))

    def parse(self, text: str, tools: Sequence[Tool]) -> Answer:
        return parse_answer(text, tools, _read, self.family)

    def project(self, turn: Turn) -> Turn:
        return replace(turn, thought="")


def _read(text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax) -> tuple[str, list[ToolCall]] | None:
    found = read_native(text, tools, repairs, syntax)
    if not found:
        return None
    head, calls = found
    if head:
        repairs.add("text_before_call")
    return "", calls
