"""Episodes played to records. A record holds all that a metric or a report needs, so both can be redone without a model.

All running episodes act in one policy call, so that a model can batch; a finished episode makes room for the next
seed. Every started episode gives a record: one that a time limit, a crash of the world or the silence of a model's
server ends is a failure with that end reason, never a gap.

What a world's `info` holds: `worlds.world`.
"""

import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.schema import (
    NO_ANSWER,
    Answer,
    Env,
    Observation,
    Policy,
    Request,
    Step,
    Tool,
    ToolCall,
    Turn,
    tool_named,
)
from qwenvl_agent.tool_schema import argument_error


@dataclass(frozen=True)
class Decision:
    """What the next turn of an episode is chosen from: `env` is in the state that `request` shows."""

    record: EpisodeRecord
    """As it has grown until now."""
    env: Env
    request: Request
    answer: Answer
    """The policy's."""
    expected: Turn | None
    """The reference's turn."""


def rollout(
    make_env: Callable[[], Env],
    policy: Policy,
    seeds: Sequence[int],
    *,
    batch_size: int = 32,
    history_steps: int = 0,
    max_parse_errors: int = 3,
    time_limit_s: float | None = None,
    reference: Policy | None = None,
    picture_dir: str | Path | None = None,
    overrule: Callable[[Decision], Answer] | None = None,
    on_turn: Callable[[Decision, Answer, Observation], None] | None = None,
    on_progress: Callable[[EpisodeRecord], None] | None = None,
) -> list[EpisodeRecord]:
    """Play one episode per seed, up to `batch_size` at a time; records in the order of `seeds`.

    The world answers a turn without a call too; `max_parse_errors` in a row from which no call could be read end the
    episode. After `time_limit_s` no further step begins: running episodes fail, seeds not yet started get no
    record. `reference` is asked at every step too and its calls are recorded beside the policy's; it never acts.
    Pictures are kept under `picture_dir`. `overrule` has the last word on what is played where the policy answered, and
    `on_turn` is told what was and what is seen then; the record's last step is that turn. `on_progress` gets each record as its episode ends. Every environment that was
    made is closed, whatever happens.
    """
    seed, uses = Counter(seeds).most_common(1)[0] if seeds else (0, 0)
    if uses > 1:
        raise ValueError(f"seed {seed} twice: the same world would count as two samples; give each seed once")
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    waiting, running, records = deque(seeds), [], {}

    def settle() -> None:
        for episode in [e for e in running if e.record.end_reason]:
            running.remove(episode)
            episode.close()
            records[episode.record.seed] = episode.record
            if on_progress:
                on_progress(episode.record)

    try:
        while waiting or running:
            if deadline is not None and time.monotonic() >= deadline:
                for episode in running:
                    episode.record.end_reason = "time_limit"
                settle()
                break
            while waiting and len(running) < batch_size:
                running.append(
                    RunningEpisode(make_env, waiting.popleft(), history_steps, max_parse_errors, picture_dir)
                )
            settle()  # a world may crash at reset
            if running:
                _play_one_turn(running, policy, reference, overrule, on_turn)
                settle()
    finally:
        for episode in running:  # of an error that ends all of them
            episode.close()
    return [records[seed] for seed in seeds if seed in records]


def step_record(observation: Observation, answer: Answer, tools: Sequence[Tool], expected: Turn | None) -> StepRecord:
    """What was seen, written and wanted; what the world makes of it is filled in later."""
    calls = []
    for call in answer.turn.tool_calls:
        name_ok, schema_ok = check_call(call, tools)
        calls.append(CallRecord(name=call.name, arguments=call.arguments, name_ok=name_ok, schema_ok=schema_ok))
    return StepRecord(
        context=observation.text,
        text=answer.text,
        thought=answer.turn.thought or answer.turn.text,
        calls=calls,
        expected=None if expected is None else calls_json(expected),
        expected_thought="" if expected is None else expected.thought,
        error=answer.error or ("" if calls else "free_text"),
        repairs=list(answer.repairs),
    )


def check_call(call: ToolCall, tools: Sequence[Tool]) -> tuple[bool, bool]:
    """(the tool exists, its schema allows the arguments); ValueError if its schema cannot be checked."""
    tool = tool_named(tools, call.name)
    if tool is None:
        return False, False
    try:
        return True, not argument_error(tool.parameters, call.arguments)
    except ValueError as error:
        raise ValueError(f"tool {tool.name}: {error}") from None


class RunningEpisode:
    """An episode in play: its world, what the policy sees now, and the record as it grows; `end_reason` of the record says
    whether it is over."""

    def __init__(self, make_env, seed: int, history_steps: int, max_parse_errors: int, picture_dir):
        self.record = EpisodeRecord(seed=seed)
        self.history: deque[Step] = deque(maxlen=history_steps)
        self.max_parse_errors = max_parse_errors
        self.parse_errors_in_a_row = 0
        self.picture_dir = None if picture_dir is None else Path(picture_dir)
        self.env: Env | None = None
        try:
            self.env = make_env()
            self.observation, info = self.env.reset(seed=seed)
        except Exception:  # a world's crash is an outcome of that episode, kept in its record
            self._end_by_error(traceback.format_exc())
        except BaseException:
            self.close()
            raise
        else:
            self._read(info)

    def request(self) -> Request:
        draw = f"{self.record.seed}/{self.record.turns}"
        return Request(self.env.system_prompt, self.env.tools, tuple(self.history), self.observation, draw=draw)

    def take(self, answer: Answer, expected: Turn | None) -> None:
        """Play the answer's turn and record all of it; without an answer there is no turn, and the episode ends."""
        if answer.error == NO_ANSWER:
            self._end_by_error(answer.text)
            return
        step = step_record(self.observation, answer, self.env.tools, expected)
        step.picture = self._keep_picture(self.observation)
        step.position = self.position
        self.record.steps.append(step)
        self.record.turns += 1
        try:
            observation, _, terminated, truncated, info = self.env.step(answer.turn)
        except Exception:
            self._end_by_error(traceback.format_exc())
            return
        results = tuple(info["results"])
        step.results = [{"name": result.name, "content": result.content} for result in results]
        for call, result in zip(step.calls, results, strict=False):
            call.result = result.content
        for call, flags in zip(step.calls, info.get("calls", ()), strict=False):
            call.legal, call.effective, call.optimal = (flags.get(key) for key in ("legal", "effective", "optimal"))
        self.history.append(Step(self.observation, answer.turn, results))
        self.observation = observation
        self._read(info)
        self.parse_errors_in_a_row = self.parse_errors_in_a_row + 1 if step.error else 0
        if terminated or truncated:
            self.record.end_reason = info["end_reason"]
        elif self.parse_errors_in_a_row >= self.max_parse_errors:
            self.record.end_reason = "parse_abort"

    def close(self) -> None:
        """What goes wrong in closing is told in the record, and changes nothing of what was played."""
        env, self.env = self.env, None
        try:
            if env is not None:
                env.close()
        except Exception:
            self.record.error = self.record.error or traceback.format_exc()

    def _read(self, info: dict) -> None:
        """Copy the state of the mission from the world's info into the record."""
        record = self.record
        record.mission = info["mission"]
        record.success = bool(info["success"])
        record.goals = list(info.get("goals", ("success",)))
        record.reached = list(info.get("reached", record.goals if record.success else ()))
        record.progress = len(record.reached) / len(record.goals)
        record.harm = list(info.get("harm", ()))
        record.optimal_turns = info.get("optimal_turns", record.optimal_turns)
        record.changed_turn = info.get("changed_turn", record.changed_turn)
        self.position = list(info["position"]) if "position" in info else None

    def _end_by_error(self, error: str) -> None:
        self.record.end_reason, self.record.success = "error", False
        self.record.error = error

    def _keep_picture(self, observation: Observation) -> str:
        if self.picture_dir is None or not observation.pictures:
            return ""
        self.picture_dir.mkdir(parents=True, exist_ok=True)
        name = f"seed_{self.record.seed}_turn_{self.record.turns:03d}.png"
        # 64 colours are enough to judge a drawn world by eye, at a quarter of the size.
        picture = observation.pictures[-1].open().quantize(64, Image.Quantize.FASTOCTREE)
        picture.save(self.picture_dir / name)
        return f"{self.picture_dir.name}/{name}"


def calls_json(turn: Turn) -> list[dict]:
    """A turn's calls as plain JSON values."""
    return [{"name": call.name, "arguments": call.arguments} for call in turn.tool_calls]


def _play_one_turn(
    running: list[RunningEpisode],
    policy: Policy,
    reference: Policy | None,
    overrule: Callable[[Decision], Answer] | None,
    on_turn: Callable[[Decision, Answer, Observation], None] | None,
) -> None:
    requests = [episode.request() for episode in running]
    answers = policy.act(requests)
    expected = [None] * len(requests) if reference is None else [label.turn for label in reference.act(requests)]
    assert len(answers) == len(requests), f"{len(answers)} answers to {len(requests)} requests"
    for episode, request, answer, label in zip(running, requests, answers, expected, strict=True):
        decision = Decision(episode.record, episode.env, request, answer, label)
        played = overrule(decision) if overrule and answer.error != NO_ANSWER else answer
        num_before = len(episode.record.steps)
        episode.take(played, label)
        if on_turn and len(episode.record.steps) > num_before:
            on_turn(decision, played, episode.observation)
