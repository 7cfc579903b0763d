"""check_gpu: its arithmetic against values worked out by hand, and the measuring itself on the tiny model, on a CPU."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loading import load_program
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config
from torch import nn

from qwenvl_agent.config import ModelConfig
from qwenvl_agent.model.kernels import PatchProjection
from qwenvl_agent.planning.flops import batch_flops, step_flops, tower_flops
from qwenvl_agent.planning.vram import ARCHITECTURES, Architecture, RowShape

ROOT = Path(__file__).parents[1]
ARCH = Architecture(
    model_type="qwen3_vl",
    hidden=4,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=3,
    intermediate=5,
    vocab=10,
    tied=True,
    vision_hidden=2,
    vision_depth=3,
    vision_intermediate=7,
    vision_heads=1,
    num_positions=4,
    num_side_mergers=1,
    patch=2,
    merge=2,
    temporal=1,
    channels=1,
)
# By hand. A layer: q 4x6, k and v 4x3 each, o 6x4, gate, up and down 4x5 each: 24 + 24 + 24 + 60 = 132 weights.
# LoRA of rank 1: inputs + outputs of the seven, 10 + 7 + 7 + 10 + 9 + 9 + 9 = 61; two layers 122.
# The tower: patches of 4 values; stem 4x2 = 8, a block 4 * 2x2 + 2 * 2x7 = 44, so 8 + 3 * 44 = 140 a patch;
# a merger on 8 values: 8x8 + 8x4 = 96, two of them 192 a token.
LORA = ModelConfig(path="x", method="lora", lora_rank=1)
FULL = ModelConfig(path="x", method="full")


@pytest.fixture(scope="module")
def check_gpu():
    return load_program("scripts/check_gpu.py")


def test_a_tower_by_hand(check_gpu):
    # 8 patches, 2 tokens: products 2 * 8 * 140, attention 3 blocks * 2 products * 2 * 8 * 8 * 2, mergers 2 * 2 * 192.
    assert tower_flops(ARCH, 8) == 2240 + 1536 + 768


def test_a_text_row_by_hand(check_gpu):
    # 10 tokens, 3 supervised. Forward: layers 2 * 10 * 2 * 132 = 5,280; adapters 2 * 10 * 122 = 2,440;
    # attention 2 layers * 2 products * 2 * 10 * 10 * 6 = 4,800; head 2 * 3 * 40 = 240.
    # Frozen matrices twice, what both factors are differentiated of three times.
    assert step_flops(LORA, ARCH, [10], 3, []) == 2 * 5_280 + 3 * 2_440 + 3 * 4_800 + 2 * 240
    assert step_flops(FULL, ARCH, [10], 3, []) == 3 * 5_280 + 3 * 4_800 + 3 * 240


def test_a_tower_counts_forward_only_unless_it_trains(check_gpu):
    without = step_flops(FULL, ARCH, [10], 3, [])
    trained = replace(FULL, train_vision=True)
    assert step_flops(FULL, ARCH, [10], 3, [8, 8]) - without == 2 * 4_544
    assert step_flops(trained, ARCH, [10], 3, [8, 8]) - without == 3 * 2 * 4_544


def test_adapters_of_the_tower_by_hand(check_gpu):
    def more(*places):
        with_places = replace(LORA, lora_places=("language", *places))
        return step_flops(with_places, ARCH, [10], 3, [8]) - step_flops(LORA, ARCH, [10], 3, [8])

    # 2 tokens, 2 mergers: adapters 8 + 8 + 8 + 4 = 28 each, three times; the second layer's input gradient, 8 x 4.
    merger = 3 * 2 * 2 * 2 * 28 + 2 * 2 * 2 * 32
    assert more("merger") == merger
    # 8 patches, 3 blocks: adapters 8 + 4 + 9 + 9 = 30 each; input gradients of blocks and of both layers of a merger.
    blocks = 3 * 2 * 8 * 3 * 30 + 2 * 8 * 3 * 44 + 2 * 1536 + 2 * 2 * 2 * 96
    assert more("vision") == blocks and more("merger", "vision") == blocks + 3 * 2 * 2 * 2 * 28


def test_attention_is_of_each_row_alone(check_gpu):
    together, apart = (step_flops(LORA, ARCH, lengths, 0, []) for lengths in ([20], [10, 10]))
    assert together - apart == 3 * 4 * 2 * 6 * (20**2 - 2 * 10**2)


def test_a_pack_computes_its_beginning_once_and_no_row_sees_another(check_gpu):
    """Rows of 10 and 12 tokens that begin with the same 6: of the pack's 16 tokens 6 see 6, 4 see 10 and 6 see 12."""
    packed = {
        "attention_mask": torch.ones(1, 16),
        "pack_sizes": [[6, 4, 6]],
        "supervised": torch.zeros(3),
        "image_grid_thw": torch.zeros(0, 3),
    }
    padded = packed | {"attention_mask": torch.ones(1, 16)}
    del padded["pack_sizes"]
    apart = batch_flops(LORA, ARCH, padded) - batch_flops(LORA, ARCH, packed)
    assert apart == 3 * 4 * 2 * 6 * (16**2 - (6 * 6 + 4 * 10 + 6 * 12))


def test_the_2b_language_model_is_near_six_flops_a_parameter_and_token(check_gpu):
    """The rule of thumb for full training, without attention and head: 2 forward and 4 backward."""
    arch = ARCHITECTURES["Qwen/Qwen3-VL-2B-Instruct"]
    flops = step_flops(FULL, arch, [1], 0, [])
    assert flops == pytest.approx(6 * 1_409_286_144, rel=1e-3)
    # 28 layers of 2048 x (2048 + 2 * 1024 + 2048) and 3 * 2048 x 6144.
    assert 28 * (2048 * 6144 + 3 * 2048 * 6144) == 1_409_286_144


def test_utilisation_is_flops_over_time_and_peak(check_gpu, monkeypatch):
    monkeypatch.setattr(check_gpu, "matmul_flops", lambda device, dtype: 5e12)
    steps = [check_gpu.Step(2.0, 100, 3e12, 1.0), check_gpu.Step(1.0, 200, 3e12, 1.0)]
    rate = check_gpu.speed(steps, torch.device("cpu"))
    assert (rate["model_tflops_per_s"], rate["tokens_per_s"], rate["seconds_per_step"]) == (2.0, 100.0, 1.5)
    assert rate["share_of_matmul"] == 0.4 and rate["model_flop_utilisation"] is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 4090")
    rate = check_gpu.speed(steps, torch.device("cuda"))
    assert rate["model_flop_utilisation"] == pytest.approx(2 / 165.2)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A100-SXM4-40GB", 311.9),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_card_is_known_by_its_whole_name(check_gpu, name, peak):
    assert check_gpu.peak_tflops(name) == peak


def test_the_planned_row_is_as_large_as_what_ran(check_gpu):
    labels = torch.full((2, 6), -100)
    labels[0, 3:] = 1
    labels[1, 4:5] = 1
    ids = torch.zeros(2, 6)
    batch = {"input_ids": ids, "labels": labels, "image_grid_thw": torch.tensor([[1, 2, 4], [1, 2, 2]])}
    text = {"input_ids": torch.zeros(1, 9), "labels": torch.full((1, 9), -100)}
    shape = check_gpu.batch_shape(batch, ARCH)
    # 12 patches are 3 tokens in 2 rows; 4 supervised positions in 2 rows.
    assert (shape.tokens, shape.image_tokens, shape.supervised, shape.num_images) == (6, 2, 2, 1)
    largest = check_gpu.largest_row([batch, text], ARCH)
    assert (largest.tokens, largest.image_tokens, largest.supervised) == (9, 2, 2)
    assert isinstance(largest, RowShape)


def test_a_conv3d_and_the_matrix_product_are_equal_and_a_wrong_one_is_not(check_gpu):
    torch.manual_seed(0)
    projection = nn.Conv3d(3, 32, (2, 16, 16), (2, 16, 16))
    projection.__class__ = PatchProjection
    pixels = torch.randn(24, 3 * 2 * 16 * 16)
    result = check_gpu.compare_projections(projection, pixels)
    assert result["equal"] and 0 < result["relative_difference"] < 1e-5

    class Wrong(nn.Conv3d):
        def forward(self, patches):
            return PatchProjection.forward(self, patches.flip(-1))

    projection.__class__ = Wrong
    assert not check_gpu.compare_projections(projection, pixels)["equal"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("check_gpu")
    checkpoint, dataset = save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data", 12)
    return tiny_config(directory, checkpoint, dataset, model={"method": "qlora", "dtype": "auto", "autocast": "auto"})


@pytest.fixture(scope="module")
def report(check_gpu, config):
    return check_gpu.measure(config, 5, torch.device("cpu"))


def test_a_measurement_has_every_figure(report, check_gpu):
    assert len(report["losses"]) == len(report["step_seconds"]) == 5 and report["losses"][-1] < report["losses"][0]
    assert report["speed"]["steps"] == 2 and report["speed"]["tokens_per_s"] > 0
    assert report["memory"]["planned_tensors"] > 0 and report["memory"]["allocated"] is None
    assert report["vision"]["equal"] and report["vision"]["used"] == "PatchProjection"
    assert report["vision"]["tower_ms_conv3d"] > 0 and report["vision"]["pictures"] == 2
    assert report["host"] == {"waits": None, "waits_from": {}, "kernels": None, "busy": None}
    kernels = report["kernels"]
    assert kernels["attention"] == "eager" and kernels["attention_kernels"] == []
    assert kernels["layers_in_4_bit"] == 2 * 7 and kernels["quantisation"] == ["nf4"]
    assert json.loads(json.dumps(report)) == report


def test_waits_are_counted_by_the_lines_that_ask(check_gpu, report, capsys):
    """By torch's own words (c10/cuda/CUDAFunctions.cpp)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, line in (("a/metrics.py", 7), ("a/finite.py", 3), ("a/finite.py", 3)):
            warnings.warn_explicit(
                "called a synchronizing CUDA operation (Triggered internally)", UserWarning, name, line
            )
        warnings.warn_explicit("something else", UserWarning, "a/finite.py", 3)
    waits = check_gpu.waits_from(caught)
    assert waits == {"a/finite.py:3": 2, "a/metrics.py:7": 1} and list(waits)[0] == "a/finite.py:3"
    from rich.console import Console

    host = {"waits": 3, "waits_from": waits, "kernels": 12000, "busy": 0.5}
    check_gpu.show(report | {"host": host}, Console(width=150, highlight=False))
    out = capsys.readouterr().out
    assert "3 (a/finite.py:3 2, a/metrics.py:7 1)" in out and "12,000; one runs in 50% of the time" in out


def test_the_table_says_what_is_unknown(report, check_gpu, capsys):
    from rich.console import Console

    check_gpu.show(report, Console(width=150, highlight=False))
    out = capsys.readouterr().out
    assert "run on a CPU" in out and "unknown card" in out and "measured unknown" in out and "equal" in out


def test_a_machine_without_a_gpu_has_not_passed(check_gpu, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = save_config(config, tmp_path / "config.json")
    assert check_gpu.main(["--config", str(path), "--out", str(tmp_path / "out.json")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no CUDA device here: nothing was measured") and err.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_too_few_steps_are_refused(check_gpu, config, tmp_path, capsys):
    path = save_config(config, tmp_path / "config.json")
    assert check_gpu.main(["--config", str(path), "--steps", "3"]) == 2
    assert "--steps 3: the first 3 are not measured" in capsys.readouterr().err


def test_missing_safari_data_are_recorded_and_others_are_the_users(check_gpu, config, tmp_path, monkeypatch):
    monkeypatch.setattr(check_gpu, "ROOT", tmp_path)
    commands = []
    monkeypatch.setattr(check_gpu.subprocess, "run", lambda command, **_: commands.append(command))
    safari = replace(config.data.sources[0], kind="safari", path="no/such")
    missing = replace(config, data=replace(config.data, sources=(safari,)))
    changed = check_gpu.with_data(missing)
    assert changed.data.sources[0].path == str(tmp_path / "generated" / "gpu_check")
    assert commands[0][1:3] == ["scripts/generate_oracle.py", "--json"]
    chat = replace(missing, data=replace(config.data, sources=(replace(safari, kind="chat"),)))
    assert check_gpu.with_data(chat) is chat and check_gpu.with_data(config) is config and len(commands) == 1


@pytest.mark.gpu
def test_on_a_gpu_memory_and_kernels_are_measured_too(check_gpu, config):
    report = check_gpu.measure(config, 5, torch.device("cuda"))
    assert report["memory"]["allocated"] > 0 and report["kernels"]["nf4_kernels"]
    assert report["host"]["waits"] >= 0 and report["host"]["kernels"] > 100 and 0 < report["host"]["busy"] <= 1
    assert report["machine"]["card"]["name"] and report["vision"]["equal"]
