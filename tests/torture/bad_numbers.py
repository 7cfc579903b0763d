"""Numbers that are none, in real trainings: NaN and infinities in a loss, in one gradient, on one rank, in accumulation; a
step in which nothing is supervised; losses that spike. Each run ends or skips as its settings say, and names the rows.

What is looked at: the step and the rows that are named (those of the bad micro-batch and no others, where it is one), that
no checkpoint and no log line holds a number that is none, that a skipped step has changed nothing (weights and averages
are those of a run in which that step's flag stood), and that the rest of the run learns.
"""

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from attack import Attack, Outcome, random_of
from kills import ZERO, Field, Scenario, Training
from trainings import Poison, warm_process

STEPS, ACCUMULATION = 8, 2
SETTINGS = {"max_steps": STEPS, "log_every": 1, "save_every": 1, "eval_every": 0, "keep_checkpoints": 99}


def scenario(name: str, num_ranks: int = 1, environment=None, **groups: dict) -> Scenario:
    groups["train"] = SETTINGS | groups.get("train", {}) | ({"batch_size": 1} if num_ranks > 1 else {})
    groups["eval"] = {"step_rows": 0}
    return Scenario(name, groups, num_ranks, *([environment] if environment else []))


SCENARIOS = (
    scenario("LoRA"),
    scenario("DDP", 2),
    scenario("full", model={"method": "full"}),
    scenario("ZeRO-2", 2, ZERO, train={"zero_stage": 2}),
    scenario("packs", model={"attention": "sdpa"}, train={"pack_tokens": 300}),
    scenario("ZeRO-3", 2, ZERO, train={"zero_stage": 3}),
)
LOSS, GRADIENT, SPIKE, NOTHING = "loss", "one gradient", "a spike", "nothing supervised"
WHAT = (LOSS, GRADIENT, SPIKE, LOSS, NOTHING)
NAMED = re.compile(r"(row\d+)#\S* \(\S+:\d+\)")


def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    with warm_process(scratch) as warm:
        field = Field(scratch, warm)
        for case in cases:
            what, skips = WHAT[case % len(WHAT)], case % 2 == 1
            yield one_case(field, random_of(seed, case), SCENARIOS[case % len(SCENARIOS)], what, skips)


def one_case(field: Field, random: random.Random, scenario: Scenario, what: str, skips: bool) -> Outcome:
    number = random.choice(("nan", "inf", "-inf")) if what in (LOSS, GRADIENT) else ""
    kind = f"{number} {what}".strip() + f", {scenario.name}, {'skip' if skips else 'stop'}"
    train = {"on_bad_step": "skip" if skips else "stop", "spike_factor": 5.0 if what == SPIKE else 0.0}
    groups = scenario.groups | {"train": scenario.groups["train"] | train}
    if what == NOTHING:  # free text weighs as a call does
        groups["train"] |= {"weight_call": 0.0}
    training = Training(field, replace(scenario, groups=groups), field.scratch / "case")
    forward = random.randint(11, STEPS * ACCUMULATION) if what == SPIKE else random.randint(1, STEPS * ACCUMULATION)
    rank = random.randrange(scenario.num_ranks)
    harm = Poison(forward, number or "1000", what == GRADIENT, str(training.folder / "ids"))
    harms = [harm if r == rank and what != NOTHING else None for r in range(scenario.num_ranks)]
    statuses = training.start_and_wait(0, harms)
    if what == NOTHING:
        note = wrong_of_nothing(training, statuses, skips)
    else:
        step = (forward + 1) // ACCUMULATION
        # Rows of a pack share their beginning, so that what tells them apart may be cut off the second one's text.
        is_exact = what != GRADIENT and "pack_tokens" not in groups["train"]
        note = wrong_of_bad_step(training, statuses, skips, step, rows_of(training, field), is_exact)
    note = note or numbers_that_are_none(training)
    return Outcome(kind, not note, f"{note}: {training.said()}" if note else "")


def rows_of(training: Training, field: Field) -> set[str]:
    """Of the micro-batch that was spoiled."""
    from tokenizers import Tokenizer

    ids = json.loads((training.folder / "ids").read_text())
    text = Tokenizer.from_file(str(field.scratch / "base" / "tokenizer.json")).decode(ids)
    return {f"row{number}" for number in re.findall(r"What of (\d+)\?", text)}


def wrong_of_bad_step(
    training: Training, statuses: list, skips: bool, step: int, rows: set[str], is_exact: bool
) -> str:
    """What is not as the settings say; "" if all is."""
    texts = [path.read_text(errors="replace") for path in sorted(training.folder.glob("log_*"))]
    wanted = "warning: " if skips else "error: "
    lines = [
        line for text in texts for line in text.splitlines() if line.startswith(wanted) and f"at step {step}" in line
    ]
    if not lines:
        return f"no line says that step {step} is bad"
    for line in lines:
        named = set(NAMED.findall(line))
        if not rows or not (rows == named if is_exact else rows <= named):
            return f"the rows {sorted(rows)} are bad, {sorted(named)} are named"
    if skips:
        return wrong_of_skipped(training, statuses, step)
    if any(status in (0, None) for status in statuses):
        return f"status {statuses}"
    saved = training.run_dir / "checkpoints" / "last"
    last = int(saved.resolve().name.removeprefix("step_")) if saved.exists() else 0
    return "" if last == step - 1 else f"the last checkpoint is of step {last}, the bad step is {step}"


def wrong_of_skipped(training: Training, statuses: list, step: int) -> str:
    if statuses != [0] * len(statuses):
        return f"status {statuses}"
    counted = [line["step"] for line in lines_of(training) if line.get("train/skipped_step_rate")]
    if counted != [step]:
        return f"metrics.jsonl counts the steps {counted} as skipped, it was {step}"
    folders = [training.run_dir / "checkpoints" / f"step_{number:06d}" / "model" for number in (step - 1, step)]
    for path in folders[1].glob("*.safetensors"):
        if step > 1 and path.read_bytes() != (folders[0] / path.name).read_bytes():
            return f"the skipped step has changed {path.name}"
    return ""


def wrong_of_nothing(training: Training, statuses: list, skips: bool) -> str:
    """Every step is one in which no token weighs anything."""
    said = training.said(4000)
    if skips:
        counted = [line["step"] for line in lines_of(training) if line.get("train/skipped_step_rate")]
        is_right = counted == list(range(1, STEPS + 1)) and statuses == [0] * len(statuses)
        return "" if is_right and "weight is 0" in said else f"status {statuses}, skipped {counted}"
    is_right = all(status not in (0, None) for status in statuses) and "nothing to learn" in said
    return "" if is_right else f"status {statuses}"


def lines_of(training: Training) -> list[dict]:
    path = training.run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers_that_are_none(training: Training) -> str:
    """In a log line or a checkpoint's weights and averages."""
    import torch
    from safetensors.torch import load_file

    for line in lines_of(training):
        bad = [name for name, value in line.items() if not math.isfinite(value)]
        if bad:
            return f"metrics.jsonl, step {line['step']}: {bad} is no number"
    for path in (training.run_dir / "checkpoints").glob("step_*/**/*.safetensors"):
        for name, tensor in load_file(path).items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                return f"{path.relative_to(training.run_dir)}: {name} is not finite"
    return ""


ATTACK = Attack(
    "numbers",
    "NaN, infinities, spikes and steps without supervision, stopped or skipped as configured",
    full=60,
    quick=2,
    seconds=1800,
    run=run,
    patience=1500,
)
