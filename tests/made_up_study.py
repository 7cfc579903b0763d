"""Made-up cells of an ablation: records, losses and a config on disk as train.py and eval.py leave them, in no time."""

import json
import random
from pathlib import Path

from qwenvl_agent.config import Config, to_json
from qwenvl_agent.evaluation import results
from qwenvl_agent.evaluation.step_metrics import RowRecord
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.statistics import wilson

DIRECTIONS = ("UP", "DOWN", "LEFT", "RIGHT")
MISSION_SEED = 2_000_000
WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10}


def move(direction: str, steps: int) -> dict:
    return {"name": "move", "arguments": {"actions": [{"direction": direction, "steps": steps}]}}


def note(text: str) -> dict:
    return {"name": "update_notepad", "arguments": {"content": text}}


def made(call: dict, **flags) -> CallRecord:
    return CallRecord(**call, result={"blocked": False}, effective=True, **flags)


def thought(tile: str, direction: str, steps: int) -> str:
    return f"Me f5. Target red tiger {tile}. Path f4 f3. Plan {direction} {steps}."


def made_up_step(rng: random.Random, skill: float, has_thought: bool) -> StepRecord:
    """A turn that is right with probability `skill`; else wrong in one of the ways that are told apart."""
    direction, steps = rng.choice(DIRECTIONS), rng.randint(1, 3)
    right = [note("Map V."), move(direction, steps)]
    step = StepRecord(context="", expected=right, expected_thought=thought("f3", direction, steps), text="x" * 80)
    said, calls = thought("f3", direction, steps), right
    if rng.random() > skill:
        other = (direction, steps % 3 + 1)
        way = rng.random()
        if way < 0.15:
            step.error = "json_error"
        elif way < 0.3:
            calls = [note("Map .."), right[1]]
        else:
            calls = [right[0], move(*other)]
            if way < 0.6:
                said = thought("c3", *other)
            elif way < 0.8:
                said = thought("f3", *other)
    step.thought = said if has_thought else ""
    step.calls = [] if step.error else [made(call) for call in calls]
    return step


def made_up_episode(seed: int, rng: random.Random, skill: float, has_thought: bool) -> EpisodeRecord:
    steps = [made_up_step(rng, skill, has_thought) for _ in range(rng.randint(3, 8))]
    success = rng.random() < skill
    return EpisodeRecord(
        seed=seed,
        mission=f"Mission {seed}",
        goals=["red tiger"],
        reached=["red tiger"] if success else [],
        success=success,
        progress=float(success),
        turns=len(steps),
        optimal_turns=3,
        end_reason="done" if success else "max_turns",
        steps=steps,
    )


def write_result(directory: Path, suite: str, records: list, config: Config, **more) -> None:
    about = {"world": WORLD, "oracle": {}, "config": to_json(config), "prompt_hash": "ab12", "seconds": 60.0}
    about |= {"seeds": {"start": MISSION_SEED, "count": len(records), "set": "report"}} | more
    if suite == "steps":
        about |= {"num_rows": len(records), "num_held_out": len(records), "dataset_hash": "d1"}
    # The one figure that the page of cases wants; all others follow from the records.
    hits = [getattr(record, "success", False) for record in records]
    metrics = {"argument_accuracy" if suite == "steps" else "success_rate": wilson(sum(hits), len(hits))}
    results.write_result(directory, results.describe(suite, config.name, **about), records, metrics)


def write_cell(
    config: Config,
    skill: float,
    *,
    seed: int,
    num_missions: int = 12,
    counterfactuals: dict[str, float] | None = None,
    max_steps: int = 8,
    dataset_hash: str = "d1",
    **about,
) -> None:
    """A trained and evaluated cell, in `config.run_dir`; missions are the harder the higher their seed."""
    run = config.run_dir
    (run / "checkpoints" / "last").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(to_json(config)))
    state = {"step": max_steps, "best": {}, "sampler": {"num_rows": 10, "rows_per_step": 4}}
    (run / "checkpoints" / "last" / "state.json").write_text(json.dumps(state))
    (run / "data.json").write_text(json.dumps({"dataset_hash": dataset_hash, "num_train_rows": 100}))
    rng = random.Random(f"{config.name}")
    losses = [
        {"step": s, "train/loss": 2 / s + rng.random() / 9, "train/loss_part/call": 1 / s}
        for s in range(1, max_steps + 1)
    ]
    last = {"step": max_steps, "eval/token_loss/all": 1 - skill + rng.random() / 9, "eval/token_loss/call": 0.1}
    losses.append(last | {"eval/token_loss/values": 1.2 - skill + rng.random() / 20, "eval/turn_tokens": 61.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    has_thought = config.prompt.format != "no_thought"

    def episodes(skill: float, change: int | None = None) -> list[EpisodeRecord]:
        found = []
        for i in range(num_missions):
            rng = random.Random(f"{config.name} {i} {skill}")
            record = made_up_episode(
                MISSION_SEED + i, rng, min(0.98, max(0.02, skill + 0.3 - 0.6 * i / num_missions)), has_thought
            )
            record.changed_turn = change if record.turns > 4 else None
            found.append(record)
        return found

    write_result(run / "eval" / "missions", "safari", episodes(skill), config, **about)
    for name, worse in (counterfactuals or {}).items():
        write_result(run / "eval" / name, "safari", episodes(skill - worse, 4), config)
    rows = [
        RowRecord(
            row_id=f"e{i // 3}/{i}",
            episode=f"e{i // 3}",
            step=made_up_step(random.Random(f"{config.name}{i}"), skill, has_thought),
        )
        for i in range(num_missions)
    ]
    write_result(run / "eval" / "steps", "steps", rows, config)
