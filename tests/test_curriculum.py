"""What a curriculum's config says before anything is trained: the runs it is, and what could never end well."""

from pathlib import Path

import pytest

from qwenvl_agent.config import build_config, load_config
from qwenvl_agent.training.curriculum import plan_runs, recorder_options

SHARED = {
    "name": "c",
    "model": {"path": "tiny", "method": "lora"},
    "data": {"sources": [{"path": "data/a"}], "eval_fraction": 0.1},
    "train": {"max_steps": 100, "learning_rate": 1e-3},
    "eval": {"suite": "none"},
}


def plan(*stages: dict, **groups: dict):
    return plan_runs(build_config({**SHARED, **groups, "stages": list(stages)}))


def test_a_stage_is_the_shared_settings_with_its_own_over_them():
    first, second = plan(
        {"name": "one", "set": {"train.max_steps": 5, "data": {"eval_fraction": 0.2}}},
        {"name": "two", "set": {"train": {"learning_rate": 1e-4}, "data.sources": [{"path": "data/b", "weight": 3}]}},
    )
    assert [str(run.config.run_dir) for run in (first, second)] == ["runs/c/one", "runs/c/two"]
    assert (first.config.train.max_steps, first.config.train.learning_rate) == (5, 1e-3)
    assert (second.config.train.max_steps, second.config.train.learning_rate) == (100, 1e-4)
    assert first.config.data.eval_fraction == 0.2 and [s.path for s in first.config.data.sources] == ["data/a"]
    assert [(s.path, s.weight) for s in second.config.data.sources] == [("data/b", 3.0)]
    assert (first.config.model.init_from, second.config.model.init_from) == ("", "runs/c/one")
    assert not first.config.stages


def test_a_nested_object_adds_keys_and_a_dotted_key_replaces_all():
    world = {"suite": "safari", "world": {"num_trees": 20, "tile_px": 16}}
    nested, dotted = plan(
        {"name": "one", "set": {"eval": {"world": {"num_trees": 30}}}},
        {"name": "two", "set": {"eval.world": {"tile_px": 32}}},
        eval=world,
    )
    assert nested.config.eval.world == {"num_trees": 30, "tile_px": 16} and dotted.config.eval.world == {"tile_px": 32}


def test_a_stage_may_begin_with_another_stage_or_with_the_base():
    one, two, three, four = plan(
        {"name": "one"},
        {"name": "two", "set": {"model.init_from": ""}},
        {"name": "three", "set": {"model": {"init_from": "one"}}},
        {"name": "four", "set": {"model.init_from": "runs/elsewhere"}},
    )
    starts = [run.config.model.init_from for run in (one, two, three, four)]
    assert starts == ["", "", "runs/c/one", "runs/elsewhere"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a"}, {"name": "a"}], "stages are named a, a: two would share a folder"),
        ([{"name": "a/b"}], "results would lie elsewhere"),
        ([{"name": "a", "set": {"train.lr": 1}}], r"stages\[0\] \(a\): unknown key 'train.lr'.*learning_rate"),
        ([{"name": "a", "set": {"name": "x"}}], "a stage's folder follows from them"),
        ([{"name": "a", "set": {"stages": []}}], "a stage's folder follows from them"),
        ([{"name": "a", "set": {"data.sources": []}}], "data.sources is empty: there is nothing to learn"),
        ([{"name": "a", "set": {"train.zero_stage": 2}}], "train.zero_stage is 2, 0 beside stages"),
        ([{"name": "a"}, {"name": "b", "set": {"prompt.format": "plain"}}], "set prompt.format=native"),
        ([{"name": "a"}, {"name": "b", "set": {"model.path": "tiny_screens"}}], "set model.path=tiny"),
        (
            [{"name": "a"}, {"name": "b", "set": {"model.lora_rank": 8}}],
            "set model.lora_rank=16, or model.init_mode=merge",
        ),
        (
            [{"name": "a"}, {"name": "b", "set": {"model.method": "full"}}],
            "set model.method=lora, or model.init_mode=merge",
        ),
        ([{"name": "a", "gate": {"metric": "eval/x"}}], "nothing would be tested"),
        ([{"name": "a", "gate": {"metric": "rollout/success_rate", "least": 1}}], "eval.suite 'none' measures nothing"),
        (
            [{"name": "a", "set": {"eval.step_rows": 0}, "gate": {"metric": "eval/x", "least": 1}}],
            "gate.metric 'eval/x' would not be measured: eval.step_rows is 0",
        ),
        ([{"name": "a", "record": [{"out": "data/x", "episodes": 2}]}], "recorded for nothing"),
        ([{"name": "a", "record": [{"out": "data/a"}]}], "episodes is missing"),
        ([{"name": "a", "record": [{"out": "data/a", "episodes": 2, "overwrite": True}]}], "not a stage's to set"),
    ],
)
def test_what_could_not_be_trained_is_refused_before_anything_is(stages, message):
    with pytest.raises(ValueError, match=message):
        plan(*stages)


def test_merging_takes_another_adapter_and_another_method():
    merged = {"model": {"init_mode": "merge", "lora_rank": 8}}
    runs = plan({"name": "a"}, {"name": "b", "set": merged}, {"name": "c", "set": merged | {"model.method": "full"}})
    assert [run.config.model.lora_rank for run in runs] == [16, 8, 8]


def test_a_recording_is_the_recorders_own_options():
    entry = {"out": "data/a", "episodes": 3, "oracle": {"max_path": 6, "form": "x y"}, "noise": 0.2, "seed_start": 7}
    assert recorder_options(entry | {"rules": {"width": 12}, "fast": True, "slow": False}) == [
        "--out=data/a",
        "--episodes=3",
        "--oracle=max_path=6",
        '--oracle=form="x y"',
        "--noise=0.2",
        "--seed-start=7",
        '--rules={"width": 12}',
        "--fast",
    ]


CURRICULA = sorted((Path(__file__).parent.parent / "configs").glob("*_curriculum.json"))


@pytest.mark.parametrize("path", CURRICULA, ids=lambda path: path.stem)
def test_every_shipped_curriculum_can_be_planned(path):
    assert len(plan_runs(load_config(path))) >= 2
