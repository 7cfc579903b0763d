"""Plot how well clicks hit against how many samples were trained on: one result of `eval.py --suite clicks` a point.

    python scripts/plot_fewshot.py runs/fewshot_*/eval/clicks --untrained runs/computer_use_tiny/eval/base --out fewshot.png

Each result is in the folder of its run, whose data.json says how many rows were trained on. `--untrained` is the model before
any training.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display: before pyplot
from matplotlib import pyplot

from qwenvl_agent.command import Parser, command


def read_point(directory: Path, metric: str) -> tuple[int, dict]:
    """(rows trained on, interval) of a result; ValueError if the result or its run is not there."""
    try:
        metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
        data = json.loads((directory.parents[1] / "data.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}: no point to draw; give runs/NAME/eval/clicks") from None
    if metric not in metrics:
        raise ValueError(f"{directory}/metrics.json has no {metric}: no point to draw; choose of {', '.join(metrics)}")
    return data["num_train_rows"], metrics[metric]


def plot(path: Path, points: Sequence[tuple[int, dict]], base: dict | None, metric: str) -> None:
    """Shares with their 95 % intervals over a logarithmic axis of rows."""
    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    points = sorted(points, key=lambda point: point[0])
    rows, shares = [rows for rows, _ in points], [interval["value"] for _, interval in points]
    below = [interval["value"] - interval["low"] for _, interval in points]
    above = [interval["high"] - interval["value"] for _, interval in points]
    axis.errorbar(rows, shares, yerr=[below, above], marker="o", capsize=3)
    if base:
        axis.axhline(base["value"], color="grey", linestyle="--", label="before training")
        axis.legend()
    words = metric.replace("_", " ")
    axis.set(
        xscale="log",
        ylim=(0, 1),
        xlabel="samples trained on",
        ylabel=f"{words}, share of 1",
        title=f"{words} by samples, 95 % intervals",
    )
    axis.set_xticks(rows, [str(number) for number in rows], rotation=30)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


@command("no picture was written")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, {"--base": "--untrained"})
    parser.add_argument("results", type=Path, nargs="+", metavar="DIR", help="results of eval.py, one a run")
    parser.add_argument("--untrained", type=Path, metavar="DIR", help="result of the model before training")
    parser.add_argument("--metric", default="box_hit_rate")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    args = parser.parse_args(argv)
    points = [read_point(directory, args.metric) for directory in args.results]
    base = json.loads((args.untrained / "metrics.json").read_text(encoding="utf-8")) if args.untrained else {}
    plot(args.out, points, base.get(args.metric), args.metric)
    for rows, interval in sorted(points, key=lambda point: point[0]):
        print(f"{rows:>6} rows: {interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
