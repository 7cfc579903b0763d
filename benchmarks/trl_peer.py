"""TRL's side of the benchmarks, as a worker of compare.py: SFTTrainer and its collator for pictures, measured.

    generated/peers/trl/bin/python benchmarks/trl_peer.py --out generated/bench --settings '{"model": ...}'

Model, rows, masks, precision, adapters and rows of a step are ours; the rest is TRL's default. Two things it needs to be
taught: the tools stand in the system message as text (prepare.py), because its collator passes none to the template;
and the template marks as learned only the last turn without the newline after it, as ours does, where TRL's own marks
every turn with its newline.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
import trl
from peer import Peer, serve_peer
from peft import LoraConfig, get_peft_model
from template import learn_last_turn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Qwen2VLImageProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    TrainerCallback,
)
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from worker import anonymous_bytes, measured

TEMPLATE = Path(trl.__file__).parent / "chat_templates" / "qwen3_vl_training.jinja"


class Trl(Peer):
    """SFTTrainer; it answers and opens rows too."""

    commands = (*Peer.commands, "write", "open_rows")

    def __init__(self, out: Path, settings: dict):
        super().__init__(out, settings)
        self.processor = self._build_processor()
        self.rows = load_rows(out / "chat.jsonl")
        self.model = self._build_model()
        self.collator = DataCollatorForVisionLanguageModeling(self.processor, assistant_only_loss=True)

    def _build_processor(self) -> Qwen3VLProcessor:
        path, size = self.settings["model"], {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
        size = {edge: self.settings[key] for edge, key in size.items()}
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor.from_pretrained(path, size=size),
            tokenizer=AutoTokenizer.from_pretrained(path, trust_remote_code=False),
            video_processor=Qwen3VLVideoProcessor(),
            chat_template=learn_last_turn(TEMPLATE.read_text(encoding="utf-8")),
        )

    def _build_model(self) -> torch.nn.Module:
        dtype = getattr(torch, self.settings["dtype"])
        model = Qwen3VLForConditionalGeneration.from_pretrained(
            self.settings["model"], dtype=dtype, use_safetensors=True
        )
        projections = "|".join(self.settings["lora_targets"])
        lora = LoraConfig(
            **self.settings["lora"],
            target_modules=rf"model\.language_model\.layers\.\d+\.\w+\.({projections})",
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(0)
        return get_peft_model(model, lora)

    def examples(self, indices: Sequence[int]) -> list[dict]:
        return [self.rows[index] for index in indices]

    def build_trainer(self, indices, max_steps: int, callbacks: Sequence[TrainerCallback]) -> trl.SFTTrainer:
        config = trl.SFTConfig(
            output_dir=str(self.out / "trl"),
            max_steps=max_steps,
            per_device_train_batch_size=self.settings["batch_size"],
            gradient_accumulation_steps=self.settings["accumulation"],
            learning_rate=self.settings["learning_rate"],
            gradient_checkpointing=self.settings["gradient_checkpointing"],
            bf16=self.settings["autocast"],
            assistant_only_loss=True,
            max_length=None,
            train_sampling_strategy="sequential",
            use_cpu=self.settings["device"] == "cpu",
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        return trl.SFTTrainer(
            self.model,
            config,
            train_dataset=self.rows.select(indices),
            processing_class=self.processor,
            callbacks=list(callbacks),
        )

    def write(self, indices: list[int], max_new_tokens: int) -> dict:
        """Greedy texts for the rows' prompts, one after another with plain `generate`."""
        generation = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=self.processor.tokenizer.eos_token_id,
            pad_token_id=self.processor.tokenizer.eos_token_id,
        )
        self.model.eval().to(self.settings["device"])
        texts = []
        autocast = torch.autocast(self.settings["device"], torch.bfloat16, enabled=self.settings["autocast"])
        with measured() as figures, autocast:
            for index in indices:
                inputs = self._prompt(index).to(self.settings["device"])
                ids = self.model.generate(**inputs, generation_config=generation)[0, inputs["input_ids"].shape[1] :]
                ids = [token for token in ids.tolist() if token != generation.eos_token_id]
                texts.append(self.processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return figures | {"texts": texts, "turns": len(indices)}

    def _prompt(self, index: int) -> dict:
        row = self.rows[index]
        messages = prepare_multimodal_messages(row["messages"][:-1], images=row["images"])
        return self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )

    def open_rows(self, path: str, cache_dir: str) -> dict:
        """Open a dataset and read a hundred rows of it."""
        before, started = anonymous_bytes(), time.perf_counter()
        rows = load_rows(Path(path), cache_dir)
        opened_s = time.perf_counter() - started
        rows = rows.remove_columns("images")
        picked = random.Random(0).sample(range(len(rows)), min(100, len(rows)))
        texts = sum(len(str(rows[i]["messages"])) for i in picked)
        return {"num_rows": len(rows), "wall_s": opened_s, "anonymous": anonymous_bytes() - before, "chars": texts}


def load_rows(path: Path, cache_dir: str | None = None) -> datasets.Dataset:
    """Conversations from JSON lines, their pictures read when a row is asked for."""
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache_dir)
    return rows.cast_column("images", datasets.List(datasets.Image()))


if __name__ == "__main__":
    serve_peer(Trl, __doc__)
