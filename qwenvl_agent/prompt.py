"""The one prompt builder: training, evaluation, rollouts and predict all get their text here.

The text equals what the model's own chat template makes of `to_messages`, byte for byte; it is built in Python so
that every piece keeps its label (`Span`), from which masks and weights follow. An inference prompt is the training
text up to the assistant's turn, because `render_row` is `render_prompt` and more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenvl_agent.config import AskForThought
from qwenvl_agent.families import Template
from qwenvl_agent.formats import Format, Span
from qwenvl_agent.schema import Observation, Picture, Request, Tool, Turn


@dataclass(frozen=True)
class Rendered:
    """A text in labelled pieces, one pad (`Template.image_pad`) for each of `pictures`, in order."""

    spans: tuple[Span, ...]
    pictures: tuple[Picture, ...]
    num_prompt_spans: int
    """Those before the turn that the model is to write."""
    num_turns: int
    """Of the messages that were rendered, results that share a user's turn counted once: as many turns the text has."""

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


def as_asked(request: Request, ask_for_thought: AskForThought) -> Request:
    """The request as a run's `prompt.ask_for_thought` has it; auto leaves it as it is."""
    if ask_for_thought == "auto" or ask_for_thought == request.asks_for_thought:
        return request
    return replace(request, asks_for_thought=ask_for_thought)


def render_prompt(request: Request, fmt: Format) -> Rendered:
    """Everything up to the first word of the turn that the model is to write."""
    return _render(request, fmt, supervise_history=False)


def render_row(request: Request, turn: Turn, fmt: Format, supervise_history: bool = False) -> Rendered:
    """The prompt and the turn to learn, its end token, and the newline that the template puts after it.

    The turns of the history are prompt, unless `supervise_history`.
    """
    prompt = _render(request, fmt, supervise_history)
    template = fmt.family.template
    answer = (*fmt.render(turn), Span("end", template.turn_end), Span("prompt", template.after_turn))
    return replace(prompt, spans=prompt.spans + answer)


def _render(request: Request, fmt: Format, supervise_history: bool) -> Rendered:
    template = fmt.family.template
    end = Span("end", template.turn_end)
    spans = [Span("prompt", _system(request, fmt))]
    pictures: list[Picture] = []
    results = [fmt.render_results(step.results) for step in request.history]
    is_said = _is_said(request, results)
    num_past = _num_past(results, is_said)
    for i, step in enumerate(request.history):
        spans.append(Span("prompt", _user(step.observation, template) * is_said[i] + template.assistant))
        turn = fmt.render_past(step.turn) if i < num_past else fmt.render_midway(step.turn)
        spans += [*turn, end] if supervise_history else _as_prompt(turn, template)
        spans.append(Span("prompt", template.after_turn + _results(results[i], template)))
        pictures += step.observation.pictures
    user = _user(request.observation, template) * is_said[-1]
    spans.append(Span("prompt", user + template.assistant + fmt.opening))
    pictures += request.observation.pictures
    num_turns = bool(spans[0].text) + sum(is_said) + len(is_said) + sum(map(_num_turns, results))
    return Rendered(tuple(spans), tuple(pictures), len(spans), num_turns)


def _is_said(request: Request, results: Sequence[Sequence[dict]]) -> list[bool]:
    """Of each observation, the present one last, whether it is a user's message: an empty one behind results is none.

    The model goes on with what its tools answered, as in a chat file in which an assistant follows a tool.
    """
    observations = [*(step.observation for step in request.history), request.observation]
    follows_results = [False, *map(bool, results)]
    return [
        bool(seen.text or seen.pictures) or not follows
        for seen, follows in zip(observations, follows_results, strict=True)
    ]


def _num_past(results: Sequence[Sequence[dict]], is_said: Sequence[bool]) -> int:
    """How many turns of the history a user's message follows; only tools have answered those after them."""
    for i in range(len(results), 0, -1):
        if is_said[i] or any(message["role"] == "user" for message in results[i - 1]):
            return i
    return 0


def _as_prompt(turn: Sequence[Span], template: Template) -> list[Span]:
    return [Span("prompt", "".join(span.text for span in turn) + template.turn_end)]


def system_text(request: Request, fmt: Format) -> str:
    """The system prompt with the format's instructions after a blank line."""
    instructions = fmt.instructions if request.asks_for_thought else fmt.syntax_instructions
    return "\n\n".join(part for part in (request.system_prompt, instructions(request.tools)) if part)


def _system(request: Request, fmt: Format) -> str:
    tools = _tool_lines(request.tools) if fmt.uses_template_tools else []
    return fmt.family.template.system(system_text(request, fmt), tools)


def _tool_lines(tools: Sequence[Tool]) -> list[str]:
    return [json.dumps(tool.to_json(), ensure_ascii=False) for tool in tools]


def _user(observation: Observation, template: Template) -> str:
    return template.user(len(observation.pictures), observation.text)


def _results(messages: Sequence[dict], template: Template) -> str:
    """Result messages as the template writes them: those of role `tool` share one user turn."""
    results = template.results([m["content"] for m in messages if m["role"] == "tool"])
    return results + "".join(template.user(0, m["content"]) for m in messages if m["role"] == "user")


def _num_turns(messages: Sequence[dict]) -> int:
    roles = [message["role"] for message in messages]
    return ("tool" in roles) + roles.count("user")


def to_messages(request: Request, turn: Turn | None, fmt: Format) -> tuple[list[dict], list[dict] | None]:
    """Messages and tools of which `apply_chat_template` makes the text of `render_prompt` (turn None) or `render_row`.

    Images stand as `{"type": "image"}`; their pictures are those of the rendered prompt, in order.
    """
    system = system_text(request, fmt)
    messages = [{"role": "system", "content": system}] if fmt.family.template.system(system) else []
    results = [fmt.render_results(step.results) for step in request.history]
    is_said = _is_said(request, results)
    for i, step in enumerate(request.history):
        messages += [_user_message(step.observation)] * is_said[i]
        messages += [fmt.to_message(step.turn), *results[i]]
    messages += [_user_message(request.observation)] * is_said[-1]
    if turn is not None:
        messages.append(fmt.to_message(turn))
    tools = [tool.to_json() for tool in request.tools] if fmt.uses_template_tools and request.tools else None
    return messages, tools


def _user_message(observation: Observation) -> dict:
    text = [{"type": "text", "text": observation.text}] if observation.text else []
    return {"role": "user", "content": [{"type": "image"} for _ in observation.pictures] + text}
