"""A made-up world that the package knows nothing of: press the lamps that the mission names, and no other."""

import random
import re
from collections.abc import Mapping, Sequence

from PIL import Image

from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.schema import Answer, Observation, Picture, Request, Tool, ToolCall, ToolResult, Turn
from qwenvl_agent.statistics import bootstrap_mean
from qwenvl_agent.worlds import Counterfactual, Labels, Mark, SeedSets, World

PRESS = Tool(
    "press",
    "Press a lamp.",
    {"type": "object", "properties": {"lamp": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["lamp"]},
)
SIDE_PX = 32
OPEN: list["LampsEnv"] = []
"""Every environment that was made and is not closed."""


class LampsEnv:
    system_prompt = "You press lamps."
    tools = (PRESS,)

    def __init__(self, num_lamps: int, max_turns: int):
        self.num_lamps, self.max_turns = num_lamps, max_turns
        OPEN.append(self)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        self.wanted = sorted(random.Random(seed).sample(range(self.num_lamps), 2))
        self.lit, self.harm, self.turns = [], [], 0
        return self.observation(), self.info(())

    def step(self, turn: Turn) -> tuple[Observation, float, bool, bool, dict]:
        self.turns += 1
        results = []
        for call in turn.tool_calls:
            lamp = call.arguments.get("lamp")
            kind = self.lit if lamp in self.wanted else self.harm
            results.append((call, lamp not in kind))
            kind += [lamp] if lamp not in kind else []
        info = self.info(results)
        return self.observation(), 0.0, info["end_reason"] == "solved", info["end_reason"] == "tired", info

    def observation(self) -> Observation:
        image = Image.new("RGB", (SIDE_PX * self.num_lamps, SIDE_PX))
        for lamp in self.lit:
            image.paste((255, 255, 0), (SIDE_PX * lamp, 0, SIDE_PX * (lamp + 1), SIDE_PX))
        text = f"Press {self.wanted}.\nLit: {self.lit}\nTurn {self.turns}"
        return Observation(text, (Picture.from_image(image),))

    def info(self, results: Sequence) -> dict:
        is_solved = set(self.lit) == set(self.wanted)
        return {
            "mission": f"Press {self.wanted}.",
            "success": is_solved and not self.harm,
            "goals": [f"lamp {lamp}" for lamp in self.wanted],
            "reached": [f"lamp {lamp}" for lamp in self.lit],
            "harm": [f"lamp {lamp}" for lamp in self.harm],
            "results": [ToolResult(call.name, {"lit": fresh}) for call, fresh in results],
            "calls": [{"legal": fresh, "effective": fresh} for _, fresh in results],
            "optimal_turns": 2,
            "end_reason": "solved" if is_solved else "tired" if self.turns >= self.max_turns else "",
        }

    def close(self) -> None:
        OPEN.remove(self)


class Presser:
    """Presses the first lamp that is wanted and dark, and says so."""

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn(request.observation.text)) for request in requests]

    def turn(self, text: str) -> Turn:
        wanted, lit = ([int(n) for n in re.findall(r"\d+", line)] for line in text.split("\n")[:2])
        lamp = next(lamp for lamp in wanted if lamp not in lit)
        return Turn(f"Lamp {lamp}.", (ToolCall("press", {"lamp": lamp}),))


class Greedy(Presser):
    """Presses lamp 0 as well."""

    def turn(self, text: str) -> Turn:
        turn = super().turn(text)
        return Turn("Lamp 0 too.", (*turn.tool_calls, ToolCall("press", {"lamp": 0})))


class Swapped:
    """Shows a policy another mission."""

    def __init__(self, policy):
        self.policy = policy

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        texts = [re.sub(r"Press \[.*?\]", "Press [0, 1]", request.observation.text) for request in requests]
        swapped = [
            Request(r.system_prompt, r.tools, r.history, Observation(text, r.observation.pictures))
            for r, text in zip(requests, texts, strict=True)
        ]
        return [
            Answer(Turn(tool_calls=(ToolCall("press", {"lamp": 0}),))) if "Lit: [0, 1]" in text else answer
            for text, answer in zip(texts, self.policy.act(swapped), strict=True)
        ]


class Lamps(World):
    name = "lamps"
    seeds = SeedSets(range(100), range(100, 110), range(110, 200))
    max_envs = 3
    labels = Labels(
        goals="lamps lit",
        success="the lamps of the mission lit, no other pressed",
        harm="wrong lamps",
        metrics={"lamps_pressed": ("lamps pressed", "in an episode")},
        outcomes={"solved": "lit, and others too", "tired": "too tired to go on"},
        refusals={"press": "lit already"},
    )

    def __init__(self, num_lamps: int, max_turns: int):
        if not 2 <= num_lamps <= 10:
            raise ValueError(f"num_lamps is {num_lamps}: nobody could press them; use 2 to 10")
        self.rules = {"num_lamps": num_lamps, "max_turns": max_turns}

    def make_env(self) -> LampsEnv:
        return LampsEnv(**self.rules)

    def make_oracle(self, **settings) -> Presser:
        super().make_oracle(**settings)
        return Presser()

    def make_reference(self, **settings) -> Presser:
        return self.make_oracle(**settings)

    def make_baselines(self):
        return {"greedy": Greedy}

    def agrees(self, thought: str, calls: Sequence[dict]) -> bool | None:
        said = re.fullmatch(r"Lamp (\d)\.", thought)
        return None if said is None else [call["arguments"].get("lamp") for call in calls] == [int(said[1])]

    def metrics(self, records: Sequence[EpisodeRecord]) -> dict:
        return {"lamps_pressed": bootstrap_mean([len(record.reached) + len(record.harm) for record in records])}

    def marks(self, step: StepRecord) -> list[Mark]:
        return [mark(call, self.rules["num_lamps"]) for call in step.calls if call.schema_ok]

    def counterfactuals(self) -> Mapping[str, Counterfactual]:
        return {"mission_swapped": Counterfactual(change_policy=Swapped)}


def mark(call: CallRecord, num_lamps: int) -> Mark:
    return Mark((call.arguments["lamp"] + 0.5) / num_lamps, 0.5, "press")


def make_world(num_lamps: int = 4, max_turns: int = 6) -> Lamps:
    return Lamps(num_lamps, max_turns)


class BareLamps(World):
    """The least that a world is: a name and an environment."""

    name = "bare_lamps"

    def make_env(self) -> LampsEnv:
        return LampsEnv(4, 6)


def make_bare_world() -> BareLamps:
    return BareLamps()
