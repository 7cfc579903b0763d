"""What cannot finish does not start: the suite against the data, and the world by its own rules."""

import json

import pytest
from PIL import Image
from tiny_run import save_config, save_dataset, tiny_config

import train
from qwenvl_agent.config import DataConfig, EvalConfig, PromptConfig, SourceConfig, build_config
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.evaluation.suites import check_held_out, check_suite, rule_differences

SMALL = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10}


def check(kinds: str, **evaluation) -> None:
    sources = [{"path": f"{kind}.jsonl", "kind": kind} for kind in kinds.split()]
    check_suite(
        build_config({"name": "x", "model": {"path": "tiny"}, "data": {"sources": sources}, "eval": evaluation})
    )


@pytest.mark.parametrize(
    ("kinds", "evaluation"),
    [
        ("safari", {}),
        (
            "safari",
            {"world": SMALL | {"num_targets": [1, 0, 0]}},
        ),
        ("chat", {"world": {"tile_px": 16}}),
        ("", {"world": {"tile_px": 16}}),
        ("computer", {"suite": "clicks"}),
        ("computer safari", {"suite": "safari"}),
        # The world of another command, `eval.py --suite browser`, say.
        ("computer", {"suite": "none", "world": {"tasks": ["boards"], "actions": ["left_click"], "past_steps": 0}}),
        ("chat", {"suite": "none", "world": {"actions": ["left_click"]}}),
        ("chat", {"suite": "none", "world": {"tile_px": 16}}),
    ],
)
def test_what_fits_is_taken(kinds, evaluation):
    check(kinds, **evaluation)


@pytest.mark.parametrize(
    ("kinds", "evaluation", "message"),
    [
        ("safari", {"world": {"widht": 3}}, "eval.world: unknown key 'safari.widht'.*nearest known key: 'width'"),
        ("safari", {"suite": "none", "world": {"widht": 3}}, "unknown key 'safari.widht'"),
        ("computer", {"suite": "clicks", "world": {"acts": []}}, "unknown key 'browser.acts'"),
        ("safari", {"world": {"width": 3}}, "safari.width is 3, below 10: no such world can be built"),
        ("safari", {"world": {"width": "big"}}, "safari.width is 'big', which is not of type int"),
        ("safari", {"world": {"width": 20.5}}, "safari.width is 20.5, which is not of type int"),
        (
            "safari",
            {"world": {"width": 10**9, "num_trees": 1}},
            "safari.width is 1000000000, above 1000: no such world can be built",
        ),
        ("safari", {"world": {"languages": 7}}, "safari.languages is 7, which is not of type"),
        ("safari", {"world": {"plain_missions": "no"}}, "safari.plain_missions is 'no', which is not of type bool"),
        ("safari", {"world": {"ordered": float("nan")}}, "safari.ordered is nan, no number"),
        ("safari", {"world": {"num_targets": [1, -0.5]}}, "safari.num_targets is -0.5, below 0"),
        (
            "safari",
            {"world": SMALL | {"min_distance": 45}},
            "no world with targets that fit the rules in 200 draws .min_distance 45",
        ),
        (
            "computer",
            {"suite": "none", "world": {"step_seconds": float("nan")}},
            "browser.step_seconds is nan, no number",
        ),
        ("computer", {}, "eval.suite is 'safari' and data.sources are of kind computer.*use eval.suite=clicks or none"),
        ("safari", {"suite": "clicks"}, "eval.suite is 'clicks' and data.sources are of kind safari.*=safari or none"),
        ("chat", {"suite": "clicks"}, "eval.suite is 'clicks' and data.sources are of kind chat"),
    ],
)
def test_what_does_not_fit_is_refused(kinds, evaluation, message):
    with pytest.raises(ValueError, match=message):
        check(kinds, **evaluation)


def test_clicks_need_screens_that_are_held_out():
    data = {"sources": [{"path": "a", "kind": "computer"}], "eval_fraction": 0}
    config = build_config({"name": "x", "model": {"path": "tiny"}, "data": data, "eval": {"suite": "clicks"}})
    with pytest.raises(ValueError, match="eval.suite is 'clicks' and data.eval_fraction is 0"):
        check_suite(config)
    with pytest.raises(ValueError, match="no screen is held out: nothing could be measured at the end"):
        check_held_out(config.eval, [])


def test_a_wrong_world_is_said_before_anything_is_made(tmp_path, capsys):
    """No model is there to load and no folder is left: the world alone is looked at."""
    config = tiny_config(tmp_path, tmp_path / "no_such_model", save_dataset(tmp_path / "data"))
    path = save_config(config, tmp_path / "config.json")
    assert train.main(["--config", str(path), "--set", "eval.world.widht=3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: eval.world: ") and "nearest known key: 'width'" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_recordings_under_other_rules_than_are_played_are_said(tmp_path):
    turn = {
        **{"episode_id": "e", "mission": "find the red tiger", "turn": 0, "system_prompt": "You play a safari game."},
        **{"context_text": "Mission: find the red tiger\nStep: 1/180\nPosition: (25, 25)", "image_file": "a.png"},
        "tool_results": [],
    }
    moved = [{"name": "move", "args": {"actions": [{"direction": "RIGHT", "steps": 3}]}}]
    caught = [{"name": "catch", "args": {"direction": "RIGHT"}}]
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    found = {}
    for rules, calls in (("reach", moved), ("catch", caught)):
        path = tmp_path / f"{rules}.jsonl"
        path.write_text(json.dumps({**turn, "tool_calls": calls, "thought_text": "There."}))
        source = SourceConfig(path=str(path), kind="safari")
        rows = build_rows(
            DataConfig(sources=(source,), eval_fraction=0, cache_dir=str(tmp_path / "cache")), PromptConfig()
        )
        found[rules] = [(s.cfg, s.tool_names()) for s in rows.train.sources]
    (said,) = rule_differences(EvalConfig(suite="safari"), found["catch"])
    assert said.startswith(f'{tmp_path}/catch.jsonl was recorded under the rules {{"rules": "catch"}} (tools catch, ')
    assert 'plays under {"rules": "reach"}' in said and "set eval.world.rules=catch, or" in said
    assert rule_differences(EvalConfig(suite="safari", world={"rules": "catch"}), found["catch"]) == []
    assert rule_differences(EvalConfig(suite="safari"), found["reach"]) == []
    assert len(rule_differences(EvalConfig(suite="safari", world={"rules": "catch"}), found["reach"])) == 1
    assert rule_differences(EvalConfig(suite="none"), found["catch"]) == []
