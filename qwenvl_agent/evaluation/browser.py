"""The browser suite: episodes in a live browser, their metrics, and a page on which they can be watched again.

python eval.py --policy oracle --suite browser --episodes 280
python eval.py --run runs/computer_use_2b --suite browser --world 'tasks=["miniwob"]' --episodes 460
"""

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.evaluation.step_metrics import funnel
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.schema import Policy
from qwenvl_agent.statistics import Interval, bootstrap_mean, clustered_share, wilson
from qwenvl_agent.worlds import make_env

MAX_BROWSERS = 4
"""Episodes at once: each has a browser of its own, of some 200 MB."""
MAX_CASES = 120
"""Episodes on the replay page, failures first; all are in records.jsonl."""
TEMPLATE_DIR = Path(__file__).parent.parent / "assets"
NOT_STARTED = "(not started)"


def play_browser(
    policy: Policy, world: dict, seeds: Sequence[int], *, batch_size: int = 1, **options
) -> list[EpisodeRecord]:
    """`rollout` in the browser world; seeds go round the tasks."""
    return rollout(
        lambda: make_env("browser", **world), policy, seeds, batch_size=min(batch_size, MAX_BROWSERS), **options
    )


def task_of(record: EpisodeRecord) -> str:
    """The task's name, which the world writes before the dot of each goal."""
    return record.goals[0].partition(".")[0] if record.goals else NOT_STARTED


def browser_metrics(records: Sequence[EpisodeRecord]) -> dict[str, Interval | dict[str, int]]:
    """Every started episode counts in every rate; a browser that was lost is a failure.

    success_rate: every goal reached, no harm done. progress: mean share of goals reached. harm_rate: episodes in which
    something was done that cannot be made good, such as a wrong download. effective_rate: actions after which the
    picture, the server or the window's messages changed. success_rate/TASK: of that task.
    """
    pairs = [(str(record.seed), step) for record in records for step in record.steps]
    successes = [record for record in records if record.success]
    tasks: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        tasks.setdefault(task_of(record), []).append(record)
    return {
        "success_rate": wilson(len(successes), len(records)),
        "progress": bootstrap_mean([record.progress for record in records]),
        "mean_turns": bootstrap_mean([record.turns for record in records]),
        "mean_turns_success": bootstrap_mean([record.turns for record in successes]),
        "harm_rate": wilson(sum(bool(record.harm) for record in records), len(records)),
        **funnel(pairs),
        "effective_rate": clustered_share(
            [sum(bool(call.effective) for call in calls_of(record)) for record in records],
            [len(calls_of(record)) for record in records],
        ),
        **{
            f"success_rate/{task}": wilson(sum(record.success for record in played), len(played))
            for task, played in tasks.items()
        },
        "end_reasons": dict(Counter(record.end_reason for record in records).most_common()),
        "errors": dict(Counter(step.error for _, step in pairs if step.error).most_common()),
        "repairs": dict(Counter(name for _, step in pairs for name in step.repairs).most_common()),
    }


def calls_of(record: EpisodeRecord) -> list[CallRecord]:
    return [call for step in record.steps for call in step.calls]


# the replay page


def write_replay(path: Path, directory: Path, title: str, records: Sequence[EpisodeRecord]) -> None:
    """One HTML file: every screenshot with the marks of what was done on it, and what came of that."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_DIR),
        autoescape=True,  # everything that a model or a page wrote is shown as text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = sorted(records, key=lambda record: record.success)[:MAX_CASES]
    tasks = {task: [r for r in records if task_of(r) == task] for task in dict.fromkeys(map(task_of, records))}
    page = environment.get_template("replay.html.jinja").render(
        title=title,
        tasks=[{"name": task, "won": sum(r.success for r in rs), "number": len(rs)} for task, rs in tasks.items()],
        num_records=len(records),
        cases=[case_view(record, directory) for record in shown],
    )
    path.write_text(page, encoding="utf-8")


def case_view(record: EpisodeRecord, directory: Path) -> dict:
    return {
        "task": task_of(record),
        "seed": record.seed,
        "mission": record.mission,
        "success": record.success,
        "end_reason": record.end_reason,
        "goals": [{"name": goal.partition(".")[2], "reached": goal in record.reached} for goal in record.goals],
        "error": record.error,
        "steps": [step_view(step, directory) for step in record.steps],
    }


def step_view(step: StepRecord, directory: Path) -> dict:
    path = directory / step.picture
    data = base64.b64encode(path.read_bytes()).decode() if step.picture and path.is_file() else ""
    marks = [mark for call in step.calls if (mark := mark_of(call))]
    return {
        "picture": data,
        "marks": marks,
        "thought": step.thought,
        "calls": [call.as_json()["arguments"] for call in step.calls],
        "results": [result["content"] for result in step.results],
        "text": step.text if step.error or step.repairs else "",
        "error": step.error,
    }


def mark_of(call: CallRecord) -> dict | None:
    """Where a call points, in thousandths of the picture; None if it has no place."""
    place = call.arguments.get("coordinate")
    if not call.schema_ok or place is None:
        return None
    return {"x": place[0] / 10, "y": place[1] / 10, "name": call.arguments["action"]}
