"""Recordings that differ from episode to episode: fonts, phrasings, sizes, notepads; the oracle acts rightly in each."""

import pytest

from qwenvl_agent.worlds import make_world
from qwenvl_agent.worlds.recording import record_episode

SMALL = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": 16}
TEACHER = {"max_path": 4, "max_final_path": 1}


@pytest.mark.parametrize(
    "rules",
    [
        {"sprites": "twemoji", "phrasing": "held_out"},
        {"sprites": "noto_mono", "phrasing": "more", "rules": "catch", "tell_last": True},
        {"sprites": "fluent", "phrasing": "held_out", "plain_missions": True, "rules": "catch"},
    ],
)
def test_the_oracle_wins_whatever_is_drawn_and_said(rules):
    world = make_world("safari", {**SMALL, "num_targets": [1, 1, 1], **rules})
    won = [record_episode(world, seed, TEACHER, 0.1)[1]["solved"] for seed in range(12)]
    assert sum(won) == 12
