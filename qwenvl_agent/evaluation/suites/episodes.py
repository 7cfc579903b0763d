"""Episodes played to their end in a world, one per seed: the same suite for every world."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qwenvl_agent.config import Config, EvalConfig, SourceConfig
from qwenvl_agent.evaluation.episodes import (
    COLUMNS,
    NOT_SHARES,
    OTHER_ENDS,
    OUTCOMES,
    episode_metrics,
    judge,
    labels_of,
)
from qwenvl_agent.evaluation.figures import as_scalars, prompt_hash
from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.evaluation.step_metrics import LABELS
from qwenvl_agent.evaluation.suites.suite import Evaluation, OnRecords, Options, Say, Suite, TurnsView, Work, last_line
from qwenvl_agent.records import EpisodeRecord
from qwenvl_agent.schema import Env, Observation, Policy, Request, Row
from qwenvl_agent.worlds import World, known_worlds
from qwenvl_agent.worlds.world import Metrics

NUM_EPISODES = 200
"""If it is not said how many."""


class Episodes(Suite):
    """Of a world under its rules; `source` is how the world was found: its name, or path/to/file.py:function."""

    record = EpisodeRecord
    case, cases = "seed", "episodes"
    paired_by = "world"
    success_metric, group = "success_rate", "rollout"
    options = ("episodes", "seed_start", "world", "oracle", "counterfactual")
    expected = "the oracle here"
    intro = "One seed is one world and mission, the same for every policy."
    not_shares = NOT_SHARES
    good = frozenset({"done_ok"})

    def __init__(self, world: World, source: str):
        self.world, self.source, self.name = world, source, world.name
        self.title = f"{world.name}: episodes played to the end"
        words = world.labels
        self.labels = {**LABELS, **labels_of(words)}
        self.columns = words.columns or COLUMNS
        self.outcomes = {**OUTCOMES, **words.outcomes, **OTHER_ENDS, **words.outcomes}

    def measure(self, records: Sequence[EpisodeRecord]) -> Metrics:
        return episode_metrics(self.world, records)

    def case_of(self, record: EpisodeRecord) -> str:
        return str(record.seed)

    def pairing(self, about: dict) -> object:
        """All rules, as the world has them: one that is younger than a result had its default."""
        return dict(self.world.rules)

    def outcome(self, record: EpisodeRecord) -> str:
        return self.world.outcome(record)

    def is_success(self, record: EpisodeRecord) -> bool:
        return record.success

    def failure(self, record: EpisodeRecord) -> str:
        return last_line(record.error) if record.end_reason == "error" else ""

    def view(self, record: EpisodeRecord) -> TurnsView:
        record, words = judge(self.world, record), self.world.labels
        facts = [f"{words.goals}: {len(record.reached)} of {len(record.goals)}", f"{record.turns} turns"]
        facts += [f"{words.harm}: {', '.join(record.harm)}"] if record.harm else []
        return TurnsView(record.mission, ", ".join(facts), record.steps, record.error)

    # playing

    def play(
        self,
        policy: Policy,
        seeds: Sequence[int],
        *,
        counterfactual: str = "",
        oracle: Mapping[str, object] | None = None,
        batch_size: int = 32,
        **options,
    ) -> list[EpisodeRecord]:
        """`rollout` in this world, with the reference's turn noted beside each of the policy's where there is one.

        `oracle`: settings of the reference, the ones with which the training data was recorded; another one's turns are
        other turns.
        """
        make_env, policy = self.changed(counterfactual, policy)
        return rollout(
            make_env,
            policy,
            seeds,
            reference=self.world.make_reference(**(oracle or {})),
            batch_size=min(batch_size, self.world.max_envs or batch_size),
            **options,
        )

    def changed(self, counterfactual: str, policy: Policy) -> tuple[Callable[[], Env], Policy]:
        """(what makes environments, the policy) as the counterfactual of that name has them; "" is none."""
        if not counterfactual:
            return self.world.make_env, policy
        known = self.world.counterfactuals()
        if counterfactual not in known:
            choices = f"use {', '.join(known)}" if known else "it has none; leave it out"
            raise ValueError(
                f"counterfactual {counterfactual!r} does not exist in the world {self.name}: nothing would be changed; "
                f"{choices} (for pictures: --blank-pictures)"
            )
        change_env, change_policy = known[counterfactual].change_env, known[counterfactual].change_policy
        make_env = (lambda: change_env(self.world.make_env())) if change_env else self.world.make_env
        return make_env, change_policy(policy) if change_policy else policy

    def baseline(self, options: Options) -> Policy:
        """The policy of that name; the oracle plays with the settings that its reference has."""
        return self.world.make_policy(options.baseline, **(options.oracle if options.baseline == "oracle" else {}))

    def prepare(self, config: Config, policy: Policy | None, options: Options, say: Say) -> Work:
        policy = policy or self.baseline(options)
        self.changed(options.counterfactual, policy)
        self.world.make_reference(**options.oracle)
        start = self.world.seeds.report.start if options.seed_start is None else options.seed_start
        seeds = range(start, start + (options.episodes or NUM_EPISODES))
        seed_set = self.world.seeds.name_of(seeds)
        if seed_set != "report":
            say(f"note: the seeds {seeds.start} to {seeds.stop - 1} are of the set '{seed_set}', not for reports")
        about = {
            "counterfactual": options.counterfactual,
            "oracle": dict(options.oracle),
            "world": dict(self.world.rules),
            "world_from": self.source,
            "prompt_hash": prompt_hash(self.bare_request(), config.prompt),
        }

        def answer(rest: Sequence[int], on_records: OnRecords, picture_dir: Path | None, time_limit_s: float | None):
            return self.play(
                policy,
                rest,
                counterfactual=options.counterfactual,
                oracle=options.oracle,
                batch_size=config.eval.batch_size,
                history_steps=config.prompt.history_steps,
                time_limit_s=time_limit_s,
                picture_dir=picture_dir,
                on_progress=lambda record: on_records([record]),
            )

        return Work(
            seeds,
            about,
            answer,
            place=lambda number, record: record.seed - start if record.seed in seeds else None,
            told=lambda records: {"seeds": {"start": seeds.start, "count": len(seeds), "set": seed_set}},
        )

    def bare_request(self) -> Request:
        """What every prompt of this world begins with."""
        env = self.world.make_env()
        try:
            return Request(env.system_prompt, env.tools, (), Observation(""))
        finally:
            env.close()

    # inside training

    def check(self, config: Config) -> None:
        sources = config.data.sources
        if sources and all(map(self.is_foreign, sources)):
            raise ValueError(
                f"eval.suite is {self.source!r} and {kinds_of(sources)}: the model would be judged by what it does not learn; "
                f"use eval.suite={' or '.join(fitting_suites(sources))}"
            )
        if config.eval.episodes > len(self.world.seeds.selection):
            raise ValueError(
                f"eval.episodes is {config.eval.episodes} and the world {self.name} has {len(self.world.seeds.selection)} "
                "seeds for choosing `best`: the others would be a report's or the training's; lower it"
            )
        env = self.world.make_env()
        try:
            if not self.world.max_envs:  # some rules contradict each other only when a world is drawn
                env.reset(seed=self.world.seeds.selection[0])
        finally:
            env.close()

    def is_foreign(self, source: SourceConfig) -> bool:
        """Whether its rows teach nothing that this world asks for."""
        world = world_of_source(source.kind, source.world)
        is_other = world not in ("", self.name, self.source)
        return is_other or (source.kind == "computer" and source.kind not in self.world.data_kinds)

    def evaluate(
        self, policy: Policy, cfg: EvalConfig, *, held_out: Sequence[Row], history_steps: int, time_limit_s: float
    ) -> Evaluation:
        """Episodes on the seeds for choosing `best`, which no training data and no report shares."""
        seeds = self.world.seeds.selection[: cfg.episodes]
        episodes = self.play(
            policy,
            seeds,
            batch_size=cfg.batch_size,
            history_steps=history_steps,
            time_limit_s=time_limit_s,
        )
        failure = self.common_failure(episodes)
        metrics = self.metrics(episodes)
        if failure:
            metrics = {"error_rate": metrics["error_rate"]}
        cut_short = describe_time_limit(episodes, len(seeds), cfg.time_limit_s)
        return Evaluation(as_scalars(metrics, self.group), episodes, failure=failure, cut_short=cut_short)


def describe_time_limit(episodes: Sequence[EpisodeRecord], num_seeds: int, limit_s: float) -> str:
    """How many episodes `eval.time_limit_s` ended or left unstarted, so that a low rate is not taken for the policy's."""
    num_ended = sum(episode.end_reason == "time_limit" for episode in episodes)
    num_missing = num_seeds - len(episodes)
    if not num_ended and not num_missing:
        return ""
    return (
        f"eval.time_limit_s ({limit_s:g}) ended {num_ended} of {num_seeds} episodes, which count as failures, "
        f"and left {num_missing} unstarted: the rate is not the policy's own; raise it, or lower eval.episodes"
    )


def world_of_source(kind: str, world: str) -> str:
    """The world that a source's rows are of, by name or path; "" if nothing tells."""
    return world or (kind if kind in known_worlds() else "")


def kinds_of(sources: Sequence[SourceConfig]) -> str:
    return f"data.sources are of kind {', '.join(sorted({source.kind for source in sources}))}"


def fitting_suites(sources: Sequence[SourceConfig]) -> list[str]:
    """Suites that say something about these data, and none."""
    worlds = {world_of_source(source.kind, source.world) for source in sources} - {""}
    return [*sorted(worlds), *(["clicks"] if any(s.kind == "computer" for s in sources) else []), "none"]
