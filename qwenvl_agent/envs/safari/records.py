"""dataset.jsonl both ways: one turn a line, pictures beside it in `images/`."""

import json
from pathlib import Path

from qwenvl_agent.schema import ToolResult, Turn


def row_json(
    *,
    episode_id: str,
    mission: str,
    turn_index: int,
    system_prompt: str,
    context_text: str,
    image_file: str,
    turn: Turn,
    results: tuple[ToolResult, ...],
) -> dict:
    """One line of dataset.jsonl, in the recorded form and key order."""
    return {
        "episode_id": episode_id,
        "mission": mission,
        "turn": turn_index,
        "system_prompt": system_prompt,
        "context_text": context_text,
        "image_file": image_file,
        "tool_calls": [{"name": call.name, "args": call.arguments} for call in turn.tool_calls],
        "tool_results": [{"name": result.name, "result": result.content} for result in results],
        "thought_text": turn.thought or None,
        "raw_request": None,
        "raw_response": None,
    }


class RowWriter:
    """Writes a dataset folder: dataset.jsonl and images/ep_<episode>_turn_<index>.png."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        self.file = open(self.folder / "dataset.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, png: bytes, *, episode_id: str, turn_index: int, **row):
        """Write one row and its picture; `row` holds the other arguments of `row_json`."""
        image_file = f"images/ep_{episode_id}_turn_{turn_index:03d}.png"
        (self.folder / image_file).write_bytes(png)
        row = row_json(episode_id=episode_id, turn_index=turn_index, image_file=image_file, **row)
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
