"""Vision tokens as arithmetic: what a picture costs is known before its pixels are read. No torch.

`resized_size` is the resize rule of Qwen's image processor, Python's banker's rounding included, so that planner,
sampler and collator count what the processor would count.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

from qwenvl_agent.config import VisionConfig
from qwenvl_agent.images import check_aspect_ratio
from qwenvl_agent.schema import Observation, Picture, Request, Step


@dataclass(frozen=True)
class Geometry:
    """How an image processor cuts pictures; `min_pixels` and `max_pixels` are areas."""

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int

    @property
    def token_px(self) -> int:
        """Side of the square that becomes one token."""
        return self.patch_size * self.merge_size


PUBLISHED = Geometry(patch_size=16, merge_size=2, min_pixels=1, max_pixels=2**40)
"""How the published models cut pictures, without limits of their own."""


def resized_size(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """(height, width) after the processor's resize: whole tokens, area within the limits, ratio nearly kept."""
    check_aspect_ratio(width, height, "a picture")
    side = geometry.token_px
    rows, columns = round(height / side), round(width / side)
    if rows * columns * side * side > geometry.max_pixels:
        shrink = math.sqrt((height * width) / geometry.max_pixels)
        rows = max(1, math.floor(height / shrink / side))
        columns = max(1, math.floor(width / shrink / side))
    elif rows * columns * side * side < geometry.min_pixels:
        grow = math.sqrt(geometry.min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
    return rows * side, columns * side


def grid_thw(height: int, width: int, geometry: Geometry) -> tuple[int, int, int]:
    """Patches in time, down and across of a picture of any size, once resized."""
    height, width = resized_size(height, width, geometry)
    return 1, height // geometry.patch_size, width // geometry.patch_size


def num_image_tokens(height: int, width: int, geometry: Geometry) -> int:
    """Tokens of a picture of any size, without `<|vision_start|>` and `<|vision_end|>`."""
    t, h, w = grid_thw(height, width, geometry)
    return t * h * w // geometry.merge_size**2


def fit_picture(picture: Picture, vision: VisionConfig, geometry: Geometry) -> tuple[int, int]:
    """(height, width) in which the model gets the picture, within the budget of one image or ValueError."""
    if vision.tiles:
        return _fit_tiles(picture, vision, geometry)
    area = geometry.token_px**2
    budget = replace(
        geometry,
        min_pixels=max(geometry.min_pixels, vision.min_tokens_per_image * area),
        max_pixels=min(geometry.max_pixels, vision.max_tokens_per_image * area),
    )
    height, width = resized_size(picture.height, picture.width, budget)
    if height * width > budget.max_pixels:
        # The rule itself oversteps: a very thin picture keeps one row, and growing to the minimum rounds up.
        raise ValueError(
            f"a picture of {picture.width}x{picture.height} px takes {height * width // area} tokens, and between "
            f"{budget.min_pixels // area} and {budget.max_pixels // area} are allowed: the budget would not hold; "
            "raise vision.max_tokens_per_image, lower vision.min_tokens_per_image, or crop the picture"
        )
    return height, width


def _fit_tiles(picture: Picture, vision: VisionConfig, geometry: Geometry) -> tuple[int, int]:
    """The size with the fewest whole tokens a tile's side that the limits allow."""
    if picture.height != picture.width:
        raise ValueError(
            f"a picture of {picture.width}x{picture.height} px is no square board of vision.tiles={vision.tiles}: "
            "tiles would be stretched; set vision.tiles=0 for such data"
        )
    area = geometry.token_px**2
    least = max(vision.min_tokens_per_image, math.ceil(geometry.min_pixels / area))
    most = min(vision.max_tokens_per_image, geometry.max_pixels // area)
    a_tile = max(1, math.ceil(math.sqrt(least) / vision.tiles))
    if (a_tile * vision.tiles) ** 2 > most:
        raise ValueError(
            f"vision.tiles={vision.tiles} at {a_tile}x{a_tile} tokens a tile needs {(a_tile * vision.tiles) ** 2} "
            f"tokens, and between {least} and {most} are allowed: no size shows whole tiles; "
            "raise vision.max_tokens_per_image or lower vision.min_tokens_per_image"
        )
    side = a_tile * vision.tiles * geometry.token_px
    return side, side


def tokens_a_tile(tiles: int, tile_px: int, vision: VisionConfig, geometry: Geometry = PUBLISHED) -> float:
    """Tokens along a tile's side, of a board of `tiles` x `tiles` tiles once it is fitted."""
    side_px, _ = fit_picture(Picture(tiles * tile_px, tiles * tile_px), vision, geometry)
    return side_px / geometry.token_px / tiles


def picture_tokens(picture: Picture, vision: VisionConfig, geometry: Geometry) -> int:
    """Tokens of a picture once fitted."""
    height, width = fit_picture(picture, vision, geometry)
    return height * width // geometry.token_px**2


def request_tokens(request: Request, vision: VisionConfig, geometry: Geometry) -> int:
    """Vision tokens of a request, history included."""
    observations = [*(step.observation for step in request.history), request.observation]
    return sum(picture_tokens(picture, vision, geometry) for o in observations for picture in o.pictures)


def reduce_request(request: Request, vision: VisionConfig, geometry: Geometry) -> tuple[Request, Counter]:
    """The request within `max_tokens_per_row`, and how many `images` and `turns` that cost.

    What goes is the oldest: whole pictures (their step's text stays) or whole steps. The current observation is never
    touched; ValueError if it alone is over the budget, or under the policy `error`.
    """
    counts: Counter = Counter()
    while (tokens := request_tokens(request, vision, geometry)) > vision.max_tokens_per_row:
        if vision.reduce == "error":
            raise ValueError(
                f"{tokens} vision tokens, vision.max_tokens_per_row is {vision.max_tokens_per_row}, and vision.reduce "
                "is 'error': the row cannot be used; raise the limit or choose drop_images or drop_turns"
            )
        smaller = drop_oldest_picture(request) if vision.reduce == "drop_images" else drop_oldest_step(request)
        if smaller is None:
            raise ValueError(
                f"the current observation alone has {tokens} vision tokens, vision.max_tokens_per_row is "
                f"{vision.max_tokens_per_row}: it is never cut; raise that limit or lower vision.max_tokens_per_image"
            )
        counts["images" if vision.reduce == "drop_images" else "turns"] += 1
        request = smaller
    return request, counts


def drop_oldest_picture(request: Request) -> Request | None:
    """Without the oldest picture of the history; None if the history has none."""
    for i, step in enumerate(request.history):
        if step.observation.pictures:
            observation = Observation(step.observation.text, step.observation.pictures[1:])
            slimmer = Step(observation, step.turn, step.results)
            return replace(request, history=(*request.history[:i], slimmer, *request.history[i + 1 :]))
    return None


def drop_oldest_step(request: Request) -> Request | None:
    """Without the oldest step of the history; None if there is no history."""
    return replace(request, history=request.history[1:]) if request.history else None
