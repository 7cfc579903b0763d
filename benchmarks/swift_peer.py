"""ms-swift's side of the benchmarks, as a worker of compare.py: its template, data collator and Seq2SeqTrainer.

    generated/peers/swift/bin/python benchmarks/swift_peer.py --out generated/bench --settings '{"model": ...}'

Built by its own `SwiftSft`; model, rows, masks, precision, adapters and rows of a step are ours, all else is its default.
Its own template teaches the newline after a turn, so one without the newline is registered: the last newline of a row,
which nothing follows, is then missing. It shrinks pictures with Pillow, the others with torchvision, in its
template, which no option changes: pixels differ.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from peer import Peer, serve_peer
from swift.arguments import SftArguments
from swift.dataset import LazyLLMDataset
from swift.pipelines.train.sft import SwiftSft
from swift.template import register_template
from swift.template.templates.qwen import Qwen3VLTemplate, QwenTemplateMeta
from swift.trainers import TrainerFactory
from transformers import Trainer, TrainerCallback

TEMPLATE = "qwen3_vl_no_newline"
TOKEN_PIXELS = 32 * 32
"""Pixels of one token of a picture (Qwen3-VL)."""


class Swift(Peer):
    """The objects of `swift sft`."""

    def __init__(self, out: Path, settings: dict):
        super().__init__(out, settings)
        register_template(
            QwenTemplateMeta(TEMPLATE, template_cls=Qwen3VLTemplate, default_system=None, suffix=["<|im_end|>"])
        )
        sft = SwiftSft(SftArguments(**self._arguments()))
        self.args, self.template = sft.args, sft.template
        # A constant of the published vocabulary in its template (4.6.0), where the bench model has its own.
        self.template.image_token_id = sft.model.config.image_token_id
        self.rows, _ = sft.args.load_dataset()
        self.model = sft.prepare_model(sft.args, sft.model, template=sft.template, train_dataset=self.rows)
        self.collator = self.template.data_collator

    def _arguments(self) -> dict:
        settings = self.settings
        projections = "|".join(settings["lora_targets"])
        tokens = {name: settings[name] // TOKEN_PIXELS for name in ("min_pixels", "max_pixels")}
        return {
            "model": settings["model"],
            "model_type": "qwen3_vl",
            "template": TEMPLATE,
            "loss_scale": "last_round",
            "model_kwargs": json.dumps(
                {"image_min_token_num": tokens["min_pixels"], "image_max_token_num": tokens["max_pixels"]}
            ),
            "torch_dtype": settings["dtype"],
            "bf16": settings["autocast"],
            "tuner_type": "lora",
            "lora_rank": settings["lora"]["r"],
            "lora_alpha": settings["lora"]["lora_alpha"],
            "lora_dropout": settings["lora"]["lora_dropout"],
            "target_regex": rf"model\.language_model\.layers\.\d+\.\w+\.({projections})",
            "dataset": [str(self.out / "text.jsonl")],
            "dataset_shuffle": False,
            "train_dataloader_shuffle": False,
            "dataloader_num_workers": 0,
            "split_dataset_ratio": 0.0,
            "strict": True,
            "output_dir": str(self.out / "swift"),
            "add_version": False,
            "per_device_train_batch_size": settings["batch_size"],
            "gradient_accumulation_steps": settings["accumulation"],
            "learning_rate": settings["learning_rate"],
            "gradient_checkpointing": settings["gradient_checkpointing"],
            "use_cpu": settings["device"] == "cpu",
            "check_model": False,
            "report_to": ["none"],
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
        }

    def examples(self, indices: Sequence[int]) -> list[dict]:
        return [self.template.encode(self.rows[index], return_length=True) for index in indices]

    def build_trainer(self, indices, max_steps: int, callbacks: Sequence[TrainerCallback]) -> Trainer:
        training_args = copy.copy(self.args.training_args)
        training_args.max_steps = max_steps
        trainer = TrainerFactory.get_trainer_cls(self.args)(
            model=self.model,
            args=training_args,
            template=self.template,
            train_dataset=LazyLLMDataset(self.rows.select(indices), self.template.encode, strict=True),
        )
        for callback in callbacks:
            trainer.add_callback(callback)
        return trainer


if __name__ == "__main__":
    serve_peer(Swift, __doc__)
