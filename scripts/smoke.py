"""The real sizes on a CPU: train two optimizer steps, resume, answer once; print what it took and write smoke.json.

    python scripts/smoke.py --config configs/safari_2b.json --size 2b --processor processors/2b --out generated/smoke_2b
    python scripts/smoke.py --config configs/computer_use_32b.json --size 32b --layers 2 --processor processors/8b \
        --out generated/smoke_32b --set train.accumulation=1
    python scripts/smoke.py --config configs/computer_use_8b.json --size 8b --processor processors/8b \
        --out generated/smoke_8b --set train.batch_size=1 --set train.accumulation=1

The processor's folder is as for make_random_checkpoint.py, which writes OUT/base unless it is there. Data of the config's
kind are made in OUT/data: recorded safari episodes, or drawn screens of 1280 x 800 px. Then train.py takes two steps and
saves after each; a copy of the run resumes from the first and has to come to the same loss at step 2, to the bit; then it
plays one turn of one episode, greedily (for screens: it answers one held-out row). What trains and what is in 4 bit is
counted in the run's manifest and compared with the architecture's arithmetic.

Memory: `peak_rss` is the kernel's figure of the largest process, with the pages of weight files that it had mapped;
`peak_anonymous` is what cannot be dropped, of all processes together, sampled every ten seconds.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from PIL import Image, ImageDraw
from rich.console import Console

from qwenvl_agent.command import Parser, bounded, command
from qwenvl_agent.config import Config, ModelConfig, load_config, to_json
from qwenvl_agent.planning.vram import Architecture, find_architecture, trainable_parameters

ROOT = Path(__file__).parents[1]
NUM_EPISODES = 4
NUM_SCREENS = 12
SCREEN = (1280, 800)
MAX_NEW_TOKENS = 8
"""Of an answer: a random model never ends by itself."""
SAMPLE_S = 10.0
"""Between looks at the memory: adding up the pages of 10 GB takes the kernel 0.4 s of a core."""


@dataclass
class Stage:
    """One command: its wall time, memory in bytes, and when each optimizer step's line came."""

    seconds: float = 0.0
    peak_rss: int = 0
    peak_anonymous: int = 0
    step_times: dict[int, float] = field(default_factory=dict)


@command("the stages so far prove nothing; start again")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, {"--base": "--model"})
    parser.add_argument("--config", type=Path, required=True, help="a JSON file of configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting")
    parser.add_argument("--size", help="of the random checkpoint, as in make_random_checkpoint.py; not with --model")
    parser.add_argument(
        "--layers", type=bounded(int, 1), help="so many of the language model's layers; not with --model"
    )
    parser.add_argument(
        "--processor", type=Path, metavar="DIR", help="folder with processor and config; not with --model"
    )
    parser.add_argument(
        "--stand-in", action="store_true", help="the processor is another family's: make_random_checkpoint.py says more"
    )
    parser.add_argument("--model", type=Path, help="a checkpoint to train on instead")
    parser.add_argument("--out", type=Path, required=True, help="folder of base, data, runs and smoke.json")
    parser.add_argument("--threads", type=bounded(int, 1), default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print smoke.json, and nothing else on stdout")
    args = parser.parse_args(argv)
    messages = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    report = smoke(args, messages)
    text = json.dumps(report, indent=1)
    (args.out / "smoke.json").write_text(text + "\n", encoding="utf-8")
    print(text if args.json else summary(report))
    return 0 if report["passed"] else 1


def smoke(args: argparse.Namespace, messages: Console) -> dict:
    """All stages; ValueError for a stage that ended with an error."""
    config = load_config(args.config, args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    run = Runner(args.out, args.threads, messages)
    base = args.model or make_base(args, run)
    arch = find_architecture(str(base))
    config_path = write_config(config, base, make_data(config, args.out, run), args.out)
    shutil.rmtree(args.out / "runs", ignore_errors=True)
    train = run("train", [*launcher(args.threads), "--config", str(config_path), "--set", "eval.suite=none"])
    run_dir = args.out / "runs" / config.name
    resumed_dir = copy_first_checkpoint(run_dir)
    resume = run("resume", [*launcher(args.threads), "--config", str(config_path), *resume_options(config)])
    return build_report(config, arch, base, run_dir, resumed_dir, {"train": train, "resume": resume}, args.threads)


class Runner:
    """Runs commands in the repository's root, their output shown and kept in OUT/NAME.log."""

    def __init__(self, out: Path, threads: int, messages: Console):
        self.out, self.threads, self.messages = out, threads, messages

    def __call__(self, name: str, command: Sequence[str]) -> Stage:
        self.messages.print(f"$ {' '.join(command)}", style="bold")
        # Without the second, what is printed would come in blocks, and late.
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        stage, started = Stage(), time.monotonic()
        with open(self.out / f"{name}.log", "w", encoding="utf-8", buffering=1) as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            watch = threading.Thread(target=watch_memory, args=(process.pid, stage), daemon=True)
            watch.start()
            for line in process.stdout:
                log.write(line)
                self.messages.print(f"  {line.rstrip()}", style="dim")
                note_step(line, stage)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.join()
        stage.seconds = time.monotonic() - started
        stage.peak_rss = usage.ru_maxrss * 1024  # kilobytes on Linux; of the largest among it and its descendants
        if process.returncode:
            raise ValueError(
                f"{name} ended with status {process.returncode}: the smoke test has not passed; read {log.name}"
            )
        return stage


def note_step(line: str, stage: Stage) -> None:
    """The time of a line of train.py; 0 is the last one before the first step."""
    if line.startswith("trainable parameters: "):
        stage.step_times[0] = time.monotonic()
    elif found := re.match(r"step (\d+)/\d+  loss ", line):
        stage.step_times[int(found[1])] = time.monotonic()


def watch_memory(pid: int, stage: Stage) -> None:
    """Until the process has ended."""
    try:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            stage.peak_anonymous = max(stage.peak_anonymous, anonymous_bytes(root))
            time.sleep(SAMPLE_S)
    except psutil.NoSuchProcess:
        pass


def anonymous_bytes(root: psutil.Process) -> int:
    """Of a process and its descendants; a page that several share counts once. 0 where the kernel does not tell."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        total += sum(int(kb) * 1024 for kb in re.findall(r"^Pss_Anon:\s+(\d+) kB", text, re.MULTILINE))
    return total


def make_base(args: argparse.Namespace, run: Callable) -> Path:
    """OUT/base, written if it is not there."""
    base = args.out / "base"
    if not args.size or not args.processor:
        raise ValueError("--size and --processor, or --model: without them there is no model to train; give them")
    if not base.exists():
        options = ["--size", args.size, "--processor", str(args.processor.resolve()), "--out", str(base.resolve())]
        options += ["--layers", str(args.layers)] if args.layers else []
        options += ["--stand-in"] if args.stand_in else []
        run("base", [sys.executable, "scripts/make_random_checkpoint.py", *options])
    return base


def make_data(config: Config, out: Path, run: Callable) -> Path:
    """A dataset of the config's kind, as its world or its screens are; written if it is not there."""
    kinds = sorted({source.kind for source in config.data.sources})
    if len(kinds) != 1 or kinds[0] not in ("safari", "computer"):
        raise ValueError(
            f"data.sources are of the kinds {kinds}: data are made of one kind here, safari or computer; use such a config"
        )
    directory = out / "data"
    if (directory / "dataset.jsonl").exists():
        return directory
    if kinds == ["computer"]:
        draw_screens(directory)
        return directory
    options = ["--out", str(directory.resolve()), "--episodes", str(NUM_EPISODES), "--json"]
    run("data", [sys.executable, "scripts/generate_oracle.py", "--rules", json.dumps(config.eval.world), *options])
    return directory


def draw_screens(directory: Path) -> None:
    """Screens with three buttons and the click on one, in the published form."""
    (directory / "images").mkdir(parents=True)
    lines = []
    for i in range(NUM_SCREENS):
        image = Image.new("RGB", SCREEN, "white")
        draw = ImageDraw.Draw(image)
        for j, name in enumerate(("Open", "Save", "Close")):
            left, top = 100 + 350 * j, 40 + 50 * i
            draw.rectangle((left, top, left + 160, top + 40), fill="lightgray", outline="black")
            draw.text((left + 20, top + 14), name, fill="black")
        name = f"images/{i}.png"
        image.save(directory / name)
        x, y = 180 + 350 * (i % 3), 60 + 50 * i
        click = {"action": "click", "x": x, "y": y, "reasoning": "The button has that name."}
        instruction = f"Click {('Open', 'Save', 'Close')[i % 3]}"
        lines.append(json.dumps({"instruction": instruction, "initial_screenshot": name, "next_action": click}))
    (directory / "dataset.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_config(config: Config, base: Path, data: Path, out: Path) -> Path:
    """The config with the model, the data and the places of this test, and two steps that are saved and logged."""
    if config.stages:
        raise ValueError(
            "the config has stages: the test is of one run, and would prove nothing of them; give the config of one, as "
            "runs/NAME/STAGE/config.json"
        )
    values = to_json(config)
    values["runs_dir"] = str((out / "runs").resolve())
    values["model"]["path"] = str(base.resolve())
    source = values["data"]["sources"][0] | {"path": str(data.resolve())}
    values["data"] |= {"sources": [source], "cache_dir": str((out / "cache").resolve())}
    values["train"] |= {
        "max_steps": 2,
        "save_every": 1,
        "log_every": 1,
        "eval_every": 0,
        "patience": 0,
        "keep_checkpoints": 2,
    }
    values["eval"] |= {"step_rows": 0, "episodes": 1, "batch_size": 4, "temperature": 0.0}
    values["eval"]["max_new_tokens"] = MAX_NEW_TOKENS
    path = out / "config.json"
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return path.resolve()


def launcher(threads: int) -> list[str]:
    options = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    threads = ["--num_cpu_threads_per_process", str(threads)]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *threads, "train.py"]


def copy_first_checkpoint(run_dir: Path) -> Path:
    """NAME_resumed: a run that has got as far as the first checkpoint of `run_dir`."""
    resumed_dir = run_dir.with_name(f"{run_dir.name}_resumed")
    checkpoints = resumed_dir / "checkpoints"
    shutil.copytree(run_dir / "checkpoints" / "step_000001", checkpoints / "step_000001")
    (checkpoints / "last").symlink_to("step_000001")
    return resumed_dir


def resume_options(config: Config) -> list[str]:
    """One turn in the closed loop where the config has one, else one held-out row."""
    if config.eval.suite == "none":
        one = {"eval.step_rows": 1}
    else:
        one = {"eval.suite": config.eval.suite, "eval.world": config.eval.world | {"max_turns": 1}}
    settings = {"name": f"{config.name}_resumed", **one}
    return ["--resume", *(word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}"))]


def build_report(
    config: Config,
    arch: Architecture,
    base: Path,
    run_dir: Path,
    resumed_dir: Path,
    stages: dict[str, Stage],
    threads: int,
) -> dict:
    losses, resumed = read_losses(run_dir), read_losses(resumed_dir)
    counts = count_manifest(json.loads((run_dir / "manifest.json").read_text(encoding="utf-8")))
    expected = expected_counts(config.model, arch)
    answer = last_metrics(resumed_dir)
    checks = {
        "two losses": sorted(losses) == [1, 2],
        "resumed loss is the same to the bit": resumed.get(2) == losses.get(2) and 2 in losses,
        "manifest is as computed": {key: counts[key] for key in expected} == expected,
        "one greedy turn was evaluated": any(key.startswith(("rollout/", "eval/")) for key in answer),
    }
    return {
        "config": config.name,
        "passed": all(checks.values()),
        "checks": checks,
        "rows_per_step": config.train.batch_size * config.train.accumulation,
        "threads": threads,
        "losses": losses,
        "resumed_losses": resumed,
        "tokens_per_s": {step: line["train/tokens_per_s"] for step, line in read_steps(run_dir).items()},
        "step_seconds": {name: step_seconds(stage) for name, stage in stages.items()},
        "peak_rss": max(stage.peak_rss for stage in stages.values()),
        "peak_anonymous": max(stage.peak_anonymous for stage in stages.values()),
        "manifest": counts,
        "expected": expected,
        "evaluation": answer,
        "weight_files_bytes": sum(path.stat().st_size for path in base.glob("*.safetensors")),
        "stages": {name: asdict(stage) for name, stage in stages.items()},
    }


def read_steps(run_dir: Path) -> dict[int, dict]:
    """The logged metrics of each optimizer step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line for line in lines if "train/loss" in line}


def read_losses(run_dir: Path) -> dict[int, float]:
    return {step: line["train/loss"] for step, line in read_steps(run_dir).items()}


def last_metrics(run_dir: Path) -> dict[str, float]:
    """The evaluation's line, {} if there is none."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return next((line for line in reversed(lines) if "train/loss" not in line), {})


def step_seconds(stage: Stage) -> dict[int, float]:
    """Between the lines of two steps: the optimizer step, and the checkpoint before it; a run's first with its start."""
    times = sorted(stage.step_times.items())
    return {step: at - before for (_, before), (step, at) in zip(times, times[1:], strict=False)}


def count_manifest(manifest: Sequence[dict]) -> dict[str, int]:
    """What trains and what is in 4 bit: a packed weight is the one thing of the type uint8."""
    trainable = [entry for entry in manifest if entry["trainable"]]
    packed = [entry["name"] for entry in manifest if entry["dtype"] == "uint8"]
    return {
        "parameter_tensors": len(manifest),
        "trainable_tensors": len(trainable),
        "trainable_parameters": sum(count_elements(entry["shape"]) for entry in trainable),
        "layers_in_4_bit": len(packed),
        "in_4_bit_outside_language_layers": sum("model.language_model.layers." not in name for name in packed),
    }


def count_elements(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def expected_counts(cfg: ModelConfig, arch: Architecture) -> dict[str, int]:
    """By the arithmetic of the memory planner: each layer's projections and fused experts in 4 bit, nothing elsewhere."""
    return {
        "trainable_parameters": trainable_parameters(cfg, arch),
        "layers_in_4_bit": len(arch.all_projections) + arch.layers * len(arch.fused) if cfg.method == "qlora" else 0,
        "in_4_bit_outside_language_layers": 0,
    }


def summary(report: dict) -> str:
    """For people."""
    seconds = [s for steps in report["step_seconds"].values() for s in steps.values()]
    counts = report["manifest"]
    lines = [
        f"{report['config']}: {report['rows_per_step']} rows a step, {report['threads']} threads",
        f"  peak resident memory {report['peak_rss'] / 1e9:.2f} GB, anonymous {report['peak_anonymous'] / 1e9:.2f} GB "
        f"(weight files {report['weight_files_bytes'] / 1e9:.2f} GB)",
        f"  seconds a step: {', '.join(f'{s:.1f}' for s in seconds)}",
        "  loss: " + ", ".join(f"step {step} {loss:.6f}" for step, loss in report["losses"].items()),
        "  after resuming: " + ", ".join(f"step {step} {loss:.6f}" for step, loss in report["resumed_losses"].items()),
        f"  manifest: {counts['trainable_parameters']:,} trainable parameters in {counts['trainable_tensors']} tensors, "
        f"{counts['layers_in_4_bit']} layers in 4 bit, {counts['in_4_bit_outside_language_layers']} of them outside the "
        "language model's layers",
    ]
    lines += [f"  {'ok' if passed else 'FAILED'}: {name}" for name, passed in report["checks"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
