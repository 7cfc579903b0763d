"""`native`: the model's own tool calling, byte for byte what its chat template writes. Of Qwen3-VL:

The tiger is two tiles to the right.
<tool_call>
{"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2}]}}
</tool_call>
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_agent.families import CallSyntax
from qwenvl_agent.formats.calls import (
    parse_answer,
    read_blocks,
    read_unmarked,
    tool_calls_json,
    tool_messages,
    write_blocks,
)
from qwenvl_agent.formats.format import OfFamily, Span
from qwenvl_agent.formats.grammar import turn_grammar
from qwenvl_agent.near_json import Repairs
from qwenvl_agent.schema import Answer, Tool, ToolCall, ToolResult, Turn

INSTRUCTIONS = "Write a short thought first: what you see and plan. Then call one or more functions."


@dataclass(frozen=True)
class Native(OfFamily):
    name = "native"
    uses_template_tools = True

    def instructions(self, tools: Sequence[Tool]) -> str:
        return INSTRUCTIONS if tools else ""

    def syntax_instructions(self, tools: Sequence[Tool]) -> str:
        return ""

    def render(self, turn: Turn) -> list[Span]:
        if turn.text:
            return [Span("text", turn.text)]
        syntax = self.family.calls
        thought = [Span("thought", turn.thought + syntax.gap)] if turn.thought else []
        return thought + ([Span("call", write_blocks(turn.tool_calls, syntax))] if turn.tool_calls else [])

    def to_message(self, turn: Turn) -> dict:
        message = {"role": "assistant", "content": turn.text or turn.thought}
        return message | ({"tool_calls": tool_calls_json(turn.tool_calls)} if turn.tool_calls else {})

    def parse(self, text: str, tools: Sequence[Tool]) -> Answer:
        return parse_answer(text, tools, read, self.family)

    def grammar(self, tools: Sequence[Tool]) -> str:
        return turn_grammar(self.render, self.family.calls, tools, self.family)

    def project(self, turn: Turn) -> Turn:
        return turn

    def render_results(self, results: Sequence[ToolResult]) -> list[dict]:
        return tool_messages(results)


def read(text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax) -> tuple[str, list[ToolCall]] | None:
    return (read_blocks if syntax.open in text else read_unmarked)(text, tools, repairs, syntax)
