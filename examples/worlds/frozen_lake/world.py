"""FrozenLake-v1 of Gymnasium: a new lake for every seed. The oracle walks a shortest way; an agent has to see the holes."""

from collections import deque

import gymnasium
from gymnasium.envs.toy_text.frozen_lake import generate_random_map

from qwenvl_agent.worlds.gymnasium import GymnasiumWorld
from qwenvl_agent.worlds.world import Labels

STEPS = {"RIGHT": (1, 0), "DOWN": (0, 1), "LEFT": (-1, 0), "UP": (0, -1)}
TILE_PX = 16
MAX_ACTIONS = 4


def make_world(size=8, max_turns=12):
    return GymnasiumWorld(
        name="frozen_lake",
        make=lambda seed: gymnasium.make(
            "FrozenLake-v1", desc=generate_random_map(size, seed=seed), is_slippery=False, render_mode="rgb_array"
        ),
        actions=["LEFT", "DOWN", "RIGHT", "UP"],
        max_actions=MAX_ACTIONS,
        mission="Reach the gift. Do not fall into a hole.",
        system_prompt=f"The picture shows a lake of {size}x{size} tiles, columns from a, rows from 0. Call act to walk.",
        success=lambda episode: episode.total_reward > 0,
        harm=lambda episode: ["fell"] if episode.terminated and not episode.total_reward else [],
        state=lambda episode: {"position": list(here(episode))},
        optimal_turns=lambda episode: -(-len(shortest_way(episode)) // MAX_ACTIONS),
        max_turns=max_turns,
        size=(size * TILE_PX, size * TILE_PX),
        oracle=oracle,
        rules={"size": size, "max_turns": max_turns},
        labels=Labels(
            success="the gift was reached", harm="fell into a hole", outcomes={"done_harm": "fell into a hole"}
        ),
    )


def here(episode) -> tuple[int, int]:
    """(column, row) of the player."""
    row, column = divmod(int(episode.game.s), episode.game.ncol)
    return column, row


def neighbours(tile):
    return [(name, (tile[0] + dx, tile[1] + dy)) for name, (dx, dy) in STEPS.items()]


def shortest_way(episode) -> list[tuple[str, tuple[int, int]]]:
    """Directions and tiles from the player to the gift; of several ways the one that goes right as early as it can."""
    lake = {(x, y): mark for y, row in enumerate(episode.game.desc.astype(str)) for x, mark in enumerate(row)}
    gift = next(tile for tile, mark in lake.items() if mark == "G")
    steps, waiting = {gift: 0}, deque([gift])
    while waiting:
        tile = waiting.popleft()
        for _, beside in neighbours(tile):
            if lake.get(beside, "H") != "H" and beside not in steps:
                steps[beside] = steps[tile] + 1
                waiting.append(beside)
    way, tile = [], here(episode)
    while tile != gift:
        name, tile = next(pair for pair in neighbours(tile) if steps.get(pair[1]) == steps[tile] - 1)
        way.append((name, tile))
    return way


def oracle(episode, max_steps=MAX_ACTIONS):
    """The next steps of a shortest way, after a thought that names the tiles: what is read from the picture comes first."""
    way = shortest_way(episode)[:max_steps]
    tiles = " ".join(tile_name(tile) for _, tile in way)
    directions = [name for name, _ in way]
    return f"Me {tile_name(here(episode))}. Path {tiles}. Plan {' '.join(directions)}.", directions


def tile_name(tile):
    return f"{chr(ord('a') + tile[0])}{tile[1]}"
