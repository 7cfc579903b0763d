"""Policies to compare an agent with: random calls, and the oracle with a share of random moves."""

import hashlib
import random
from collections.abc import Sequence

from qwenvl_agent.schema import Answer, Request, ToolCall, Turn
from qwenvl_agent.worlds.safari.context import read_context
from qwenvl_agent.worlds.safari.missions import read_mission
from qwenvl_agent.worlds.safari.oracle import SafariOracle
from qwenvl_agent.worlds.safari.tools import MAX_ACTIONS, MAX_STEPS
from qwenvl_agent.worlds.safari.world import DIRECTIONS, SafariRules


class RandomAgent:
    """Calls that fit their schemas, chosen blindly: mostly moves, now and then a declaration."""

    def __init__(self, rules: SafariRules, *, seed: int = 0):
        self.rules, self.seed = rules, seed

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn(request_rng(self.seed, request), request)) for request in requests]

    def turn(self, rng: random.Random, request: Request) -> Turn:
        roll = rng.random()
        if roll < 0.1:
            mission = read_mission(read_context(request.observation.text).mission)
            found = ToolCall("declare_found", {"target": rng.choice(mission.wordings or ("red tiger",))})
            return Turn(tool_calls=(rng.choice((found, ToolCall("declare_done", {}))),))
        if roll < 0.3 and self.rules.rules == "catch":
            return Turn(tool_calls=(ToolCall("catch", {"direction": rng.choice(list(DIRECTIONS))}),))
        return Turn(tool_calls=(random_move(rng),))


class NoisyOracle:
    """The oracle, but with probability `noise` a random move instead; what it declares is true all the same."""

    def __init__(self, oracle: SafariOracle, *, noise: float = 0.3, seed: int = 0):
        self.oracle, self.noise, self.seed = oracle, noise, seed

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn(request)) for request in requests]

    def turn(self, request: Request) -> Turn:
        rng = request_rng(self.seed, request)
        if rng.random() < self.noise:
            return Turn(tool_calls=(random_move(rng),))
        return self.oracle.turn_on(request)


def random_move(rng: random.Random) -> ToolCall:
    """A move of 1 to 4 random actions."""
    actions = [
        {"direction": rng.choice(list(DIRECTIONS)), "steps": rng.randint(1, MAX_STEPS)}
        for _ in range(rng.randint(1, MAX_ACTIONS))
    ]
    return ToolCall("move", {"actions": actions})


def request_rng(seed: int, request: Request) -> random.Random:
    """Randomness that is a function of what was asked."""
    text = f"{seed}\n{request.observation.text}"
    return random.Random(hashlib.sha256(text.encode()).hexdigest())
