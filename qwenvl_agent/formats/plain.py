"""`plain`: thought and calls as lines of text, arguments as JSON values.

Thought: The tiger is two tiles to the right.
Action: update_notepad(content="plan: right")
Action: move(actions=[{"direction": "RIGHT", "steps": 2}])
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_agent.families import CallSyntax
from qwenvl_agent.formats.calls import (
    PLAIN_CALLS,
    THOUGHT,
    parse_answer,
    read_bare,
    read_blocks,
    read_plain,
    split_thought,
    write_plain,
)
from qwenvl_agent.formats.format import OfFamily, Span
from qwenvl_agent.formats.grammar import turn_grammar
from qwenvl_agent.near_json import ParseError, Repairs, json_text
from qwenvl_agent.schema import Answer, Tool, ToolCall, ToolResult, Turn

THOUGHT_LINE = "Thought: <what you see and plan, short>\n"
SYNTAX = """# Tools

You may call one or more functions to assist with the user query. Their signatures, one a line:
{tools}

Answer in this form, every argument as name=<json value>, one line for each call:
Action: <function-name>(<argument>=<json value>, <argument>=<json value>)"""
INSTRUCTIONS = SYNTAX.replace("\nAction:", f"\n{THOUGHT_LINE}Action:")


@dataclass(frozen=True)
class Plain(OfFamily):
    name = "plain"
    uses_template_tools = False

    def instructions(self, tools: Sequence[Tool]) -> str:
        return _with_tools(INSTRUCTIONS, tools)

    def syntax_instructions(self, tools: Sequence[Tool]) -> str:
        return _with_tools(SYNTAX, tools)

    def render(self, turn: Turn) -> list[Span]:
        if turn.text:
            return [Span("text", turn.text)]
        thought = [Span("thought", f"Thought: {turn.thought}\n")] if turn.thought else []
        actions = "\n".join(f"Action: {write_plain(call)}" for call in turn.tool_calls)
        return thought + ([Span("call", actions)] if actions else [])

    def to_message(self, turn: Turn) -> dict:
        return {"role": "assistant", "content": "".join(span.text for span in self.render(turn))}

    def parse(self, text: str, tools: Sequence[Tool]) -> Answer:
        return parse_answer(text, tools, _read, self.family, PLAIN_CALLS)

    def grammar(self, tools: Sequence[Tool]) -> str:
        return turn_grammar(self.render, PLAIN_CALLS, tools, self.family)

    def project(self, turn: Turn) -> Turn:
        return turn

    def render_results(self, results: Sequence[ToolResult]) -> list[dict]:
        if not results:
            return []
        lines = "\n".join(f"Result of {result.name}: {json_text(result.content)}" for result in results)
        return [{"role": "user", "content": lines}]


def _with_tools(instructions: str, tools: Sequence[Tool]) -> str:
    return instructions.format(tools="\n".join(json_text(tool.to_json()) for tool in tools)) if tools else ""


def _read(text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax) -> tuple[str, list[ToolCall]] | None:
    if syntax.open in text:
        repairs.add("native_call_in_plain")
        head, calls = read_blocks(text, tools, repairs, syntax)
        return split_thought(head, repairs), calls
    found = read_plain(text, tools, repairs)
    if not found and (found := read_bare(text, tools, repairs, syntax)):
        repairs.add("native_call_in_plain")
    if not found:
        if THOUGHT.match(text):
            raise ParseError("no_call")
        return None
    head, calls = found
    return split_thought(head, repairs), calls
