"""Boards without a browser, what a tiny base is taught about them, and tasks laid out as boards."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from qwenvl_agent.config import ModelConfig, VisionConfig
from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.model.build import build_processor, load_base
from qwenvl_agent.worlds import make_env, make_oracle
from qwenvl_agent.worlds.browser import BrowserRules, RandomAgent, chromium, session
from qwenvl_agent.worlds.browser.boards import Board, draw_board, key_of, layout_of, paint, take_sprites
from qwenvl_agent.worlds.browser.camera import Camera
from qwenvl_agent.worlds.browser.pages import FAMILIES, Page, draw_theme, render_html
from scripts import pretrain_tiny_screens as script

TINY = ModelConfig(path="tiny_screens", method="full", dtype="float32", autocast=False)
RULES = {"tasks": ["boards"], "actions": ["left_click"], "past_steps": 0}


def flat_sprites(board: Board) -> dict:
    """Each element in a grey of its own."""
    return {
        key_of(thing): np.full((thing["place"]["height"], thing["place"]["width"], 3), 40 * i + 40, np.uint8)
        for i, thing in enumerate(board.things)
    }


@pytest.fixture
def board() -> Board:
    return draw_board("simple", random.Random(1))


def test_a_board_is_its_page_with_its_elements_on_it(board):
    pixels, layout = paint(board, flat_sprites(board)), layout_of(board)
    assert pixels.shape == (256, 256, 3) and len(layout.elements) == len(board.things) >= 2
    is_free = np.ones((256, 256), bool)
    for i, element in enumerate(layout.elements):
        x1, y1, x2, y2 = element.box
        assert (pixels[y1:y2, x1:x2] == 40 * i + 40).all()
        is_free[y1:y2, x1:x2] = False
    assert (pixels[is_free] == board.page).all()


def test_words_stand_on_wide_elements_and_fit(board):
    for seed in range(50):
        for element in layout_of(draw_board("simple", random.Random(seed))).elements:
            assert not element.text or element.box[2] - element.box[0] == 112


def test_tokens_are_told_what_they_show(board):
    targets = script.token_targets(layout_of(board))
    assert targets.shape == (64, 10)
    for element in layout_of(board).elements:
        x, y = element.point
        row = targets[targets[:, 2] == x // 16 - script.FIRST_X]
        row = row[row[:, 3] == y // 16 - script.FIRST_Y]
        names = script.LABELS + list(script.FAMILY.pictures)
        assert len(row) >= 2 and {names[i] for i in row[:, 0]} == {element.text or element.picture}
        assert {script.COLOURS[i] for i in row[:, 1]} and set(row[:, 9]) == {1}
    assert (targets[targets[:, 9] == 0, :5] == -1).all()


def test_patches_are_the_processors(board):
    pixels = paint(board, flat_sprites(board))
    processor = build_processor(TINY, VisionConfig(max_tokens_per_image=64)).image_processor
    theirs = processor(images=[Image.fromarray(pixels)], return_tensors="pt")
    ours = script.patches_of(torch.from_numpy(pixels)[None]).unflatten(1, (3, 1, 256)).expand(-1, -1, 2, -1)
    assert theirs["image_grid_thw"].tolist() == [[1, 16, 16]]
    torch.testing.assert_close(ours.flatten(1), theirs["pixel_values"])


def test_the_batched_tower_is_the_tower(board):
    tower = load_base(TINY, "cpu", None).model.visual.eval()
    pixels = torch.from_numpy(np.stack([paint(board, flat_sprites(board))] * 2))
    pixels[1] = pixels[1].flip(1)
    patches = script.patches_of(pixels)
    with torch.no_grad():
        output, deep = script.batched_tower(tower)(patches)
        frames = patches.unflatten(1, (3, 1, 256)).expand(-1, -1, 2, -1).flatten(1)
        theirs = tower(frames, torch.tensor([[1, 16, 16]] * 2))
    torch.testing.assert_close(output, theirs.pooler_output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(deep, theirs.deepstack_features[0], atol=1e-5, rtol=1e-4)


def test_statements_teach_only_what_can_be_seen(board):
    pieces = script.statements(layout_of(board), random.Random(2))
    text = "".join(piece.text for piece in pieces)
    taught = [piece.text for piece in pieces if piece.group]
    spots = {f"[{x}, {y}]" for x, y in (script.SCREEN.to_norm(*e.point) for e in layout_of(board).elements)}
    assert text.count("\n") >= 4 and taught
    assert {a + b for a, b in zip(taught, taught[1:], strict=False) if a.startswith("[")} <= spots
    assert not any(word in text for word in ("left_click", "tool_call", "Click", "Press", "click"))


@pytest.fixture(scope="module")
def chrome():
    try:
        chromium.find_chromium()
    except ValueError as error:
        pytest.skip(str(error))
    yield
    session.close_browsers()


@pytest.mark.browser
def test_pasted_boards_are_what_chromium_shows(chrome):
    with chromium.open_browser(reach="own") as browser:
        camera = Camera(browser)
        sprites = take_sprites(camera, "simple")
        for seed in range(9):
            board = draw_board("simple", random.Random(seed))
            theme = draw_theme(FAMILIES["simple"], random.Random(1)) | {"page": "rgb({},{},{})".format(*board.page)}
            html = render_html(board.language, theme, [("board", {"things": list(board.things)})])
            shot = camera.shoot(Page("simple", 0, board.language, theme, board.width, board.height, 1, 0.0, html))
            assert layout_of(board) == shot.layout
            assert (paint(board, sprites) == np.asarray(Image.open(io.BytesIO(shot.png)).convert("RGB"))).all()


@pytest.mark.browser
def test_the_oracle_solves_tasks_on_boards_and_chance_does_not(chrome):
    def play(policy):
        return rollout(lambda: make_env("browser", **RULES), policy, range(10), batch_size=2)

    records = play(make_oracle("browser", RULES))
    assert [r.seed for r in records if not r.success] == []
    assert len({r.goals[0] for r in records}) == 5
    assert sum(r.success for r in play(RandomAgent(BrowserRules.from_json(RULES)))) <= 3
