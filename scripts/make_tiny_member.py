"""Write a small model of a family with the shipped tiny base's tokenizer, eyes and words: what families are compared with.

    python scripts/make_tiny_member.py --family qwen3_5 --out generated/tiny_qwen3_5
    accelerate launch train.py --config configs/safari_tiny.json --set model.path=generated/tiny_qwen3_5

The sizes are those of the tiny base (model/tiny.py). The vision tower and the embedding are the base's, whose tower
names what stands on a tile in words of that embedding; the language layers are drawn from --seed, in every family. The
tokenizer makes the sentences of Qwen3-VL's prompts one token each; another family's own sentences take more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import bounded, command
from qwenvl_agent.families import FAMILIES, Family


@command("no model was made")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", required=True, choices=FAMILIES, help="the model_type of its checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=bounded(int, 0), default=0)
    args = parser.parse_args(argv)
    if args.out.exists():
        raise ValueError(f"{args.out} exists: its files would be lost; give another --out, or delete it")
    from transformers import AutoTokenizer

    from qwenvl_agent.model.build import checkpoint_path
    from qwenvl_agent.model.tiny import build_tiny_model, save_tiny

    family, base = FAMILIES[args.family], Path(checkpoint_path("tiny"))
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokenizer.chat_template = None  # it is another family's
    model = build_tiny_model(tokenizer, "tiny", args.seed, family)
    num_taken = take_over(model, base, family)
    save_tiny(args.out, tokenizer, model)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {num_parameters:,} parameters, {num_taken:,} of them the base's tower and embedding")
    return 0


def take_over(model, base: Path, family: Family) -> int:
    """Copy the base's tower and embedding, as far as the family has them, into a model; how many numbers that were."""
    import torch
    from safetensors.torch import load_file

    taken = {name: tensor for name, tensor in load_file(base / "model.safetensors").items() if has_it(name, family)}
    parameters = {name: p for name, p in model.named_parameters() if has_it(name, family)}
    assert parameters.keys() <= taken.keys(), f"the base has no {sorted(parameters.keys() - taken.keys())}"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(taken[name])
    return sum(parameter.numel() for parameter in parameters.values())


def has_it(name: str, family: Family) -> bool:
    return family.paths.is_vision(name) or name == f"{family.paths.language}.embed_tokens.weight"


if __name__ == "__main__":
    sys.exit(main())
