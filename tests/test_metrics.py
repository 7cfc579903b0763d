"""The line of progress: it comes with the first step, and the time left is that of steady steps."""

import json
import time
from html.parser import HTMLParser

import pytest
import torch
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config

import train
from qwenvl_agent.training.metrics import Means, Reporter, verbatim


class TextOf(HTMLParser):
    """What a browser shows of a paragraph."""

    def __init__(self):
        super().__init__()
        self.text = ""

    def handle_data(self, data):
        self.text += data.replace("\n", "")  # of the page's own source

    def handle_starttag(self, tag, attrs):
        self.text += "\n" if tag == "br" else ""


@pytest.mark.parametrize(
    "text",
    [
        "a\n\n  - b *c* _d_ [e](http://f) `g`\n1. h\n# i\n> j | k\n---",
        'Mission: 找到 <b>&amp;</b>\n<tool_call>\n{"name": "move", "arguments": {"a": [1, 2]}}\n</tool_call>',
        "<script>alert(1)</script>\n\n\n</p><p>x" + " long" * 200,
    ],
)
def test_tensorboard_shows_a_transcript_as_it_is(text):
    from tensorboard.plugin_util import markdown_to_safe_html

    page = markdown_to_safe_html(verbatim(text))
    assert "<pre>" not in page and "<script" not in page  # a block of code has lines that are cut off
    parser = TextOf()
    parser.feed(page)
    assert parser.text.replace("\N{NO-BREAK SPACE}", " ") == text


class Clock:
    """Stands in for time.monotonic."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def take_steps(reporter: Reporter, clock: Clock, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        reporter.advance(step)


def last_line(reporter: Reporter, step: int, capsys) -> str:
    reporter.show(step, {"train/loss": 1.5})
    return capsys.readouterr().out.splitlines()[-1]


def test_time_left_is_by_steady_steps(tmp_path, clock, capsys):
    """Three steps of start-up take 100 s each, the others 2 s."""
    reporter = Reporter(tmp_path, 0, 4000, is_main=True)
    take_steps(reporter, clock, range(1, 4), 100.0)
    assert last_line(reporter, 3, capsys) == "step 3/4000  loss 1.5  (start-up)"
    take_steps(reporter, clock, range(4, 5), 2.0)
    assert last_line(reporter, 4, capsys) == "step 4/4000  loss 1.5  left 2:13:12"  # 3,996 steps
    take_steps(reporter, clock, range(5, 3980), 2.0)
    assert last_line(reporter, 3979, capsys) == "step 3979/4000  loss 1.5  left 0:42"


def test_a_resumed_run_has_a_start_up_of_its_own(tmp_path, clock, capsys):
    reporter = Reporter(tmp_path, 100, 200, is_main=True, compiles=True)
    take_steps(reporter, clock, range(101, 104), 50.0)
    assert last_line(reporter, 103, capsys) == "step 103/200  loss 1.5  (start-up: model.compile compiles)"
    take_steps(reporter, clock, range(104, 106), 3.0)
    assert last_line(reporter, 105, capsys) == "step 105/200  loss 1.5  left 4:45"


def test_what_passes_between_steady_steps_counts(tmp_path, clock, capsys):
    """Evaluations, checkpoints: 10 steps of 1 s with one pause of 90 s make 10 s a step."""
    reporter = Reporter(tmp_path, 0, 100, is_main=True)
    take_steps(reporter, clock, range(1, 13), 1.0)
    clock.now += 90.0
    take_steps(reporter, clock, range(13, 14), 1.0)
    assert last_line(reporter, 13, capsys) == "step 13/100  loss 1.5  left 14:30"


def test_a_look_at_the_means_leaves_them():
    means = Means()
    means.add("train/loss", 6.0, 2.0)
    means.add("train/loss", 2.0, 2.0)
    assert means.peek() == {"train/loss": 2.0} == means.peek()
    assert means.take([means.read()]) == {"train/loss": 2.0} and means.peek() == {}


def test_totals_on_the_device_add_up_as_on_the_host_however_often_they_are_read():
    """To the bit: a run that was interrupted, and so was read in between, logs what another one does."""
    totals = [0.1, 1e9, 0.3, 1 / 3, 1e-9]
    host, device, often = Means(), Means(), Means()
    for total in totals:
        host.add("train/loss", total, 2.0)
        for means in (device, often):
            means.add("train/loss", torch.tensor(total, dtype=torch.float64), 2.0)
        often = Means(often.read())  # as from a checkpoint
    assert host.read() == device.read() == often.read() == {"train/loss": [sum(totals), 10.0]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")


def test_the_first_line_comes_with_the_first_step(base, tmp_path, capsys):
    """And with the first one after resuming; metrics.jsonl has the asked for lines alone."""
    config = tiny_config(tmp_path, *base, train={"max_steps": 4, "log_every": 4, "save_every": 2})
    train.train(config)
    steps = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert steps[0] == "1/4" and steps.count("4/4") >= 1 and "2/4" not in steps
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {4}
    (config.run_dir / "checkpoints" / "last").unlink()
    (config.run_dir / "checkpoints" / "last").symlink_to("step_000002")
    train.train(config, resume=True)
    steps = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert steps[0] == "3/4"
