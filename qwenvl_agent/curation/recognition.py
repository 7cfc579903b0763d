"""What a file of others *is*, by the names of its fields: a kind of source, or a published layout to convert.

Fields are facts; units are none (docs/DATA.md): a layout that declares one is offered by name, never chosen for its
numbers. The first records decide; what the rest of them is, their reader says line by line.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwenvl_agent.containers import Record, data_files, records_of
from qwenvl_agent.curation.convert import LAYOUTS, missing_fields
from qwenvl_agent.curation.extraction import TRANSFORMS, nested_rows
from qwenvl_agent.curation.layout import Layout
from qwenvl_agent.curation.paths import value_at
from qwenvl_agent.file_signatures import check_is_data
from qwenvl_agent.files import read_json
from qwenvl_agent.worlds import make_world

NUM_TRIED = 20
"""Records that layouts are tried on."""
MAX_LOOKED_AT = 200
"""Records, from the start of the file."""
DATA_ENDINGS = (".jsonl", ".json", ".parquet")
SOURCE_NAMES = ("dataset.jsonl", "*.parquet", "data/*.parquet", "dataset_info.json")
"""Of a folder that training reads by itself."""
BESIDE_DATA = {"manifest.json", "tools.json", "rejects.jsonl"}
"""What stands beside a data set and is none."""
KIND_FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "recorded": (("turn",), ("episode_id",), ("context_text", "system_prompt")),
    "computer": (("instruction",), ("screenshot", "initial_screenshot"), ("action", "next_action")),
    "chat": (
        (
            "messages",
            "conversations",
            "conversation",
            "chosen",
            "preferred_output",
            "prompt",
            "query",
        ),
    ),
}
"""Of each kind: one of every group of fields must be there. Other trainers' forms of chat are the chat reader's to name."""
SAFARI = "safari"


@dataclass(frozen=True)
class Recognition:
    """What was found: `kind` is empty for a file that only a layout fits."""

    files: tuple[Path, ...]
    container: str
    kind: str
    layouts: tuple[str, ...]
    """Published layouts whose fields its records have."""
    num_looked_at: int
    votes: Counter = field(default_factory=Counter)
    """Records by kind."""
    fields: Counter = field(default_factory=Counter)

    @property
    def why(self) -> str:
        """The evidence in words."""
        if not self.kind:
            return f"its fields are {', '.join(self.fields)}"
        known = {name for group in KIND_FIELDS[base_kind(self.kind)] for name in group}
        shown = ", ".join(name for name in self.fields if name in known)
        of = f"{self.votes[base_kind(self.kind)]} of the first {self.num_looked_at} records"
        return f"{of} have {shown}"


def base_kind(kind: str) -> str:
    return "recorded" if kind == SAFARI else kind


def find_data_files(path: Path) -> tuple[Path, ...]:
    """The files that are meant by a file, pattern or folder, as training takes them, and in a folder also the only data file
    of another name; ValueError if there is none, or several could be."""
    path = Path(path)
    files = _in_folder(path) if path.is_dir() and not _is_a_source(path) else data_files(path)
    for file in files:
        check_is_data(file)
    return files


def _is_a_source(folder: Path) -> bool:
    """Whether training finds its files in the folder, or says itself why not."""
    return any(True for name in SOURCE_NAMES for _ in folder.glob(name))


def _in_folder(folder: Path) -> tuple[Path, ...]:
    files = sorted(f for f in folder.iterdir() if f.suffix in DATA_ENDINGS and f.name not in BESIDE_DATA)
    if len(files) == 1:
        return (files[0],)
    if not files:
        others = sorted(f.name for f in folder.iterdir())
        raise ValueError(
            f"{folder} holds no .jsonl, .json or .parquet file ({_some(others) or 'it is empty'}): there are no rows to "
            "read; name the file, or mark the pictures in it with qwenvl-agent annotate"
        )
    one_each = all(f.suffix == ".json" and _is_one_object(f) for f in files)
    remedy = (
        f"each holds one record: put them into one file (jq -c . {folder}/*.json > {folder}/dataset.jsonl)"
        if one_each
        else "name one of them, and give each a source of its own in data.sources"
    )
    raise ValueError(
        f"{folder} holds {len(files)} data files ({_some([f.name for f in files])}) and no dataset.jsonl: which is meant "
        f"is unknown; {remedy}"
    )


def _is_one_object(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join([*names[:most], *([f"and {len(names) - most} more"] if len(names) > most else [])])


def recognise(path: Path) -> Recognition:
    """What the file is, by its first records; ValueError if it is nothing that can be read or converted."""
    files = find_data_files(path)
    path = files[0]
    records = [value for record in itertools.islice(records_of(files), MAX_LOOKED_AT) for value in _values(record)]
    if not records:
        raise ValueError(
            f"{path}: none of its first {MAX_LOOKED_AT} records is a JSON object: nothing can be said of it; "
            "give one object a line, or a .json file with a list of objects"
        )
    _refuse_wrapped(path, records)
    votes = Counter(kind for record in records if (kind := kind_of(record)))
    fields = Counter(key for record in records for key in record)
    layouts = fitting_layouts(records)
    kind = votes.most_common(1)[0][0] if votes else ""
    if not kind and not layouts:
        raise ValueError(_unknown(path, fields))
    if kind == "recorded" and _is_safari(path, records):
        kind = SAFARI
    container = {".json": "a JSON list", ".parquet": "a Parquet table"}.get(path.suffix, "JSON lines")
    return Recognition(files, container, kind, layouts, len(records), votes, fields)


def _values(record: Record) -> list[dict]:
    """The record, if it is an object; a broken one is its reader's to reject."""
    try:
        value = record.value()
    except ValueError:
        return []
    return [value] if isinstance(value, dict) else []


def _refuse_wrapped(path: Path, records: Sequence[dict]) -> None:
    """ValueError for an object around the list of records."""
    lists = [key for key, value in records[0].items() if isinstance(value, list) and _are_records(value)]
    if len(records) == 1 and len(lists) == 1 and not kind_of(records[0]) and kind_of(records[0][lists[0]][0]):
        raise ValueError(
            f"{path} is one object with its records in {lists[0]!r}: no row can be read from it; "
            f"take the list out (jq '.[\"{lists[0]}\"]' {path.name} > list.json)"
        )


def _are_records(value: list) -> bool:
    return bool(value) and isinstance(value[0], dict)


def kind_of(record: dict) -> str:
    """The kind whose fields it has; empty if none."""
    fits = (kind for kind, groups in KIND_FIELDS.items() if all(any(name in record for name in g) for g in groups))
    return next(fits, "")


def _is_safari(path: Path, records: Sequence[dict]) -> bool:
    """The manifest says so; or no tools are given, and all that is called are the safari's."""
    manifest = path.parent / "manifest.json"
    if manifest.is_file():
        return read_json(manifest).get("world") == SAFARI
    if any(record.get("tools") for record in records) or (path.parent / "tools.json").is_file():
        return False
    env = make_world(SAFARI).make_env()
    known = {tool.name for tool in env.tools}
    env.close()
    return {name for record in records for name in _called(record)} <= known


def _called(record: dict) -> list[str]:
    calls = record.get("tool_calls")
    try:
        calls = json.loads(calls) if isinstance(calls, str) else calls
    except ValueError:
        return []
    return [str(call.get("name")) for call in calls or [] if isinstance(call, dict)]


def fitting_layouts(records: Sequence[dict]) -> tuple[str, ...]:
    """Published layouts whose fields the first records have; of several those with the most of their optional fields."""
    scores = {name: _score(layout, records[:NUM_TRIED]) for name, layout in LAYOUTS.items()}
    best = max(scores.values())
    return tuple(name for name, score in scores.items() if score == best) if best else ()


def _score(layout: Layout, records: Sequence[dict]) -> int:
    """0 unless most records fit."""
    found = [_num_fields(layout, record) for record in records]
    return sum(found) if sum(map(bool, found)) * 2 > len(found) else 0


def _num_fields(layout: Layout, record: dict) -> int:
    """1 and the optional fields that the record's first row has; 0 if it lacks one that the layout needs."""
    try:
        row = next(nested_rows(record, layout.rows, ""))[1] if layout.rows else record
        if not isinstance(row, dict) or missing_fields(row, layout):
            return 0
        row = TRANSFORMS[layout.transform](row) if layout.transform else row
        items = value_at(row, layout.items) if layout.items else [row]
        assert isinstance(items, list), "missing_fields has looked"
        rows = [{**row, "item": item} for item in items]
    except (ValueError, LookupError, TypeError, StopIteration):
        return 0
    places = (*layout.box, *layout.point, layout.action)
    if layout.transform and not any(value_at(row, path) for row in rows for path in places if path):
        return 0  # any conversation has its fields
    optional = (*layout.size, layout.id, layout.group, *layout.details)
    return 1 + sum(value_at(rows[0], path) is not None for path in optional if path) if rows else 0


def _unknown(path: Path, fields: Counter) -> str:
    forms = "; ".join(f"{kind}: {' and '.join('/'.join(g) for g in groups)}" for kind, groups in KIND_FIELDS.items())
    return (
        f"{path}: its records have {_some(list(fields), 12) or 'no fields'}, which is no form that is known here "
        f"({forms}), and none of the layouts of qwenvl-agent convert: no row can be read; rename the fields to one of "
        "them (docs/DATA.md), or say --kind"
    )
