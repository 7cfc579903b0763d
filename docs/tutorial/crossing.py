"""A world of your own in one file: cross a road without being run over. docs/tutorial/own_world.py trains an agent in it.

The game is a Gymnasium environment as anybody would write it; `make_world` below says what the agent is told of it.
"""

from collections import deque

import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from qwenvl_agent.worlds.gymnasium import GymnasiumWorld
from qwenvl_agent.worlds.world import Labels

SIZE, TILE_PX, NUM_CARS = 8, 16, 2
STEPS = {"UP": (0, -1), "LEFT": (-1, 0), "RIGHT": (1, 0), "WAIT": (0, 0)}


class Crossing(gymnasium.Env):
    """Lanes of cars that drive right, one tile a step; the player starts below them and must come above them."""

    metadata = {"render_modes": ["rgb_array"]}
    action_space = gymnasium.spaces.Discrete(len(STEPS))
    observation_space = gymnasium.spaces.Box(0, 1, (SIZE, SIZE))
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.column, self.row, self.time, self.lanes = 0, SIZE - 1, 0, {}
        while not self.way():  # a road that nobody can cross is drawn anew
            self.column = int(self.np_random.integers(SIZE))
            self.lanes = {row: self.np_random.choice(SIZE, NUM_CARS, replace=False) for row in range(1, SIZE - 1)}
        return self.field(), {}

    def step(self, action):
        (self.column, self.row), self.time = moved((self.column, self.row), list(STEPS)[action]), self.time + 1
        is_hit, is_over = self.is_hit(self.column, self.row, self.time), self.row == 0
        return self.field(), float(is_over and not is_hit), is_hit or is_over, False, {"hit": is_hit}

    def cars(self, row, time):
        """Columns; the first and the last row have none."""
        return (self.lanes[row] + time) % SIZE if row in self.lanes else np.array([], int)

    def is_hit(self, column, row, time):
        return bool(column in self.cars(row, time))

    def field(self):
        field = np.zeros((SIZE, SIZE))
        for row in self.lanes:
            field[row, self.cars(row, self.time)] = 1
        return field

    def way(self):
        """The fewest steps across, from where the player is now; [] if there are none. Cars are back after SIZE steps."""
        if not self.lanes:
            return []
        start = (self.column, self.row, self.time)
        came, waiting = {start: None}, deque([start])
        while waiting:
            column, row, time = place = waiting.popleft()
            if row == 0:
                return steps_to(place, came)
            for name in STEPS:
                beside = (*moved((column, row), name), time + 1)
                if beside not in came and not self.is_hit(*beside) and time - start[2] < 3 * SIZE:
                    came[beside] = (name, place)
                    waiting.append(beside)
        return []

    def render(self):
        image = Image.new("RGB", (SIZE * TILE_PX, SIZE * TILE_PX), "#777")
        draw = ImageDraw.Draw(image)
        for row in (0, SIZE - 1):
            draw.rectangle((0, row * TILE_PX, SIZE * TILE_PX, (row + 1) * TILE_PX - 1), fill="#7b5")
        for row in self.lanes:
            for column in self.cars(row, self.time):
                left, top = int(column) * TILE_PX, row * TILE_PX
                draw.rectangle((left + 1, top + 4, left + TILE_PX - 2, top + TILE_PX - 5), fill="#d22")
        left, top = self.column * TILE_PX, self.row * TILE_PX
        draw.ellipse((left + 3, top + 3, left + TILE_PX - 4, top + TILE_PX - 4), fill="#06f", outline="white")
        return np.asarray(image)


def moved(tile, name):
    (column, row), (dx, dy) = tile, STEPS[name]
    return min(max(column + dx, 0), SIZE - 1), min(max(row + dy, 0), SIZE - 1)


def steps_to(place, came):
    steps = []
    while came[place]:
        name, place = came[place]
        steps.append(name)
    return steps[::-1]


def make_world(max_turns=24):
    return GymnasiumWorld(
        name="crossing",
        make=lambda seed: Crossing(),
        actions=list(STEPS),
        mission="Cross the road. Do not be run over.",
        system_prompt=f"The picture shows a road of {SIZE}x{SIZE} tiles. Cars (red) drive one tile to the right in each step "
        "and come in again on the left. You are the blue dot. Call act to go one tile, or to wait.",
        success=lambda episode: episode.total_reward > 0,
        harm=lambda episode: ["run over"] if episode.info.get("hit") else [],
        optimal_turns=lambda episode: len(episode.game.way()),
        max_turns=max_turns,
        size=(SIZE * TILE_PX, SIZE * TILE_PX),
        oracle=oracle,
        rules={"max_turns": max_turns},
        labels=Labels(success="the other side was reached", harm="run over", outcomes={"done_harm": "run over"}),
    )


def oracle(episode):
    """The first step of a fastest way, after a thought of what the picture shows: the player, and the lane above."""
    game = episode.game
    cars = " ".join(str(column) for column in sorted(game.cars(game.row - 1, game.time))) or "none"
    way = game.way() or ["WAIT"]
    return f"Me {game.column} {game.row}. Above cars {cars}. Go {way[0]}.", way[:1]
