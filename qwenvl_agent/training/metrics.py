"""What a run reports: means between two log lines, metrics.jsonl, TensorBoard, and a progress line with the time left."""

import atexit
import html
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qwenvl_agent.files import write_text
from qwenvl_agent.training.loss import TokenLosses

# What a line on the terminal shows; all the rest is in metrics.jsonl.
SHOWN = (
    "train/loss",
    "train/learning_rate",
    "train/gradient_norm",
    "train/tokens_per_s",
    "eval/token_loss/all",
    "eval/argument_accuracy",
    "rollout/success_rate",
)


TENSORBOARD = "tensorboard"

START_UP_STEPS = 3
"""Of a process, slower than the others: kernels are chosen, memory grows, blocks are compiled. No estimate rests on them."""


class Means:
    """Weighted sums by name. A total can be () on a device: it stays there, and is added up there, until `read`."""

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self._sums = sums or {}
        self._on_device: dict[str, torch.Tensor] = {}
        """In place of the sum's total."""

    def copy(self) -> "Means":
        other = Means({name: list(entry) for name, entry in self._sums.items()})
        other._on_device = dict(self._on_device)
        return other

    def add(self, name: str, total: float | torch.Tensor, weight: float) -> None:
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[1] += weight
        if isinstance(total, torch.Tensor) or name in self._on_device:
            # In float64, as floats of the host are added; it goes on from what was read, so reading changes no bit.
            so_far = self._on_device.get(name, entry[0])
            self._on_device[name] = so_far + (total.detach().double() if isinstance(total, torch.Tensor) else total)
        else:
            entry[0] += total

    def add_losses(self, tokens: TokenLosses, batch: dict) -> None:
        """The loss, and that of every group of `count_supervised`."""
        self.add("train/loss", tokens.weighted_sum, batch["loss_weight"])
        sums = torch.where(batch["in_group"], tokens.losses.detach().double(), 0.0).sum(1)  # (G,)
        for i, (name, num_tokens) in enumerate(zip(batch["group_names"], batch["group_tokens"], strict=True)):
            self.add(f"train/{name}", sums[i], num_tokens)

    def add_throughput(self, micro_batches: Sequence[dict], waited_s: float, total_s: float) -> None:
        num_tokens = sum(batch["num_tokens"] for batch in micro_batches)
        num_places = sum(batch["attention_mask"].numel() for batch in micro_batches)
        self.add("train/tokens_per_s", num_tokens, total_s)
        self.add("train/padding_share", num_places - num_tokens, num_places)
        self.add("train/data_wait_share", waited_s, total_s)
        for batch in micro_batches:
            self.add("train/skipped_rows", len(batch.get("skipped", ())), len(batch["row_ids"]))
            for what in ("images", "turns"):
                self.add(f"train/reduced_{what}", batch["reductions"].get(what, 0), len(batch["row_ids"]))

    def read(self) -> dict[str, list[float]]:
        """[total, weight] by name, JSON values: the host waits for the device here, and only here."""
        if self._on_device:
            totals = torch.stack(list(self._on_device.values())).tolist()
            for name, total in zip(self._on_device, totals, strict=True):
                self._sums[name][0] = total
            self._on_device = {}
        return self._sums

    def peek(self) -> dict[str, float]:
        """This rank's means so far, which stay."""
        return Means().take([self.read()])

    def take(self, all_ranks: Sequence[dict[str, list[float]]]) -> dict[str, float]:
        """The means over what all ranks have `read` (this one included); starts anew."""
        merged = Means()
        for sums in all_ranks:
            for name, (total, weight) in sums.items():
                merged.add(name, total, weight)
        self._sums, self._on_device = {}, {}
        means = {name: total / weight for name, (total, weight) in sorted(merged._sums.items()) if weight}
        if "train/tokens_per_s" in means:  # seconds were summed over ranks too
            means["train/tokens_per_s"] *= len(all_ranks)
        return means


class Reporter:
    """metrics.jsonl, TensorBoard, other trackers and the terminal of one run. On ranks other than 0 every method does nothing."""

    def __init__(
        self,
        run_dir: Path,
        first_step: int,
        max_steps: int,
        *,
        is_main: bool,
        compiles: bool = False,
        evaluation_due: bool = False,
        has_board: bool = True,
        trackers: Sequence[GeneralTracker] = (),
    ):
        """`evaluation_due`: whether `first_step`, from which the run goes on, is still to be evaluated. `has_board`:
        whether TensorBoard's files are written; `trackers`: all others."""
        self.is_main, self.max_steps, self.trackers = is_main, max_steps, trackers
        if not is_main:
            return

        self.path = run_dir / "metrics.jsonl"
        forget_steps_after(self.path, first_step, evaluation_due)
        self.board = open_board(run_dir, first_step) if has_board else None
        self.console = Console()
        self.first_step, self.compiles = first_step, compiles
        self.steady_step = 0
        self.steady_since: float | None = None
        self.progress = None
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
            self.progress = Progress(TextColumn("{task.description}"), *columns, console=self.console)
            self.task = self.progress.add_task("training", total=max_steps, completed=first_step, left="")
            self.progress.start()
            atexit.register(self.progress.stop)  # after an error too, or the terminal stays without a cursor

    def advance(self, step: int) -> None:
        """`step` has been taken."""
        if not self.is_main:
            return
        if step == self.first_step + START_UP_STEPS:
            self.steady_step, self.steady_since = step, time.monotonic()
        if self.progress:
            self.progress.update(self.task, completed=step, left=self.time_left(step))

    def show(self, step: int, values: dict[str, float]) -> None:
        """A line on the terminal alone."""
        if self.is_main:
            time_left = self.time_left(step) if "train/loss" in values else ""
            self.say("  ".join(filter(None, (f"step {step}/{self.max_steps}", self._summary(values), time_left))))

    def log(self, step: int, values: dict[str, float]) -> None:
        """One line in metrics.jsonl, one scalar each in TensorBoard and other trackers, a short line on the terminal."""
        if not self.is_main:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(board_tag(name), value, step)
        for tracker in self.trackers:
            tracker.log(values, step=step)
        self.show(step, values)

    def say(self, text: str) -> None:
        if self.is_main:
            # Without a terminal plain lines: no wrapping and no control characters in a log file.
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def text(self, step: int, tag: str, text: str) -> None:
        """Shown as it is, not as Markdown, and with its long lines whole."""
        if self.is_main and self.board:
            self.board.add_text(tag, verbatim(text), step)

    def image(self, step: int, tag: str, image) -> None:
        """`image` is a PIL image."""
        if self.is_main and self.board:
            self.board.add_image(tag, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, settings: dict, results: dict[str, float]) -> None:
        """End the run's records; `settings` and `results` are its row in TensorBoard's table of hyper-parameters."""
        if not self.is_main:
            return
        if self.board:
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(plain(settings), results):
                self.board.file_writer.add_summary(summary)
            self.board.close()
        for tracker in self.trackers:
            tracker.finish()
        if self.progress:
            self.progress.stop()

    def _summary(self, values: dict[str, float]) -> str:
        return "  ".join(f"{name.partition('/')[2]} {values[name]:.4g}" for name in SHOWN if name in values)

    def time_left(self, step: int) -> str:
        """By the mean of the steps after start-up, evaluations and checkpoints between them included."""
        if self.steady_since is None or step <= self.steady_step:
            return "(start-up: model.compile compiles)" if self.compiles else "(start-up)"
        seconds = (time.monotonic() - self.steady_since) / (step - self.steady_step) * (self.max_steps - step)
        minutes, seconds = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"left {hours}:{minutes:02d}:{seconds:02d}" if hours else f"left {minutes}:{seconds:02d}"


def board_tag(name: str) -> str:
    """A figure's name in TensorBoard. Those of one tool and of one sentence of thoughts (with a dot) have groups of their own:
    among dozens of them the few of all turns would not be found."""
    group, _, figure = name.partition("/")
    if group == "eval" and "." in figure:
        group = "eval_thoughts" if figure.startswith("thought.") else "eval_tools"
    return f"{group}/{figure}"


def verbatim(text: str) -> str:
    """Markdown that TensorBoard shows as this very text: one paragraph of HTML, in which Markdown reads nothing. A block of
    code would be cut off at the page's edge."""
    lines = [
        line[: len(line) - len(line.lstrip(" "))].replace(" ", "\N{NO-BREAK SPACE}") + line.lstrip(" ")
        for line in text.split("\n")
    ]
    return f"<p>{'<br>'.join(map(html.escape, lines))}</p>"


def forget_steps_after(path: Path, step: int, evaluation_due: bool = False) -> None:
    """Drop the lines of steps that a resumed run will take again, and of an evaluation that it will do again."""

    def is_kept(values: dict) -> bool:
        return not evaluation_due or any(name.startswith("train/") for name in values)

    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
    kept = [line for line, values in whole if values["step"] < step or (values["step"] == step and is_kept(values))]
    write_text(path, "".join(kept))


def open_board(run_dir: Path, first_step: int):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)


def plain(settings: dict) -> dict:
    """As trackers take them: lists and nulls as text."""
    return {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in settings.items()}


def flatten(values: dict, prefix: str = "") -> dict:
    """Nested dicts as one dict with dotted keys."""
    flat: dict = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
