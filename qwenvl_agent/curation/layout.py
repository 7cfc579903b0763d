"""Layouts: where a data set of screens keeps what, and in which unit. A layout is a JSON file of the settings below.

Those of published data sets are in `layouts/`; one of your own is named by its path. Units and orders are declared,
never guessed ("all values below 1" is also a one-pixel box). Fields name their values by paths (`paths.py`) that start
at the row, or with `item.` at an item of it, or with `native.` at an action as the data set writes it.

    {"picture": "file", "instruction": ["task"], "box": ["box"], "box_unit": "px", "box_order": "xywh"}
    {"picture": "item.shot", "instruction": ["goal"], "items": "steps", "is_episode": true, "action": "item.step",
     "action_unit": "px", "action_name": ["kind"],
     "actions": {"tap": {"action": "left_click", "coordinate": "{at}"}, "back": {"refuse": "no key of a computer"}}}
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from qwenvl_agent import settings
from qwenvl_agent.computer.dialects import read
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.curation.extraction import TRANSFORMS, check_pattern
from qwenvl_agent.curation.gestures import GESTURES
from qwenvl_agent.curation.paths import paths_in

FOLDER = Path(__file__).parent / "layouts"
Unit = Literal["px", "fraction", "percent", "thousand"]
REFUSE = "refuse"
ANY = "*"
OF_BOX = "box"
"""The hole {box}: the middle of the box."""


@dataclass(frozen=True, kw_only=True)
class LeaveOut:
    """Rows or items that are not learned from or measured on; a step stays in the history of those after it."""

    where: str
    """Path."""
    when: Literal["true", "false", "filled", "empty"]
    """What the value there must be; `empty` and `filled` are of lists and texts, none is empty."""
    reason: str
    """The name under which they are counted."""
    because: str
    """What is wrong with them, in words."""


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Parts of a text as fields of the row, by named groups."""

    text: str
    """Path."""
    pattern: str
    """In RE2's syntax, which takes linear time; its groups (?P<name>...) become fields of the row."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    source: str = ""
    """Where its field names, units and orders stand: a repository and file, or a card."""
    tried: Literal["published rows", "published shape", "own"] = "own"
    """What it was tried on: rows that its authors published, or files written after the published field names."""
    licence: str = ""
    """Of the data, where stated."""
    rows: str = ""
    """Where rows are in a file that is no list of them, with `*` for every value of an object or list: `*.*`. A row
    that is a list itself becomes an object with the key `list`; the keys on the way are `keys.0`, `keys.1`."""
    files: dict = field(default_factory=dict)
    """Path of a file's name in the row -> `text` or `json`: its content takes the name's place. Such files lie where the
    pictures' names start."""
    decode: tuple[str, ...] = ()
    """Paths, with `*`, of JSON that is given as text."""
    extract: tuple[Extract, ...] = ()
    transform: Literal["", "conversation_turns", "reference_boxes"] = ""
    """A step that paths cannot say, before all others; what each adds to the row stands in `extraction.py`."""
    items: str = ""
    """A list in the row: one sample an item. Without, one sample a row, and the item is the row itself."""
    is_episode: bool = False
    """The items are the steps of one episode, in order."""
    picture: str
    """Its file's name, or a text with names in it: `{annotation_id}-{item.action_uid}.jpg`. In a table it may be the
    picture itself."""
    size: tuple[str, ...] = ()
    """[width, height] of the annotated picture, or two paths: checked against the file."""
    instruction: tuple[str, ...]
    """The first of these paths that holds text."""
    box: tuple[str, ...] = ()
    """Of the element that is meant: one path of four numbers, or four paths. With `*` several boxes."""
    box_unit: Unit = "px"
    box_order: Literal["xyxy", "xywh", "yxyx", "yxhw"] = "xyxy"
    boxes: Literal["any", "first"] = "any"
    """Of several boxes: each of them is right, or the first that is drawn is meant."""
    box_list: str = ""
    """Path, with `*`, of all boxes of the screen: the smallest that holds the place acted on is the element's."""
    full_page: bool = False
    """Boxes are of the whole page, of which a screenshot may show only the top."""
    point: tuple[str, ...] = ()
    """Where to click: one path of two numbers, or two paths, x first. Without `action` and without a point it is the
    middle of the box."""
    point_unit: Unit = "px"
    action: str = ""
    """The action that was taken, or a list of them: an object or text in any dialect, or what `actions` names."""
    action_unit: Unit = "fraction"
    action_name: tuple[str, ...] = ()
    """Paths within the action (or texts with holes) of its name; the first that `actions` has is its entry."""
    actions: dict = field(default_factory=dict)
    """Name of an action -> {"action": ..., ...} as the dialects read it, a list of such, or {"refuse": why}. Holes are
    paths within the action; {box} is the middle of the box. `*` is for all other names."""
    thought: str = ""
    past: str = ""
    """An item's own words for its step, shown to the steps after it; without, the call itself."""
    history: str = ""
    """The steps before as a list of texts or as lines, where each row is a step of its own."""
    history_length: str = ""
    """Path of how many of `history` come before."""
    id: str = ""
    group: str = ""
    """Samples that agree in it stay on one side of a split."""
    details: tuple[str, ...] = ()
    """Paths of what is kept for evaluation."""
    split: Literal["by_name", "train", "test"] = "by_name"
    """By name: a file whose name has the word test, or a row whose `split` is test, is never trained on."""
    test_ids: str = ""
    """A JSON file, seen from the data's folder, with the `id`s of test rows: a list, or an object with the key `test`."""
    leave_out: tuple[LeaveOut, ...] = ()

    def __post_init__(self) -> None:
        settings.check_values(self, "")
        if not (self.box or self.point or self.action):
            raise ValueError("box, point and action are empty: no sample says where to act; give one of them")
        for name, lengths in (("box", (0, 1, 4)), ("point", (0, 1, 2)), ("size", (0, 1, 2))):
            _check_length(name, getattr(self, name), lengths)
        if self.actions and not (self.action and self.action_name):
            raise ValueError("actions is a table, but action or action_name is empty: no entry is found; give both")
        for name, entry in self.actions.items():
            _check_entry(f"actions.{name}", entry, bool(self.box))
        for path, kind in self.files.items():
            settings.check_choice(f"files.{path}", kind, ("text", "json"))
        assert self.transform in ("", *TRANSFORMS), self.transform

    @property
    def action_of_box(self) -> bool:
        """Whether each action has boxes of its own."""
        return any(path.startswith("native.") for path in self.box)


def _check_length(name: str, paths: tuple[str, ...], lengths: tuple[int, ...]) -> None:
    if len(paths) not in lengths:
        raise ValueError(
            f"{name} has {len(paths)} paths: which number is which is not said; give {' or '.join(map(str, lengths[1:]))}"
        )


def _check_entry(place: str, entry: object, has_box: bool) -> None:
    """ValueError for an entry of the action table that no action could be made of."""
    if isinstance(entry, dict) and REFUSE in entry:
        if list(entry) != [REFUSE] or not isinstance(entry[REFUSE], str) or not entry[REFUSE].strip():
            raise ValueError(f"{place} is {str(entry)[:80]}: why it is refused is not said; write {{'refuse': 'why'}}")
        return
    for template in entry if isinstance(entry, list) else [entry]:
        if not isinstance(template, dict) or not isinstance(
            template.get("action", "{}" if "..." in template else 0), str
        ):
            raise ValueError(f"{place} is {str(template)[:80]}: no action is named; write an object with action")
        name = template.get("action", "{}")
        if "{" not in name and name not in GESTURES and _is_unknown(name):
            raise ValueError(
                f"{place}.action is {name[:40]!r}, which does not exist: no step could be read; use an action of "
                f"computer_use, {' or '.join(GESTURES)}, or refuse it"
            )
        if OF_BOX in paths_in(template) and not has_box:
            raise ValueError(f"{place} uses {{box}}, but box is empty: there is no place; say where the box is")


def _is_unknown(name: str) -> bool:
    return read({"action": name}, Screen(100, 100), "px").error == "unknown_action"


def load_layout(path: Path) -> Layout:
    """A layout file's; ValueError with file and key for what is wrong in it."""
    values = settings.read_values(path, what="layout")
    try:
        return settings.build(Layout, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_patterns(path: Path, layout: Layout) -> None:
    """ValueError for a pattern that RE2 does not take; apart from loading, because RE2's library takes a second to load."""
    for i, rule in enumerate(layout.extract):
        try:
            check_pattern(f"extract[{i}].pattern", rule.pattern)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@cache
def shipped_layouts() -> dict[str, Layout]:
    """Name -> layout of the published data sets that are known."""
    return {path.stem: load_layout(path) for path in sorted(FOLDER.glob("*.json"))}


def find_layout(name: str) -> tuple[str, Layout]:
    """(name, layout) of a shipped layout's name or a layout file's path."""
    if name in shipped_layouts():
        return name, shipped_layouts()[name]
    if name.endswith(".json"):
        layout = load_layout(Path(name))
        check_patterns(Path(name), layout)
        return Path(name).stem, layout
    raise ValueError(
        f"layout {name!r} is not known: the file cannot be read; use one of {', '.join(shipped_layouts())}, or the path of "
        "a layout file (.json)"
    )
