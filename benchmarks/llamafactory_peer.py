"""LLaMA-Factory's side of the benchmarks, as a worker of compare.py: its template, processor, collator and trainer.

    generated/peers/llamafactory/bin/python benchmarks/llamafactory_peer.py --out generated/bench --settings '{...}'

Built like its own `run_sft`; model, rows, masks, precision, adapters and rows of a step are ours, all else is its default.
Its own template teaches the newline after a turn, so ours is registered with the newline before the user's turn instead:
the last newline of a row, which nothing follows, is then missing. Rows are tokenized once, before training, as
LLaMA-Factory does, and the time of that counts in the first pass over them alone.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_template_and_fix_tokenizer
from llamafactory.data.converter import align_dataset
from llamafactory.data.formatter import StringFormatter
from llamafactory.data.mm_plugin import get_mm_plugin
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.data.template import register_template
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from peer import Peer, serve_peer
from transformers import TrainerCallback

TEMPLATE = "qwen3_vl_last_newline"
ROWS = {
    "rows": {
        "file_name": "text.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
}
NO_LIMIT = 1_000_000
"""Tokens of a row, pixels of a picture's side: nothing is cut or shrunk before the image processor does."""


class LlamaFactory(Peer):
    """The objects of `llamafactory.train.sft.workflow.run_sft`."""

    def __init__(self, out: Path, settings: dict):
        super().__init__(out, settings)
        self.args = get_train_args(self._arguments())
        model_args, data_args, training_args, finetuning_args, _ = self.args
        self.tokens = load_tokenizer(model_args)
        size = {"shortest_edge": settings["min_pixels"], "longest_edge": settings["max_pixels"]}
        self.tokens["processor"].image_processor.size = size
        register_last_newline()
        self.template = get_template_and_fix_tokenizer(self.tokens["tokenizer"], data_args)
        self.rows = align_dataset(
            datasets.load_dataset("json", data_files=str(out / "text.jsonl"), split="train"),
            get_dataset_list(["rows"], ROWS)[0],
            data_args,
            training_args,
        )
        self.encoder = SupervisedDatasetProcessor(self.template, data_args=data_args, **self.tokens)
        self.encoded: dict[int, dict] = {}
        model = load_model(self.tokens["tokenizer"], model_args, finetuning_args, is_trainable=True)
        self.model = model.float() if settings["dtype"] == "float32" else model
        self.collator = SFTDataCollatorWith4DAttentionMask(
            template=self.template,
            model=self.model,
            pad_to_multiple_of=8,
            attn_implementation=self.model.config._attn_implementation,
            compute_dtype=model_args.compute_dtype,
            **self.tokens,
        )

    def _arguments(self) -> dict:
        settings = self.settings
        return {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": settings["model"],
            "finetuning_type": "lora",
            "lora_rank": settings["lora"]["r"],
            "lora_alpha": settings["lora"]["lora_alpha"],
            "lora_dropout": settings["lora"]["lora_dropout"],
            "lora_target": ",".join(settings["lora_targets"]),
            "disable_gradient_checkpointing": not settings["gradient_checkpointing"],
            "disable_shuffling": True,
            "template": TEMPLATE,
            "mask_history": True,
            "dataset": "rows",
            "cutoff_len": NO_LIMIT,
            "image_max_pixels": NO_LIMIT**2,
            "image_min_pixels": 1,
            "output_dir": str(self.out / "llamafactory"),
            "per_device_train_batch_size": settings["batch_size"],
            "gradient_accumulation_steps": settings["accumulation"],
            "learning_rate": settings["learning_rate"],
            "bf16": settings["autocast"],
            "use_cpu": settings["device"] == "cpu",
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
        }

    def examples(self, indices: Sequence[int]) -> list[dict]:
        """Tokenized once and kept, as its trainer does; the collator opens the pictures again."""
        new = [index for index in indices if index not in self.encoded]
        if new:
            columns = self.encoder.preprocess_dataset(self.rows[new])
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            self.encoded.update(zip(new, rows, strict=True))
        return [copy.copy(self.encoded[index]) for index in indices]

    def build_trainer(self, indices, max_steps: int, callbacks: Sequence[TrainerCallback]) -> CustomSeq2SeqTrainer:
        _, _, training_args, finetuning_args, _ = self.args
        training_args = copy.copy(training_args)
        training_args.max_steps = max_steps
        return CustomSeq2SeqTrainer(
            model=self.model,
            args=training_args,
            finetuning_args=finetuning_args,
            data_collator=self.collator,
            callbacks=list(callbacks),
            train_dataset=datasets.Dataset.from_list(self.examples(indices)),
            **self.tokens,
        )


def register_last_newline() -> None:
    """Its template qwen3_vl_nothink (0.9.5) with the newline after a turn moved to the start of the user's."""
    register_template(
        name=TEMPLATE,
        format_user=StringFormatter(slots=["\n<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]),
        format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
        format_system=StringFormatter(slots=["<|im_start|>system\n{{content}}<|im_end|>"]),
        stop_words=["<|im_end|>"],
        replace_eos=True,
        mm_plugin=get_mm_plugin(name="qwen3_vl", image_token="<|image_pad|>", video_token="<|video_pad|>"),
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_peer(LlamaFactory, __doc__)
