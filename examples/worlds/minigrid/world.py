"""MiniGrid as a world: tasks, rules and drawing are the package's own (`pip install minigrid`).

The agent sees 10x10 cells around it and acts by direction: "RIGHT 3" turns to the right and goes three cells, "toggle UP"
turns up and toggles, each played as MiniGrid's own turns and steps. Seeds go round the tasks.
"""

from itertools import groupby, product

import gymnasium
import numpy
from minigrid.core.actions import Actions  # importing the package registers its environments

from qwenvl_agent.statistics import wilson
from qwenvl_agent.worlds.gymnasium import GymnasiumWorld

TASKS = {
    "empty": ("MiniGrid-Empty-8x8-v0", {"agent_start_pos": None}),
    "four_rooms": ("MiniGrid-FourRooms-v0", {}),
    "door_key_5": ("MiniGrid-DoorKey-5x5-v0", {}),
    "door_key_8": ("MiniGrid-DoorKey-8x8-v0", {}),
    "go_to": ("BabyAI-GoToLocal-v0", {}),
}
VECTORS = {"RIGHT": (1, 0), "DOWN": (0, 1), "LEFT": (-1, 0), "UP": (0, -1)}  # in MiniGrid's order of directions
ACTIONS = {f"{d} {steps}": (i, Actions.forward, steps) for i, d in enumerate(VECTORS) for steps in (1, 2, 3)}
ACTIONS |= {f"{use} {d}": (i, Actions[use], 1) for use in ("pickup", "toggle") for i, d in enumerate(VECTORS)}
VIEW, MAX_ACTIONS = 10, 4
PROMPT = """You are the red triangle. The picture shows 10x10 cells around you, columns a to j, rows 0 to 9. RIGHT 3 goes \
three cells. pickup UP and toggle UP act on the cell above you; toggle opens a locked door while you carry its key."""


class ByDirection(gymnasium.Wrapper):
    """Actions are (direction, MiniGrid's action, how often); the picture is of `VIEW` cells a side."""

    action_space = gymnasium.spaces.MultiDiscrete([4, len(Actions), 4])

    def step(self, action):
        turns = (action[0] - self.unwrapped.agent_dir) % 4
        for act in [*([Actions.left] if turns == 3 else [Actions.right] * turns), *[action[1]] * action[2]]:
            outcome = self.env.step(act)
            if outcome[2] or outcome[3]:
                break
        return outcome

    def corner(self):
        return tuple(max(0, min(int(at) - VIEW // 2, self.unwrapped.width - VIEW)) for at in self.unwrapped.agent_pos)

    def render(self):
        game, (left, top) = self.unwrapped, self.corner()
        at = (game.agent_pos[0] - left, game.agent_pos[1] - top)
        pixels = game.grid.slice(left, top, VIEW, VIEW).render(game.tile_size, at, game.agent_dir)
        # White ground in place of black: the tiny base knows no other.
        return numpy.where(pixels.any(-1, keepdims=True), pixels, numpy.uint8(255))


def name_of(thing):
    return f"{thing.color} {thing.type}" if thing else "nothing"


def state(episode):
    return {"position": [int(at) for at in episode.game.agent_pos], "carrying": name_of(episode.game.carrying)}


def text(episode):
    at, held = state(episode).values()
    return f"Position: ({at[0]}, {at[1]}), cell {tile(at, episode.env.corner())}\nCarrying: {held}"


def tile(cell, corner):
    """Its name in the picture."""
    return f"{'abcdefghij'[cell[0] - corner[0]]}{cell[1] - corner[1]}"


def shortest_ways(start, free):
    """To every cell that can be entered or touched: (direction, cell) for each step, straight on where that is as short."""
    ways, queue = {start: [("", start)]}, [start]
    for cell in queue:
        for direction in sorted(VECTORS, key=ways[cell][-1][0].__ne__):
            ahead = (cell[0] + VECTORS[direction][0], cell[1] + VECTORS[direction][1])
            if ahead not in ways:
                ways[ahead] = [*ways[cell], (direction, ahead)]
                queue += [ahead] if ahead in free else []
    return {cell: way[1:] for cell, way in ways.items()}


def place_to_look_from(me, free):
    """In four rooms: where all of this room is seen; from there, the door to the next room clockwise."""
    x, y = me
    right, low = (y < 9, y > 9) if x == 9 else (x > 9, x > 9) if y == 9 else (x > 9, y > 9)
    hub, a = (13 if right else 5, 13 if low else 5), int(right != low)
    return hub if me != hub else next(c for c in free if c[a] == 9 and (c[1 - a] > 9) == (me[1 - a] > 9))


def oracle(episode, max_path=6):
    """Thought and actions, from the cells in view alone."""
    game, me, corner = episode.game, tuple(state(episode)["position"]), episode.env.corner()
    seen = [(corner[0] + x, corner[1] + y) for y, x in product(range(min(VIEW, game.width)), repeat=2)]
    things = {cell: game.grid.get(*cell) for cell in seen}
    free = {cell for cell in seen if not things[cell] or things[cell].can_overlap()}
    ways, at = shortest_ways(me, free), {thing.type: cell for cell, thing in things.items() if thing}
    wanted, use = " ".join(game.mission.split()[-2:]) if game.mission.startswith("go to") else "green goal", ""
    goals = sorted((c for c in seen if name_of(things[c]) == wanted), key=lambda cell: len(ways.get(cell, seen)))
    if goals and goals[0] in ways:
        place = goals[0]
    elif "door" in at:
        use = "pickup" if things[at["door"]].is_locked and not game.carrying else "toggle"
        place = at["key" if use == "pickup" else "door"]
    else:
        place = place_to_look_from(me, free)
    way = ways[place]
    path = way[: min(len(way) - bool(use), max_path if use or place in goals else len(way))]
    runs = [(direction, len(list(group))) for direction, group in groupby(direction for direction, _ in path)]
    moves = [f"{direction} {min(3, n - i)}" for direction, n in runs for i in range(0, n, 3)][:MAX_ACTIONS]
    path = path[: sum(ACTIONS[move][2] for move in moves)]
    actions = [*moves, *([f"{use} {way[-1][0]}"] if use and len(path) == len(way) - 1 else [])][:MAX_ACTIONS]
    shown = [f"{name_of(thing)} {tile(c, corner)}" for c, thing in things.items() if thing and thing.type != "wall"]
    thought = f"Me {tile(me, corner)}. See {', '.join(shown) or 'none'}."
    thought += f" Target {wanted} {tile(goals[0], corner) if goals else 'none'}."
    thought += f" Go {name_of(things[place]) + ' ' if use else ''}{tile(place, corner)}." if place not in goals else ""
    thought += f" Path {' '.join(tile(cell, corner) for _, cell in path)}." if path else ""
    return f"{thought} Plan {', '.join(actions)}.", actions


class MiniGrid(GymnasiumWorld):
    def metrics(self, records):
        """Success by task."""
        tasks = self.rules["tasks"]
        won = {task: [r.success for r in records if tasks[r.seed % len(tasks)] == task] for task in tasks}
        return {f"success_{task}": wilson(sum(results), len(results)) for task, results in won.items() if results}


def make_world(tasks=tuple(TASKS), tile_px=32, max_turns=12):
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"minigrid has no tasks {unknown}: nothing could be played; choose from {', '.join(TASKS)}")

    def make(seed):
        name, settings = TASKS[tasks[seed % len(tasks)]]
        return ByDirection(gymnasium.make(name, render_mode="rgb_array", tile_size=tile_px, **settings))

    rules = {"tasks": list(tasks), "tile_px": tile_px, "max_turns": max_turns}
    said = {"name": "minigrid", "system_prompt": PROMPT, "state": state, "text": text, "rules": rules}
    said |= {"actions": ACTIONS, "max_actions": MAX_ACTIONS, "max_turns": max_turns, "oracle": oracle}
    return MiniGrid(make=make, success=lambda episode: episode.reward > 0, oracle_success=0.99, **said)
