"""`think`: the thought in the model's own think block, then native calls: what Thinking checkpoints write. Of Qwen3-VL:

<think>
The tiger is two tiles to the right.
</think>

<tool_call>
{"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2}]}}
</tool_call>

The block's beginning is the end of the prompt, so that the model writes the rest. A later prompt shows an earlier turn
without its thought, as the checkpoints' own template does: what was thought is gone unless a tool has kept it. Only while
nobody but tools has answered since, the thought stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenvl_agent.formats.calls import has_tag, parse_answer, without_markers
from qwenvl_agent.formats.format import Span
from qwenvl_agent.formats.native import Native, read
from qwenvl_agent.near_json import ParseError, Repairs
from qwenvl_agent.schema import CONTROL_SPELLING, LONE_SURROGATE, Answer, Tool, Turn

INSTRUCTIONS = "Think first: a short thought, what you see and plan. Then call one or more functions."


@dataclass(frozen=True)
class Think(Native):
    name = "think"

    @property
    def opening(self) -> str:
        return f"{self.family.template.think_begin}\n"

    @property
    def closing(self) -> str:
        """Between the thought and what follows it."""
        return f"\n{self.family.template.think_end}\n\n"

    def instructions(self, tools: Sequence[Tool]) -> str:
        return INSTRUCTIONS if tools else ""

    def render(self, turn: Turn) -> list[Span]:
        rest = self.render_past(turn)
        if turn.thought:
            return [Span("thought", turn.thought + self.closing), *rest]
        first, *others = rest or [Span("call", "")]
        return [Span(first.part, self.closing + first.text), *others]

    def render_past(self, turn: Turn) -> list[Span]:
        return super().render(replace(turn, thought=""))

    def render_midway(self, turn: Turn) -> list[Span]:
        """Not every template shows a block without a thought."""
        is_shown = turn.thought or self.family.template.shows_empty_thoughts
        return super().render_midway(turn) if is_shown else self.render_past(turn)

    def to_message(self, turn: Turn) -> dict:
        return super().to_message(replace(turn, thought="")) | {"reasoning_content": turn.thought}

    def parse(self, text: str, tools: Sequence[Tool]) -> Answer:
        repairs = Repairs()
        try:
            thought, rest = self._split(text, repairs)
            answer = parse_answer(rest, tools, read, self.family)
            if answer.error:
                return replace(answer, text=text)
            return Answer(self._with_thought(answer.turn, thought, repairs), text, repairs=(*repairs, *answer.repairs))
        except ParseError as error:
            return Answer(Turn(), text, error=error.name)

    def _split(self, text: str, repairs: Repairs) -> tuple[str, str]:
        """The thought and what follows it; ParseError for an answer that ends in its thought, or thinks twice."""
        template = self.family.template
        body = text.strip().removesuffix(template.turn_end).strip()
        if not body:
            raise ParseError("empty")
        if body.startswith(template.think_begin):
            repairs.add("repeated_think_tag")
            body = body.removeprefix(template.think_begin)
        thought, end, rest = body.partition(template.think_end)
        if not end:
            thought, call, rest = body.partition(self.family.calls.open)
            if not call:
                raise ParseError("unclosed_thought")
            repairs.add("missing_think_end")
            rest = call + rest
        if not rest.strip():
            raise ParseError("no_call")
        if has_tag(thought, self.family.calls) or LONE_SURROGATE.search(thought) or CONTROL_SPELLING.search(thought):
            raise ParseError("control_token")
        return thought.strip(), rest

    def _with_thought(self, turn: Turn, thought: str, repairs: Repairs) -> Turn:
        """Free text has no thought in the schema: what led to it is left out, by name."""
        if turn.thought:
            repairs.add("text_before_call")
        if thought and not turn.tool_calls:
            repairs.add("dropped_thought")
        return replace(turn, thought=without_markers(thought, repairs)) if turn.tool_calls else turn
