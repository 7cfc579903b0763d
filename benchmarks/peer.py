"""What every peer is: a worker (worker.py) around the collator and the trainer of somebody else's framework."""

import argparse
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import Trainer, TrainerCallback
from worker import claim_stdout, measured, serve


class Clock(TrainerCallback):
    """Measures from the end of the first optimizer step to the end of the last."""

    def __init__(self):
        self.meter = measured()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.figures = self.meter.__enter__()
        if state.global_step == state.max_steps:
            self.meter.__exit__(None, None, None)


class Peer(ABC):
    """One model and its data; every name in `commands` is a command.

    A framework gives `model`, `collator`, `examples` and `build_trainer`.
    """

    commands = ("encode", "collate", "loss", "steps")
    model: torch.nn.Module
    collator: Callable[[list[dict]], Mapping[str, torch.Tensor]]

    def __init__(self, out: Path, settings: dict):
        self.out, self.settings = out, settings

    @abstractmethod
    def examples(self, indices: Sequence[int]) -> list[dict]:
        """What the collator takes, of these rows."""

    @abstractmethod
    def build_trainer(self, indices: Sequence[int], max_steps: int, callbacks: Sequence[TrainerCallback]) -> Trainer:
        """A trainer that takes exactly these rows, in this order."""

    def encode(self, indices: list[int], path: str) -> dict:
        """Each row's ids, labels and pixels, without padding, in a file."""
        arrays = {}
        for index in indices:
            batch = self.collator(self.examples([index]))
            real = batch["attention_mask"].bool()
            for name in ("input_ids", "labels"):
                arrays[f"{index}/{name}"] = batch[name][real][None].numpy()
            arrays[f"{index}/pixel_values"] = batch["pixel_values"].float().numpy()
        np.savez(path, **arrays)
        return {}

    def collate(self, indices: list[int]) -> dict:
        """Rows to tensors, a micro-batch at a time."""
        size = self.settings["batch_size"]
        with measured() as figures:
            for start in range(0, len(indices), size):
                self.collator(self.examples(indices[start : start + size]))
        return figures

    def loss(self, indices: list[int]) -> dict:
        """Of one micro-batch, as the trainer computes it, without a step."""
        trainer = self.build_trainer(indices, max_steps=1, callbacks=[])
        batch = trainer._prepare_inputs(self.collator(self.examples(indices)))
        self.model.train()
        with torch.no_grad():
            return {"loss": trainer.compute_loss(trainer.model, batch).item()}

    def steps(self, steps: list[list[int]]) -> dict:
        """Optimizer steps over these rows, data included; the first is not counted."""
        clock = Clock()
        shuffled = [row for rows in steps for row in random.Random(0).sample(rows, len(rows))]
        self.build_trainer(shuffled, max_steps=len(steps), callbacks=[clock]).train()
        return clock.figures


def serve_peer(peer: type[Peer], doc: str) -> None:
    """The command line of a peer, which is the same for all."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of prepare.py")
    parser.add_argument("--settings", type=json.loads, required=True, help="what ours describes itself as, JSON")
    args = parser.parse_args()
    answers = claim_stdout()
    built = peer(args.out, args.settings)
    serve({name: getattr(built, name) for name in built.commands}, answers)
