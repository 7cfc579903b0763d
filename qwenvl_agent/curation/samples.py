"""What the model sees of a row: pictures after the resize, and every token coloured by what it weighs in the loss."""

import base64
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from qwenvl_agent.curation.marks import Mark, marks_html
from qwenvl_agent.data.collator import Collator, Sample
from qwenvl_agent.data.masks import IGNORE_INDEX, PARTS

COLOURS = {"thought": (70, 140, 220), "call": (60, 160, 80), "text": (200, 140, 30), "end": (200, 110, 190)}
WEIGHTLESS = (225, 95, 95)
"""Supervised, but with weight 0."""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #222; --soft: #6b6b6b; --well: #f6f6f6; --line: #ccc; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #16181b; --ink: #e6e7e8; --soft: #9aa2ab; --well: #1f2226; --line: #3a3f45; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper); color: var(--ink); overflow-wrap: anywhere; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: var(--well); padding: 1rem; border-radius: 6px; color: var(--soft); }}
pre span[title] {{ color: #111; border-radius: 3px; box-shadow: inset -1px 0 0 var(--well); }}
img {{ image-rendering: pixelated; border: 1px solid var(--line); margin: 0 .5rem .5rem 0; max-width: 100%; min-width: min(320px, 100%); }}
.marks {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; margin: 1rem 0 2rem; }}
.marks figure {{ margin: 0; font-size: 13px; overflow-wrap: anywhere; min-width: 0; }}
.marks figure div {{ position: relative; border: 1px solid var(--line); }}
.marks img {{ display: block; width: 100%; border: 0; margin: 0; image-rendering: auto; }}
.marks svg {{ position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }}
.marks svg * {{ fill: none; vector-effect: non-scaling-stroke; }}
.marks .under {{ stroke: #fff; stroke-width: 4; stroke-opacity: .8; }}
.marks .over {{ stroke: #e0001b; stroke-width: 1.5; }}
.marks .dot {{ fill: #e0001b; stroke: #fff; stroke-width: 1; }}
.key {{ padding: .1rem .4rem; border-radius: 3px; margin-right: .4rem; color: #111; }}
</style>
<h1>{title}</h1>
{marks}<p>Grey text is prompt and not learnt. {legend} The stronger the colour, the higher the weight; hover for a token's id and
weight.</p>
{samples}
</html>
"""


class Piece(NamedTuple):
    """A token's text (a run of image pads counts as one), its id, part and weight."""

    text: str
    token_id: int
    part: str
    weight: float


def pieces(sample: Sample) -> Iterator[Piece]:
    """The row's text token by token; the bytes of one character stand with their first token."""
    encoded = sample.encoded
    text = "".join(span.text for span in encoded.spans)
    pad, shown, num_pads = encoded.image_pad, 0, 0
    arrays = (encoded.offsets, encoded.input_ids, sample.parts, sample.weights)
    for (start, end), token_id, part, weight in zip(*(array.tolist() for array in arrays), strict=True):
        is_pad = text[start:end] == pad
        num_pads += is_pad
        if is_pad and text.startswith(pad, end):
            shown = end
            continue
        piece = f"{pad} x {num_pads}" if is_pad else text[max(start, shown) : end]
        yield Piece(piece, token_id, PARTS[part], weight)
        shown, num_pads = end, num_pads * (not is_pad)


def to_json(sample: Sample, collator: Collator) -> dict:
    """The row as plain values, for other tools."""
    ids, labels = sample.encoded.input_ids, sample.labels
    return {
        "id": sample.row.id,
        "input_ids": ids.tolist(),
        "labels": labels.tolist(),
        "supervised_text": collator.tokenizer.decode(ids[labels != IGNORE_INDEX], clean_up_tokenization_spaces=False),
        "num_image_tokens": int((ids == collator.image_pad_id).sum()),
    }


def colour(part: str, share: float) -> tuple[int, int, int]:
    """The part's colour, paler the smaller the share of the highest weight."""
    strength = 0.25 + 0.75 * share
    full = COLOURS[part] if share > 0 else WEIGHTLESS
    red, green, blue = (round(255 - strength * (255 - channel)) for channel in full)
    return red, green, blue


def write_samples(path: str | Path, samples: Iterable[Sample], title: str, marks: Sequence[Mark] = ()) -> None:
    """One HTML file with the pictures inside; `marks` stand first."""
    body = "\n".join(_sample_html(sample) for sample in samples)
    page = PAGE.format(title=html.escape(title), marks=marks_html(marks), legend=legend_html(), samples=body)
    Path(path).write_text(page, encoding="utf-8")


def legend_html() -> str:
    """Which colour is which part."""
    key = '<span class="key" style="background: rgb{}">{}</span>'
    return "".join(key.format(colour(part, 1.0), part) for part in COLOURS) + key.format(WEIGHTLESS, "weight 0")


def tokens_html(sample: Sample) -> str:
    """The row's text, each supervised token in a span of its colour, whose title says its id and weight."""
    heaviest = float(sample.weights.max()) or 1.0
    return "".join(_piece_html(piece, heaviest) for piece in pieces(sample))


def _sample_html(sample: Sample) -> str:
    sizes = ", ".join(f"{width}x{height} px" for height, width in sample.encoded.sizes)
    pixels = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in sample.encoded.load_pixels()]
    images = "".join(f'<img src="data:image/png;base64,{_png(image)}" alt="">' for image in pixels)
    text = tokens_html(sample)
    place = html.escape(sample.row.source)
    facts = f"{len(sample.labels)} tokens, {(sample.labels != IGNORE_INDEX).sum()} supervised. {sizes}"
    return f"<h2>{html.escape(sample.row.id)}</h2><p>{place}</p><p>{facts}</p><div>{images}</div><pre>{text}</pre>"


def _piece_html(piece: Piece, heaviest: float) -> str:
    text = html.escape(piece.text).replace("\n", "↵\n")
    if piece.part == "prompt":
        return text
    red, green, blue = colour(piece.part, piece.weight / heaviest)
    facts = f"{piece.token_id}, {piece.part}, weight {piece.weight:g}"
    return f'<span title="{facts}" style="background: rgb({red}, {green}, {blue})">{text}</span>'


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
