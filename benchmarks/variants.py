"""One config in several settings on this GPU, one after the other: what each costs in memory and wins in time.

    python benchmarks/variants.py --config configs/safari_2b.json --out generated/variants
    python benchmarks/variants.py --config configs/safari_2b.json --only lora compiled packs --set model.path=generated/random_2b

Each is measured as scripts/check_gpu.py measures, in a process of its own, so that one that crashes or hangs costs itself
alone; OUT/NAME.json is its whole report. What is there is not measured again. First losses are of the same rows and, but
for 4 bit, of the same weights: they must be equal to bfloat16's rounding. Status: 0 all measured, 1 some were not.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from qwenvl_agent.planning.vram import GIB  # noqa: E402

ONE_BATCH = ("train.batch_size=8", "train.accumulation=1")
WHOLE = (*ONE_BATCH, "model.method=lora", "model.gradient_checkpointing=false")
VARIANTS = {
    "as it is": (),
    "one batch": ONE_BATCH,
    "one batch, computed again": (*ONE_BATCH, "model.gradient_checkpointing=true"),
    "lora": WHOLE,
    "lora, compiled": (*WHOLE, "model.compile=true"),
    "lora, packs": (*WHOLE, "train.pack_tokens=8192", "model.attention=sdpa"),
    "lora, packs, compiled": (*WHOLE, "train.pack_tokens=8192", "model.attention=sdpa", "model.compile=true"),
    "lora, no dropout": (*WHOLE, "model.lora_dropout=0"),
    "8-bit optimizer": (*ONE_BATCH, "train.optimizer=paged_adamw_8bit"),
    "4 bit, compiled": (*ONE_BATCH, "model.gradient_checkpointing=false", "model.compile=true"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a JSON file of configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override in all variants")
    parser.add_argument(
        "--only", nargs="+", choices=[*VARIANTS], default=[*VARIANTS], metavar="NAME", help="default: all"
    )
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=300, metavar="S", help="seconds for each (default: %(default)s)")
    parser.add_argument(
        "--cpu", action="store_true", help="on a CPU: shows that it runs, and that the losses are equal"
    )
    parser.add_argument("--out", type=Path, default=Path("generated/variants"), help="default: %(default)s")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    reports = {name: report_of(args, name) for name in args.only}
    Console(width=None if sys.stdout.isatty() else 180, highlight=False).print(table(reports))
    return 0 if all("error" not in report for report in reports.values()) else 1


def report_of(args: argparse.Namespace, name: str) -> dict:
    """check_gpu's report, or its "error"."""
    path = (args.out / f"{name.replace(', ', '_').replace(' ', '_')}.json").resolve()
    if not path.exists():
        overrides = [*args.set, "train.zero_stage=0", *VARIANTS[name]]
        asked = json.dumps([args.config, overrides, args.steps, "cpu" if args.cpu else "cuda", str(path)])
        try:
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, asked], cwd=ROOT, capture_output=True, text=True, timeout=args.limit
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {args.limit:g} s"}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["it ended"])[-1]}
    return json.loads(path.read_text(encoding="utf-8"))


MEASURE = """
import json, sys
from pathlib import Path
sys.path[:0] = ["scripts", "."]
import check_gpu, torch
from qwenvl_agent.config import load_config
config, overrides, steps, device, path = json.loads(sys.argv[1])
if device == "cuda" and not torch.cuda.is_available():
    sys.exit("no CUDA device here: nothing was measured (--cpu shows that it runs)")
report = check_gpu.measure(check_gpu.with_data(load_config(config, overrides)), steps, torch.device(device))
Path(path).write_text(json.dumps(report, indent=1) + "\\n", encoding="utf-8")
"""


def table(reports: dict[str, dict]) -> Table:
    heads = (
        "tokens/s",
        "ms a step",
        "MFU",
        "GPU busy",
        "kernels",
        "waits",
        "GiB planned",
        "measured",
        "first loss",
        "first step, s",
    )
    shown = Table("", *heads)
    for name, report in reports.items():
        shown.add_row(name, *(cells(report) if "error" not in report else [report["error"]]))
    return shown


def cells(report: dict) -> list[str]:
    rate, host, memory = (report[key] for key in ("speed", "host", "memory"))
    values = [
        (rate["tokens_per_s"], ",.0f"),
        (1e3 * rate["seconds_per_step"], ",.0f"),
        (rate["model_flop_utilisation"], ".1%"),
        (host["busy"], ".0%"),
        (host["kernels"], ",d"),
        (host["waits"], "d"),
        (memory["planned_tensors"] / GIB, ".2f"),
        (memory["allocated"] and memory["allocated"] / GIB, ".2f"),
        (report["losses"][0], ".4f"),
        (report["step_seconds"][0], ".1f"),
    ]
    return ["unknown" if value is None else format(value, form) for value, form in values]


if __name__ == "__main__":
    sys.exit(main())
