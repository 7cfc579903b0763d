"""What an agent's success rests on: the same missions with one thing taken away or made false.

    notepad_wiped      before turn FROM_TURN the world's notepad is emptied, once; the agent goes on
    notepad_corrupted  before turn FROM_TURN it is made false: every digit is moved, what is marked visited is unmarked
    mission_swapped    the agent reads another mission than the one that is judged

An agent that loses nothing by it never used the thing. Missions that end before FROM_TURN are played as they were;
`EpisodeRecord.changed_turn` tells which were changed.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from qwenvl_agent.schema import Answer, Env, Observation, Policy, Request, Turn
from qwenvl_agent.worlds.safari.context import context_text, read_context
from qwenvl_agent.worlds.safari.missions import read_mission, word_target
from qwenvl_agent.worlds.safari.typos import script
from qwenvl_agent.worlds.safari.world import COLOURS, KINDS, Animal

FROM_TURN = 4
"""A mission of the small world takes about five turns: by then something has been noted, and something is left to do."""
SHIFTED = str.maketrans("0123456789V.", "5678901234.V")


class ChangedNotepad:
    """A safari world whose notepad changes once, before turn FROM_TURN, if something stands in it then."""

    def __init__(self, env: Env, change: Callable[[str], str]):
        self.env, self.change = env, change
        self.system_prompt, self.tools = env.system_prompt, env.tools

    def reset(self, **options) -> tuple[Observation, dict]:
        return self.env.reset(**options)

    def close(self) -> None:
        self.env.close()

    def step(self, turn: Turn) -> tuple[Observation, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(turn)
        is_due = self.env.turn == FROM_TURN - 1 and not (terminated or truncated)
        changed = self.change(self.env.notepad) if is_due else self.env.notepad
        if changed != self.env.notepad:
            self.env.notepad = changed
            observation = self.env.observation()
            info = info | {"changed_turn": FROM_TURN}
        return observation, reward, terminated, truncated, info


class SwappedMission:
    """Shows a policy a mission of its own making: other targets in the same words and language, always the same."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return self.policy.act([replace(r, observation=swap_mission(r.observation)) for r in requests])


def swap_mission(observation: Observation) -> Observation:
    """The observation with another animal wherever the mission names one; unchanged if it names none that is known."""
    context = read_context(observation.text)
    mission = read_mission(context.mission)
    rng = random.Random(context.mission)
    others = [Animal(c, k) for c in COLOURS for k in KINDS if Animal(c, k) not in mission.targets]
    text = context.mission
    for wording, other in zip(mission.wordings, rng.sample(others, len(mission.targets)), strict=True):
        text = text.replace(wording, word_target(other, language_of(wording), rng, plain=True))
    if text == context.mission:
        return observation
    parts = (text, context.step, context.max_turns, context.position, context.found, context.notepad, context.last)
    return replace(observation, text=context_text(*parts))


def language_of(wording: str) -> str:
    """Of words that name a target."""
    scripts = {script(letter) for letter in wording}
    return "ko" if "hangul" in scripts else "zh" if "han" in scripts else "en"


def corrupt(notepad: str) -> str:
    return notepad.translate(SHIFTED)
