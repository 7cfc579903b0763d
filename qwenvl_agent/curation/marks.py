"""Where rows teach to click, drawn on their pictures: a wrong unit is seen in one look, before anything is trained.

A circle is the place as the model is to write it, on its grid; a frame is the element's box as the file has it. So the
two come here by different ways, and lie apart if either is read wrong.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_agent.computer.tool import GRID_TOOLS, PLACE_KEYS
from qwenvl_agent.coordinates import GRID, Screen
from qwenvl_agent.data.readers.computer import Box, Sample, samples_at
from qwenvl_agent.data.readers.units import Declared
from qwenvl_agent.schema import Picture, Row, ToolCall

if TYPE_CHECKING:  # Arrow's library is for those who have rows
    from qwenvl_agent.data.dataset import RowDataset

NUM_SHOWN = 8
MAX_TRIED = 64
"""Rows, spread over the data, among which those with places are looked for."""
MAX_SIDE_PX = 1200
HEIGHT_REM = 26
"""Of the tallest picture on the page."""
INTRO = """<h2>Where {num} rows teach to act</h2>
<p>Circle: the place as the model is to write it, on its grid. Frame: the box of what is meant, as the data has it. If they
lie apart, or beside what the words name, the source's <code>unit</code>, <code>box_unit</code> or <code>box_order</code> is
not what is declared (docs/DATA.md).</p>
<div class="marks">{figures}</div>
"""


@dataclass(frozen=True)
class Mark:
    """A row's picture, its places in px in the order of its calls, and the box of what is meant."""

    source: str
    words: str
    picture: Picture
    calls: tuple[ToolCall, ...]
    points_px: tuple[tuple[float, float], ...]
    box_px: Box | None = None


def marks_of(rows: "RowDataset") -> list[Mark]:
    """Of up to NUM_SHOWN rows that have places, spread over the data."""
    tried = [rows[i * len(rows) // min(MAX_TRIED, len(rows))] for i in range(min(MAX_TRIED, len(rows)))]
    found = [mark for mark in map(mark_of, tried) if mark is not None]
    shown = [found[i * len(found) // NUM_SHOWN] for i in range(NUM_SHOWN)] if len(found) > NUM_SHOWN else found
    samples = _samples(rows, [mark.source for mark in shown])
    return [_with_box(mark, samples.get(mark.source)) for mark in shown]


def mark_of(row: Row) -> Mark | None:
    """Without the box, which a row does not hold; None if its turn names no place on a picture."""
    observation = row.request.observation
    calls = tuple(call for call in row.turn.tool_calls if call.name in GRID_TOOLS)
    places = [call.arguments[key] for call in calls for key in PLACE_KEYS if key in call.arguments]
    if not places or not observation.pictures:
        return None
    picture = observation.pictures[-1]
    screen, points, strange = Screen.of(picture), [], []
    for place in places:
        try:
            points.append(screen.to_px(*GRID.parse(place)))
        except ValueError:  # of a conversation whose tool has another grid: it is told, not drawn
            strange.append(place)
    words = observation.text + (f" (not on the grid, not drawn: {strange})" if strange else "")
    return Mark(row.source, words, picture, calls, tuple(points))


def _samples(rows: "RowDataset", sources: Sequence[str]) -> dict[str, Sample]:
    """What rows of kind computer were made of, by source: their boxes are in the file alone."""
    found: dict[str, Sample] = {}
    for cache in rows.sources:
        if cache.cfg.kind == "computer":
            found |= samples_at(Path(cache.cfg.path), Declared.of(cache.cfg), sources)
    return found


def _with_box(mark: Mark, sample: Sample | None) -> Mark:
    return mark if sample is None else Mark(**{**vars(mark), "words": sample.instruction, "box_px": sample.box_px})


def marks_html(marks: Sequence[Mark]) -> str:
    """ "" without marks."""
    return INTRO.format(num=len(marks), figures="".join(map(_figure, marks))) if marks else ""


def _figure(mark: Mark) -> str:
    width, height = mark.picture.width, mark.picture.height
    radius = max(width, height) / 80
    shapes = "".join(_shapes(mark, radius))
    calls = " ".join(str(call.arguments) for call in mark.calls)
    return (
        f'<figure><div style="max-width: {HEIGHT_REM * width / height:.2f}rem"><img src="data:image/jpeg;base64,{_jpeg(mark.picture)}" alt="">'
        f'<svg viewBox="0 0 {width} {height}">{shapes}</svg></div><figcaption>{html.escape(mark.words[:300])}<br>'
        f"<code>{html.escape(calls[:300])}</code><br>{html.escape(mark.source)}, {width}x{height} px</figcaption></figure>"
    )


def _shapes(mark: Mark, radius: float) -> Iterable[str]:
    """White under red, so that they are seen on any picture."""
    if mark.box_px:
        x1, y1, x2, y2 = mark.box_px
        for kind in ("under", "over"):
            yield f'<rect class="{kind}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"/>'
    for (x1, y1), (x2, y2) in zip(mark.points_px, mark.points_px[1:], strict=False):
        yield f'<line class="over" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    for x, y in mark.points_px:
        for kind in ("under", "over"):
            yield f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
        yield f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius / 5:.1f}"/>'


def _jpeg(picture: Picture) -> str:
    image = picture.open()
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
