"""Trackers besides TensorBoard get the figures of metrics.jsonl and the settings, offline."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config

import train
from qwenvl_agent.config import build_config
from qwenvl_agent.training import trackers


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trackers")
    checkpoint, dataset = save_tiny_checkpoint(directory / "tiny"), save_dataset(directory / "data")
    return tiny_config(directory, checkpoint, dataset, train={"max_steps": 2})


def logged(config) -> list[dict]:
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def in_trackio(path: Path, table: str, columns: str) -> list[tuple]:
    with sqlite3.connect(path) as base:
        return base.execute(f"select {columns} from {table} order by id").fetchall()


def test_trackio_gets_every_figure_and_a_resumed_run_goes_on_in_it(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported first, which is here
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    asked = replace(config, train=replace(config.train, trackers=("trackio",), tracker_project="park"))
    train.train(asked)
    train.train(replace(asked, train=replace(asked.train, extra_steps=1)), resume=True)
    rows = in_trackio(tmp_path / "park.db", "metrics", "run_id, run_name, step, metrics")
    assert {name for _, name, _, _ in rows} == {"run"} and len({run_id for run_id, *_ in rows}) == 1
    assert [{"step": step, **json.loads(metrics)} for _, _, step, metrics in rows] == logged(asked)
    assert {line["step"] for line in logged(asked)} == {1, 2, 3}
    (settings,) = in_trackio(tmp_path / "park.db", "configs", "config")
    assert (
        json.loads(settings[0])["train.learning_rate"] == 1e-3
        and json.loads(settings[0])["train.betas"] == "[0.9, 0.95]"
    )
    assert not (asked.run_dir / "tensorboard").exists()


def test_wandb_goes_on_under_its_id(tmp_path):
    first = trackers.id_of(tmp_path, is_new=True)
    assert trackers.id_of(tmp_path, is_new=False) == first != trackers.id_of(tmp_path, is_new=True)


def test_wandb_offline_gets_a_run_of_its_own(config, tmp_path, monkeypatch):
    """Where it is installed: `make install` leaves it out."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    asked = replace(config, name="w", train=replace(config.train, trackers=("tensorboard", "wandb")))
    train.train(asked)
    (folder,) = (asked.run_dir / "wandb").glob("offline-run-*")
    assert folder.name.endswith(json.loads((asked.run_dir / "tracker.json").read_text())["id"])
    assert list((asked.run_dir / "tensorboard").glob("events*"))


def test_a_tracker_that_is_not_installed_is_refused(config, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    message = (
        "train.trackers has trackio, which is not installed: .* pip install 'qwenvl-agent.trackio.', or leave it out"
    )
    with pytest.raises(ValueError, match=message):
        train.train(replace(config, name="none", train=replace(config.train, trackers=("tensorboard", "trackio"))))


def test_a_tracker_that_does_not_start_says_why(config, monkeypatch):
    class Failing:
        log_with = ("trackio",)
        is_main_process = False

        def init_trackers(self, *args):
            raise RuntimeError("no\n  login")

    with pytest.raises(ValueError, match=r"train.trackers \(trackio\) cannot start \(no login\): "):
        trackers.start_trackers(config, Failing(), 0)


@pytest.mark.parametrize("key", ["report_to", "log_with"])
def test_other_trainers_names_are_answered_with_ours(key):
    with pytest.raises(ValueError, match="here it is train.trackers, a list of tensorboard, trackio and wandb"):
        build_config({"name": "x", "model": {"path": "tiny"}, "train": {key: "wandb"}})
