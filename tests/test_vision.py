"""The vision budget: equal to the real image processor, never over a limit, whole pictures or whole steps."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import picture, request_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenvl_agent.config import VisionConfig
from qwenvl_agent.data.pixels import load_pixels
from qwenvl_agent.schema import Picture
from qwenvl_agent.vision import (
    Geometry,
    fit_picture,
    grid_thw,
    num_image_tokens,
    picture_tokens,
    reduce_request,
    request_tokens,
    resized_size,
)

REAL = Geometry(patch_size=16, merge_size=2, min_pixels=65536, max_pixels=16777216)
TINY = Geometry(patch_size=16, merge_size=1, min_pixels=1024, max_pixels=262144)


@pytest.mark.parametrize(
    "width, height, resized, num_tokens",
    [
        (480, 480, (480, 480), 225),
        (320, 320, (320, 320), 100),
        (1280, 720, (1280, 704), 880),
        (1920, 1080, (1920, 1088), 2040),
        (160, 210, (224, 320), 70),
        (480, 630, (480, 640), 300),
    ],
)
def test_known_sizes(width, height, resized, num_tokens):
    assert resized_size(height, width, REAL)[::-1] == resized
    assert num_image_tokens(height, width, REAL) == num_tokens


def test_sizes_equal_the_real_processors_rule():
    """5,000 sizes: halves that banker's rounding sends both ways, tiny, huge, thin."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = np.random.default_rng(0)
    halves = [(16 + 32 * i, 16 + 32 * j) for i in range(30) for j in range(30)]
    sizes = halves + [tuple(int(x) for x in 2 ** rng.uniform(0, 13, 2)) for _ in range(4100)]
    for height, width in sizes:
        if max(height, width) / min(height, width) > 200:
            with pytest.raises(ValueError, match="aspect ratio"):
                resized_size(height, width, REAL)
        else:
            assert resized_size(height, width, REAL) == smart_resize(height, width, 32, 65536, 16777216)


def test_sizes_and_pixels_are_those_of_qwen_vl_utils(tmp_path):
    """Qwen's own reader of pictures in messages, an independent one; only a side under half a token it rounds up first."""
    from qwen_vl_utils import process_vision_info, smart_resize

    rng = np.random.default_rng(1)
    for height, width in rng.integers(16, 4000, (5000, 2)).tolist():
        if max(height, width) / min(height, width) <= 200 and min(height, width) > 16:
            assert resized_size(height, width, REAL) == smart_resize(height, width, 32, 65536, 16777216)
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (25, 40, 3)), 24, 0), 24, 1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for most in (1024, 256):
        part = {"type": "image", "image": str(tmp_path / "a.png"), "min_pixels": 64 * 1024, "max_pixels": most * 1024}
        (theirs,), _ = process_vision_info([{"role": "user", "content": [part]}], image_patch_size=16)
        size = fit_picture(Picture(960, 600, str(tmp_path / "a.png")), VisionConfig(max_tokens_per_image=most), REAL)
        ours = load_pixels(Picture(960, 600, str(tmp_path / "a.png")), *size).permute(1, 2, 0).numpy()
        difference = np.abs(ours.astype(int) - np.asarray(theirs))
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # PIL rounds its two passes otherwise


def test_grids_equal_those_of_real_pictures(auto_processor):
    """600 pictures through the published processor, with a budget that some are under and some over."""
    budget = replace(REAL, min_pixels=16 * 1024, max_pixels=80 * 1024)
    size = {"shortest_edge": budget.min_pixels, "longest_edge": budget.max_pixels}
    rng = np.random.default_rng(1)
    for _ in range(600):
        height, width = (int(x) for x in rng.integers(8, 450, 2))
        grid = auto_processor.image_processor([Image.new("L", (width, height))], size=size)["image_grid_thw"][0]
        assert tuple(grid) == grid_thw(height, width, budget)
    assert auto_processor.image_processor.get_number_of_image_patches(1080, 1920) // 4 == 2040


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), most=st.integers(64, 2000))
@settings(max_examples=200, deadline=None)
def test_a_fitted_picture_is_within_the_budget_and_stays_as_it_is(height, width, most):
    vision = VisionConfig(max_tokens_per_image=most)
    try:
        fitted = fit_picture(Picture(width, height), vision, REAL)
    except ValueError:
        assert max(height, width) > 2 * min(height, width) or most < 128
        return
    num_tokens = picture_tokens(Picture(width, height), vision, REAL)
    assert num_tokens <= most and num_tokens == fitted[0] * fitted[1] / 32**2
    if num_tokens >= 64:  # shrinking rounds down, below the minimum if that is close to the maximum
        assert resized_size(*fitted, REAL) == fitted and num_image_tokens(*fitted, REAL) == num_tokens


@pytest.mark.parametrize("width, height, most", [(6400, 32, 64), (2, 1, 64)])
def test_a_picture_that_no_rule_fits_is_an_error(width, height, most):
    with pytest.raises(ValueError, match=f"{width}x{height} px takes .* between 64 and 64 are allowed"):
        fit_picture(Picture(width, height), VisionConfig(max_tokens_per_image=most), REAL)


@pytest.mark.parametrize(
    "side, geometry, limits, fitted",
    [
        (480, REAL, {}, 320),
        (160, TINY, {}, 160),
        (480, REAL, {"min_tokens_per_image": 101}, 640),
        (480, replace(REAL, min_pixels=400 * 1024), {}, 640),
        (480, REAL, {"min_tokens_per_image": 401, "max_tokens_per_image": 900}, 960),
    ],
)
def test_every_tile_gets_the_fewest_whole_tokens_that_fit(side, geometry, limits, fitted):
    vision = VisionConfig(tiles=10, **limits)
    assert fit_picture(Picture(side, side), vision, geometry) == (fitted, fitted)


def test_tiles_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="vision.tiles=10 at 1x1 tokens a tile needs 100 tokens"):
        fit_picture(Picture(480, 480), VisionConfig(tiles=10, max_tokens_per_image=99), REAL)
    with pytest.raises(ValueError, match="480x360 px is no square board"):
        fit_picture(Picture(480, 360), VisionConfig(tiles=10), REAL)


def test_drop_images_takes_the_oldest_pictures_of_the_history_and_keeps_their_text():
    request = request_of(num_steps=3, num_pictures=2, size=160)  # 8 pictures of 100 tokens
    vision = VisionConfig(tiles=10, max_tokens_per_row=500)
    reduced, counts = reduce_request(request, vision, TINY)
    assert counts == {"images": 3} and request_tokens(reduced, vision, TINY) == 500
    assert [len(step.observation.pictures) for step in reduced.history] == [0, 1, 2]
    # Pictures of equal size are equal: the newer of the two must be the one that stays.
    assert reduced.history[1].observation.pictures[0] is request.history[1].observation.pictures[1]
    assert [s.observation.text for s in reduced.history] == [s.observation.text for s in request.history]
    assert reduced.observation == request.observation


def test_drop_turns_takes_the_oldest_whole_steps():
    request = request_of(num_steps=3, num_pictures=2, size=160)
    vision = VisionConfig(tiles=10, max_tokens_per_row=500, reduce="drop_turns")
    reduced, counts = reduce_request(request, vision, TINY)
    assert counts == {"turns": 2} and len(reduced.history) == 1 and reduced.history[0] is request.history[2]


def test_within_budget_nothing_changes():
    request = request_of(num_steps=3, num_pictures=2, size=160)
    assert reduce_request(request, VisionConfig(tiles=10, max_tokens_per_row=800), TINY) == (request, {})


@pytest.mark.parametrize("policy", ["drop_images", "drop_turns"])
def test_the_current_observation_is_never_reduced(policy):
    vision = VisionConfig(tiles=10, max_tokens_per_row=199, reduce=policy)
    with pytest.raises(ValueError, match="current observation alone has 200 vision tokens"):
        reduce_request(request_of(num_steps=3, num_pictures=2, size=160), vision, TINY)


def test_the_policy_error_reduces_nothing():
    vision = VisionConfig(tiles=10, max_tokens_per_row=399, reduce="error")
    with pytest.raises(ValueError, match="400 vision tokens, vision.max_tokens_per_row is 399"):
        reduce_request(request_of(num_steps=3, num_pictures=1, size=160), vision, TINY)


def test_a_picture_counts_by_its_recorded_size():
    assert request_tokens(request_of(0, 1, size=160), VisionConfig(tiles=10), TINY) == 100
    assert fit_picture(picture(160, 160), VisionConfig(), TINY) == (160, 160)


def test_text_layers_import_no_torch():
    code = (
        "import qwenvl_agent.vision, qwenvl_agent.prompt, qwenvl_agent.formats, sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
