"""A small world in a file of its own: a corridor that is walked to its right end. Used as tests/corridor_world.py:make_world."""

import gymnasium
import numpy as np

from qwenvl_agent.worlds.gymnasium import GymnasiumWorld


class Corridor(gymnasium.Env):
    """The start is drawn; a step to the right of the last tile wins, one to the left of the first ends the episode."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium has it)
    num_closed = 0

    def __init__(self, length=6, render_mode=None, space=None):
        self.length, self.render_mode = length, render_mode
        self.action_space = space or gymnasium.spaces.Discrete(2)
        self.observation_space = gymnasium.spaces.Discrete(length)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = int(self.np_random.integers(1, self.length - 1))
        return self.x, {"mission": "walk\nright"}

    def step(self, action):
        direction, steps = action if isinstance(action, np.ndarray) else (action, 0)
        self.x += (2 * direction - 1) * (1 + steps)
        is_won = self.x >= self.length
        return self.x, float(is_won), is_won or self.x < 0, False, {}

    def render(self):
        picture = np.zeros((32, self.length * 32, 3), dtype=np.uint8)
        picture[:, max(0, self.x) * 32 : max(0, self.x) * 32 + 32] = 255
        return picture

    def close(self):
        type(self).num_closed += 1


def corridor(length=6, **changes) -> GymnasiumWorld:
    return GymnasiumWorld(
        **{
            "name": "corridor",
            "make": lambda seed: Corridor(length, render_mode="rgb_array"),
            "actions": ["left", "right"],
            "success": lambda episode: episode.total_reward > 0,
            "max_turns": 10,
            "state": lambda episode: {"position": [np.int64(episode.game.x), 0]},
            "optimal_turns": lambda episode: length - episode.game.x,
            "oracle": lambda episode: (f"At {episode.game.x}.", ["right"]),
            "rules": {"length": length},
            **changes,
        }
    )


def make_world(length=6) -> GymnasiumWorld:
    return corridor(length)
