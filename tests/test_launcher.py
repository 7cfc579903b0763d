"""What a launcher says of things that the config states is the same, or refused with the setting that means it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from qwenvl_agent.config import TrainConfig
from qwenvl_agent.training.launcher import DEEPSPEED_FILE, check_launcher

pytestmark = pytest.mark.loopback  # Accelerate looks whether a port is free
ROOT = Path(__file__).parent.parent
ZERO3 = TrainConfig(zero_stage=3, cpu_offload=True, accumulation=8)


def environment(*flags: str) -> dict[str, str]:
    """What `accelerate launch --use_deepspeed FLAGS` would set."""
    args = launch_command_parser().parse_args(
        ["--use_deepspeed", "--num_machines", "1", "--num_processes", "1", *flags, "train.py"]
    )
    args.mixed_precision, args.deepspeed_fields_from_accelerate_config = args.mixed_precision or "no", []
    before = dict(os.environ)
    try:
        _, found = prepare_deepspeed_cmd_env(args)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {name: value for name, value in found.items() if name.startswith("ACCELERATE_")}


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--zero_stage", "3"],
        ["--gradient_accumulation_steps", "8", "--gradient_clipping", "1.0"],
        ["--offload_optimizer_device", "cpu", "--offload_param_device", "cpu"],
        ["--mixed_precision", "bf16"],
    ],
)
def test_what_says_the_same_is_accepted(flags):
    check_launcher(ZERO3, environment(*flags))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--zero_stage", "2"], "zero_stage 2 and train.zero_stage means 3: .* --set train.zero_stage=2$"),
        (["--gradient_accumulation_steps", "4"], "train.accumulation means 8: .* --set train.accumulation=4$"),
        (["--gradient_clipping", "0.5"], "train.max_grad_norm means 1.0: .* --set train.max_grad_norm=0.5$"),
        (["--offload_optimizer_device", "none"], "train.cpu_offload means cpu: .* --set train.cpu_offload=false$"),
        (["--offload_param_device", "nvme"], "offload_param_device nvme and train.cpu_offload means cpu: "),
        (["--mixed_precision", "fp16"], "mixed_precision fp16, which would not hold here: precision is model.autocast"),
    ],
)
def test_what_says_otherwise_is_refused_with_its_setting(flags, said):
    with pytest.raises(ValueError, match=said):
        check_launcher(ZERO3, environment(*flags))


def test_whole_programs_are_not_compiled_by_the_launcher():
    with pytest.raises(
        ValueError, match="dynamo_backend inductor, which would not hold here: layers are compiled by model"
    ):
        check_launcher(TrainConfig(), {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})
    check_launcher(TrainConfig(), {"ACCELERATE_DYNAMO_BACKEND": "NO"})


def test_a_file_of_deepspeeds_is_answered_with_the_settings_that_mean_it(tmp_path):
    values = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "overlap_comm": True},
        "gradient_accumulation_steps": 4,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW"},
        "bf16": {"enabled": "auto"},
    }
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError) as error:
        check_launcher(ZERO3, environment("--deepspeed_config_file", str(path)))
    assert str(error.value) == (
        f"{path} would not be used: DeepSpeed's settings are made of this project's config; launch with --use_deepspeed alone "
        "and --set train.zero_stage=2 --set train.cpu_offload=true --set train.accumulation=4 --set train.batch_size=1; "
        "without a counterpart here: optimizer"
    )
    # accelerate looks into it first, so the variable is given as it would give it
    for text in ("{", "[1]", '{"zero_optimization": 2}', '{"zero_optimization": {"offload_param": "cpu"}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="DeepSpeed's settings cannot be read"):
            check_launcher(ZERO3, {DEEPSPEED_FILE: str(path)})
    path.write_text('{"zero_optimization": {"stage": 1, "offload_param": null}}')
    with pytest.raises(ValueError, match="--set train.zero_stage=1$"):
        check_launcher(ZERO3, {DEEPSPEED_FILE: str(path)})


@pytest.mark.slow
def test_a_yaml_of_accelerates_own_is_one_line(tmp_path):
    """Its accumulation would have been taken over the config's: an optimizer step in every second one of ours."""
    (tmp_path / "own.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_processes: 1\nnum_machines: 1\nmachine_rank: 0\nmixed_precision: bf16\n"
        "use_cpu: false\ndeepspeed_config:\n  gradient_accumulation_steps: 16\n  zero_stage: 2\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "own.yaml")]
    command = [*launch, "train.py", "--config", "configs/safari_tiny.json", "--set", f"runs_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the launcher says gradient_accumulation_steps 16 and train.accumulation means" in line
    assert "Traceback" not in done.stderr.split("error: ")[0]
