"""A real short run, profiled."""

import gzip
import json
import re

import pytest
import torch
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

import train
from qwenvl_agent.training.profile import (
    PHASES,
    communication_seconds,
    kernel_seconds,
    matmul_flops,
    phase_seconds,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("profiled")
    checkpoint, data = save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")
    config = tiny_config(directory, checkpoint, data, train={"max_steps": 7, "log_every": 1}, profile={"steps": 2})
    train.train(config)
    return config.run_dir


def table(summary: str) -> dict[str, tuple[float, float]]:
    rows = re.findall(r"\| ([\w ]+) \| (-?[\d.]+) \| (-?[\d.]+)% \|", summary)
    return {name: (float(ms), float(share)) for name, ms, share in rows}


def test_the_phases_make_up_the_step(run_dir):
    summary = (run_dir / "profile" / "summary.md").read_text()
    phases = table(summary)
    assert list(phases) == ["data wait", *PHASES, "everything else"]
    assert all(phases[name][0] > 0 for name in PHASES)
    assert sum(share for _, share in phases.values()) == pytest.approx(100, abs=0.5)
    seconds = float(re.search(r"2 steps of ([\d.]+) s", summary)[1])
    assert sum(ms for ms, _ in phases.values()) == pytest.approx(1e3 * seconds, rel=0.02)
    assert phases["everything else"][0] < 0.3 * 1e3 * seconds  # what is named is most of it


def test_the_trace_holds_the_phases_of_two_steps_of_two_micro_batches(run_dir):
    with gzip.open(run_dir / "profile" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert names.count("language forward") == names.count("backward") == 4
    assert names.count("clip and optimizer") == 2


def test_profiling_changes_no_step_and_is_off_by_default(run_dir, tmp_path):
    base = run_dir.parent.parent
    config = tiny_config(
        tmp_path, base / "base", base / "data" / "dataset.jsonl", train={"max_steps": 7, "log_every": 1}
    )
    train.train(config)
    assert not (config.run_dir / "profile").exists()

    def losses(directory):
        return [json.loads(line).get("train/loss") for line in (directory / "metrics.jsonl").open()]

    assert losses(config.run_dir) == losses(run_dir)


def fabricated(*events: tuple) -> EventList:
    """Of (name, start, end in us, kernels' us, device's or host's, label or not), as a trace of a GPU holds them."""
    made = []
    for i, (name, start, end, kernels, on_device, is_label) in enumerate(events):
        kind = DeviceType.CUDA if on_device else DeviceType.CPU
        event = FunctionEvent(
            i, name, 7 if on_device else 1, start, end, use_device="cuda", device_type=kind, is_user_annotation=is_label
        )
        if kernels:
            event.append_kernel(f"{name} kernel", 0, kernels)
        made.append(event)
    events = EventList(made, use_device="cuda")
    events._build_tree()
    return events


HOST, DEVICE = False, True
ON_A_GPU = (
    ("language forward", 0, 400, 0, HOST, True),
    ("aten::mm", 10, 20, 600, HOST, False),
    ("sgemm", 100, 700, 0, DEVICE, False),
    ("language forward", 100, 700, 0, DEVICE, True),  # the label once more, as a range of the device
    ("backward", 500, 900, 0, HOST, True),
    ("backward", 700, 1600, 0, DEVICE, True),
    ("sgemm", 700, 1400, 0, DEVICE, False),  # started by autograd's thread
    ("nccl:all_reduce", 1400, 1600, 0, DEVICE, True),
    ("ncclDevKernel_AllReduce", 1400, 1600, 0, DEVICE, False),
)


def test_every_kernel_counts_once():
    events = fabricated(*ON_A_GPU)
    assert kernel_seconds(events) == pytest.approx(1500e-6)
    phases = phase_seconds(events, "cuda")
    assert phases == pytest.approx(dict.fromkeys(PHASES, 0.0) | {"language forward": 600e-6, "backward": 900e-6})
    assert communication_seconds(events, "cuda") == pytest.approx(200e-6)


def test_a_phase_inside_a_phase_counts_once():
    events = fabricated(
        ("language forward", 0, 1000, 0, HOST, True),
        ("aten::mm", 10, 20, 300, HOST, False),
        ("language forward", 100, 600, 0, HOST, True),
        ("aten::mm", 110, 120, 400, HOST, False),
        ("head forward", 700, 900, 0, HOST, True),
        ("aten::mm", 710, 720, 50, HOST, False),
    )
    on_host = phase_seconds(events, "cpu")
    assert on_host == pytest.approx(dict.fromkeys(PHASES, 0.0) | {"language forward": 800e-6, "head forward": 200e-6})
    on_device = phase_seconds(events, "cuda")
    assert (on_device["language forward"], on_device["head forward"]) == pytest.approx((700e-6, 50e-6))


def test_the_rate_is_that_of_a_product():
    assert 1e8 < matmul_flops(torch.device("cpu"), torch.float32, repeats=2) < 1e14
