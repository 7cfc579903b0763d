"""Write a small random model of a family with the shipped tiny base's tokenizer: what families are compared with.

    python scripts/make_tiny_member.py --family qwen3_5 --out generated/tiny_qwen3_5
    accelerate launch train.py --config configs/safari_tiny.json --set model.path=generated/tiny_qwen3_5

The sizes are those of the tiny base (model/tiny.py), the weights are drawn from --seed. The tokenizer makes the sentences of
Qwen3-VL's prompts one token each; another family's own sentences take more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import bounded, command
from qwenvl_agent.families import FAMILIES


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

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("tiny"), trust_remote_code=False)
    tokenizer.chat_template = None  # it is another family's
    model = build_tiny_model(tokenizer, "tiny", args.seed, FAMILIES[args.family])
    save_tiny(args.out, tokenizer, model)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
