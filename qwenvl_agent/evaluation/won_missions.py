"""What a policy did where it won, to be learned again (expert iteration): for worlds without an oracle to ask.

Every mission is tried several times with drawn answers. Of those that were won the shortest are kept, and of these the
turns that did something: the policy's own thought and calls are the labels.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from qwenvl_agent.evaluation.own_states import PlayedEpisode, StateRow, last_line, state_of, state_row
from qwenvl_agent.evaluation.rollout import Decision, calls_json, rollout
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.schema import Answer, Observation, Policy, ToolResult
from qwenvl_agent.worlds.world import World

MAX_ATTEMPTS = 1000


@dataclass
class Attempt:
    """One episode of a mission: the rows of its turns that may be learned, and how many may not, by reason."""

    number: int
    rows: list[StateRow] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    num_turns: int = 0
    is_won: bool = False


def play_to_win(
    world: World,
    policy_of: Callable[[int], Policy],
    seeds: Sequence[int],
    *,
    attempts: int,
    keep: int = 1,
    draw_seed: int = 0,
    batch_size: int = 32,
    on_record: Callable[[EpisodeRecord], None] | None = None,
) -> Iterator[PlayedEpisode]:
    """The missions in the order of the seeds, each with the rows of its `keep` shortest won attempts.

    `policy_of(seed)` gives the policy whose answers are drawn by that seed, another for each attempt. A turn is dropped if it could not be read, if one of its calls
    was refused or fits no tool, or if nothing was changed by it; but the turn that won stays.
    """
    won: dict[int, list[Attempt]] = {seed: [] for seed in seeds}
    counts = {seed: Counter[str](episodes=0, won=0, failed_to_play=0) for seed in seeds}
    errors = dict.fromkeys(seeds, "")
    for number in range(attempts):
        policy = policy_of(draw_seed * MAX_ATTEMPTS + number)
        for record, attempt in _play(world, policy, seeds, number, batch_size, on_record):
            failed = record.end_reason == "error"
            errors[record.seed] = errors[record.seed] or last_line(record.error)
            counts[record.seed].update(episodes=1, won=int(attempt.is_won), failed_to_play=int(failed))
            if attempt.is_won:
                won[record.seed] = sorted([*won[record.seed], attempt], key=lambda a: (a.num_turns, a.number))[:keep]
    for seed in seeds:
        yield _mission(seed, counts[seed], won.pop(seed), errors[seed])


def _mission(seed: int, counts: Counter[str], kept: Sequence[Attempt], error: str) -> PlayedEpisode:
    turns = sum((attempt.dropped for attempt in kept), Counter[str]())
    counts.update(missions=1, won_missions=int(bool(kept)), kept_episodes=len(kept))
    counts.update({"kept_turns": sum(attempt.num_turns for attempt in kept), **turns})
    return PlayedEpisode(seed, [row for attempt in kept for row in attempt.rows], counts, error=error)


def _play(
    world: World,
    policy: Policy,
    seeds: Sequence[int],
    number: int,
    batch_size: int,
    on_record: Callable[[EpisodeRecord], None] | None,
) -> list[tuple[EpisodeRecord, Attempt]]:
    attempts = {seed: Attempt(number) for seed in seeds}

    def on_turn(decision: Decision, played: Answer, following: Observation) -> None:
        attempt, record = attempts[decision.record.seed], decision.record
        attempt.num_turns += 1
        step = record.steps[-1]
        reason = "" if record.success else why_dropped(world, step, decision.request.observation, following)
        if reason:
            attempt.dropped[reason] += 1
            return
        results = tuple(ToolResult(**result) for result in step.results)
        row = state_row(
            world, decision, played.turn, record.turns - 1, results, episode=f"{record.seed:08x}_{number:03d}"
        )
        same_calls = json.dumps(calls_json(played.turn), sort_keys=True)
        attempt.rows.append(StateRow(f"{row.state} {same_calls}", row.pngs, row.row))

    def end(record: EpisodeRecord) -> None:
        attempts[record.seed].is_won = record.success
        if not record.success:
            attempts[record.seed].rows.clear()  # their pictures would fill the memory
        if on_record:
            on_record(record)

    records = rollout(
        world.make_env,
        policy,
        seeds,
        batch_size=min(batch_size, world.max_envs or batch_size),
        on_turn=on_turn,
        on_progress=end,
    )
    return [(record, attempts[record.seed]) for record in records]


def why_dropped(world: World, step: StepRecord, before: Observation, after: Observation) -> str:
    """The reason for which a turn is not to be learned; "" if it may be."""
    if step.error:
        return "dropped_unreadable"
    if any(not (call.name_ok and call.schema_ok) or call.legal is False for call in step.calls):
        return "dropped_refused"
    effects = [call.effective for call in step.calls]
    if True in effects:
        return ""
    if None in effects and not looks_alike(world, before, after):
        return ""
    return "dropped_unchanged"


def looks_alike(world: World, before: Observation, after: Observation) -> bool:
    """Whether nothing changed as far as is seen: in the pictures, as a text may tell of the turn itself."""
    if before.pictures or after.pictures:
        before, after = (Observation("", observation.pictures) for observation in (before, after))
    return state_of(world, before) == state_of(world, after)
