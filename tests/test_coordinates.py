"""One grid for prompt, parser and labels: what is encoded comes back within a cell, for every size and device scale."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image

from qwenvl_agent.coordinates import GRID, UNITS, Grid, Screen, centre
from qwenvl_agent.schema import Picture

SIZES = st.integers(1, 20_000)
SCALES = st.floats(0.25, 8)
SHARES = st.floats(0, 1, exclude_max=True)
SCREENS = st.builds(Screen, SIZES, SIZES, SCALES)
CELLS = st.integers(0, GRID.cells - 1)
EPSILON = 1 + 1e-9


def inside(share: float, size: float) -> float:
    """A position on a side: `share * size` may round up to the size itself."""
    return min(share * size, math.nextafter(size, 0))


@given(SCREENS, SHARES, SHARES)
def test_a_pixel_comes_back_within_one_cell(screen, x_share, y_share):
    x_px, y_px = inside(x_share, screen.width_px), inside(y_share, screen.height_px)
    back_x, back_y = screen.to_px(*screen.to_norm(x_px, y_px))
    assert abs(back_x - x_px) <= screen.width_px / GRID.cells * EPSILON
    assert abs(back_y - y_px) <= screen.height_px / GRID.cells * EPSILON
    assert screen.contains(back_x, back_y)


@given(SCREENS, SHARES, SHARES)
def test_a_page_position_comes_back_within_one_cell_of_the_page(screen, x_share, y_share):
    """page -> picture -> grid -> picture -> page, as a browser's click goes."""
    width_css, height_css = screen.to_css(screen.width_px, screen.height_px)
    x_css, y_css = inside(x_share, width_css), inside(y_share, height_css)
    back_x, back_y = screen.to_css(*screen.to_px(*screen.to_norm(*screen.from_css(x_css, y_css))))
    assert abs(back_x - x_css) <= width_css / GRID.cells * EPSILON
    assert abs(back_y - y_css) <= height_css / GRID.cells * EPSILON


@given(SCREENS, CELLS, CELLS)
def test_a_written_position_comes_back_exactly(screen, x_norm, y_norm):
    assert screen.to_norm(*screen.to_px(x_norm, y_norm)) == (x_norm, y_norm)


@given(st.integers(1, 1000), st.data())
def test_up_to_a_thousand_pixels_every_pixel_survives(size, data):
    x, y = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    screen = Screen(size, size)
    assert screen.to_pixel(*screen.to_px(*screen.to_norm(x, y))) == (x, y)


def test_exact_values():
    screen = Screen(1920, 1080)
    assert screen.to_norm(960, 540) == (500, 500) and screen.to_px(500, 500) == (960, 540)
    assert screen.to_norm(0, 1079.9) == (0, 999)
    assert screen.to_norm(300, 80) == (156, 74) and screen.to_px(156, 74) == pytest.approx((299.52, 79.92))
    assert Screen(2560, 1440, scale=2).to_css(300, 80) == (150, 40)


def test_what_lies_outside_is_clamped_onto_the_screen():
    screen = Screen(640, 480)
    assert screen.to_norm(-5, 900) == (0, 999)
    x_px, y_px = screen.to_px(1000, 4000)
    assert (x_px, y_px) == screen.to_px(999, 999) and screen.contains(x_px, y_px)
    assert screen.to_px(-3, 0) == (0, 0)
    assert screen.to_pixel(639.9, 0.2) == (639, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_no_position_is_made_of_nan(value):
    screen = Screen(640, 480)
    for convert in (screen.to_norm, screen.to_px):
        with pytest.raises(ValueError, match="is nowhere on the screen"):
            convert(value, 1)
    assert not screen.contains(value, 1)


@given(st.integers(1, 5000), st.floats(-1e4, 1e4))
def test_lengths_keep_their_sign_and_may_leave_the_screen(size, length_px):
    back = GRID.decode_length(GRID.encode_length(length_px, size), size)
    assert abs(back - length_px) <= size / GRID.cells * EPSILON / 2


def test_prompt_schema_and_parser_speak_of_one_grid():
    for grid in (GRID, Grid(999)):
        assert f"{grid.cells}x{grid.cells}" in grid.prompt_line
        assert grid.parse([grid.cells, 0]) == (grid.cells, 0)
        with pytest.raises(ValueError, match=f"whole numbers from 0 to {grid.cells}"):
            grid.parse([grid.cells + 1, 0])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1005) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5),
)


@given(VALUES | st.lists(st.integers(-2, 1002), min_size=2, max_size=2))
def test_the_parser_allows_what_the_schema_allows(value):
    # JSON schema calls 2.0 an integer; a position with a point in it is not what the prompt asked for.
    is_allowed = Draft202012Validator(GRID.schema).is_valid(value) and "." not in json.dumps(value)
    try:
        GRID.parse(value)
    except ValueError:
        assert not is_allowed
    else:
        assert is_allowed


def test_units_are_declared():
    screen = Screen(200, 100)
    assert [screen.from_unit(1, 1, unit) for unit in UNITS] == [(1, 1), (200, 100), (2, 1), (0.2, 0.1), (0.2, 0.1)]
    assert [screen.to_unit(50, 50, unit) for unit in UNITS] == [(50, 50), (0.25, 0.5), (25, 50), (250, 500), (250, 500)]


def test_a_screen_is_that_of_a_picture_or_an_image():
    image = Image.new("RGB", (30, 20))
    assert Screen.of(image) == Screen.of(Picture.from_image(image)) == Screen(30, 20)


@pytest.mark.parametrize(("sizes", "message"), [((0, 5), "screen of 0x5 px"), ((5, 5, 0.0), "device scale is 0.0")])
def test_impossible_screens_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Screen(*sizes)


def test_centre():
    assert centre((10, 20, 30, 60)) == (20, 40)
