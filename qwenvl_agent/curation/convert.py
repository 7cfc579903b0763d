"""Published data sets of screens -> samples. One converter; a layout file says where each set keeps what (`layout.py`).

A declaration that does not fit a file shows at once: its rows lack the fields, or its boxes leave their pictures.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from qwenvl_agent.curation.converter import Converter
from qwenvl_agent.curation.extraction import NO_ROWS, nested_rows
from qwenvl_agent.curation.layout import Layout, find_layout, shipped_layouts
from qwenvl_agent.curation.paths import paths_in, value_at
from qwenvl_agent.data.pictures import KnownPictures
from qwenvl_agent.data.readers.computer import (
    OF_PLACES,
    TEST,
    TRAIN,
    PictureFiles,
    RecordError,
    Rejected,
    Sample,
    read_records,
)
from qwenvl_agent.json_input import read_json
from qwenvl_agent.picture_store import PictureFolder

LAYOUTS: Mapping[str, Layout] = shipped_layouts()
NUM_LOOKED_AT = 100
"""Rows at the start of a file of which one must have the layout's fields."""
NUM_TRIED = 20
"""Rows that other layouts are tried on."""
MISPLACED = (*OF_PLACES, "size_differs")
"""Reasons of places that are where they cannot be: many of them mean that the layout is not the file's."""
GZIP = b"\x1f\x8b"
FILES = ("*.json", "*.jsonl", "*.parquet")


def convert(
    path: Path,
    layout: str,
    pictures: Path,
    *,
    known: KnownPictures | None = None,
    split: str = "",
    test_ids: Path | None = None,
) -> Iterator[Sample | Rejected]:
    """Every sample of a file in the form named `layout`, a shipped one or a layout file; `pictures` is the folder that
    its pictures' names start from.

    Reads JSONL, a .json list, a .parquet table with pictures inside (they are then saved to `pictures`), or a folder of
    such files. Training samples whose picture is among `known`, such as an evaluation set's, are rejected. `split` and
    `test_ids` go over the layout's own. ValueError for a file whose first rows all lack the layout's fields.
    """
    name, found = find_layout(layout)
    path, pictures = Path(path), Path(pictures)
    files = annotation_files(path)
    for file in files:
        ids = frozenset() if split else _test_ids(file, found, test_ids)
        side = split or _split_by_name(file, found)
        yield from _converted(file, Converter(name, found, picture_files(pictures), known, side, ids))


def picture_files(folder: Path) -> PictureFiles:
    """Pictures inside rows are kept below it."""
    return PictureFiles(PictureFolder(folder, folder / "images"))


def annotation_files(path: Path) -> list[Path]:
    """The file, or a folder's, in order of their names."""
    if not path.is_dir():
        _check_is_text(path)
        return [path]
    files = sorted(file for pattern in FILES for file in path.glob(pattern) if file.is_file())
    if not files:
        raise ValueError(
            f"{path} has no {', '.join(FILES)}: there is nothing to read; name the folder of the annotations"
        )
    return files


def _check_is_text(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, so no rows to read; correct its name")
    with open(path, "rb") as file:
        start = file.read(16)
    if path.suffix != ".parquet" and (start.startswith(GZIP) or b"\0" in start):
        raise ValueError(
            f"{path} is no text (a TFRecord, or compressed): no row can be read; unpack it, and write each example of a "
            "TFRecord as a row of JSON with the same field names, its pictures as files"
        )


def known_pictures(path: Path, layout: str, pictures: Path) -> KnownPictures:
    """The pictures of a set, to keep them out of another."""
    known, names = KnownPictures(), set()
    for item in convert(path, layout, pictures, split=TEST):
        if isinstance(item, Sample) and item.picture.path not in names:
            names.add(item.picture.path)
            known.add(item.picture.open(), Path(item.picture.path).name)
    return known


# Which layout


def _converted(file: Path, converter: "Converter") -> Iterator[Sample | Rejected]:
    """The samples of one file; ValueError once its first rows are seen to be of another form."""
    num_rows, num_lacking = 0, 0
    lacks: tuple[str, ...] = ()
    for source, row in _rows(read_records(file), converter.layout):
        if num_rows == num_lacking < NUM_LOOKED_AT:  # none has had them yet
            lacks = missing_fields(row, converter.layout)
            num_lacking += bool(lacks)
        num_rows += 1
        yield from converter.samples(row, source)
        if num_lacking == NUM_LOOKED_AT == num_rows:
            break
    if num_rows and num_lacking == num_rows:
        raise ValueError(
            f"{file}: all of the first {num_rows} rows lack {' and '.join(lacks)}, which layout {converter.name} reads: no row "
            f"would be right; {remedy_for(file, converter.pictures)}"
        )


def _rows(records: Iterable[tuple[str, object]], layout: Layout) -> Iterator[tuple[str, object]]:
    for source, value in records:
        if layout.rows and missing_fields(value, layout):  # with them, it is a row already
            yield from nested_rows(value, layout.rows, source)
        else:
            yield source, value


def missing_fields(row: object, layout: Layout) -> tuple[str, ...]:
    """The fields that a layout takes a row's picture, task and place from, as far as the row lacks them."""
    if isinstance(row, RecordError):
        return (f"rows at {layout.rows}",) if row.reason == NO_ROWS else ()
    if not isinstance(row, dict):
        return (f"fields (it is a {type(row).__name__})",)
    if layout.transform:
        return () if isinstance(row.get("conversations"), list) else ("conversations",)
    if layout.items:
        items = value_at(row, layout.items)
        if not isinstance(items, list):
            return (layout.items,)
        if not items:
            return ()
        row = {**row, "item": items[0]}
    row = row if layout.items else {**row, "item": row}
    made = {name for rule in layout.extract for name in re.findall(r"\(\?P<(\w+)>", rule.pattern)}
    picture = paths_in(layout.picture) or [layout.picture]
    names = [path for name in layout.action_name for path in paths_in(name) or [name]]
    action = [f"item.{path}" for path in names] if layout.action == "item" else [layout.action]
    places = [path for path in (*layout.box, *layout.point, *action) if path and not path.startswith("native.")]
    wanted = [[path] for path in picture] + [list(layout.instruction), places]
    return tuple(group[0] for group in wanted if group and not any(_has(row, path, made) for path in group))


def _has(row: dict, path: str, made: set[str]) -> bool:
    """Whether a row has the first field of one of a path's alternatives, whatever its value."""
    for alternative in path.split("|"):
        first, _, rest = alternative.partition(".")
        inside = row.get("item") if first == "item" and rest else row
        key = rest.partition(".")[0] if inside is not row else first
        if key in made or isinstance(inside, str) or (isinstance(inside, dict) and key in inside):  # a text is JSON
            return True
    return False


def remedy_for(file: Path, pictures: PictureFiles) -> str:
    """Which shipped layouts give samples of a file's first rows, or at least have its fields."""
    counts = _layouts_that_read(file, pictures)
    reading = [f"{name} ({count})" for name, count in counts.items() if count]
    if reading:
        return f"of its first {NUM_TRIED} these layouts read some: {', '.join(reading)}; look whether places are right with one of them"
    fields = (
        f"its fields are those of {', '.join(counts)}; use one of them"
        if counts
        else "no layout here has its fields; write one (docs/DATA.md)"
    )
    return f"{fields}, and check where --pictures start"


def _layouts_that_read(file: Path, pictures: PictureFiles) -> dict[str, int]:
    """Shipped layouts that have the fields of a file's first rows -> how many samples those give, the most first."""
    found = {}
    for name, rows in _first_rows(file):
        converter = Converter(name, LAYOUTS[name], pictures, None, TRAIN, frozenset())
        if _have_fields(rows, converter.layout):
            items = [item for source, row in rows for item in converter.samples(row, source)]
            found[name] = sum(isinstance(item, Sample) for item in items)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _first_rows(file: Path) -> Iterator[tuple[str, list[tuple[str, object]]]]:
    """Each shipped layout with a file's first rows as it finds them."""
    records = list(itertools.islice(read_records(file), NUM_TRIED))
    for name, layout in LAYOUTS.items():
        yield name, list(itertools.islice(_rows(records, layout), NUM_TRIED))


def _have_fields(rows: list[tuple[str, object]], layout: Layout) -> bool:
    return bool(rows) and not any(isinstance(row, RecordError) or missing_fields(row, layout) for _, row in rows)


# Which split


def _split_by_name(file: Path, layout: Layout) -> str:
    """Test for a file that is called so: mind2web_data_test_task.json, test_website-00000-of-00004.parquet."""
    if layout.split != "by_name":
        return layout.split
    return TEST if TEST in re.split(r"[^a-z]+", file.stem.lower()) else TRAIN


def _test_ids(file: Path, layout: Layout, given: Path | None) -> frozenset[str]:
    if not (given or layout.test_ids):
        return frozenset()
    path = given or file.parent / layout.test_ids
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: it says which rows are for tests, and they would be trained on; give --test-ids FILE, "
            "or --split train if none is here"
        )
    value = read_json(path.read_text(encoding="utf-8"))
    ids = value.get(TEST) if isinstance(value, dict) else value
    if not isinstance(ids, list) or not ids or not all(isinstance(item, str | int) for item in ids):
        raise ValueError(f"{path} holds no list of ids (or an object with `test`): no test row is known; correct it")
    return frozenset(str(item).removesuffix(".json") for item in ids)
