"""Few screenshots seen in more ways: a part of the picture, another size, other light, the theme turned from light to dark.

A `View` says how; positions and boxes follow it exactly, so that what was hit is still hit. What would make a sample
untrue is not done to it, and named: a part of the screen changes what is "at the top left" or "the last", and earlier
steps are written on the whole screen's grid; light changes what is "white" or "dark". Hue is kept by every view, so a
red button stays red.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from qwenvl_agent.computer import Action
from qwenvl_agent.data.pictures import see
from qwenvl_agent.data.readers.computer import Box, Sample
from qwenvl_agent.schema import Picture

CROP, SCALE, THEME = "crop", "scale", "theme"
WAYS = (CROP, SCALE, THEME)
DRAWS = 20
"""Of a view, until positions in whole pixels are still inside the box; small elements, made smaller, can round out."""
PLACES = re.compile(
    r"(?i)\b(?:left|right|top|bottom|upper|lower|(?:left|right|top|bottom)-?most|above|below|under|beneath|over|beside"
    r"|next to|near|middle|cent(?:re|er)|corner|edge|first|second|third|fourth|fifth|sixth|\d+(?:st|nd|rd|th)|last"
    r"|row|column|highest|lowest|nearest|largest|biggest|smallest)\b"
    "|[左右上下中旁]|第.{1,3}[个行列项张]|最后|角落|[행열]|왼|오른|위[쪽에의]|위 |아래|가운데|중앙|번째|마지막|옆|모서리"
)
"""Words of position, order and number, in English, Chinese and Korean: true of the whole screen, perhaps not of a part.
Too many is on the safe side: it costs a crop."""
LIGHTS = re.compile(
    r"(?i)\b(?:white|black|gr[ae]y|light|dark|bright|pale)(?:er|est)?\b|[白黑灰亮暗深浅]|흰|하얀|검은|검정|까만|회색|어두운|밝은"
)
"""Words that a turned theme makes untrue."""


@dataclass(frozen=True)
class View:
    """`crop`: x1, y1, x2, y2 of the part, in whole pixels; `size`: what that is scaled to; `light`: factor on every
    channel; `is_turned`: light colours become dark and dark ones light, of the same hue."""

    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    light: float = 1.0
    is_turned: bool = False

    @property
    def factors(self) -> tuple[float, float]:
        """Pixels of the view for one of the picture, across and down; the size is whole, so they may differ a little."""
        x1, y1, x2, y2 = self.crop
        return self.size[0] / (x2 - x1), self.size[1] / (y2 - y1)

    def point(self, x_px: float, y_px: float) -> tuple[float, float]:
        across, down = self.factors
        return (x_px - self.crop[0]) * across, (y_px - self.crop[1]) * down

    def box(self, box_px: Box) -> Box:
        return (*self.point(*box_px[:2]), *self.point(*box_px[2:]))

    def clip(self, boxes: Sequence[Box]) -> list[list[float]]:
        """What is left of boxes in this view."""
        x1, y1, x2, y2 = self.crop
        cut = [(max(a, x1), max(b, y1), min(c, x2), min(d, y2)) for a, b, c, d in boxes]
        return [list(self.box(box)) for box in cut if box[0] < box[2] and box[1] < box[3]]

    def action(self, action: Action) -> Action:
        across, down = self.factors
        if action.point_px is not None:
            x_px, y_px = self.point(*action.point_px)
            action = replace(action, x_px=x_px, y_px=y_px)
        if action.scroll_px is not None:
            action = replace(action, scroll_px=action.scroll_px * (across if action.kind == "hscroll" else down))
        return action

    def picture(self, image: Image.Image) -> Image.Image:
        image = image.crop(self.crop)
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.LANCZOS)
        return relight(image, self.light, self.is_turned)

    def to_json(self) -> dict:
        """What was changed; crop and size always."""
        values: dict = {"crop": list(self.crop), "size": list(self.size)}
        if self.light != 1.0:
            values["light"] = self.light
        if self.is_turned:
            values["is_turned"] = True
        return values


def relight(image: Image.Image, light: float, is_turned: bool) -> Image.Image:
    """Turning is c + 255 - (highest + lowest channel): lightness is mirrored, hue and saturation stay (as in HSL)."""
    if light == 1.0 and not is_turned:
        return image
    pixels = np.asarray(image, dtype=np.int16)  # (H, W, 3)
    if is_turned:
        pixels = pixels + 255 - pixels.max(axis=2, keepdims=True) - pixels.min(axis=2, keepdims=True)
    return Image.fromarray(np.clip(np.rint(pixels * light), 0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a copy may be: the smallest part as a share of each side, the range of sizes, of light, and the share of
    copies with the theme turned."""

    ways: tuple[str, ...] = WAYS
    least_part: float = 0.6
    scales: tuple[float, float] = (0.8, 1.25)
    lights: tuple[float, float] = (0.85, 1.0)
    turned: float = 0.5

    def __post_init__(self):
        unknown = [way for way in self.ways if way not in WAYS]
        if unknown or not self.ways:
            raise ValueError(f"way {unknown or '(none)'} is no change of a picture: choose of {', '.join(WAYS)}")
        for name, value, least, most in (
            ("least part", self.least_part, 0.1, 1.0),
            ("scale", self.scales[0], 0.1, self.scales[1]),
            ("scale", self.scales[1], self.scales[0], 4.0),
            ("light", self.lights[0], 0.1, self.lights[1]),
            ("light", self.lights[1], self.lights[0], 2.0),
            ("share of turned themes", self.turned, 0.0, 1.0),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}: no view can be drawn; give {least} to {most}")


def hindrances(sample: Sample) -> dict[str, str]:
    """Ways that would make the sample untrue, each with the name of the reason."""
    said = f"{sample.instruction}\n{sample.thought}"
    found = {}
    if sample.past or sample.episode_id:
        found[CROP] = "not_cropped_has_history"
    elif PLACES.search(said):
        found[CROP] = "not_cropped_says_where"
    elif sample.box_px is None and not any(action.point_px for action in sample.actions):
        found[CROP] = "not_cropped_has_no_place"
    if LIGHTS.search(said):
        found[THEME] = "not_relit_says_light"
    return found


def keep(sample: Sample) -> tuple[int, int, int, int]:
    """The part of the picture that a crop must hold: box and all positions, in whole pixels."""
    points = [action.point_px for action in sample.actions if action.point_px]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if sample.box_px:
        xs, ys = [*xs, sample.box_px[0], sample.box_px[2] - 1], [*ys, sample.box_px[1], sample.box_px[3] - 1]
    return math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)) + 1, math.ceil(max(ys)) + 1


def draw_span(rng: random.Random, low: int, high: int, side: int, least: float) -> tuple[int, int]:
    """Start and end of a part of a side that holds [low, high)."""
    low, high = max(low, 0), min(high, side)
    length = rng.randint(max(high - low, math.ceil(least * side)), side)
    start = rng.randint(max(0, high - length), min(low, side - length))
    return start, start + length


def draw_view(sample: Sample, policy: Policy, rng: random.Random, ways: Sequence[str]) -> View:
    width, height = sample.picture.width, sample.picture.height
    x1, y1, x2, y2 = 0, 0, width, height
    if CROP in ways:
        left, top, right, bottom = keep(sample)
        x1, x2 = draw_span(rng, left, right, width, policy.least_part)
        y1, y2 = draw_span(rng, top, bottom, height, policy.least_part)
    scale = rng.uniform(*policy.scales) if SCALE in ways else 1.0
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    light = round(rng.uniform(*policy.lights), 3) if THEME in ways else 1.0
    return View((x1, y1, x2, y2), size, light, THEME in ways and rng.random() < policy.turned)


def is_hit(sample: Sample) -> bool:
    """Whether all clicks, in the whole pixels that are written, lie on the screen and in the box, if there is one."""
    x1, y1, x2, y2 = sample.box_px or (0, 0, sample.picture.width, sample.picture.height)
    points = [sample.screen.to_pixel(*action.point_px) for action in sample.actions if action.is_click]
    return all(x1 <= x < x2 and y1 <= y < y2 for x, y in points)


def seen_as(sample: Sample, view: View, image: Image.Image, copy: int) -> Sample:
    """The sample in the view. It stays on its origin's side of a split, and says where it is from.

    An episode's copies are an episode of their own, for no turn may be there twice.
    """
    changed = view.picture(image)
    name = sample.id or sample.seen.pixels
    details = sample.details | {"augmented": {"from": name, "copy": copy, **view.to_json()}}
    if details.get("hit_boxes"):
        details["hit_boxes"] = view.clip(details["hit_boxes"])
    return replace(
        sample,
        picture=Picture.from_image(changed),
        seen=see(changed),
        actions=tuple(view.action(action) for action in sample.actions),
        box_px=sample.box_px and view.box(sample.box_px),
        id=f"{name}~{copy}",
        episode_id=sample.episode_id and f"{sample.episode_id}~{copy}",
        group=sample.split_key,
        details=details,
    )


def augment(sample: Sample, copies: int, policy: Policy, seed: int) -> tuple[list[Sample], list[str]]:
    """Up to `copies` copies, and the names of what was not done to them; the same seed gives the same copies.

    The steps of an episode draw from the same numbers, so that all of a copy's steps look alike, as on one screen.
    """
    hindered = hindrances(sample)
    ways = [way for way in policy.ways if way not in hindered]
    notes = [name for way, name in hindered.items() if way in policy.ways]
    if not ways:
        return [], [*notes, "not_copied_nothing_to_change"]
    image, made = sample.picture.open(), []
    for copy in range(1, copies + 1):
        line = sample.source.rpartition(":")[2]  # without the path: a folder may be moved
        rng = random.Random(f"{seed} {copy} {sample.episode_id or (sample.id, line)}")
        for _ in range(DRAWS):
            candidate = seen_as(sample, draw_view(sample, policy, rng, ways), image, copy)
            if is_hit(candidate) or not is_hit(sample):
                made.append(candidate)
                break
        else:
            notes.append("not_copied_element_too_small")
    return made, notes
