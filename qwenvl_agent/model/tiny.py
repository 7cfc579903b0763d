"""The tiny family: small models of the published classes, with a tokenizer of a few thousand words, made here."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from qwenvl_agent.families import DEFAULT, FAMILIES, Family

# Sizes; the classes are those of the published models, so every code path is the real one.
PRESETS = {
    "tiny": {
        "hidden_size": 128,
        "num_layers": 4,
        "num_heads": 2,
        "vision_hidden_size": 64,
        "vision_depth": 2,
        "merge_size": 1,
        "max_grid": 10,
    },
    "tiny_screens": {
        "hidden_size": 128,
        "num_layers": 4,
        "num_heads": 2,
        "vision_hidden_size": 64,
        "vision_depth": 2,
        "max_grid": 16,
    },
    "test": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "vision_hidden_size": 64, "vision_depth": 1},
}


def build_tiny_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    chat_template: str | None = None,
    pre_tokens: str | None = None,
    family: Family = DEFAULT,
):
    """A byte-level BPE tokenizer trained on `texts`, with the family's added tokens.

    `pre_tokens` is a regular expression of what no merge crosses; None: the family's own.
    """
    from tokenizers import AddedToken, Regex, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    added = family.added_tokens
    backend = family.load_class("tokenizer")(vocab={}, merges=[]).backend_tokenizer
    if pre_tokens:
        split = pre_tokenizers.Split(Regex(pre_tokens), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(added), initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    layout = json.loads(backend.to_str())
    vocab = {token: i for token, i in layout["model"]["vocab"].items() if token not in added}
    layout["model"]["vocab"] = {token: i for i, token in enumerate(vocab)}
    layout["added_tokens"] = []
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=type(backend).from_str(json.dumps(layout)))
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in added.items()])
    tokenizer.eos_token, tokenizer.pad_token = family.template.turn_end, family.padding
    tokenizer.chat_template = chat_template
    return tokenizer


def save_tiny(directory: Path, tokenizer, model: nn.Module) -> None:
    """Model, tokenizer and image processor as a folder that `from_pretrained` reads like a published one."""
    from transformers import GenerationConfig

    family = FAMILIES[model.config.model_type]
    arch = family.read_architecture(model.config.to_dict())
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    stored = {name: family.stored(name, weight) for name, weight in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=stored, save_original_format=False)
    tokenizer.save_pretrained(directory)
    family.load_class("image_processor")(
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        patch_size=arch.patch,
        temporal_patch_size=arch.temporal,
        merge_size=arch.merge,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(directory)


def build_tiny_model(tokenizer, preset: str, seed: int = 0, family: Family = DEFAULT, **sizes) -> nn.Module:
    """A randomly initialised small member of a family, float32."""
    config = family.tiny_config(tokenizer, **(PRESETS[preset] | sizes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return family.load_class("model")(config)
