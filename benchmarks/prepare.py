"""Make what the benchmarks compare on: safari rows, a model of the real 2B's proportions, the rows as a peer takes them.

    python benchmarks/prepare.py --out generated/bench
    python benchmarks/prepare.py --out generated/bench_2b --processor processors/2b --layers 2    # 2B's widths

The model is models/bench.json, a Qwen3-VL config in which the tokenizer's ids are filled in here. Of its 32.3 M
parameters 66 % are in language blocks, 15 % in the tied embedding and 20 % in the vision tower (2B: 66, 15 and 19 %), so
that the cost of a step is divided as it is there. Its tokenizer is trained on the rows, with so many entries that a row
has as many tokens as with Qwen3-VL's own; the rest of the vocabulary stays unused. With --processor the widths,
vocabulary, tokenizer and image processor are the published ones, and only the depth is less.

OUT/safari is the recorded form of docs/DATA.md, OUT/model a normal checkpoint with random weights, and OUT/chat.jsonl the
rows as conversations (messages and images), in the order and with the history that ours has. TRL's collator for pictures
takes no tools, so they stand in the system message as text, which is what the chat template would write. OUT/text.jsonl
are the same conversations with all that a template writes inside of a turn as text.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from qwenvl_agent.config import Config, load_config
from qwenvl_agent.data.dataset import RowDataset, build_rows
from qwenvl_agent.families import DEFAULT
from qwenvl_agent.formats import FORMATS, Format
from qwenvl_agent.model.tiny import build_tiny_tokenizer, save_tiny
from qwenvl_agent.prompt import Rendered, render_row, to_messages
from qwenvl_agent.schema import Row

HERE = Path(__file__).parent
BENCH_MODEL = HERE / "models" / "bench.json"
# A small world has short episodes, so that rows with and without history both are common: rows of mixed length.
WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "num_targets": [1, 0, 0], "max_turns": 40}
IMAGE, END = DEFAULT.template.image, DEFAULT.template.turn_end
BEGIN = DEFAULT.template.turn_begin
TURN = re.compile(rf"(?:{re.escape(END)}\n)?{re.escape(BEGIN)}(system|user|assistant)\n")
NAMED_TOKENS = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make, replaced if it is there")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--processor", type=Path, metavar="DIR", help="published processor and config: its widths")
    parser.add_argument(
        "--layers", type=int, default=2, help="language and vision blocks with --processor (default: 2)"
    )
    args = parser.parse_args(argv)
    try:
        prepare(args.out, args.episodes, args.processor, args.layers)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(
    out: Path, episodes: int, processor: Path | None = None, layers: int = 2, model_json: Path = BENCH_MODEL
) -> None:
    """Everything under `out`, which is replaced."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    record_episodes(out / "safari", episodes)
    config = bench_config(out)
    rows, fmt = build_rows(config.data, config.prompt).train, FORMATS[config.prompt.format]
    if processor:
        save_wide_model(out / "model", processor, layers)
    else:
        texts = [render_row(row.request, row.turn, fmt).text for row in all_rows(rows)]
        save_bench_model(out / "model", model_json, texts)
    export_rows(out, rows, fmt)


def export_rows(out: Path, rows: RowDataset, fmt: Format) -> None:
    """The rows as peers take them."""
    write_rows(out / "chat.jsonl", (conversation(row, fmt) for row in all_rows(rows)))
    write_rows(out / "text.jsonl", (plain_conversation(row, fmt) for row in all_rows(rows)))


def prepare_history(out: Path, source: Path, history_steps: int) -> None:
    """`out` beside `source`, a folder of `prepare`: the same rows and model, rows with more or fewer steps before them."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("safari", "model"):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to((source / name).resolve())
    config = bench_config(out, [f"prompt.history_steps={history_steps}"])
    export_rows(out, build_rows(config.data, config.prompt).train, FORMATS[config.prompt.format])


def bench_config(out: Path, overrides: Sequence[str] = ()) -> Config:
    """bench.json with its folders under `out`."""
    folders = {"runs_dir": "runs", "model.path": "model", "data.cache_dir": "cache"}
    placed = [f"{key}={json.dumps(str(out / name))}" for key, name in folders.items()]
    sources = f"data.sources={json.dumps([{'path': str(out / 'safari')}])}"
    return load_config(HERE / "bench.json", [*placed, sources, *overrides])


def record_episodes(out: Path, episodes: int) -> None:
    script = HERE.parent / "scripts" / "generate_oracle.py"
    options = ["--episodes", str(episodes), "--noise", "0.2", "--rules", json.dumps(WORLD), "--json"]
    command = [sys.executable, str(script), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: there are no rows to measure with:\n{done.stderr}")


def all_rows(rows: RowDataset) -> Iterator[Row]:
    return (rows[i] for i in range(len(rows)))


def save_bench_model(directory: Path, model_json: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Random weights in bfloat16, tokenizer and processor files."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    settings = json.loads(model_json.read_text(encoding="utf-8"))
    tokenizer = build_tiny_tokenizer(texts, settings.pop("tokenizer_size"))
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in NAMED_TOKENS.items()}
    settings["text_config"]["eos_token_id"] = tokenizer.eos_token_id
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**settings, **ids)).to(torch.bfloat16)
    with torch.no_grad():  # ids that no text has are never generated either: what was written can be compared as text
        model.get_input_embeddings().weight[len(tokenizer) :] = 0
    save_tiny(directory, tokenizer, model)


def save_wide_model(directory: Path, processor: Path, layers: int, seed: int = 0) -> None:
    """The published widths and vocabulary at a depth of `layers`, random weights in bfloat16."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    if not (processor / "config.json").is_file():
        raise ValueError(f"{processor} has no config.json: the widths are unknown; give a Qwen3-VL Instruct folder")
    config = Qwen3VLConfig.from_pretrained(processor)
    config.text_config.num_hidden_layers = config.vision_config.depth = layers
    config.vision_config.deepstack_visual_indexes = list(range(layers))[:3]
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Qwen3VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    shutil.copytree(processor, directory, ignore=shutil.ignore_patterns("config.json", "configs", "README.md"))
    model.save_pretrained(directory)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def conversation(row: Row, fmt: Format) -> dict:
    """{id, messages, images}: what `apply_chat_template` turns into the text of `render_row`.

    Every content is a list of parts and arguments are JSON text, because Arrow gives all rows the same fields and a
    missing one would come back as null.
    """
    rendered = render_row(row.request, row.turn, fmt)
    messages, _ = to_messages(row.request, row.turn, fmt)
    system = rendered.text.partition(f"{BEGIN}system\n")[2].partition(END)[0]
    if system:
        messages = [m for m in messages if m["role"] != "system"]
        messages.insert(0, {"role": "system", "content": system})
    messages = [flat_message(message) for message in messages]
    return {"id": row.id, "messages": messages, "images": picture_paths(rendered)}


def plain_conversation(row: Row, fmt: Format) -> dict:
    """{id, messages, images} with contents of plain text, tool calls and results written out, `<image>` for a picture.

    LLaMA-Factory and ms-swift want the user and the assistant to alternate, so a result and the user's turn after it are
    one message, with the template's text between them.
    """
    rendered = render_row(row.request, row.turn, fmt)
    messages: list[dict] = []
    _, *pieces = TURN.split(rendered.text.replace(IMAGE, "<image>").removesuffix(f"{END}\n"))
    for role, text in zip(pieces[::2], pieces[1::2], strict=True):
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"{END}\n{BEGIN}{role}\n{text}"
        else:
            messages.append({"role": role, "content": text})
    return {"id": row.id, "messages": messages, "images": picture_paths(rendered)}


def picture_paths(rendered: Rendered) -> list[str]:
    return [str(Path(picture.path).resolve()) for picture in rendered.pictures]


def flat_message(message: dict) -> dict:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) and content else content or []
    calls = [
        {"type": "function", "function": call | {"arguments": json.dumps(call["arguments"], ensure_ascii=False)}}
        for call in (entry["function"] for entry in message.get("tool_calls", ()))
    ]
    return {"role": message["role"], "content": parts, "tool_calls": calls}


if __name__ == "__main__":
    sys.exit(main())
