"""Whether formats tell a model the same: facts read out of finished prompts, compared as facts, not as bytes.

The reader sees nothing but the text of `render_row`. It takes the tools out of whichever place a format lists them in,
and what is left is held against what the world says (its rules) and against what every format must say (how many calls
a turn may have, what the thought is for). Two formats are fair to each other if `differences` finds nothing but what
they are there to differ in: whether a thought is written, and how a call is spelled.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from qwenvl_agent.families import Template
from qwenvl_agent.formats import FORMATS, Format
from qwenvl_agent.prompt import render_prompt, render_row
from qwenvl_agent.schema import Env, Policy, Request, Step, Turn
from qwenvl_agent.worlds import World

TOOL_LINE = re.compile(r'(?m)^\{"type": "function".*\}$')
SEVERAL_CALLS = re.compile(r"one or more functions", re.IGNORECASE)
THOUGHT_IS_FOR = re.compile(r"what you see and plan")
THOUGHT_IS_SHORT = re.compile(r"\bshort\b")
NUM_TURNS = 4
NO_THOUGHT = re.compile(r"Write nothing else")


@dataclass(frozen=True)
class PromptFacts:
    """What a prompt states and what its turn teaches, in no format's words."""

    rules: str
    """The world's own system prompt, as far as it stands there word for word; the stopping rule is part of it."""
    tools: tuple[str, ...]
    """Name, description and parameters of each tool, in their order, as canonical JSON."""
    several_calls: bool
    """Says that a turn may have several calls."""
    asks_for_thought: str
    """What a thought is asked for: "short, what you see and plan", or "none"; "" if nothing is said."""
    turns: tuple[tuple[str, str], ...]
    """(role of the speaker, what was shown) for every earlier turn and the current one: pictures as marks, texts."""
    results: tuple[str, ...]
    """What the world answered in earlier turns, as canonical JSON."""
    thought: str
    """Which the turn teaches."""
    thought_is_first: bool
    calls: tuple[str, ...]
    """Which the turn teaches, as canonical JSON, in their order."""
    ending: str
    """What stops generation."""


def prompt_facts(request: Request, turn: Turn, fmt: Format) -> PromptFacts:
    """The facts of one training row. Reads the rendered text; the format's parser reads the calls back."""
    text = render_row(request, turn, fmt).text
    prompt = render_prompt(request, fmt).text
    assert text.startswith(prompt), f"{fmt.name}: the prompt is not the beginning of the training text"
    written = text.removeprefix(prompt).removesuffix(fmt.family.template.after_turn)
    template = fmt.family.template
    turns = template.message.findall(prompt + template.turn_end + template.after_turn)
    result = result_pattern(template)
    results = re.compile(rf"(?:{result.pattern})+")
    system = next((said for role, said in turns if role == "system"), "")
    answer, end = fmt.parse(written, request.tools), template.turn_end
    thought = answer.turn.thought
    return PromptFacts(
        rules=request.system_prompt if request.system_prompt in system else "",
        tools=tuple(canonical(json.loads(line)) for line in TOOL_LINE.findall(system)),
        several_calls=bool(SEVERAL_CALLS.search(system)),
        asks_for_thought=thought_asked_for(system),
        turns=tuple(("user", said) for role, said in turns if role == "user" and not results.fullmatch(said)),
        results=tuple(
            canonical(json.loads(tagged or plain))
            for role, said in turns
            if role == "user" and results.fullmatch(said)
            for tagged, plain in result.findall(said)
        ),
        thought=thought,
        thought_is_first=is_first(written, thought, answer.turn),
        calls=tuple(canonical({"name": call.name, "arguments": call.arguments}) for call in answer.turn.tool_calls),
        ending=end if written.endswith(end) and written.count(end) == 1 else written[-20:],
    )


def result_pattern(template: Template) -> re.Pattern:
    """One result in a user's turn: inside the template's tags, or in a plain format's line."""
    begin, end = re.escape(template.result_begin), re.escape(template.result_end)
    return re.compile(rf"\s*{begin}\n([^\n]*)\n{end}|\s*Result of [\w.-]*: ([^\n]*)")


def thought_asked_for(system: str) -> str:
    if NO_THOUGHT.search(system):
        return "none"
    asked = [
        name
        for name, said in (("short", THOUGHT_IS_SHORT), ("what you see and plan", THOUGHT_IS_FOR))
        if said.search(system)
    ]
    return ", ".join(asked)


def is_first(written: str, thought: str, turn: Turn) -> bool:
    """Whether the thought stands before the first argument of any call; true of no thought at all."""
    values = [json.dumps(call.arguments, ensure_ascii=False) for call in turn.tool_calls]
    places = [written.find(value) for value in values] + [written.find(f"{call.name}(") for call in turn.tool_calls]
    found = [place for place in places if place >= 0]
    return not thought or not found or 0 <= written.find(thought) < min(found)


def canonical(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def differences(request: Request, turn: Turn, formats: tuple[Format, ...] = tuple(FORMATS.values())) -> list[str]:
    """What one format tells and another does not, as sentences; empty if they are fair.

    A format without thoughts may ask for none and teach none, and nothing else may differ.
    """
    facts = {fmt.name: prompt_facts(request, turn, fmt) for fmt in formats}
    thoughtless = {fmt.name for fmt in formats if turn.thought and not fmt.project(turn).thought}
    found = []
    for field in fields(PromptFacts):
        about_thoughts = field.name in ("thought", "asks_for_thought")
        names = [name for name in facts if not (about_thoughts and name in thoughtless)]
        values = {name: getattr(facts[name], field.name) for name in names}
        if len(set(values.values())) > 1:
            shown = "; ".join(f"{name}: {str(value)[:200]}" for name, value in values.items())
            found.append(f"{field.name} differs: {shown}")
    expected = expected_facts(request, turn, formats[0].family.template)
    for name, fact in facts.items():
        found += [f"{name}: {what}" for what in missing(fact, expected, name in thoughtless)]
    return found


def expected_facts(request: Request, turn: Turn, template: Template) -> dict[str, object]:
    """What the request and the turn say, to which a prompt's facts must be equal: formats may not all be wrong alike."""
    observations = [*(step.observation for step in request.history), request.observation]
    return {
        "rules": request.system_prompt,
        "tools": tuple(canonical(tool.to_json()) for tool in request.tools),
        "several_calls": bool(request.tools),
        "turns": tuple(("user", template.image * len(o.pictures) + o.text) for o in observations),
        "results": tuple(canonical(r.content) for step in request.history for r in step.results),
        "thought": turn.thought,
        "thought_is_first": True,
        "calls": tuple(canonical({"name": call.name, "arguments": call.arguments}) for call in turn.tool_calls),
        "ending": template.turn_end,
    }


def missing(facts: PromptFacts, expected: dict[str, object], is_thoughtless: bool) -> list[str]:
    """The names of the facts that a prompt gets wrong."""
    wanted = expected | ({"thought": "", "asks_for_thought": "none"} if is_thoughtless else {})
    return [f"{name} is not what the world says" for name, value in wanted.items() if getattr(facts, name) != value]


def prompt_differences(names: Sequence[str], world: World) -> list[str]:
    """`differences` between formats on turns of the world's oracle, with and without history; without an oracle on
    random ones."""
    policy = world.make_oracle() or world.make_policy("random")
    env = world.make_env()
    try:
        return differences_in(env, policy, tuple(FORMATS[name] for name in names), world.seeds.training[0])
    finally:
        env.close()


def differences_in(env: Env, policy: Policy, formats: tuple[Format, ...], seed: int) -> list[str]:
    observation, _ = env.reset(seed=seed)
    history: list[Step] = []
    found: list[str] = []
    for _ in range(NUM_TURNS):
        turn = policy.act([Request(env.system_prompt, env.tools, (), observation)])[0].turn
        for steps in ((), tuple(history)) if history else ((),):
            found += differences(Request(env.system_prompt, env.tools, steps, observation), turn, formats)
        following, _, terminated, truncated, info = env.step(turn)
        if terminated or truncated:
            break
        history.append(Step(observation, turn, tuple(info["results"])))
        observation = following
    return list(dict.fromkeys(found))
