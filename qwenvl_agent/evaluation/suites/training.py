"""Evaluation inside training: held-out rows, then whatever suite `eval.suite` names."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from qwenvl_agent.config import Config, EvalConfig, SourceConfig
from qwenvl_agent.evaluation.figures import as_scalars
from qwenvl_agent.evaluation.step_metrics import RowRecord, predict_rows
from qwenvl_agent.evaluation.suites.episodes import Episodes
from qwenvl_agent.evaluation.suites.registry import find_suite, is_world
from qwenvl_agent.evaluation.suites.steps import Steps
from qwenvl_agent.evaluation.suites.suite import Evaluation, Suite, pick_rows, predict_in_time
from qwenvl_agent.evaluation.token_scores import score_scalars
from qwenvl_agent.schema import Policy, Row
from qwenvl_agent.worlds import find_maker, known_worlds, make_world


def check_suite(config: Config) -> None:
    """ValueError, before anything is loaded, for a suite that cannot judge the data or a world that cannot be built."""
    if is_world(config.eval.suite):
        try:
            find_maker(config.eval.suite)
        except ValueError:
            find_suite(config.eval.suite)  # says more, if it is no world's name at all
            raise
    else:
        check_rules(config)
    training_suite(config.eval).check(config)


def training_suite(cfg: EvalConfig) -> Suite:
    """The suite of `eval.suite`, which can be played inside training."""
    try:
        suite = find_suite(cfg.suite, cfg.world)
    except ValueError as error:
        raise ValueError(f"eval.world: {error}") from None
    if not suite.group and suite.name != "none":
        raise ValueError(f"eval.suite is {cfg.suite!r}, which is for eval.py alone; use a world's name, clicks or none")
    return suite


def check_rules(config: Config) -> None:
    """ValueError unless `eval.world`, which another command may play later, has the rules of a known world."""
    kinds, errors = {source.kind for source in config.data.sources}, []
    for world in sorted(known_worlds(), key=lambda name: name not in kinds) if config.eval.world else ():
        try:
            make_world(world, config.eval.world).make_env().close()
            return
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError(
            f"eval.world: {'; nor is it of another world: '.join(errors)}; for the rules of any other world name it as "
            "eval.suite, with eval.episodes=0 if it is not to be played in training"
        )


def check_held_out(cfg: EvalConfig, held_out: Sequence[Row]) -> None:
    """ValueError, before a model is loaded, if the data holds nothing out that the suite needs."""
    training_suite(cfg).check_held_out(held_out)


def rule_differences(cfg: EvalConfig, sources: Iterable[tuple[SourceConfig, set[frozenset[str]]]]) -> list[str]:
    """A sentence for each source that was recorded under other rules than the suite plays by, as far as the names of its
    rows' tools tell."""
    suite = training_suite(cfg)
    if not isinstance(suite, Episodes):
        return []
    own = [(source, toolsets) for source, toolsets in sources if not suite.is_foreign(source)]
    return [found for source, toolsets in own if (found := _difference(suite, source, toolsets))]


def _difference(suite: Episodes, source: SourceConfig, toolsets: set[frozenset[str]]) -> str:
    for names in toolsets:
        rules = suite.world.rules_of_tools(names)
        played = {name: suite.world.rules[name] for name in rules}
        if played != rules:
            was, now = (json.dumps(dict(values)) for values in (rules, played))
            return (
                f"{source.path} was recorded under the rules {was} (tools {', '.join(sorted(names))}), and eval.suite "
                f"{suite.source} plays under {now}: success will be measured on another game than is learned; set "
                f"{' and '.join(f'eval.world.{name}={value}' for name, value in rules.items())}, or record under {now}"
            )
    return ""


def evaluate(
    policy: Policy,
    cfg: EvalConfig,
    *,
    held_out: Sequence[Row] = (),
    history_steps: int = 0,
    time_limit_s: float | None = None,
) -> Evaluation:
    """Offline steps on up to `cfg.step_rows` rows of `held_out`, then up to `cfg.episodes` cases of `cfg.suite`.

    Half of `time_limit_s` (default `cfg.time_limit_s`) is for the rows; what is not begun in time is left out and what
    is begun counts. The policy's model must be unwrapped; its mode, gradients and random state are left as they were.
    """
    suite = training_suite(cfg)
    limit_s = cfg.time_limit_s if time_limit_s is None else time_limit_s
    start = time.monotonic()
    steps = Steps(suite.world if isinstance(suite, Episodes) else None)
    rows, scalars = evaluate_rows(steps, policy, pick_rows(held_out, cfg.step_rows), cfg.batch_size, limit_s / 2)
    if not cfg.episodes:
        return Evaluation(scalars, rows=rows)
    left_s = max(0.0, limit_s - (time.monotonic() - start))
    found = suite.evaluate(policy, cfg, held_out=held_out, history_steps=history_steps, time_limit_s=left_s)
    return replace(found, scalars=scalars | found.scalars, rows=rows)


def evaluate_rows(
    steps: Steps, policy: Policy, rows: Sequence[Row], batch_size: int, time_limit_s: float
) -> tuple[list[RowRecord], dict[str, float]]:
    """Records and scalars of held-out rows. What cannot be read any more is left out, named on stderr, and counted as
    `eval/unusable_rows`: it must not end a training. Only then are the others looked at beforehand."""
    try:
        records = predict_in_time(policy, rows, batch_size, time_limit_s, predict_rows)
        scores = score_scalars(policy, rows[: len(records)]) if rows and hasattr(policy, "score") else {}
    except ValueError:
        from qwenvl_agent.data.unusable import usable_rows  # needs torch, as a policy with a collator does

        usable = usable_rows(policy.collator, rows) if hasattr(policy, "collator") else rows
        if len(usable) == len(rows):
            raise
        records, scalars = evaluate_rows(steps, policy, usable, batch_size, time_limit_s)
        return records, scalars | {"eval/unusable_rows": float(len(rows) - len(usable))}
    return records, (as_scalars(steps.measure(records), "eval") if rows else {}) | scores
