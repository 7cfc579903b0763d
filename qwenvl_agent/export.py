"""A run as a folder that needs nothing of this package: merged bfloat16 weights, processor, chat template, model card.

One decision: a QLoRA adapter is merged into the weights it was trained on, the NF4 ones, unpacked. The custom is to
merge into the original weights (`base="original"`); they are better weights, but other ones: the adapter never saw
them, and what was measured of the run is not what would be served.

    exports/NAME/
        config.json  generation_config.json  model*.safetensors      as `from_pretrained` reads them
        tokenizer*  preprocessor_config.json  video_preprocessor_config.json  chat_template.jinja  processor_config.json
        qwenvl_agent.json       the run's config, for eval.py --config
        README.md               the model card

`export_adapter` writes adapter_config.json and adapter_model.safetensors in place of the weights.

Legend: T tokens, V vocabulary.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from qwenvl_agent.config import Config, ModelConfig, to_json
from qwenvl_agent.data.collator import build_collator
from qwenvl_agent.families import Template
from qwenvl_agent.families.family import OPENING
from qwenvl_agent.files import write_json
from qwenvl_agent.formats import formats_of
from qwenvl_agent.inference.load import AGENT_CONFIG, Source, default_device, find_run, load_model, start_of
from qwenvl_agent.model.build import (
    Processor,
    base_of,
    build_for_evaluation,
    build_processor,
    checkpoint_path,
    choose_attention,
    load_model_config,
)
from qwenvl_agent.model.call import model_inputs
from qwenvl_agent.model.precision import bfloat16_is_fast, choose_for_evaluation
from qwenvl_agent.model_card import MAX_KL, Adapter, Distance, Export, model_card
from qwenvl_agent.schema import Observation, Picture, Request, Tool

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export_run(
    path: Path,
    out: Path,
    *,
    base: str = "trained",
    parse_on_server: bool = False,
    licence: str = "",
    device: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Export:
    """Write a run's `best` (else `last`) checkpoint, or the checkpoint itself, to the new folder `out`.

    The folder is read back by plain transformers and its logits on a probe prompt are compared with the live model's;
    ValueError, and no folder, if they are further away than MAX_KL.
    """
    refuse_to_overwrite(out)
    source = find_run(path)
    checkpoint, config = Path(source.path), source.config
    if base == "original" and config.model.method != "qlora":
        raise ValueError(f"base 'original' with method {config.model.method!r}: it is the trained one; leave it out")
    device = device or default_device()
    say("loading the run's model")
    model, processor = load_model(source, device=device, say=say)[1:]
    inputs = probe_inputs(config, processor)
    live = probed = probe_logits(model, inputs)
    bare = None
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            bare = probe_logits(model, inputs)
    if base == "original":
        del model
        model = load_on_original(source, device)
        probed = probe_logits(model, inputs)

    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        say("merging and writing")
        save_model(temporary, config, merged_weights(model), processor)
        del model
        save_processor(temporary, config, processor, parse_on_server)
        write_json(temporary / AGENT_CONFIG, to_json(for_any_device(config)))
        say("reading back and comparing")
        written = probe_logits(load_plain(temporary, config.model, device), inputs)
        export = Export(
            out,
            base,
            merged=distance(probed, written),
            live=distance(live, written),
            adapter=None if bare is None else distance(live, bare),
        )
        if not export.merged.mean_kl <= MAX_KL:
            raise ValueError(
                f"the merged weights answer otherwise than {checkpoint}: {export.merged.mean_kl:.3g} nats a token on a "
                f"probe prompt, {MAX_KL} are allowed: nothing was written; report this with the run's config.json"
            )
        card = model_card(export, config, checkpoint, processor.family, licence)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return export


def export_adapter(
    path: Path,
    out: Path,
    *,
    parse_on_server: bool = False,
    licence: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Adapter:
    """Write a run's adapter as it is, its processor and its card to the new folder `out`; no weights are loaded."""
    refuse_to_overwrite(out)
    source = find_run(path)
    checkpoint, config = Path(source.path), source.config
    if config.model.method == "full":
        raise ValueError(
            f"--adapter with method 'full': {checkpoint} has no adapter, all its weights changed; leave it out"
        )
    start = start_of(checkpoint.parent.parent)
    if start and start["mode"] == "merge":
        raise ValueError(
            f"--adapter: the adapter of {checkpoint} is of {config.model.path}, into which an earlier run was merged and which "
            "nobody else has; leave --adapter out, and it is merged too"
        )
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        say("copying the adapter")
        temporary.mkdir(parents=True)
        for name in ADAPTER_FILES:
            shutil.copy2(checkpoint / "model" / name, temporary / name)
        processor = build_processor(config.model, config.vision)
        save_processor(temporary, config, processor, parse_on_server)
        write_json(temporary / AGENT_CONFIG, to_json(for_any_device(config)))
        adapter = Adapter(out)
        card = model_card(adapter, config, checkpoint, processor.family, licence)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return adapter


def refuse_to_overwrite(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists: it would be overwritten; delete it or name another folder")


def load_on_original(source: Source, device) -> nn.Module:
    """A QLoRA run's adapter on the weights that were quantised for it; it computes as the run's model does."""
    trained = replace(source.config.model, gradient_checkpointing=False)
    precision = choose_for_evaluation(trained, device)
    unpacked = replace(trained, method="lora", dtype="bfloat16")
    return build_for_evaluation(unpacked, precision, device, Path(source.path) / "model").requires_grad_(False)


def for_any_device(config: Config) -> Config:
    """A run under autocast leaves to the device that plays it whether that pays; one in float32 stays in float32."""
    changes = {"autocast": "auto", "dtype": "auto"} if config.model.autocast else {}
    return replace(config, model=replace(config.model, **changes))


# weights


def merged_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters under their names in a plain model, bfloat16 on the CPU; sums are made in float32."""
    base = base_of(model)
    return {plain_name(name): weight.to(torch.bfloat16).cpu() for name, weight in plain_weights(base)}


def plain_name(name: str) -> str:
    """Of a parameter in a model with neither adapters nor packed experts."""
    return re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name.replace(".base_layer", ""))


def plain_weights(base: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters with 4-bit ones unpacked and adapters added; one tensor is made at a time."""
    adapted = {id(m.get_param()): m for m in base.modules() if hasattr(m, "parameter_name")}  # peft's, of fused experts
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            continue
        weight = parameter.data
        if hasattr(parameter, "quant_state"):
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(weight, parameter.quant_state)
        if name.endswith(".base_layer.weight"):
            adapter = base.get_submodule(name.removesuffix(".base_layer.weight"))
            weight = weight.float() + adapter.get_delta_weight("default").float()
        elif id(parameter) in adapted:
            weight = weight.float() + adapted[id(parameter)].get_delta_weight("default").float()
        yield name, weight


def save_model(directory: Path, config: Config, weights: dict[str, torch.Tensor], processor: Processor) -> None:
    from transformers import GenerationConfig

    model_config = load_model_config(checkpoint_path(config.model.path))
    with torch.device("meta"):
        model = processor.family.load_class("model")(model_config).to(torch.bfloat16)
    expected = {name for name, _ in model.named_parameters()}
    assert expected == set(weights), f"names differ: {sorted(expected ^ set(weights))[:4]}"
    end_id = processor.tokenizer.convert_tokens_to_ids(processor.family.template.turn_end)
    temperature = config.eval.temperature
    # As the run was evaluated: one end token, and sampling only if asked for, from the whole distribution.
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    model.generation_config = GenerationConfig(
        eos_token_id=end_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        max_new_tokens=config.eval.max_new_tokens,
        **sampling,
    )
    # Not by transformers' own way back, which leaves a weight as it is whose shape is the model's.
    weights = {name: processor.family.stored(name, weight) for name, weight in weights.items()}
    model.save_pretrained(directory, state_dict=weights, max_shard_size="5GB", save_original_format=False)


def load_plain(directory: Path, model_cfg: ModelConfig, device) -> nn.Module:
    """The folder's model as anybody would load it."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        directory,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.bfloat16 if bfloat16_is_fast(device)[0] else torch.float32,
        attn_implementation=choose_attention(model_cfg, device),
        device_map=None if device is None else {"": torch.device(device)},
    )
    return model.eval()


# processor


def save_processor(directory: Path, config: Config, processor: Processor, parse_on_server: bool) -> None:
    """Tokenizer, chat template and image processor with the run's picture budget, so that servers resize alike."""
    family, tokenizer = processor.family, processor.tokenizer
    beginning = family.template.assistant + formats_of(family)[config.prompt.format].opening
    if not tokenizer.chat_template or not opens_with(tokenizer, beginning):
        tokenizer.chat_template = family.plain_chat_template.replace(OPENING, beginning.replace("\n", "\\n"))
    tokenizer.response_template = None if parse_on_server else raw_answers(family.template, beginning)
    whole = family.load_class("processor")(
        image_processor=processor.image_processor,
        tokenizer=tokenizer,
        video_processor=load_video_processor(checkpoint_path(config.model.path), processor),
        chat_template=tokenizer.chat_template,
    )
    whole.save_pretrained(directory)
    # Its one file is enough for transformers 5; others look for these.
    whole.image_processor.save_pretrained(directory)
    whole.video_processor.save_pretrained(directory)


def opens_with(tokenizer, beginning: str) -> bool:
    """Whether the tokenizer's own chat template begins an answer so."""
    messages = [{"role": "user", "content": "?"}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True).endswith(beginning)


def raw_answers(template: Template, beginning: str) -> dict:
    """transformers' response template under which `transformers serve` gives an answer as the model wrote it.

    By default it takes calls out of the text, and a malformed call, which is an outcome, is an internal error there.
    """
    return {
        "defaults": {"role": "assistant", "content": ""},
        "start_anchor": beginning,
        "fields": {"content": {"close": template.turn_end, "content": "text", "content_args": {"strip": False}}},
    }


def load_video_processor(path: str, processor: Processor):
    """The base's, or one of its patch size: the agent sees no videos, but the processor's class wants one."""
    from transformers import AutoVideoProcessor

    try:
        return AutoVideoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError):
        kind, geometry = processor.family.load_class("video_processor"), processor.geometry
        return kind(patch_size=geometry.patch_size, merge_size=geometry.merge_size)


# comparison


def probe_inputs(config: Config, processor: Processor) -> dict[str, torch.Tensor]:
    """A prompt in the run's format: a tool, a text and a picture of noise."""
    import numpy as np
    from PIL import Image

    collator = build_collator(processor, config)
    parameters = {"type": "object", "properties": {"direction": {"enum": ["UP", "DOWN"]}}, "required": ["direction"]}
    tools = (Tool("move", "Walk one tile.", parameters),)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    observation = Observation("Mission: find the red tiger.", (Picture.from_image(Image.fromarray(pixels)),))
    batch = collator.encode_prompt([Request("You are an agent in a park.", tools, (), observation)])
    return model_inputs(batch)


@torch.no_grad()
def probe_logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(T, V) float32."""
    device = next(model.parameters()).device
    return model(**{key: value.to(device) for key, value in inputs.items()}, use_cache=False).logits[0].float().cpu()


def distance(reference: torch.Tensor, logits: torch.Tensor) -> Distance:
    """Of `logits` from the reference's, both (T, V)."""
    log_p, log_q = functional.log_softmax(reference, -1), functional.log_softmax(logits, -1)
    return Distance(
        mean_kl=(log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
        max_logit_difference=(reference - logits).abs().max().item(),
        same_choice=(reference.argmax(-1) == logits.argmax(-1)).float().mean().item(),
    )
