"""Write a checkpoint of the published architecture with random weights: the real sizes without the download.

    hf download Qwen/Qwen3-VL-2B-Instruct --exclude "*.safetensors" --local-dir processors/2b
    python scripts/make_random_checkpoint.py --size 2b --processor processors/2b --out generated/random_2b
    accelerate launch train.py --config configs/safari_2b.json --set model.path=generated/random_2b

--processor names a folder with the tokenizer and the image processor, which all sizes share, and the config of that size,
as config.json or as configs/SIZE.json; where it is another size's, and with --layers, a config is made from the table. Weights are drawn layer by layer into one shard at a time, in bfloat16, as transformers initialises
them; the same seed gives the same bytes, however they are split into shards. In memory is never more than one shard.

    python scripts/make_random_checkpoint.py --size qwen3.5-9b --layers 4 --processor processors/8b --stand-in --out generated/random_qwen3.5

--stand-in: the processor is another family's, because the size's own is not at hand. The checkpoint has the processor's
vocabulary and special tokens, and all other widths as published.
"""

import argparse
import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from qwenvl_agent.command import bounded, command
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.planning.vram import ARCHITECTURES, Architecture, find_architecture

SIZES: dict[str, Architecture] = {
    path.removeprefix("Qwen/").removeprefix("Qwen3-VL-").removesuffix("-Instruct").lower(): arch
    for path, arch in ARCHITECTURES.items()
    if not path.endswith("-Thinking")
}
TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
NEEDED_FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
OPTIONAL_FILES = (
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
BYTES_PER_WEIGHT = 2


@dataclass(frozen=True)
class Written:
    """What was written, and the process's peak resident memory in bytes, imports included."""

    size: str
    parameters: int
    bytes: int
    shards: int
    seed: int
    seconds: float
    peak_rss: int


@command("no checkpoint was made")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", required=True, choices=SIZES)
    parser.add_argument("--processor", type=Path, required=True, metavar="DIR", help="folder with processor and config")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=bounded(int, 1), help="so many of the language model's layers (default: all)")
    parser.add_argument(
        "--stand-in", action="store_true", help="the processor is another family's: take its vocabulary too"
    )
    parser.add_argument(
        "--shard-gb", type=bounded(float, 0.001, 1e6), default=1.0, help="most in one file, and in memory (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON, and nothing else")
    args = parser.parse_args(argv)
    written = make_checkpoint(
        args.size,
        args.processor,
        args.out,
        args.seed,
        args.shard_gb,
        layers=args.layers,
        stand_in=args.stand_in,
        quiet=args.json,
    )
    if args.json:
        print(json.dumps(asdict(written)))
    else:
        Console().print(
            f"{args.out}: {written.parameters:,} parameters, {written.bytes / 1e9:.2f} GB in {written.shards} files, "
            f"{written.seconds:.0f} s, peak memory {written.peak_rss / 1e9:.2f} GB",
            highlight=False,
            soft_wrap=True,
        )
    return 0


def make_checkpoint(
    size: str,
    processor: Path,
    out: Path,
    seed: int = 0,
    shard_gb: float = 1.0,
    *,
    layers: int | None = None,
    stand_in: bool = False,
    quiet: bool = True,
) -> Written:
    """Weights, index, config and processor files in `out`, which appears when all of it is there."""
    started = time.perf_counter()
    arch = SIZES[size] if layers is None else SIZES[size].first_layers(layers)
    config = stand_in_config(processor, arch) if stand_in else find_config(processor, size, arch)
    check_folders(processor, out, arch)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if isinstance(config, Path):
        shutil.copyfile(config, temporary / "config.json")
    else:
        (config or make_config(arch)).to_json_file(temporary / "config.json", use_diff=False)
    for name in (*NEEDED_FILES, *OPTIONAL_FILES):
        if (processor / name).exists():
            shutil.copyfile(processor / name, temporary / name)
    parameters, num_bytes, shards = write_weights(temporary, seed, int(shard_gb * 1e9), quiet)
    temporary.rename(out)
    # Kilobytes on Linux.
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Written(size, parameters, num_bytes, shards, seed, time.perf_counter() - started, peak_rss)


def find_config(processor: Path, size: str, arch: Architecture) -> Path | None:
    """The config of `arch` in the processor's folder, None where it has another's of the same vocabulary; ValueError if
    there is none, or one of another vocabulary, in which pictures would have other tokens."""
    for path in (processor / "configs" / f"{size}.json", processor / "config.json"):
        if path.is_file():
            found = find_architecture(str(path))
            if found.vocab != arch.vocab or (path.stem == size and found != SIZES[size]):
                raise ValueError(
                    f"{path} is not the published config of Qwen3-VL {size.upper()}: the checkpoint would be of "
                    f"another size; give the folder of the {size.upper()} Instruct model's processor and config, or "
                    "--stand-in if another family's processor is all there is"
                )
            return path if found == arch else None
    raise ValueError(
        f"{processor} holds neither configs/{size}.json nor config.json: the architecture is unknown; give the folder "
        "of a Qwen3-VL Instruct model's processor and config"
    )


def stand_in_config(processor: Path, arch: Architecture):
    """Of `arch` but for the vocabulary and the special tokens, which are the processor's."""
    path = processor / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: the ids of its special tokens are unknown; add it")
    values = json.loads(path.read_text(encoding="utf-8"))
    config = make_config(replace(arch, vocab=values["text_config"]["vocab_size"]))
    for name in TOKEN_IDS:
        setattr(config, name, values[name])
    config.text_config.eos_token_id = values["text_config"]["eos_token_id"]
    return config


def make_config(arch: Architecture):
    """transformers' config of an architecture, as `from_pretrained` reads it."""
    family = FAMILIES[arch.model_type]
    config = family.config_of(arch)
    config.architectures = [family.classes.model]
    return config


def check_folders(processor: Path, out: Path, arch: Architecture) -> None:
    """ValueError, before anything is written, for what would fail after gigabytes."""
    for name in NEEDED_FILES:
        if not (processor / name).is_file():
            raise ValueError(f"{processor / name} is missing: the checkpoint could not read text and pictures; add it")
    if out.exists():
        raise ValueError(f"{out} exists: its files would be lost; give another --out, or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = BYTES_PER_WEIGHT * (arch.language + arch.vision)
    free = shutil.disk_usage(out.parent).free
    if free < needed * 1.01:
        raise ValueError(
            f"{out.parent} has {free / 1e9:.1f} GB free, the weights take {needed / 1e9:.1f} GB: they would not fit; "
            "free some space or give another --out"
        )


def write_weights(directory: Path, seed: int, shard_bytes: int, quiet: bool) -> tuple[int, int, int]:
    """Safetensors files and their index for the config.json in `directory`; (parameters, bytes, files)."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with torch.device("meta"):
        model = FAMILIES[config.model_type].load_class("model")._from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    parameters = dict(model.named_parameters())  # a tied head is the embedding, and is not stored twice
    plan = split_torch_state_dict_into_shards(parameters, max_shard_size=shard_bytes)
    shards = plan.filename_to_tensors.items()
    for filename, names in track(shards, total=len(shards), description="writing", disable=quiet):
        write_shard(directory / filename, model, names, seed)
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    if plan.is_sharded:
        text = json.dumps(index, indent=1) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    num_parameters = sum(parameter.numel() for parameter in parameters.values())
    return num_parameters, plan.metadata["total_size"], len(shards)


def write_shard(path: Path, model, names: Sequence[str], seed: int) -> None:
    from safetensors.torch import save_file

    stored = FAMILIES[model.config.model_type].stored
    save_file({name: stored(name, draw(model, name, seed)) for name in names}, path, metadata={"format": "pt"})


def draw(model, name: str, seed: int):
    """One parameter, as `model` initialises it; its module is on the meta device before and after.

    The random numbers depend on the module's name and the seed alone, so a module whose weight and bias are in two
    shards may be drawn twice.
    """
    import torch

    module_name, _, parameter_name = name.rpartition(".")
    module = model.get_submodule(module_name)
    digest = hashlib.sha256(f"{seed} {module_name}".encode()).digest()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int.from_bytes(digest[:7]))
        module.to_empty(device="cpu", recurse=False)
        for parameter in module.parameters(recurse=False):
            parameter.fill_(torch.nan)
        model._init_weights(module)
    tensor = getattr(module, parameter_name).detach()
    module.to_empty(device="meta", recurse=False)
    assert not tensor.isnan().any(), f"{name}: transformers does not initialise it"
    return tensor


if __name__ == "__main__":
    sys.exit(main())
