"""Our side of the benchmarks, as a worker of compare.py: the objects of train.py and eval.py, measured.

python benchmarks/ours.py --out generated/bench --set model.dtype=float32    # then requests on stdin, see worker.py
"""

import argparse
import random
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from prepare import WORLD, bench_config
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from worker import anonymous_bytes, clock, measured, serve

import train
from qwenvl_agent.config import Config
from qwenvl_agent.data.collator import build_collator
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.pixels import pixel_values
from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.inference.policy import ModelPolicy
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.model.call import supervised_positions
from qwenvl_agent.model.features import build_features
from qwenvl_agent.model.precision import announce, choose
from qwenvl_agent.training.findings import Findings
from qwenvl_agent.training.finite import FiniteCheck
from qwenvl_agent.training.gradients import GradientCheck
from qwenvl_agent.training.loader import build_loader, build_sampler, to_device
from qwenvl_agent.training.loss import token_losses
from qwenvl_agent.training.metrics import Means
from qwenvl_agent.training.optim import build_optimizer
from qwenvl_agent.training.zero import build_accelerator
from qwenvl_agent.worlds import make_env

FIRST_SEED = 1_000_000
"""Of the worlds that are played."""


def flash_flops(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


def flash_backward_flops(gradient, query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# Left out of torch's own count (2.14): a CPU has flash attention under names of its own.
FLOPS_OF = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flash_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flash_backward_flops,
}


class Bench:
    """One run's objects; every public method is a command."""

    def __init__(self, config: Config):
        self.accelerator: Accelerator = build_accelerator(config.train)
        precision = choose(config.model, self.accelerator.device)
        announce(precision.line)
        self.config = config = replace(config, model=precision.model)
        self.processor = build_processor(config.model, config.vision)
        self.rows = build_rows(config.data, config.prompt).train
        self.collator = build_collator(self.processor, config)
        self.model = build_model(config.model, self.accelerator.device).train()
        self.prepared, self.optimizer = self.accelerator.prepare(self.model, build_optimizer(self.model, config.train))
        self.sampler = build_sampler(config, self.rows, self.accelerator)
        self.features = build_features(config, self.model, self.processor)
        directory = self.features and self.features.directory
        self.loader = build_loader(config, self.rows, self.collator, self.sampler, directory)
        self.step = 0
        checks = FiniteCheck(self.accelerator, self.optimizer), GradientCheck(self.accelerator, self.model)
        self.findings = Findings(Means(), *checks)

    def describe(self) -> dict:
        """What the other side has to do too."""
        model, settings = self.config.model, self.config.train
        return {
            "model": model.path,
            "device": self.accelerator.device.type,
            "dtype": model.dtype,
            "autocast": model.autocast,
            "gradient_checkpointing": model.gradient_checkpointing,
            "lora": {"r": model.lora_rank, "lora_alpha": model.lora_alpha, "lora_dropout": model.lora_dropout},
            "lora_targets": model.lora_targets,
            "batch_size": settings.batch_size,
            "accumulation": settings.accumulation,
            "learning_rate": settings.learning_rate,
            "max_pixels": self.processor.geometry.max_pixels,
            "min_pixels": self.processor.geometry.min_pixels,
            "num_rows": len(self.rows),
            "attention": self.model.get_base_model().config.text_config._attn_implementation,
        }

    def plan(self, num_steps: int) -> dict:
        """The rows of the next steps: a list of indices for each step."""
        batches = list(islice(iter(self.sampler), num_steps * self.config.train.accumulation))
        size = self.config.train.accumulation
        steps = [sum(map(list, batches[i : i + size]), []) for i in range(0, len(batches), size)]
        return {"steps": [[int(row) for row in step] for step in steps]}

    def size(self, indices: list[int]) -> dict:
        """Of these rows on average, each for itself."""
        batches = [self.collator([self.rows[index]]) for index in indices]
        tokens = sum(batch["input_ids"].shape[1] for batch in batches)
        pictures = sum(len(batch.get("image_grid_thw", ())) for batch in batches)
        return {"tokens": tokens / len(indices), "pictures": pictures / len(indices)}

    def encode(self, indices: list[int], path: str) -> dict:
        """Each row's ids, labels and pixels, in a file."""
        arrays = {}
        for index in indices:
            batch = self.collator([self.rows[index]])
            batch["pixel_values"] = pixel_values(batch)
            for name in ("input_ids", "labels", "pixel_values"):
                arrays[f"{index}/{name}"] = batch[name].numpy()
        np.savez(path, **arrays)
        return {}

    def collate(self, indices: list[int]) -> dict:
        """Rows to tensors, a micro-batch at a time; kept features are read too. Others are kept now, off the clock.

        `floats_s` is for the pixel values, which training makes on the model's device.
        """
        with measured() as figures:
            batches = self._micro_batches(indices)
            if self.features and not any("patches" in batch for batch in batches):
                batches = self._attached(batches)
        started = clock()
        for batch in batches:
            if "patches" in batch:
                pixel_values(batch)
        figures["floats_s"] = clock() - started
        if self.features:
            self._attached([batch for batch in batches if "picture_keys" in batch and "features" not in batch])
        return figures

    def loss(self, indices: list[int]) -> dict:
        """Of one micro-batch, without a step."""
        batch = self._batch(indices)
        with torch.no_grad():
            batch = self._attached([batch])[0]
            return {"loss": token_losses(self.model, batch).weighted_sum.item() / batch["loss_weight"]}

    def _batch(self, indices: list[int]) -> dict:
        return self.loader.collate_fn(indices)

    def steps(self, steps: list[list[int]]) -> dict:
        """Optimizer steps over these rows as in train.py, data included; the first is not counted."""
        self._step(steps[0])
        supervised = tokens = places = 0
        with measured() as figures:
            for indices in steps[1:]:
                for batch in self._step(indices):
                    supervised += int(supervised_positions(batch["labels"]).sum())
                    tokens += int(batch["attention_mask"].sum())
                    places += batch["input_ids"].numel()
        return figures | {"supervised": supervised, "tokens": tokens, "places": places}

    def _step(self, indices: list[int]) -> list[dict]:
        batches = self._micro_batches(indices)
        self._optimize(self._attached(batches))
        return batches

    def _micro_batches(self, indices: list[int]) -> list[dict]:
        size = self.config.train.batch_size
        return [self._batch(indices[start : start + size]) for start in range(0, len(indices), size)]

    def _attached(self, batches: list[dict]) -> list[dict]:
        """On the model's device, with kept features where the run keeps them."""
        batches = [to_device(batch, self.accelerator.device) for batch in batches]
        return [self.features.attach(batch) for batch in batches] if self.features else batches

    def _optimize(self, batches: list[dict]) -> None:
        clip = self.config.train.max_grad_norm
        train.train_step(self.accelerator, self.prepared, self.optimizer, batches, self.findings, self.step, clip)
        self.findings.read()  # a step that is timed is one that has ended
        self.step += 1

    def floor(self) -> dict:
        """FLOPs of a step's matrix products and what this machine needs for them at its best.

        The rate is the best of some products of the size of this model's own, tokens x hidden by hidden x intermediate,
        in the dtype that the step computes in.
        """
        batches = self._attached(self._micro_batches(self.plan(1)["steps"][0]))
        for _ in range(2):  # compiled blocks, and a first time for all else
            self._optimize(batches)
        with measured() as figures:
            self._optimize(batches)
        with FlopCounterMode(display=False, custom_mapping=FLOPS_OF) as counter:
            self._optimize(batches)
        rate = self._matmul_rate(batches[0]["input_ids"].numel())
        return figures | {"flops": counter.get_total_flops(), "flops_per_s": rate}

    def _matmul_rate(self, num_tokens: int, repeats: int = 20) -> float:
        text = self.model.get_base_model().config.text_config
        dtype = torch.bfloat16 if self.config.model.autocast else torch.float32
        device = self.accelerator.device
        left = torch.randn(num_tokens, text.hidden_size, dtype=dtype, device=device)
        right = torch.randn(text.hidden_size, text.intermediate_size, dtype=dtype, device=device)
        seconds = []
        for _ in range(repeats):
            started = clock()
            left @ right
            seconds.append(clock() - started)
        return 2 * num_tokens * right.numel() / min(seconds)

    def play(self, episodes: int, turns: int, batch_size: int) -> dict:
        """Turns of `rollout`, all episodes at once or fewer; a random model's answers end at max_new_tokens."""
        policy = ModelPolicy(self.model, self.processor, self.collator, self.collator.fmt, self.config.eval)
        world = partial(make_env, "safari", **WORLD | {"max_turns": turns})
        seeds = range(FIRST_SEED, FIRST_SEED + episodes)
        history = self.config.prompt.history_steps
        with measured() as figures:
            records = rollout(
                world, policy, seeds, batch_size=batch_size, history_steps=history, max_parse_errors=turns + 1
            )
        return figures | {"turns": sum(record.turns for record in records)}

    def write(self, indices: list[int], max_new_tokens: int) -> dict:
        """Greedy texts for the rows' prompts, all in one batch."""
        settings = type(self.config.eval)(max_new_tokens=max_new_tokens, batch_size=len(indices))
        policy = ModelPolicy(self.model, self.processor, self.collator, self.collator.fmt, settings)
        with measured() as figures:
            answers = policy.act([self.rows[i].request for i in indices])
        return figures | {"texts": [answer.text for answer in answers], "turns": len(indices)}

    def shuffled(self, num: int) -> dict:
        """`num` row indices in a fixed random order."""
        return {"indices": random.Random(0).sample(range(len(self.rows)), num)}

    def open_rows(self, path: str, cache_dir: str) -> dict:
        """Open a dataset and read a hundred rows of it."""
        source = type(self.config.data.sources[0])(path=path)
        data = type(self.config.data)(sources=(source,), cache_dir=cache_dir, eval_fraction=0.0)
        before, started = anonymous_bytes(), time.perf_counter()
        rows = build_rows(data, self.config.prompt).train
        opened_s = time.perf_counter() - started
        picked = random.Random(0).sample(range(len(rows)), min(100, len(rows)))
        texts = sum(len(rows[i].request.observation.text) for i in picked)
        process = anonymous_bytes()
        growth = {"anonymous": process - before, "process": process}
        return {"num_rows": len(rows), "wall_s": opened_s, "chars": texts, **growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of prepare.py")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a setting")
    args = parser.parse_args()
    bench = Bench(bench_config(args.out, args.set))
    names = "describe plan size encode collate loss steps floor play write shuffled open_rows"
    serve({name: getattr(bench, name) for name in names.split()})


if __name__ == "__main__":
    main()
