"""What an exported folder says of itself: README.md, the model card. No torch here.

What has not been measured is not in it.
"""

import json
import math
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import qwenvl_agent
from qwenvl_agent.config import SHIPPED_BASES, Config, ModelConfig, to_json
from qwenvl_agent.families import Family
from qwenvl_agent.files import read_json
from qwenvl_agent.formats import formats_of
from qwenvl_agent.inference.load import AGENT_CONFIG, start_of
from qwenvl_agent.prompt import as_asked, render_row
from qwenvl_agent.schema import Observation, Request, Tool, ToolCall, Turn

BASES = ("trained", "original")
MAX_KL = 0.01
"""Nats a token that the written folder may be away from what was merged: bfloat16 rounding of weights and activations
is well below, a missing or misplaced adapter above as soon as it has learnt anything."""


@dataclass(frozen=True)
class Distance:
    """How far a model is from another one, over the tokens of a probe prompt."""

    mean_kl: float
    """Nats a token, from the other one to this."""
    max_logit_difference: float
    same_choice: float
    """Share of tokens after which both would go on alike."""


@dataclass(frozen=True)
class Export:
    """What was written, and how far it is from the run's model."""

    directory: Path
    base: str
    merged: Distance
    """From the unmerged model on the same base."""
    live: Distance
    """From the run's model as it was trained and evaluated; `merged` again, unless base is "original"."""
    adapter: Distance | None
    """From the run's model without its adapter: what it has learnt, for comparison; None for a run in full."""


@dataclass(frozen=True)
class Adapter:
    """What was written: the adapter alone, the very bytes of the checkpoint."""

    directory: Path


def model_card(made: Export | Adapter, config: Config, checkpoint: Path, family: Family, licence: str = "") -> str:
    """README.md of the folder; what has not been measured is not in it. `licence`: of these weights, as hubs name it."""
    run_dir = checkpoint.parent.parent
    start = start_of(run_dir)
    path = start["base"] if start else config.model.path
    base = base_name(path)
    step = read_json(checkpoint / "state.json")["step"] if (checkpoint / "state.json").exists() else None
    return "\n\n".join(
        part
        for part in (
            front_matter(path, made, licence),
            f"# {made.directory.name}",
            f"{base}, made into an agent by the run `{config.name}` of qwenvl-agent {qwenvl_agent.__version__}: it "
            f"looks at a picture, writes a thought and calls tools, in the action format `{config.prompt.format}`.",
            "## Weights",
            weights_text(made, config.model, base, step)
            if isinstance(made, Export)
            else adapter_text(config, base, step),
            start_text(start),
            "## Data",
            data_text(run_dir / "data.json"),
            "## Metrics",
            metrics_text(run_dir, checkpoint, step),
            "## Prompt",
            prompt_text(config, family),
            "## Use",
            use_text(made.directory.name)
            if isinstance(made, Export)
            else adapter_use_text(made.directory.name, config, path),
            "## Pictures",
            PICTURES_TEXT,
            "## Licence",
            licence_text(path, licence),
            "## Config",
            f"```json\n{json.dumps(to_json(config), indent=1, ensure_ascii=False)}\n```\n",
        )
        if part
    )


PICTURES_TEXT = (
    "It was trained on upright RGB pixels: EXIF orientation applied (coordinates are those of the turned picture), alpha "
    "composited over white, of 16 bits the upper 8, colour profiles ignored, of an animation the first picture. Servers "
    "differ in this: many drop alpha, leave a photo lying on its side, or cut 16 bits off at 255. Send 8-bit RGB PNGs, as "
    "`qwenvl_agent.images.read_rgb` makes them (the agent's `endpoint` does), and there is nothing left to differ in."
)
"""What a server must do with pictures, or be spared."""


def front_matter(path: str, made: Export | Adapter, licence: str = "") -> str:
    """What model hubs read; a base in a local folder has no name there."""
    library, relation = ("transformers", "finetune") if isinstance(made, Export) else ("peft", "adapter")
    lines = [f"library_name: {library}", "pipeline_tag: image-text-to-text"]
    if is_on_a_hub(path):
        lines += [f"base_model: {path}", f"base_model_relation: {relation}"]
    if stated := stated_licence(path, licence):
        lines += [f"license: {stated}"]
    return "\n".join(["---", *lines, "tags: [agent, tool-use, qwenvl-agent]", "---"])


def is_on_a_hub(path: str) -> bool:
    return path not in SHIPPED_BASES and not Path(path).exists()


def stated_licence(path: str, licence: str) -> str:
    """As the user says, of a shipped base the package's own, else what the base's folder says of itself, if anything."""
    if licence or path in SHIPPED_BASES:
        return licence or "apache-2.0"
    card = Path(path) / "README.md"
    found = (
        re.search(r"^license:\s*(\S+)\s*$", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
    )
    return found[1] if found else ""


def licence_text(path: str, licence: str) -> str:
    stated = stated_licence(path, licence)
    said = (
        f"{stated}."
        if stated
        else "Not stated here: the licence of the base holds for what was made of it; its own card says which."
    )
    return f"{said} The data may have terms of its own."


def prompt_text(config: Config, family: Family) -> str:
    """Prompt and turn as the run has learned them, of a tool made up for it."""
    fmt = formats_of(family)[config.prompt.format]
    parameters = {"type": "object", "properties": {"direction": {"enum": ["UP", "DOWN"]}}, "required": ["direction"]}
    request = Request("SYSTEM PROMPT", (Tool("move", "Walk one tile.", parameters),), (), Observation("TASK"))
    turn = Turn("The tiger is above.", (ToolCall("move", {"direction": "UP"}),))
    text = render_row(as_asked(request, config.prompt.ask_for_thought), turn, fmt).text
    return (
        f"Action format `{config.prompt.format}`, {config.prompt.history_steps} earlier steps in the prompt. With one tool, a "
        "system prompt SYSTEM PROMPT and an observation TASK (before which its picture stands), prompt and answer are:\n\n"
        f"````text\n{text}\n````"
    )


def base_name(path: str) -> str:
    return (
        f"The base `{path}` of qwenvl-agent"
        if path in SHIPPED_BASES
        else Path(path).name
        if Path(path).exists()
        else path
    )


def weights_text(export: Export, model_cfg: ModelConfig, base: str, step: int | None) -> str:
    adapter = f", rank {model_cfg.lora_rank}, alpha {model_cfg.lora_alpha}" if model_cfg.method != "full" else ""
    into = {
        "full": "",
        "lora": f" The adapter is merged into {base}.",
        "qlora": f" The adapter is merged into the NF4 weights of {base} that it was trained on, unpacked: the answers "
        "are those of the run's 4-bit model.",
    }[model_cfg.method]
    if export.base == "original":
        into = (
            f" The adapter was trained on the NF4 weights of {base} and is merged into its original ones, as is the "
            "custom: the answers differ from those of the run's 4-bit model as the last lines of the table say."
        )
    rows = [("the same weights, not merged", export.merged)]
    rows += [("the run's model, 4 bit", export.live)] if export.base == "original" else []
    rows += [("the run's model without its adapter, from the one with it", export.adapter)] if export.adapter else []
    table = "\n".join(
        f"| {name} | {d.mean_kl:.2g} | {d.max_logit_difference:.2g} | {100 * d.same_choice:.1f} % |" for name, d in rows
    )
    return (
        f"Method {model_cfg.method}{adapter}{'' if step is None else f', step {step}'}; bfloat16, no adapter left."
        f"{into}\n\nOn a probe prompt, the logits of this folder, read back by transformers, compared with:\n\n"
        "| | mean KL, nats a token | largest difference of a logit | same best token |\n|---|---|---|---|\n"
        f"{table}\n\nAbove {MAX_KL} nats from the first line's model, the folder would not have been written."
    )


def start_text(start: dict | None) -> str:
    """Of a run that began with an earlier run's weights."""
    if not start:
        return ""
    how = "were merged into the base before" if start["mode"] == "merge" else "were trained further"
    return f"The weights of the run `{start['run']}` (step {start['step']}) {how}."


def data_text(path: Path) -> str:
    if not path.exists():
        return "The run has no data.json: its data is not known here."
    data = read_json(path)
    rows = [
        f"| {source['path']} | {source['kind']} | {source['num_rows']} | {source['num_episodes']} "
        f"| {source['num_rejects']} |"
        for source in data["sources"]
    ]
    head = "| source | kind | rows | episodes | rejected |\n|---|---|---|---|---|\n"
    return (
        f"Dataset hash `{data['dataset_hash']}`; {data['num_train_rows']} rows trained on, "
        f"{data['num_held_out_rows']} held out.\n\n" + head + "\n".join(rows)
    )


def metrics_text(run_dir: Path, checkpoint: Path, step: int | None) -> str:
    """What was measured of this checkpoint, before the merge: inside training, and by eval.py."""
    parts = [
        f"From `{path.parent.relative_to(run_dir)}` ({about['suite']}):\n\n{result_table(result)}"
        for path in sorted(run_dir.glob("eval/*/metrics.json"))
        for result in [read_json(path)]
        for about in [result["about"]]
        if is_about(about, checkpoint)
    ]
    inside = scalars_at(run_dir / "metrics.jsonl", step)
    if inside:
        table = "\n".join(f"| {name} | {value:.4g} |" for name, value in inside.items())
        parts.append(f"Inside training, at step {step}:\n\n| | |\n|---|---|\n{table}")
    if not parts:
        return "None was measured of this checkpoint."
    return "\n\n".join(["Measured of the run's model, before the merge.", *parts])


def is_about(about: dict, checkpoint: Path) -> bool:
    """Whether a result of eval.py is of this checkpoint, with its pictures."""
    name = about.get("checkpoint")
    if not name or about.get("blank_pictures"):
        return False
    return (checkpoint.parent / name).resolve() == checkpoint


def result_table(result: dict) -> str:
    """Every figure with its interval."""
    rows = [
        f"| {name} | {m['value']:.4g} | {m['low']:.4g} to {m['high']:.4g} | {m['n']} |"
        for name, m in result.items()
        if isinstance(m, dict) and m.get("value") is not None and "low" in m
    ]
    return "| | value | 95 % interval | of |\n|---|---|---|---|\n" + "\n".join(rows)


def scalars_at(path: Path, step: int | None) -> dict[str, float]:
    """The figures of an evaluation inside training at `step`; a tool's and a field's own have a dot in their name."""
    if step is None or not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    logged: dict[str, float] = {}
    for line in lines:
        if line["step"] == step:
            logged |= line
    return {
        name: value
        for name, value in logged.items()
        if name.startswith(("eval/", "rollout/")) and "." not in name and math.isfinite(value)
    }


def adapter_text(config: Config, base: str, step: int | None) -> str:
    model = config.model
    quantised = " in NF4 with double quantisation, as which it has to be loaded" if model.method == "qlora" else ""
    return (
        f"The adapter alone (method {model.method}, rank {model.lora_rank}, alpha {model.lora_alpha}, in "
        f"{', '.join(model.lora_places)}{'' if step is None else f', step {step}'}), the very bytes of the run's checkpoint. It "
        f"was trained on {base}{quantised}."
    )


def adapter_use_text(name: str, config: Config, path: str) -> str:
    quantise = config.model.method == "qlora"
    four_bit = (
        'from transformers import BitsAndBytesConfig\n\nfour_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
        "bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)\n"
    )
    more = ", quantization_config=four_bit" if quantise else ""
    return f"""{versions_text(("transformers", "peft", *(["bitsandbytes"] if quantise else [])))}

```python
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
{four_bit if quantise else ""}
base = AutoModelForImageTextToText.from_pretrained("{path}", dtype=torch.bfloat16{more})
model = PeftModel.from_pretrained(base, "{name}")
processor = AutoProcessor.from_pretrained("{name}")
```

With qwenvl-agent, which loads the base as it was trained on:

```bash
qwenvl-agent predict --model {name} --image screen.png --instruction "open the menu"
```

vLLM serves adapters with `--enable-lora`, of the language model's layers only; that was not tried with this folder.
`qwenvl-agent export` without --adapter merges them. Prompts must be those of training (`qwenvl_agent/prompt.py`)."""


def versions_text(packages: tuple[str, ...]) -> str:
    tested = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"Written with {tested}. It needs transformers 5: version 4 reads neither its config.json nor its processor. With other "
        "versions than these nothing was tried."
    )


def use_text(name: str) -> str:
    return f"""{versions_text(("transformers",))}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto")
processor = AutoProcessor.from_pretrained("{name}")
```

Served, and evaluated as it is served:

```bash
transformers serve {name} --port 8000
python eval.py --endpoint http://127.0.0.1:8000/v1 --model {name} --config {name}/{AGENT_CONFIG}
```

`vllm serve {name}` needs a vLLM that runs on transformers 5; it was not tried with this folder.

Prompts must be those of training (`qwenvl_agent/prompt.py`): tools and the format's instructions stand in the system
message. Of a run in format native whose `prompt.ask_for_thought` is false they are what a server makes of `messages` and
`tools`. Pictures of another size are resized to the budget in preprocessor_config.json."""
