"""`hybrid`: Thought and Action lines before the `<tool_call>` blocks, the style of Qwen's own agent examples.

    Thought: The tiger is two tiles to the right.
    Action: "move"
    <tool_call>
    {"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2}]}}
    </tool_call>

The Action line names the calls; what a model writes there instead is left out, and said by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_agent.families import CallSyntax
from qwenvl_agent.formats.calls import (
    ACTION,
    THOUGHT,
    parse_answer,
    read_blocks,
    read_unmarked,
    split_thought,
    tool_calls_json,
    tool_messages,
    write_blocks,
)
from qwenvl_agent.formats.format import OfFamily, Span
from qwenvl_agent.formats.grammar import turn_grammar
from qwenvl_agent.near_json import ParseError, Repairs
from qwenvl_agent.schema import Answer, Tool, ToolCall, ToolResult, Turn

THOUGHT_LINE = "Thought: <what you see and plan, short>\n"
SYNTAX = """Answer in this form:
Action: "<the names of the functions that you call>"
Then call the functions."""
INSTRUCTIONS = SYNTAX.replace("Action:", f"{THOUGHT_LINE}Action:")


@dataclass(frozen=True)
class Hybrid(OfFamily):
    name = "hybrid"
    uses_template_tools = True

    def instructions(self, tools: Sequence[Tool]) -> str:
        return INSTRUCTIONS if tools else ""

    def syntax_instructions(self, tools: Sequence[Tool]) -> str:
        return SYNTAX if tools else ""

    def render(self, turn: Turn) -> list[Span]:
        if turn.text:
            return [Span("text", turn.text)]
        thought = [Span("thought", f"Thought: {turn.thought}\n")] if turn.thought else []
        if not turn.tool_calls:
            return thought
        syntax = self.family.calls
        return [
            *thought,
            Span("call", f"Action: {_names(turn.tool_calls)}{syntax.gap}{write_blocks(turn.tool_calls, syntax)}"),
        ]

    def to_message(self, turn: Turn) -> dict:
        if not turn.tool_calls:
            return {"role": "assistant", "content": turn.text}
        thought = f"Thought: {turn.thought}\n" if turn.thought else ""
        content = f"{thought}Action: {_names(turn.tool_calls)}"
        return {"role": "assistant", "content": content, "tool_calls": tool_calls_json(turn.tool_calls)}

    def parse(self, text: str, tools: Sequence[Tool]) -> Answer:
        return parse_answer(text, tools, _read, self.family)

    def grammar(self, tools: Sequence[Tool]) -> str:
        return turn_grammar(self.render, self.family.calls, tools, self.family)

    def project(self, turn: Turn) -> Turn:
        return turn

    def render_results(self, results: Sequence[ToolResult]) -> list[dict]:
        return tool_messages(results)


def _names(calls: Sequence[ToolCall]) -> str:
    return f'"{", ".join(call.name for call in calls)}"'


def _read(text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax) -> tuple[str, list[ToolCall]] | None:
    if syntax.open not in text:
        return _read_without_tags(text, tools, repairs, syntax)
    head, calls = read_blocks(text, tools, repairs, syntax)
    action = ACTION.search(head)
    if not action:
        repairs.add("missing_action_marker")
        return split_thought(head, repairs), calls
    said = head[action.end() :].strip()
    if "\n" in said:
        repairs.add("text_before_call")
    if said.partition("\n")[0].rstrip() != _names(calls):
        repairs.add("other_action_line")
    return split_thought(head[: action.start()].strip(), repairs), calls


def _read_without_tags(
    text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax
) -> tuple[str, list[ToolCall]] | None:
    found = read_unmarked(text, tools, repairs, syntax)
    if found:
        return split_thought(found[0], repairs), found[1]
    if THOUGHT.match(text) or ACTION.search(text):
        raise ParseError("no_call")
    return None
