"""An evaluation inside training: held-out rows and rollouts of a step that was saved, and what people see of them."""

import json
from collections.abc import Sequence

from accelerate.utils import broadcast_object_list

from qwenvl_agent.data.unusable import usable_rows
from qwenvl_agent.evaluation.suites import Evaluation, evaluate, pick_rows, training_suite
from qwenvl_agent.formats import Format
from qwenvl_agent.inference.policy import ModelPolicy
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.schema import Row
from qwenvl_agent.training.best import is_better
from qwenvl_agent.training.checkpoint import record_evaluation
from qwenvl_agent.training.metrics import Reporter
from qwenvl_agent.training.run import Run
from qwenvl_agent.training.state import preserved_random_state

NUM_SHOWN = 4
"""Answers and rollouts that an evaluation writes to TensorBoard."""


def evaluate_run(run: Run) -> dict[str, float]:
    """The metrics of the run's step, which has been saved: by rank 0 while the others wait. `run.best` may be renewed.

    Training's random numbers stay as they were.
    """
    metrics = {}
    if run.config.train.zero_stage == 3:
        run.reporter.say("no evaluation inside training under ZeRO-3, where no rank has the whole model: use eval.py")
    elif run.accelerator.is_main_process:
        with preserved_random_state():
            metrics = evaluate_and_show(run).scalars
    metrics = broadcast_object_list([metrics])[0]
    if metrics:
        run.reporter.log(run.step, metrics)
    if is_better(metrics, run.best, training_suite(run.config.eval)):
        run.best = metrics | {"step": run.step}
    if run.accelerator.is_main_process:
        checkpoints_dir = run.config.run_dir / "checkpoints"
        record_evaluation(checkpoints_dir, run.step, run.best, metrics, run.config.train.keep_checkpoints)
    run.evaluation_due = False
    return metrics


def evaluate_and_show(run: Run) -> Evaluation:
    """On this rank alone; some answers and episodes go to TensorBoard."""
    config, held_out, fmt = run.config, run.rows.held_out, run.collator.fmt
    policy = ModelPolicy(run.bare_model, run.processor, run.collator, fmt, config.eval)
    result = evaluate(policy, config.eval, held_out=held_out, history_steps=config.prompt.history_steps)
    show_answers(run.reporter, run.step, policy, usable_rows(run.collator, pick_rows(held_out, NUM_SHOWN)), fmt)
    show_episodes(run.reporter, run.step, result.episodes[:NUM_SHOWN])
    if result.failure:
        run.reporter.say(f"step {run.step}: every episode ended with an error, so this is no `best`: {result.failure}")
    if result.cut_short:
        run.reporter.say(f"step {run.step}: {result.cut_short}")
    return result


def show_answers(reporter: Reporter, step: int, policy: ModelPolicy, rows: Sequence[Row], fmt: Format) -> None:
    """Held-out pictures with what the model wrote and what it should have written."""
    for i, (row, answer) in enumerate(zip(rows, policy.act([row.request for row in rows]), strict=True)):
        truth = "".join(span.text for span in fmt.render(row.turn))
        reporter.text(step, f"answers/{i}", f"row {row.id}\n--- written\n{answer.text}\n--- truth\n{truth}")
        for picture in row.request.observation.pictures[-1:]:
            reporter.image(step, f"answers/{i}", picture.open())


def show_episodes(reporter: Reporter, step: int, episodes: Sequence[EpisodeRecord]) -> None:
    """Transcripts of rollouts: context, answer and results of every step."""
    for episode in episodes:
        title = f"{episode.mission}: {episode.end_reason}, reached {episode.reached} of {episode.goals}"
        turns = [turn_text(number, record) for number, record in enumerate(episode.steps, 1)]
        reporter.text(step, f"rollouts/{episode.seed}", "\n\n".join([title, *turns]))


def turn_text(number: int, record: StepRecord) -> str:
    """One turn of a transcript."""
    results = [f"{result['name']}: {json.dumps(result['content'], ensure_ascii=False)}" for result in record.results]
    return "\n".join([f"--- turn {number}: seen", record.context, "--- written", record.text, "--- results", *results])
