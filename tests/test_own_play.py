"""Stages of a curriculum that learn from their own play: what a round makes, and that it is the same however it was made."""

import json
import shutil
from pathlib import Path

import pytest
from test_stages import CrashError, assert_same_files, base, launch, save_config  # noqa: F401 (base: a fixture)
from tiny_run import tiny_config

import train
from qwenvl_agent.training import own_states
from qwenvl_agent.training.curriculum import plan_runs

WORLD = "tests/corridor_world.py:make_world"
OWN_STATES = {"episodes": 5, "rounds": 2, "temperature": 0.7, "weight": 3}
WON = {"episodes": 4, "attempts": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def configure(base):  # noqa: F811
    """A run on a chat dataset, then rounds of play in the corridor."""

    def configure(directory: Path, stage: dict | None = None, **groups: dict):
        stages = [{"name": "first"}, {"name": "own", **(stage or {"own_states": OWN_STATES})}]
        train_group = {"max_steps": 2, "batch_size": 1, "accumulation": 2} | groups.pop("train", {})
        cfg = {"suite": WORLD, "world": {"length": 4}, "episodes": 0, "step_rows": 0, "batch_size": 3}
        cfg |= {"max_new_tokens": 12} | groups.pop("eval", {})
        return tiny_config(directory, *base, train=train_group, eval=cfg, stages=stages, **groups)

    return configure


@pytest.fixture(scope="module")
def whole(configure, tmp_path_factory):
    config = configure(tmp_path_factory.mktemp("whole"))
    train.train_stages(config)
    return config


def manifest_of(config, number: int) -> dict:
    return json.loads((config.run_dir / f"own_{number}/data/manifest.json").read_text())


def test_each_round_plays_with_the_weights_before_it_and_trains_on_all_rounds(whole):
    first, second = (manifest_of(whole, number) for number in (1, 2))
    assert (first["seeds"], second["seeds"]) == ([0, 4], [5, 9]) and first["settings"] == second["settings"]
    assert Path(first["policy"]) == (whole.run_dir / "first/checkpoints/last").resolve()
    assert Path(second["policy"]) == (whole.run_dir / "own_1/checkpoints/last").resolve()
    assert first["episodes"] == 5 == first["solved"] and first["rows"] + first["repeated"] == first["states"]
    # A random model writes nothing that can be read, so that the oracle played all.
    assert first["unreadable"] == first["taken_over_unreadable"] == first["states"]
    data = json.loads((whole.run_dir / "own_2/data.json").read_text())
    made = [source for source in data["sources"] if source["kind"] == "recorded"]
    assert [(source["weight"], source["num_rows"]) for source in made] == [(1.5, first["rows"]), (1.5, second["rows"])]
    assert [source["weight"] for source in data["sources"] if source["kind"] == "chat"] == [1.0]
    assert not list(whole.run_dir.glob("own_*/data/parts"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_a_round_that_was_killed_while_it_played_is_made_again_to_the_bit(
    configure, whole, tmp_path, monkeypatch, number
):
    config, play, num_played = configure(tmp_path), own_states.play_own_states, 0

    def play_until_killed(*args, on_episode, **options):
        def end(episode):
            nonlocal num_played
            num_played += 1
            if num_played == 5 * number - 1:
                raise CrashError
            on_episode(episode)

        return play(*args, on_episode=end, **options)

    with monkeypatch.context() as patch:
        patch.setattr(own_states, "play_own_states", play_until_killed)
        with pytest.raises(CrashError):
            train.train_stages(config)
    folder = config.run_dir / f"own_{number}/data"
    assert (folder / "parts").is_dir() and not (folder / "manifest.json").exists()
    train.train_stages(config, resume=True)
    for name in ("own_1", "own_2"):
        ours, wanted = (c.run_dir / name / "data/dataset.jsonl" for c in (config, whole))
        assert ours.read_bytes() == wanted.read_bytes()
        assert_same_files(config.run_dir / name, whole.run_dir / name)

    # Killed while it trains, it goes on with the dataset that is there.
    (config.run_dir / "own_2/done.json").unlink()
    shutil.rmtree(config.run_dir / "own_2/checkpoints")
    monkeypatch.setattr(own_states, "make", None)
    train.train_stages(config, resume=True)
    assert_same_files(config.run_dir / "own_2", whole.run_dir / "own_2")


@pytest.mark.slow
def test_what_was_won_is_learned_again(configure, tmp_path):
    groups = {"prompt": {"format": "no_thought"}, "eval": {"constrained": True, "max_new_tokens": 60}}
    config = configure(tmp_path, {"won_missions": WON | {"attempts": 6}}, **groups)
    train.train_stages(config)
    manifest = manifest_of(config, 1)
    assert manifest["episodes"] == 24 and manifest["missions"] == 4 and 0 < manifest["won_missions"] <= manifest["won"]
    assert manifest["rows"] > 0 and (config.run_dir / "own_1/checkpoints/last").exists()


def test_nothing_won_ends_with_an_error(configure, tmp_path):
    hopeless = configure(tmp_path, {"won_missions": WON}, name="hopeless")
    with pytest.raises(ValueError, match="no mission was won; allow more attempts"):
        train.train_stages(hopeless)


@pytest.mark.parametrize(
    ("stage", "groups", "said"),
    [
        (
            {"own_states": OWN_STATES},
            {"eval": {"suite": "none", "world": {}}},
            r"stages\[1\] \(own\): eval.suite is 'none'",
        ),
        (
            {"own_states": OWN_STATES},
            {"prompt": {"history_steps": 1}},
            "prompt.history_steps is 1: rows of a policy's own",
        ),
        ({"own_states": OWN_STATES | {"oracle": {"speed": 1}}}, {}, "has no setting speed"),
        ({"own_states": OWN_STATES | {"rounds": 0}}, {}, "rounds is 0"),
        ({"won_missions": WON | {"temperature": 0}}, {}, "attempts is 3 at temperature 0: all would be the same"),
        ({"won_missions": WON, "own_states": OWN_STATES}, {}, "made in one way; make two stages of it"),
    ],
)
def test_a_stage_that_could_not_play_is_refused_before_anything_is_trained(configure, tmp_path, stage, groups, said):
    with pytest.raises(ValueError, match=said):
        plan_runs(configure(tmp_path, stage, **groups))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DDP", "ZeRO-3"])
def test_two_ranks_play_what_one_plays(configure, whole, tmp_path, kind):
    """Round 1 begins with the same weights on all: those of a first stage without steps."""
    zero = {"zero_stage": int(kind[-1]) if kind != "DDP" else 0, "max_steps": 2, "accumulation": 1}
    stage = {"own_states": OWN_STATES, "set": {"model.init_from": str(whole.run_dir / "first")}}
    one, two = (configure(tmp_path, stage, name=name, train=zero if name == "two" else {}) for name in ("one", "two"))
    train.train_stages(one)
    launch(kind, save_config(two, tmp_path / "two.json"))
    ours, wanted = (config.run_dir / "own_1/data/dataset.jsonl" for config in (two, one))
    assert ours.read_bytes() == wanted.read_bytes()
    counted = [{k: v for k, v in manifest_of(c, 1).items() if k not in ("policy", "sha256")} for c in (one, two)]
    assert counted[0] == counted[1] and manifest_of(two, 2)["seeds"] == [5, 9]
