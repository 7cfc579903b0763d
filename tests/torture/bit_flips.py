"""One bit of a checkpoint's file is another: it is found, or it changes nothing that a resume or an evaluation reads.

Every kind of file that a checkpoint has, of LoRA, full and ZeRO-2 on two ranks, in turn; the bit anywhere in the file.
Found: a resume takes the checkpoint before and names the file; an evaluation of it is refused where the file is one that it
reads. Harmless: what the run would go on from is the same, or the step is evaluated once more.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from attack import Attack, Outcome, random_of
from kills import ZERO, Field, Scenario, Training
from trainings import warm_process

FLIPS = 25
"""Of one case, all in one kind of file."""
ALL = {"eval_every": 1, "keep_checkpoints": 9, "max_steps": 2}
SCENARIOS = (
    Scenario("LoRA", {"train": ALL}),
    Scenario("full", {"model": {"method": "full"}, "train": ALL}),
    Scenario("ZeRO-2", {"train": {"batch_size": 1, "zero_stage": 2, **ALL}}, 2, ZERO),
)
KINDS = (
    *(("LoRA", "model/adapter_model.safetensors"), ("LoRA", "model/adapter_config.json"), ("LoRA", "state.json")),
    *(("LoRA", "evaluation.json"), ("LoRA", "rank_0.json"), ("LoRA", "config.json"), ("LoRA", "checksums.json")),
    *(("LoRA", "optimizer.safetensors"), ("full", "model/model.safetensors"), ("full", "model/*.json")),
    *(("ZeRO-2", "deepspeed/**/*.pt"), ("ZeRO-2", "deepspeed/*[a-z]"), ("ZeRO-2", "rank_1.json")),
)


def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    from qwenvl_agent.training.checkpoint import read_state

    trained = train_all(scratch, {KINDS[case % len(KINDS)][0] for case in cases})
    states = {name: read_state(folder / "step_000002") for name, folder in trained.items()}
    for case in cases:
        name, pattern = KINDS[case % len(KINDS)]
        yield flip_some(trained[name], states[name], f"{pattern} ({name})", pattern, random_of(seed, case))


def train_all(scratch: Path, names: set[str]) -> dict[str, Path]:
    """Folders of checkpoints of the scenarios of these names, each with the steps 1 and 2."""
    with warm_process(scratch) as warm:
        field, folders = Field(scratch, warm), {}
        for scenario in (one for one in SCENARIOS if one.name in names):
            training = Training(field, scenario, scratch / scenario.name)
            statuses = training.start_and_wait(0, [None] * scenario.num_ranks)
            assert statuses == [0] * scenario.num_ranks, training.said()
            folders[scenario.name] = training.run_dir / "checkpoints"
    return folders


def flip_some(checkpoints_dir: Path, whole: dict, kind: str, pattern: str, random) -> Outcome:
    files = sorted(path for path in (checkpoints_dir / "step_000002").glob(pattern) if path.is_file())
    assert files, pattern
    notes = []
    for _ in range(FLIPS):
        path = random.choice(files)
        content = path.read_bytes()
        bit = random.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            note = what_is_missed(checkpoints_dir, path, whole)
        finally:
            path.write_bytes(content)
        if note:
            notes.append(f"{path.relative_to(checkpoints_dir)}, bit {bit}: {note}")
    return Outcome(kind, not notes, "; ".join(notes[:2]), FLIPS, len(notes))


def what_is_missed(checkpoints_dir: Path, path: Path, whole: dict) -> str:
    """Of a checkpoint with one flipped bit, by what resumes and what evaluates; "" if nothing is. `whole`: its state."""
    from qwenvl_agent.inference.load import check_checkpoint
    from qwenvl_agent.training.checkpoint import last_whole, read_state

    said: list[str] = []
    checkpoint = last_whole(checkpoints_dir, said.append)
    is_found = checkpoint.name == "step_000001"
    # A hash that is another is said of the file that it is of.
    if is_found and path.name != "checksums.json" and path.name not in " ".join(said):
        return f"found and not named: {said}"
    is_read = path.name == "config.json" or path.parent.name == "model"
    try:
        check_checkpoint(checkpoints_dir / "step_000002")
        is_refused = False
    except ValueError:
        is_refused = True
    if is_read and not is_refused and is_found:
        return "an evaluation takes it"
    if is_found:
        return ""
    if path.name not in ("evaluation.json", "checksums.json"):
        return "a resume takes it"
    try:
        state = read_state(checkpoint)
    except (ValueError, KeyError, OSError) as error:
        return f"neither taken nor refused: {error!r}"
    due = json.loads((checkpoint / "state.json").read_text())
    is_same = state == whole or (due["evaluation_due"] and state == due)
    return "" if is_same else "the run goes on from another state than it had"


ATTACK = Attack(
    "bit_flips", "one bit of a checkpoint's file is another", full=260, quick=10, seconds=600, run=run, patience=1500
)
