"""Recorded turns of any world, both ways: played by its oracle and written, and read back (docs/DATA.md, "recorded").

One turn a line of dataset.jsonl, pictures beside it in `images/`. A line that cannot be learned from becomes a `Reject`
that says why and what to do; every other line stands alone, as it has its whole context. What a world knows better is
given as functions: which tools a row has, why a call does not fit them, which thought a turn had.
"""

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from qwenvl_agent import png
from qwenvl_agent.containers import Record
from qwenvl_agent.json_input import Reject, read_json, reject_of
from qwenvl_agent.picture_store import PictureFolder, is_embedded
from qwenvl_agent.row_markers import check_row_markers
from qwenvl_agent.schema import (
    Observation,
    Picture,
    Request,
    Step,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    tool_named,
)
from qwenvl_agent.tool_schema import argument_error
from qwenvl_agent.worlds.world import RecordedTurn, World

MAX_TURN = 10**9
MAX_KNOWN_ARGUMENTS = 2**14
"""Calls in a dataset repeat."""


@dataclass(frozen=True)
class RecordedRow:
    """One recorded turn; `source` is `file:line`, `thought_derived` says that the thought is not the recorded one."""

    episode_id: str
    turn_index: int
    mission: str
    system_prompt: str
    tools: tuple[Tool, ...]
    step: Step
    source: str
    thought_derived: bool = False


class _Checker:
    """Why a call's arguments do not fit its tool; each distinct call is checked once."""

    def __init__(self):
        self._known = lru_cache(maxsize=MAX_KNOWN_ARGUMENTS)(self._check)

    def __call__(self, tool: Tool, call: ToolCall) -> str:
        # As text: 1, 1.0 and true are equal as keys, and not alike to a schema.
        return self._known(json.dumps(tool.parameters), tool.name, json.dumps(call.arguments))

    def _check(self, parameters: str, name: str, arguments: str) -> str:
        error = argument_error(json.loads(parameters), json.loads(arguments))
        return error and f"{name}: {error}"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a world knows of its recordings."""

    tools_of: Callable[[dict], tuple[Tool, ...]]
    """Of a line's values; ValueError if they are not known."""
    world: str = ""
    """For messages."""
    fault_of: Callable[[Tool, ToolCall], str] | None = None
    """What is wrong with a call's arguments, "" if nothing is; by default what the tool's schema says."""
    derive_thought: Callable[[str, Sequence[ToolCall], Sequence[ToolResult]], str] | None = None
    """The thought of a turn that has none, or a longer one than max_thought_chars; None: it stays without."""
    max_thought_chars: int = 400


def row_reader(folder: PictureFolder, reading: Reading) -> Callable[[Record], RecordedRow | Reject]:
    """What makes a row of each record of a dataset, whose pictures are in `folder`."""
    fault_of = reading.fault_of or _Checker()

    def read(record: Record) -> RecordedRow | Reject:
        try:
            return _read_row(load_object(record), folder, record.source, reading, fault_of)
        except Exception as error:
            return reject_of(record.source, error)

    return read


def load_object(record: Record) -> dict:
    values = record.value()
    if not isinstance(values, dict):
        raise ValueError(f"{type(values).__name__} instead of an object: the line is skipped; write one object a line")
    return values


def _read_row(values: dict, folder: PictureFolder, source: str, reading: Reading, fault_of: Callable) -> RecordedRow:
    turn_index = values.get("turn")
    if not isinstance(turn_index, int) or isinstance(turn_index, bool) or not 0 <= turn_index <= MAX_TURN:
        raise ValueError(f"turn is {turn_index!r}: the row has no place in its episode; write its index from 0")
    check_row_markers(values, "take the row out")
    tools = reading.tools_of(values)
    text = text_of(values, "context_text")
    calls = _read_calls(values, tools, reading.world, fault_of)
    results = _read_results(values, calls)
    turn, is_derived = _read_turn(values, text, calls, results, reading)
    return RecordedRow(
        episode_id=text_of(values, "episode_id"),
        turn_index=turn_index,
        mission=text_of(values, "mission"),
        system_prompt=text_of(values, "system_prompt"),
        tools=tools,
        step=Step(Observation(text, _read_pictures(values, folder)), turn, results),
        source=source,
        thought_derived=is_derived,
    )


def text_of(values: dict, key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {str(value)[:80]!r}: the row cannot be placed or shown; write it as text")
    return value


def list_of(values: dict, key: str) -> list:
    """A list, or the list that a JSON string holds; missing, null and "" count as empty."""
    value = values.get(key)
    if isinstance(value, str) and value:
        try:
            value = read_json(value)
        except ValueError as error:
            raise ValueError(f"{key} is a string that is {error}") from None
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise ValueError(f"{key} is {str(value)[:80]!r}: not a list; write a list of objects")
    return value


def _read_turn(values: dict, text: str, calls: tuple, results: tuple, reading: Reading) -> tuple[Turn, bool]:
    """The turn, and whether its thought is not the recorded one."""
    if not calls:
        return Turn(text=values["text"]), False
    thought = values.get("thought_text")
    thought = "" if thought is None else thought
    if not isinstance(thought, str):
        raise ValueError(f"thought_text is {str(thought)[:80]!r}: not text; write text or null")
    if said := values.get("text"):
        raise ValueError(
            f"text is {str(said)[:80]!r} beside tool_calls: it would not be learned; write it as thought_text, or leave it out"
        )
    if thought.strip() and len(thought) <= reading.max_thought_chars:
        return Turn(thought, calls), False
    if reading.derive_thought is not None:
        return Turn(reading.derive_thought(text, calls, results), calls), True
    if thought.strip():
        raise ValueError(
            f"thought_text has {len(thought)} characters, above data.max_thought_chars={reading.max_thought_chars}, and this "
            "world derives none in its place: shorten it, or raise that setting"
        )
    return Turn("", calls), False


def _read_calls(values: dict, tools: tuple[Tool, ...], world: str, fault_of: Callable) -> tuple[ToolCall, ...]:
    """The row's calls; ValueError for any that must not be taught, and for none where no text is said either."""
    calls = []
    for i, item in enumerate(list_of(values, "tool_calls")):
        place = f"tool_calls[{i}]"
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ValueError(f'{place} is {str(item)[:80]!r}: not a call; write {{"name": ..., "args": {{...}}}}')
        tool = tool_named(tools, item["name"])
        if tool is None:
            known = ", ".join(tool.name for tool in tools)
            whose = f"a {world} tool" if world else "one of the recording's tools"
            raise ValueError(
                f"{place}.name {item['name'][:80]!r} is not {whose}: it would teach a call that fails; use one of {known}"
            )
        call = ToolCall(item["name"], {} if item.get("args") is None else item["args"])
        error = fault_of(tool, call)
        if error:
            raise ValueError(
                f"{place}.args do not fit: {error}; it would teach a call that fails; correct the arguments"
            )
        calls.append(call)
    said = values.get("text")
    if not calls and not (isinstance(said, str) and said.strip()):
        raise ValueError("tool_calls is empty: the turn has nothing to learn; drop the row")
    return tuple(calls)


def _read_results(values: dict, calls: tuple[ToolCall, ...]) -> tuple[ToolResult, ...]:
    """The results of the first calls, in their order (an episode that ended leaves the rest without); or the one answer
    to a turn without a call."""
    results = []
    names = [call.name for call in calls] or [""]
    for i, item in enumerate(list_of(values, "tool_results")):
        if not isinstance(item, dict) or not isinstance(item.get("result"), dict):
            raise ValueError(
                f'tool_results[{i}] is {str(item)[:80]!r}: not a result; write {{"name": ..., "result": {{}}}}'
            )
        if i >= len(names) or item.get("name") != names[i]:
            expected = names[i] if i < len(names) else "no further result"
            raise ValueError(
                f"tool_results[{i}] is of {item.get('name')!r}, expected {expected}: a result without its call cannot "
                "be placed; put results in the order of the calls"
            )
        results.append(ToolResult(item["name"], item["result"]))
    return tuple(results)


def _read_pictures(values: dict, folder: PictureFolder) -> tuple[Picture, ...]:
    """The row's pictures with their sizes from the files' headers; no pixel is decoded."""
    if "images" in values:
        if values["images"] is None:
            raise ValueError("images is null: whether there was a picture is unknown; write [] for a turn without one")
        named = [(f"images[{i}]", value) for i, value in enumerate(list_of(values, "images"))]
    else:
        key = "image_file" if values.get("image_file") else "image"
        named = [(key, values.get(key))]
    return tuple(_read_picture(key, value, folder) for key, value in named)


def _read_picture(key: str, value: object, folder: PictureFolder) -> Picture:
    if is_embedded(value):
        return Picture.from_file(folder.path(value, key), f"{key} (embedded)")
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {str(value)[:80]!r}: no file is named; save the picture and name its file")
    return Picture.from_file(folder.path(value, key), f"{key} {value!r}")


# writing


def png_bytes(picture: Image.Image) -> bytes:
    """The RGB picture as a PNG file without row filters: flat tiles compress well, in a third of Pillow's time."""
    pixels = np.asarray(picture)  # (H, W, 3)
    rows = np.concatenate([np.zeros((picture.height, 1), np.uint8), pixels.reshape(picture.height, -1)], axis=1)
    return bytes(png.rgb_file(picture.width, picture.height, [zlib.compress(rows.tobytes(), 1)]))


def row_json(recorded: RecordedTurn, image_files: Sequence[str]) -> dict:
    """One line of dataset.jsonl; `image_file` of one picture, `images` of none or several."""
    turn = recorded.turn
    pictures = {"image_file": image_files[0]} if len(image_files) == 1 else {"images": list(image_files)}
    return {
        "episode_id": recorded.episode_id,
        "mission": recorded.mission,
        "turn": recorded.turn_index,
        "system_prompt": recorded.system_prompt,
        "context_text": recorded.observation.text,
        **pictures,
        "tool_calls": [{"name": call.name, "args": call.arguments} for call in turn.tool_calls],
        "tool_results": [{"name": result.name, "result": result.content} for result in recorded.results],
        "thought_text": turn.thought or None,
        **({"text": turn.text} if turn.text else {}),
        "raw_request": None,
        "raw_response": None,
    }


def encode(recorded: RecordedTurn) -> tuple[list[bytes], dict]:
    """PNG files and the row that names them images/ep_<episode>_turn_<index>.png."""
    pictures = recorded.observation.pictures
    stem = f"images/ep_{recorded.episode_id}_turn_{recorded.turn_index:03d}"
    names = [f"{stem}.png"] if len(pictures) == 1 else [f"{stem}_{i}.png" for i in range(len(pictures))]
    return [png_bytes(picture.open()) for picture in pictures], row_json(recorded, names)


class RowWriter:
    """Writes a dataset folder: dataset.jsonl and images/."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        self.file = open(self.folder / "dataset.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, recorded: RecordedTurn) -> None:
        self.write_encoded(*encode(recorded))

    def write_encoded(self, pngs: Sequence[bytes], row: dict) -> None:
        """What `encode` gave, perhaps in another process."""
        names = row["images"] if "images" in row else [row["image_file"]]
        for name, content in zip(names, pngs, strict=True):
            (self.folder / name).write_bytes(content)
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")


# seeds


def free_seeds(world: World, recorded: Sequence[Path], num: int, start: int | None = None) -> range:
    """So many training seeds that are in none of the recordings (dataset folders or files, of whatever world), from
    `start` on or behind all of theirs; ValueError if there are none."""
    training, taken = world.seeds.training, [seeds for path in recorded if (seeds := recorded_seeds(path))]
    behind = max([training.start, *(seeds.stop for seeds in taken if seeds.start in training)])
    first = behind if start is None else start
    seeds = range(first, first + num)
    if not (seeds.start in training and seeds[-1] in training):
        raise ValueError(
            f"seeds {seeds.start} to {seeds[-1]} are not all training seeds ({training.start} to {training[-1]}): a policy would "
            "learn from worlds of an evaluation; play fewer episodes, or others"
        )
    for known in taken:
        if seeds.start < known.stop and known.start < seeds.stop:
            raise ValueError(
                f"seeds {seeds.start} to {seeds[-1]} are among those that the policy's data was recorded with ({known.start} to "
                f"{known[-1]}): it would be shown what it knows; leave --seed-start out (it would be {behind})"
            )
    return seeds


def recorded_seeds(path: Path) -> range | None:
    """The seeds of a recording by its manifest; None if it names none."""
    manifest = (path if path.is_dir() else path.parent) / "manifest.json"
    named = read_json(manifest.read_text(encoding="utf-8")).get("seeds") if manifest.is_file() else None
    return range(named[0], named[1] + 1) if named else None


# playing


def record_episode(
    world: World,
    seed: int,
    oracle: dict,
    noise: float,
    resets: float = 0.0,
    near: float = 0.5,
    states: Mapping[str, object] | None = None,
) -> tuple[list[RecordedTurn], dict[str, int]]:
    """The oracle's own turns of one episode, and what to count of it: whether it was solved, and the world's own facts.

    With probability `noise` a random turn is played in place of the oracle's, and not recorded. With probability
    `resets` the oracle is first put into another state, which the world draws (`World.draw_state`), and goes on from
    there; a turn's index is left out before it, so that no history reaches over it. `reset_KIND` counts such turns.
    `states` are settings of these states.
    """
    env, policy, rng = world.make_env(), world.make_oracle(**oracle), random.Random(f"noise {seed}")
    assert policy is not None, f"{type(world).__name__} has no oracle"
    state_rng, kinds = random.Random(f"state {seed}"), Counter[str]()
    turns: list[RecordedTurn] = []
    is_over = False
    try:
        observation, info = env.reset(seed=seed)
        mission, turn_index = info["mission"], 0
        while not is_over:
            state = world.draw_state(env, state_rng, near, **(states or {})) if state_rng.random() < resets else None
            if state is not None:
                observation, info = env.reset(seed=seed, options=state.options)
                turn_index += bool(turns)
                kinds.update(f"reset_{kind}" for kind in ("states", *state.kinds))
            is_noise = state is None and rng.random() < noise
            request = Request(env.system_prompt, env.tools, (), observation)
            turn = world.noise_turn(env.tools, rng) if is_noise else policy.act([request])[0].turn
            following, _, terminated, truncated, info = env.step(turn)
            if not is_noise:
                results = tuple(info["results"])
                turns.append(
                    RecordedTurn(f"{seed:08x}", mission, turn_index, env.system_prompt, observation, turn, results)
                )
            observation, turn_index, is_over = following, turn_index + 1, terminated or truncated
    finally:
        env.close()
    facts = {key: int(value) for key, value in info.items() if isinstance(value, bool) and key != "success"}
    return turns, {"solved": int(info["success"]), **facts, **kinds}
