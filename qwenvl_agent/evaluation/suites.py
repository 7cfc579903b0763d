"""Suites: what is played or predicted, and the metrics made of its records.

    safari   closed loop: episodes of the safari world, one per seed
    browser  closed loop: tasks in a live browser (`browser.py`), one per seed
    steps    offline: one answer to each held-out row, beside its label
    clicks, screenspot  offline: one answer to each labelled screen (`clicks.py`)
    elements offline: the list of all elements of a screen (`elements.py`)

Metrics come from records alone, so `scripts/rescore.py` needs no model. A result is a folder:

    runs/NAME/eval/safari/
        records.jsonl   one episode (or row) a line
        metrics.json    {"about": ..., "success_rate": {"value", "low", "high", "n"}, ..., "end_reasons": {...}}
        report.html     for people
        pictures/
        unfinished/     of an evaluation that has not come to its end (`unfinished.py`)
"""

import copy
import hashlib
import json
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import qwenvl_agent
from qwenvl_agent.config import Config, EvalConfig
from qwenvl_agent.evaluation.browser import browser_metrics
from qwenvl_agent.evaluation.clicks import ClickRecord, click_metrics, predict_clicks, screenspot_metrics
from qwenvl_agent.evaluation.elements import ElementsRecord, elements_metrics
from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.evaluation.screens import ScreenTask, read_held_out
from qwenvl_agent.evaluation.step_metrics import (
    RowRecord,
    consistency,
    funnel,
    predict_rows,
    step_metrics,
    token_metrics,
)
from qwenvl_agent.formats import FORMATS, Format, Span
from qwenvl_agent.formats.calls import json_text, write_plain
from qwenvl_agent.prompt import render_prompt
from qwenvl_agent.records import CallRecord, EpisodeRecord, read_records, write_records
from qwenvl_agent.schema import NO_ANSWER, Observation, Policy, Request, Row, Turn
from qwenvl_agent.statistics import Interval, bootstrap_mean, clustered_share, path_efficiency, wilson
from qwenvl_agent.worlds import WORLDS, make_env, make_oracle
from qwenvl_agent.worlds.safari.counterfactuals import changed_policy, changed_world
from qwenvl_agent.worlds.safari.judge import agrees, is_equivalent, is_refused
from qwenvl_agent.worlds.safari.world import REPORT_SEEDS, SELECTION_SEEDS, TRAIN_SEEDS

RECORD_KINDS = {
    "safari": EpisodeRecord,
    "browser": EpisodeRecord,
    "steps": RowRecord,
    "clicks": ClickRecord,
    "screenspot": ClickRecord,
    "elements": ElementsRecord,
}
"""The suites, and what a line of their records.jsonl is."""
PACKAGES = ("torch", "transformers", "numpy")
JUDGED_KINDS = {"safari": ("safari", "chat"), "clicks": ("computer",)}
"""Kinds of data that a suite inside training can say something about; conversations may be the safari's."""
Metrics = dict[str, "Interval | dict[str, int]"]
"""Rates and means with their intervals; counts by name (`end_reasons`, `errors`, `repairs`)."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation inside training gives back."""

    scalars: dict[str, float]
    """For TensorBoard, slash-grouped: `rollout/success_rate`, `eval/argument_accuracy`, ... What has no value (nothing
    was tried) is absent."""
    episodes: list[EpisodeRecord] = field(default_factory=list)
    rows: list[RowRecord] = field(default_factory=list)
    failure: str = ""
    """Of the first episode, if every one ended by no doing of the policy's: then no rate of them is among the scalars."""


def check_suite(config: Config) -> None:
    """ValueError, before anything is loaded, for a suite that cannot judge the data or a world that cannot be built."""
    suite, kinds = config.eval.suite, {source.kind for source in config.data.sources}
    if kinds and suite in JUDGED_KINDS and not kinds & {*JUDGED_KINDS[suite]}:
        fitting = [name for name, judged in JUDGED_KINDS.items() if kinds & {*judged}]
        raise ValueError(
            f"eval.suite is {suite!r} and data.sources are of kind {', '.join(sorted(kinds))}: the model would be judged "
            f"by what it does not learn; use eval.suite={' or '.join([*fitting, 'none'])}"
        )
    if suite == "clicks" and not config.data.eval_fraction:
        raise ValueError(
            "eval.suite is 'clicks' and data.eval_fraction is 0: no screen would be held out to measure on; raise it, "
            "or use eval.suite=none"
        )
    check_world(config, ["safari"] if suite == "safari" else sorted(WORLDS, key=lambda world: world not in kinds))


def check_world(config: Config, worlds: Sequence[str]) -> None:
    """ValueError unless one of these worlds can be built by `eval.world`, which another command may play later."""
    errors = []
    for world in worlds if config.eval.world or config.eval.suite == "safari" else ():
        try:
            env = make_env(world, **config.eval.world)
            if config.eval.suite == world:
                env.reset(seed=SELECTION_SEEDS[0])  # some rules contradict each other only when a world is drawn
            return
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError(f"eval.world: {'; nor is it of another world: '.join(errors)}")


def check_held_out(cfg: EvalConfig, held_out: Sequence[Row]) -> None:
    """ValueError, before a model is loaded, if the data holds nothing out that the suite needs."""
    if cfg.suite == "clicks" and not held_out:
        raise ValueError(
            "eval.suite is 'clicks' and no screen is held out: nothing could be measured at the end; raise "
            "data.eval_fraction, or use eval.suite=none"
        )
    if cfg.suite == "clicks":
        held_out_screens(held_out)


def evaluate(
    policy: Policy,
    cfg: EvalConfig,
    *,
    seeds: Sequence[int] | None = None,
    held_out: Sequence[Row] = (),
    history_steps: int = 0,
    time_limit_s: float | None = None,
) -> Evaluation:
    """Offline steps on up to `cfg.step_rows` rows of `held_out`, then `cfg.episodes` episodes, or held-out screens, of
    `cfg.suite`.

    `seeds` default to the set for selecting `best`, which no training data and no report shares. Half of
    `time_limit_s` (default `cfg.time_limit_s`) is for the rows; what is not begun in time is left out and what is begun
    counts. The policy's model must be unwrapped; its mode, gradients and random state are left as they were.
    """
    limit_s = cfg.time_limit_s if time_limit_s is None else time_limit_s
    start = time.monotonic()
    row_records, scalars = evaluate_rows(policy, pick_rows(held_out, cfg.step_rows), cfg.batch_size, limit_s / 2)
    if cfg.suite == "none":
        return Evaluation(scalars, rows=row_records)
    time_left_s = max(0.0, limit_s - (time.monotonic() - start))
    if cfg.suite == "clicks":
        screens, lost = readable_screens(held_out)
        tasks = pick_rows(screens, cfg.episodes)
        clicks = predict_in_time(policy, tasks, cfg.batch_size, time_left_s, predict=predict_clicks)
        scalars |= as_scalars(click_metrics(clicks), "clicks") if clicks else {}
        return Evaluation(scalars | lost, rows=row_records)
    episodes = play_safari(
        policy,
        cfg.world,
        SELECTION_SEEDS[: cfg.episodes] if seeds is None else seeds,
        batch_size=cfg.batch_size,
        history_steps=history_steps,
        time_limit_s=time_left_s,
    )
    failure = common_failure(episodes)
    metrics = with_errors({} if failure else safari_metrics(episodes), episodes)
    return Evaluation(scalars | as_scalars(metrics, "rollout"), episodes, row_records, failure)


def evaluate_rows(
    policy: Policy, rows: Sequence[Row], batch_size: int, time_limit_s: float
) -> tuple[list[RowRecord], dict[str, float]]:
    """Records and scalars of held-out rows. What cannot be read any more is left out, named on stderr, and counted as
    `eval/unusable_rows`: it must not end a training. Only then are the others looked at beforehand."""
    try:
        records = predict_in_time(policy, rows, batch_size, time_limit_s)
        scores = score_scalars(policy, rows[: len(records)]) if rows and hasattr(policy, "score") else {}
    except ValueError:
        from qwenvl_agent.data.unusable import usable_rows  # needs torch, as a policy with a collator does

        usable = usable_rows(policy.collator, rows) if hasattr(policy, "collator") else rows
        if len(usable) == len(rows):
            raise
        records, scalars = evaluate_rows(policy, usable, batch_size, time_limit_s)
        return records, scalars | {"eval/unusable_rows": float(len(rows) - len(usable))}
    return records, (as_scalars(steps_suite_metrics(records), "eval") if rows else {}) | scores


def held_out_screens(rows: Sequence[Row]) -> tuple[ScreenTask, ...]:
    """The samples of kind computer that these rows were made of."""
    sources = [row.source for row in rows]
    return read_held_out([Path(file) for file in dict.fromkeys(s.rpartition(":")[0] for s in sources)], sources).tasks


def readable_screens(rows: Sequence[Row]) -> tuple[tuple[ScreenTask, ...], dict[str, float]]:
    """The held-out screens that can still be read, and how many cannot: each of those is named on stderr."""
    sources = [row.source for row in rows]
    try:
        tasks = held_out_screens(rows)
    except ValueError as error:  # none is left
        print(f"left out of the evaluation: {error}", file=sys.stderr)
        return (), {"clicks/unusable_screens": float(len(sources))}
    lost = sorted(set(sources) - {task.source for task in tasks})
    for source in lost:
        print(f"left out of the evaluation: {source}: its screen cannot be read any more", file=sys.stderr)
    return tasks, {"clicks/unusable_screens": float(len(lost))} if lost else {}


def score_scalars(policy: Policy, rows: Sequence[Row]) -> dict[str, float]:
    """Token accuracy and loss by part; of the argument values alone, which are the decisions; tokens of a turn."""
    scores = policy.score(rows)
    metrics = token_metrics(scores) | value_metrics(policy, rows)
    metrics["turn_tokens"] = sum(score["num_tokens"] for score in scores) / max(1, len(rows))
    return {f"eval/{name}": value for name, value in metrics.items()}


def value_metrics(policy: Policy, rows: Sequence[Row]) -> dict[str, float]:
    """`token_accuracy/values`, `token_loss/values`: over the tokens of the calls' argument values alone.

    The rest of a call is the format's own, easy and of different length in each format, so that losses of whole calls
    cannot be compared across formats; these can.
    """
    scorer = copy.copy(policy)
    scorer.collator = copy.copy(policy.collator)
    scorer.collator.fmt = ValueSpans(policy.collator.fmt)
    calls = [row for row in rows if row.turn.tool_calls]
    # In a turn with calls nothing else is of the part `text`.
    values = [score for score in scorer.score(calls) if score["part"] == "text"] if calls else []
    found = token_metrics(values)
    return {name.replace("/text", "/values"): value for name, value in found.items() if name.endswith("/text")}


class ValueSpans:
    """A format whose calls are rendered in pieces: argument values as part `text`, all around them as part `call`."""

    def __init__(self, fmt: Format):
        self.fmt = fmt

    def __getattr__(self, name: str):
        return getattr(self.fmt, name)

    def render(self, turn: Turn) -> list[Span]:
        return [
            piece
            for span in self.fmt.render(turn)
            for piece in (split_values(span, turn) if turn.tool_calls else [span])
        ]


def split_values(span: Span, turn: Turn) -> list[Span]:
    """A call span cut at the turn's argument values, in the order in which they are written."""
    if span.part != "call":
        return [span]
    pieces, start = [], 0
    for call in turn.tool_calls:
        at = span.text.find(json_text(call.arguments), start)
        if at < 0:
            at = span.text.index(write_plain(call), start) + len(call.name)
        for is_value, text in json_pieces(call.arguments):
            at = span.text.index(text, at)
            if is_value:
                pieces += [Span("call", span.text[start:at]), Span("text", text)]
                start = at + len(text)
            at += len(text)
    return [piece for piece in (*pieces, Span("call", span.text[start:])) if piece.text]


def json_pieces(value: object) -> Iterator[tuple[bool, str]]:
    """(is a value, text) of every key and leaf, in the order in which JSON writes them, without closing quotes.

    A value keeps its opening quote, because tokenizers join that with the first letters.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield False, json_text(key)[1:-1]
            yield from json_pieces(item)
    elif isinstance(value, list):
        for item in value:
            yield from json_pieces(item)
    else:
        yield True, json_text(value).removesuffix('"') if isinstance(value, str) else json_text(value)


def play_safari(
    policy: Policy,
    world: dict,
    seeds: Sequence[int],
    *,
    counterfactual: str = "",
    oracle: dict | None = None,
    **options,
) -> list[EpisodeRecord]:
    """`rollout` in the safari world, with the oracle's turn noted beside each of the policy's.

    `counterfactual`: one of COUNTERFACTUALS, but for picture_blank, which is the policy's own. `oracle`: settings of
    the oracle, the ones with which the training data was recorded; another one's turns are other turns.
    """
    return rollout(
        changed_world(counterfactual, world),
        changed_policy(counterfactual, policy),
        seeds,
        reference=make_oracle("safari", world, **(oracle or {})),
        **options,
    )


def predict_in_time(
    policy: Policy,
    rows: Sequence,
    batch_size: int,
    time_limit_s: float,
    on_progress: Callable[[Sequence], None] = lambda records: None,
    predict: Callable[[Policy, Sequence], list] = predict_rows,
) -> list:
    """`predict` batch by batch; none begins after the time limit. `on_progress` gets the records of each batch."""
    deadline = time.monotonic() + time_limit_s
    records: list = []
    while len(records) < len(rows) and time.monotonic() < deadline:
        batch = predict(policy, rows[len(records) : len(records) + batch_size])
        records += batch
        on_progress(batch)
    return records


def pick_rows(rows: Sequence, num_rows: int) -> list:
    """`num_rows` rows spread evenly over all, always the same; all if there are fewer."""
    num_rows = min(num_rows, len(rows))
    return [rows[i * len(rows) // num_rows] for i in range(num_rows)]


# metrics of records


def safari_metrics(records: Sequence[EpisodeRecord]) -> Metrics:
    """Every started episode counts in every rate.

    success_rate, false_declaration_rate: of episodes. progress: mean share of targets found. mean_turns: over all
    episodes, failures with the turns they took; mean_turns_success: over successes. path_efficiency: success times
    optimal turns over turns taken. invalid_action_rate: calls that the tools or the state refuse, and turns without a
    readable call, of all calls and such turns. effective_rate: calls that changed something. The rest: `funnel` and
    `consistency`, over turns.
    """
    records = [judge(record) for record in records]
    pairs = [(str(record.seed), step) for record in records for step in record.steps]
    successes = [record for record in records if record.success]
    return {
        "success_rate": wilson(len(successes), len(records)),
        "progress": bootstrap_mean([record.progress for record in records]),
        "mean_turns": bootstrap_mean([record.turns for record in records]),
        "mean_turns_success": bootstrap_mean([record.turns for record in successes]),
        "path_efficiency": bootstrap_mean(
            [path_efficiency(r.success, r.optimal_turns or r.turns, r.turns) for r in records]
        ),
        "false_declaration_rate": wilson(sum(bool(record.harm) for record in records), len(records)),
        **funnel(pairs),
        "invalid_action_rate": rate_of_calls(records, lambda call: not (call.schema_ok and call.legal), unread=1),
        "effective_rate": rate_of_calls(records, lambda call: bool(call.effective), unread=0),
        **consistency(pairs, agrees),
        "end_reasons": count(outcome(record) for record in records),
        "errors": count(step.error for _, step in pairs if step.error),
        "repairs": count(name for _, step in pairs for name in step.repairs),
    }


def steps_suite_metrics(records: Sequence[RowRecord]) -> Metrics:
    """`step_metrics`, and for turns of the safari whether they do what their thought says."""
    pairs = [(record.episode, record.step) for record in records]
    return {
        **step_metrics(records),
        **consistency(pairs, agrees),
        "errors": count(step.error for _, step in pairs if step.error),
        "repairs": count(name for _, step in pairs for name in step.repairs),
    }


def outcome(record: EpisodeRecord) -> str:
    """done_ok, done_early (something was not found), done_false (something was declared found that was not), or why
    the episode ended otherwise."""
    if record.end_reason != "done":
        return record.end_reason
    if record.success:
        return "done_ok"
    return "done_false" if record.harm else "done_early"


def judge(record: EpisodeRecord) -> EpisodeRecord:
    """Fill in what follows from the results: whether the state allowed a call, and whether the oracle's turn is no
    better. Judging twice changes nothing."""
    for step in record.steps:
        for call in step.calls:
            refused = call.result is not None and is_refused(call.name, call.result, bool(call.effective))
            call.legal = call.schema_ok and not refused
        if step.expected is not None:
            calls = [call.as_json() for call in step.calls]
            is_optimal = all(call.legal for call in step.calls) and is_equivalent(calls, step.expected)
            for call in step.calls:
                call.optimal = is_optimal
    return record


def rate_of_calls(records: Sequence[EpisodeRecord], is_hit: Callable[[CallRecord], bool], *, unread: int) -> Interval:
    """Share of calls that hit, by episode; a turn without a readable call is one more try and `unread` more hits."""
    hits = [sum(unread if step.error else sum(map(is_hit, step.calls)) for step in r.steps) for r in records]
    tries = [sum(1 if step.error else len(step.calls) for step in r.steps) for r in records]
    return clustered_share(hits, tries)


def count(names) -> dict[str, int]:
    """How often each name occurs, commonest first."""
    return dict(Counter(names).most_common())


def as_scalars(metrics: Metrics, group: str) -> dict[str, float]:
    """The values of a group of metrics that have one, for TensorBoard."""
    values = {f"{group}/{name}": m.value for name, m in metrics.items() if isinstance(m, Interval)}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def metrics_json(metrics: Metrics) -> dict:
    """As JSON values; a figure that has no value (nothing was tried) is null."""

    def known(value: float) -> float | None:
        return None if isinstance(value, float) and math.isnan(value) else value

    return {
        name: {key: known(value) for key, value in m._asdict().items()} if isinstance(m, Interval) else m
        for name, m in metrics.items()
    }


# results on disk


def write_result(directory: Path, about: dict, records: Sequence, metrics: Metrics) -> None:
    """records.jsonl and metrics.json; `about` says what was evaluated and how."""
    directory.mkdir(parents=True, exist_ok=True)
    write_records(directory / "records.jsonl", records)
    write_metrics(directory, about, metrics)


def write_metrics(directory: Path, about: dict, metrics: Metrics) -> None:
    text = json.dumps({"about": about, **metrics_json(metrics)}, indent=1, ensure_ascii=False)
    (directory / "metrics.json").write_text(text + "\n", encoding="utf-8")


def read_result(directory: Path) -> tuple[dict, list]:
    """(metrics.json, the records) of a result folder."""
    path = directory / "metrics.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        kind = RECORD_KINDS[result["about"]["suite"]]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, so {directory} is no result of eval.py; name another folder") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of eval.py ({error!r}); evaluate again") from None
    return result, read_records(directory / "records.jsonl", kind)


def metrics_of(suite: str, records: Sequence) -> Metrics:
    """The suite's metrics."""
    compute = {
        "safari": safari_metrics,
        "browser": browser_metrics,
        "steps": steps_suite_metrics,
        "clicks": click_metrics,
        "screenspot": screenspot_metrics,
        "elements": elements_metrics,
    }
    return with_errors(compute[suite](records), records)


def with_errors(metrics: Metrics, records: Sequence) -> Metrics:
    """With `error_rate`, beside the rate that stands first: cases that ended by no doing of the policy's."""
    first, others = list(metrics.items())[:1], list(metrics.items())[1:]
    num_failed = sum(bool(failure_of(record)) for record in records)
    return dict([*first, ("error_rate", wilson(num_failed, len(records))), *others])


def failure_of(record) -> str:
    """Why a case ended by no doing of the policy's (a crash of the world, a server without an answer); "" if not."""
    if isinstance(record, EpisodeRecord):
        return last_line(record.error) if record.end_reason == "error" else ""
    answer = record.step if isinstance(record, RowRecord) else record
    return last_line(answer.text) if answer.error == NO_ANSWER else ""


def describe_failures(records: Sequence) -> str:
    """How many cases `failure_of` names; "" if there is none."""
    num_failed = sum(bool(failure_of(record)) for record in records)
    return f"{num_failed} of them ended with an error" if num_failed else ""


def last_line(text: str) -> str:
    """Of a traceback the error, of anything else all of it."""
    return text.strip().rpartition("\n")[2] or "no reason is given"


def common_failure(records: Sequence) -> str:
    """The first cause if every case failed, so that no figure says anything about the policy; "" if not."""
    causes = [failure_of(record) for record in records]
    return causes[0] if causes and all(causes) else ""


def describe(suite: str, policy: str, **more) -> dict:
    """What every result says about itself; `more` adds seeds, config, hashes, processor size."""
    packages = {name: version(name) for name in PACKAGES}
    versions = {"qwenvl_agent": qwenvl_agent.__version__, "python": platform.python_version(), **packages}
    return {"suite": suite, "policy": policy, **more, "versions": versions}


def prompt_hash(request: Request, format_name: str) -> str:
    """Short SHA-256 of the prompt around the observation, to see whether two results rest on the same words."""
    bare = replace(request, history=(), observation=Observation(""))
    return hashlib.sha256(render_prompt(bare, FORMATS[format_name]).text.encode()).hexdigest()[:16]


def seed_set(seeds: Sequence[int]) -> str:
    """Which of the disjoint sets the seeds are of: training, selection, report; mixed if of several or none."""
    sets = {"training": TRAIN_SEEDS, "selection": SELECTION_SEEDS, "report": REPORT_SEEDS}
    return next((name for name, known in sets.items() if all(seed in known for seed in seeds)), "mixed")
