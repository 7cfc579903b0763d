"""Screens to act on, with labels: what the suites clicks and screenspot ask, and baselines that answer.

A task's request is what training makes of the same sample, so that a run is asked as it was taught.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwenvl_agent.computer import Action, to_turn
from qwenvl_agent.computer.context import screen_request
from qwenvl_agent.computer.tool import CLICKS, NAME
from qwenvl_agent.config import SourceConfig
from qwenvl_agent.containers import data_files
from qwenvl_agent.coordinates import GRID, Screen
from qwenvl_agent.curation.convert import LAYOUTS, convert
from qwenvl_agent.data.readers.computer import TEST, Box, Rejected, Sample, samples_of
from qwenvl_agent.data.readers.units import UNDECLARED, Declared, judge
from qwenvl_agent.data.source import Reject
from qwenvl_agent.schema import Answer, Picture, Policy, Request, ToolCall, Turn

SPLITS = ("test", "train", "all")
SCREENSPOT_LAYOUTS = tuple(name for name in LAYOUTS if name.startswith("screenspot"))
MAX_SHOWN = 10
"""Rejects that a summary names one by one."""
PLATFORMS = {
    **dict.fromkeys(("windows", "macos"), "desktop"),
    **dict.fromkeys(("ios", "android"), "mobile"),
    **dict.fromkeys(("forum", "gitlab", "shop", "tool"), "web"),
}
"""Of ScreenSpot's `data_source`, as its files for desktop, mobile and web have them."""


@dataclass(frozen=True)
class ScreenTask:
    """A screenshot, what to do on it, and the label, in pixels of the screenshot. `source` is `file:line`."""

    case_id: str
    source: str
    cluster: str
    instruction: str
    picture: Picture
    request: Request
    actions: tuple[Action, ...]
    thought: str = ""
    box_px: Box | None = None
    hit_boxes_px: list[list[float]] | None = None
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class TaskSet:
    """Tasks as read, and what the result says about them: counts, rejects by reason, the files' hash."""

    tasks: tuple[ScreenTask, ...]
    rejected: tuple[Rejected, ...]
    about: dict


def to_task(sample: Sample, case_id: str) -> ScreenTask:
    return ScreenTask(
        case_id=case_id,
        source=sample.source,
        cluster=sample.split_key,
        instruction=sample.instruction,
        picture=sample.picture,
        request=screen_request(sample.picture, sample.instruction, sample.past, sample.kinds),
        actions=sample.actions,
        thought=sample.thought,
        box_px=sample.box_px,
        hit_boxes_px=sample.details.get("hit_boxes"),
        details={key: value for key, value in sample.details.items() if key != "hit_boxes"},
    )


def read_tasks(path: Path, split: str = "", declared: Declared = UNDECLARED) -> TaskSet:
    """The samples of a dataset.jsonl (or its folder) of the kind computer, whose places are as `declared`.

    `split` is test, train or all; by default test if any sample is marked so, else all.
    """
    files = data_files(path)
    found = [item for file in files for item in numbered(samples_of(file, declared), file)]
    data = str(files[0] if len(files) == 1 else path)
    suspicions = judge(Counter(evidence for _, item in found for evidence in item.evidences), declared, data)
    samples = [(case_id, item) for case_id, item in found if isinstance(item, Sample)]
    split = split or ("test" if any(sample.split == TEST for _, sample in samples) else "all")
    taken = [(case_id, s) for case_id, s in samples if split in ("all", s.split)]
    about = {"data": data, "split": split, "left_out": len(samples) - len(taken), "dataset_hash": file_hash(files)}
    about |= {name: value for name, value in vars(declared).items() if value}
    return task_set(taken, found, about | ({"notes": dict(suspicions)} if suspicions else {}))


def read_held_out(paths: Sequence[Path], sources: Iterable[str], declared: Mapping[Path, Declared] = {}) -> TaskSet:  # noqa: B006
    """The samples of several files whose `file:line` is among `sources`: what a run's data holds out.

    `declared` is what the sources of the files say of their places (`declared_by_file`); the run's reading has judged it.
    """
    files, wanted = [file for path in paths for file in data_files(path)], set(sources)
    found = [
        item
        for file in files
        for item in numbered(samples_of(file, declared.get(file, UNDECLARED)), file)
        if item[1].source in wanted
    ]
    samples = [(case_id, item) for case_id, item in found if isinstance(item, Sample)]
    about = {"data": ", ".join(map(str, files)), "split": "held_out", "left_out": 0, "dataset_hash": file_hash(files)}
    return task_set(samples, found, about)


def declared_by_file(sources: Iterable[SourceConfig]) -> dict[Path, Declared]:
    """What the sources of kind computer declare of each of their files."""
    own = [source for source in sources if source.kind == "computer"]
    return {file: Declared.of(source) for source in own for file in data_files(Path(source.path))}


def read_screenspot(folder: Path, layout: str, pictures: Path | None = None) -> TaskSet:
    """The samples of all files of a ScreenSpot folder: *.json, annotations/*.json or *.parquet.

    `pictures` is where the files' picture names start; by default the folder or the first folder in it that has them.
    """
    if layout not in SCREENSPOT_LAYOUTS:
        raise ValueError(
            f"layout {layout or '(none)'} is not one of ScreenSpot: units of boxes differ and are not guessed; give "
            f"--layout with one of {', '.join(SCREENSPOT_LAYOUTS)}"
        )
    files = annotation_files(folder)
    found = []
    for file in files:
        root = pictures or picture_root(file, layout, folder)
        found += numbered(convert(file, layout, root), file)
    samples = [(case_id, with_platform(item)) for case_id, item in found if isinstance(item, Sample)]
    about = {"data": str(folder), "layout": layout, "split": "all", "left_out": 0, "dataset_hash": file_hash(files)}
    return task_set(samples, found, about)


def annotation_files(folder: Path) -> list[Path]:
    places = (folder, folder / "annotations")
    files = [file for place in places for pattern in ("*.json", "*.jsonl", "*.parquet") for file in place.glob(pattern)]
    if not files:
        raise ValueError(
            f"{folder} has no *.json, annotations/*.json or *.parquet: there is nothing to measure on; give the folder "
            "with ScreenSpot's annotations"
        )
    return sorted(files)


def picture_root(file: Path, layout: str, folder: Path) -> Path:
    """Where the file's pictures are, seen from the first that is found at all."""
    if file.suffix == ".parquet":
        return folder
    roots = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    for root in roots:
        if any(isinstance(item, Sample) for item, _ in zip(convert(file, layout, root), range(20), strict=False)):
            return root
    raise ValueError(
        f"{file}: none of its first samples can be read with pictures from {folder} or a folder in it "
        f"({first_fault(file, layout, folder)}); unpack them there, name their folder with --pictures, or correct --layout"
    )


def first_fault(file: Path, layout: str, root: Path) -> str:
    return next((item.message for item in convert(file, layout, root) if isinstance(item, Reject)), "no row")


def with_platform(sample: Sample) -> Sample:
    """With `platform` among the details, from the file's name or the source where the set does not say it."""
    if sample.details.get("platform"):
        return sample
    name = Path(sample.source.rpartition(":")[0]).stem
    of_file = next((platform for platform in ("desktop", "mobile", "web") if platform in name), "")
    platform = of_file or PLATFORMS.get(str(sample.details.get("data_source")), "")
    return replace(sample, details=sample.details | {"platform": platform}) if platform else sample


def numbered(items: Iterator[Sample | Rejected], file: Path) -> list[tuple[str, Sample | Rejected]]:
    """Items with names by which two results find the same one: file and position, which a line need not tell."""
    return [(f"{file.stem}#{number}", item) for number, item in enumerate(items, 1)]


def task_set(samples: list[tuple[str, Sample]], found: list, about: dict) -> TaskSet:
    rejected = tuple(item for _, item in found if isinstance(item, Rejected))
    about |= {"num_tasks": len(samples), "rejected": dict(Counter(item.reason for item in rejected).most_common())}
    if not samples:
        reasons = "; ".join(f"{item.source}: {item.message}" for item in rejected[:3]) or "no rows"
        raise ValueError(
            f"{about['data']} gives no sample of split {about['split']}: nothing can be measured ({reasons})"
        )
    return TaskSet(tuple(to_task(sample, case_id) for case_id, sample in samples), rejected, about)


def summary(tasks: Sequence, rejected: Sequence[Rejected], about: dict) -> str:
    """For people: how much was read, and what was not."""
    lines = [f"{about['data']}: {len(tasks)} screens, {len(rejected)} rejected"]
    lines += [f"  {reject.source}: {reject.message}" for reject in rejected[:MAX_SHOWN]]
    if len(rejected) > MAX_SHOWN:
        lines.append(f"  and {len(rejected) - MAX_SHOWN} more, in all {about['rejected']}")
    lines += [f"  {name}: {count}" for name, count in about.get("notes", {}).items()]
    if about.get("left_out"):
        lines.append(f"  {about['left_out']} more are not of the split {about['split']}")
    return "\n".join(lines)


def file_hash(paths: Sequence[Path]) -> str:
    """Short SHA-256 of the files' bytes."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def refusal(policy: Policy, request: Request, source: str) -> str:
    """Why a model's prompt cannot hold the request (its picture is too thin, its text too long); "" if it can."""
    collator = getattr(policy, "collator", None)
    if collator is None:
        return ""
    try:
        collator.encode(request, None, source)
    except ValueError as error:
        return str(error)
    return ""


class LabelOracle:
    """Answers every request of these tasks with its label."""

    def __init__(self, tasks: Iterable[ScreenTask]):
        # By identity: requests hold dictionaries, and two samples may ask the same and want different things.
        self.tasks = {id(task.request): task for task in tasks}

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        tasks = [self.tasks[id(request)] for request in requests]
        return [Answer(to_turn(task.actions, Screen.of(task.picture))) for task in tasks]


class RandomClicker:
    """Clicks anywhere on the screen, with the first click that the tool offers: what chance hits."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(Turn(tool_calls=(ToolCall(NAME, self.arguments(request)),))) for request in requests]

    def arguments(self, request: Request) -> dict:
        kinds = request.tools[0].parameters["properties"]["action"]["enum"]
        kind = next((kind for kind in CLICKS if kind in kinds), CLICKS[0])
        pictures = [Path(picture.path).name for picture in request.observation.pictures]
        text = f"{self.seed} {request.observation.text} {pictures}"
        digest = hashlib.sha256(text.encode()).digest()
        return {
            "action": kind,
            "coordinate": [int.from_bytes(digest[i : i + 8]) % GRID.cells for i in (0, 8)],
        }
