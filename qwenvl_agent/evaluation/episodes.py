"""Episodes of any world: judged by the world, and measured by what every world's records hold."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from qwenvl_agent.evaluation.step_metrics import consistency, funnel
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.statistics import Interval, bootstrap_mean, clustered_share, path_efficiency, wilson
from qwenvl_agent.worlds import Labels, World
from qwenvl_agent.worlds.world import Metrics

NOT_SHARES = ("mean_turns", "mean_turns_success")
OUTCOMES = {
    "done_ok": "every goal reached",
    "done_early": "ended with goals left",
    "done_harm": "ended after harm",
}
OTHER_ENDS = {
    "max_turns": "out of turns",
    "parse_abort": "unreadable answers in a row",
    "time_limit": "out of time",
    "error": "the world crashed, or no answer came",
}
COLUMNS = {
    "success_rate": "success %",
    "progress": "goals %",
    "mean_turns": "turns",
    "mean_turns_success": "if won",
}


def labels_of(words: Labels) -> dict[str, tuple[str, str]]:
    """What each metric of episodes is called in a world's own words, and what it means."""
    return {
        "success_rate": ("success", words.success),
        "error_rate": ("crashed", "episodes that a crash of the world or a silent server ended, not the policy"),
        "progress": (words.goals, "mean share of an episode's goals"),
        "mean_turns": ("turns", "over all episodes; a failure counts with the turns it took"),
        "mean_turns_success": ("turns of successes", ""),
        "path_efficiency": (
            "path efficiency",
            "success x optimal turns / turns taken; optimal for a player who knows the whole world: whoever has to search, an "
            "oracle too, stays below 100 %",
        ),
        "harm_rate": (words.harm, "share of the episodes with any; it cannot be made good"),
        "invalid_action_rate": ("invalid actions", "calls refused by schema or state, and unreadable turns"),
        "effective_rate": ("effective actions", "calls that changed something"),
        **words.metrics,
    }


def episode_metrics(world: World, records: Sequence[EpisodeRecord]) -> Metrics:
    """`episode_rates`, and counts: how episodes ended, which turns could not be read, and what was repaired."""
    rates = episode_rates(world, records)
    steps = [step for record in records for step in record.steps]
    return {
        **rates,
        "end_reasons": count(world.outcome(record) for record in records),
        "errors": count(step.error for step in steps if step.error),
        "repairs": count(name for step in steps for name in step.repairs),
    }


def episode_rates(world: World, records: Sequence[EpisodeRecord]) -> Metrics:
    """Every started episode counts in every rate; what the world does not tell is left out.

    success_rate, harm_rate: of episodes. progress: mean share of goals reached. mean_turns: over all episodes, failures
    with the turns they took; mean_turns_success: over successes. path_efficiency: success times optimal turns over
    turns taken, optimal for a player who knows the world: whoever has to search stays below 1. invalid_action_rate: calls that the tools or the state refuse, and turns without a readable call, of
    all calls and such turns. effective_rate: calls that changed something. The rest: `funnel` and `consistency`, over
    turns, and the world's own.
    """
    records = [judge(world, record) for record in records]
    pairs = [(str(record.seed), step) for record in records for step in record.steps]
    calls = [call for _, step in pairs for call in step.calls]
    successes = [record for record in records if record.success]
    metrics: Metrics = {
        "success_rate": wilson(len(successes), len(records)),
        "progress": bootstrap_mean([record.progress for record in records]),
        "mean_turns": bootstrap_mean([record.turns for record in records]),
        "mean_turns_success": bootstrap_mean([record.turns for record in successes]),
    }
    if any(record.optimal_turns is not None for record in records):
        metrics["path_efficiency"] = bootstrap_mean(
            [path_efficiency(r.success, r.optimal_turns or r.turns, r.turns) for r in records]
        )
    metrics |= {"harm_rate": wilson(sum(bool(record.harm) for record in records), len(records)), **funnel(pairs)}
    metrics["invalid_action_rate"] = rate_of_calls(
        records, lambda call: not call.schema_ok or call.legal is False, unread=1
    )
    if not calls or any(call.effective is not None for call in calls):
        metrics["effective_rate"] = rate_of_calls(records, lambda call: bool(call.effective), unread=0)
    return {**metrics, **thought_metrics(world, pairs), **world.metrics(records)}


def thought_metrics(world: World, pairs: Sequence[tuple[str, StepRecord]]) -> Metrics:
    """`consistency`, where the world can tell what a thought announces."""
    return {} if type(world).agrees is World.agrees else consistency(pairs, world.agrees)


def judge(world: World, record: EpisodeRecord) -> EpisodeRecord:
    """Fill in what follows from the record: whether the state allowed a call, and whether the reference's turn is no
    better. Judging twice changes nothing."""
    for step in record.steps:
        for call in step.calls:
            call.legal = world.is_legal(call)
        if step.expected is not None:
            calls = [call.as_json() for call in step.calls]
            is_optimal = all(map(is_allowed, step.calls)) and world.is_equivalent(calls, step.expected)
            for call in step.calls:
                call.optimal = is_optimal
    return record


def is_allowed(call: CallRecord) -> bool:
    """By its schema and, as far as is known, by the state."""
    return call.schema_ok and call.legal is not False


def is_right(world: World, step: StepRecord) -> bool:
    """Read, allowed, and equivalent to the reference's turn, which there is."""
    if step.error or not all(map(is_allowed, step.calls)):
        return False
    return world.is_equivalent([call.as_json() for call in step.calls], step.expected)


def rate_of_calls(records: Sequence[EpisodeRecord], is_hit: Callable[[CallRecord], bool], *, unread: int) -> Interval:
    """Share of calls that hit, by episode; a turn without a readable call is one more try and `unread` more hits."""
    hits = [sum(unread if step.error else sum(map(is_hit, step.calls)) for step in r.steps) for r in records]
    tries = [sum(1 if step.error else len(step.calls) for step in r.steps) for r in records]
    return clustered_share(hits, tries)


def count(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, commonest first."""
    return dict(Counter(names).most_common())
