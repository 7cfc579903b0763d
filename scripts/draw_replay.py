"""Draw one recorded episode as an animated picture: what the agent saw, thought, called, and its notes.

    python scripts/draw_replay.py runs/safari_tiny/eval/trained --tiles 10 --out docs/images/safari.webp

Nothing is played: pictures and words are those of the result's records. Without --seed it is the first success of 6 to
12 turns that the font can write and in which the agent rewrote its notes. `.webp` and `.gif` are written.
"""

import argparse
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from qwenvl_agent.command import bounded, command, run_command
from qwenvl_agent.evaluation.results import read_result
from qwenvl_agent.records import EpisodeRecord, StepRecord

SIZE = (880, 420)  # pixels
BOARD = (36, 46, 372, 382)
"""Left, top, right, bottom of the picture, with room for the names of its tiles above and to the left."""
LEFT, RIGHT = 404, 864
INK, SOFT, LINE, PAPER, WELL, OK = "#1f2328", "#59636e", "#d1d9e0", "#ffffff", "#f6f8fa", "#1a7f37"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
MAX_BYTES = 1_000_000
MISSING = "\U0010ffff"


@command("no picture was written")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, metavar="DIR", help="a result of eval.py in a world")
    parser.add_argument("--seed", type=int, help="of the episode (default: see above)")
    parser.add_argument(
        "--tiles", type=bounded(int, 0, 26), default=0, help="name columns a.. and rows 0.. of so many tiles"
    )
    parser.add_argument("--font", type=Path, help="TrueType file for missions that DejaVu Sans cannot write")
    parser.add_argument(
        "--seconds", type=bounded(float, 0.1), default=1.3, help="a picture stays (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="a .webp or .gif file")
    args = parser.parse_args(argv)
    _, records, _ = read_result(args.result)
    font = args.font or FONTS / "DejaVuSans.ttf"
    record = choose(records, args.seed, font)
    frames = [*draw_episode(args.result, record, Writer(font), args.tiles)]
    times = [round(1000 * args.seconds)] * (len(frames) - 1) + [round(3500 * args.seconds)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(args.out, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=80, method=6)
    if args.out.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{args.out}: {args.out.stat().st_size} bytes, too many for a page; choose a shorter episode with --seed"
        )
    print(f"{args.out}: seed {record.seed}, {record.turns} turns, {args.out.stat().st_size / 1e3:.0f} kB")
    return 0


def choose(records: Sequence[EpisodeRecord], seed: int | None, font: Path) -> EpisodeRecord:
    """The episode of that seed, or the first that is worth showing."""
    if seed is None:
        shown = [
            r for r in records if r.success and 6 <= r.turns <= 12 and not unwritable(r, font) and num_notes(r) > 1
        ]
    else:
        shown = [r for r in records if r.seed == seed]
    if not shown:
        raise ValueError(
            f"no episode of {len(records)} is that of --seed, or else fits; give one of {records[0].seed} to {records[-1].seed}"
        )
    if unknown := unwritable(shown[0], font):
        raise ValueError(f"{font.name} has no {unknown[0]!r}: it would be drawn as a box; name a --font that has it")
    return shown[0]


def num_notes(record: EpisodeRecord) -> int:
    return sum("notepad" in call.name for step in record.steps for call in step.calls)


def unwritable(record: EpisodeRecord, font: Path) -> list[str]:
    """Characters that the font draws as it draws what it does not have."""
    loaded = ImageFont.truetype(str(font), 20)
    box = bytes(loaded.getmask(MISSING))
    text = record.mission + "".join(step.context + step.thought for step in record.steps)
    return sorted(c for c in set(text) - {"\n", " "} if bytes(loaded.getmask(c)) == box)


class Writer:
    """Draws text of one font in two sizes, and monospaced for calls."""

    def __init__(self, font: Path):
        bold = FONTS / "DejaVuSans-Bold.ttf" if font.parent == FONTS else font
        self.title, self.label = load(bold, 18), load(bold, 12)
        self.text, self.small, self.code = load(font, 15), load(font, 12), load(FONTS / "DejaVuSansMono.ttf", 14)


def load(path: Path, size: int) -> FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def draw_episode(directory: Path, record: EpisodeRecord, fonts: Writer, tiles: int) -> Iterator[Image.Image]:
    """Two pictures a turn: seen and thought; then called, with what the world answered."""
    for i, step in enumerate(record.steps):
        head = f"turn {i + 1} of {record.turns}"
        yield draw_frame(directory, record, step, fonts, tiles, head, called=False)
        is_last = i + 1 == record.turns
        end = f"won in {record.turns} turns" if record.success else f"lost: {record.end_reason}"
        yield draw_frame(directory, record, step, fonts, tiles, end if is_last else head, called=True)


def draw_frame(
    directory: Path, record: EpisodeRecord, step: StepRecord, fonts: Writer, tiles: int, head: str, called: bool
) -> Image.Image:
    frame = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(frame)
    draw.rounded_rectangle((0, 0, SIZE[0] - 1, SIZE[1] - 1), 10, outline=LINE)
    draw.text((BOARD[0], 12), record.mission, INK, fonts.title)
    draw.text((RIGHT, 14), head, OK if head.startswith("won") else SOFT, fonts.text, anchor="ra")
    draw_board(frame, draw, directory / step.picture, fonts, tiles)
    y = draw_block(draw, 46, "THINKS", step.thought, fonts.text, fonts, 4)
    calls = "\n".join(spell(call.name, call.arguments) for call in step.calls) if called else ""
    y = draw_block(draw, y, "CALLS", calls, fonts.code, fonts, 3)
    y = draw_block(draw, y, "NOTEPAD", notes(step, called), fonts.code, fonts, 2)
    answers = " · ".join(map(answer, step.results)) if called else ""
    draw_block(draw, y, "THE WORLD ANSWERS", answers, fonts.small, fonts, 1)
    return frame


def draw_board(frame: Image.Image, draw: ImageDraw.ImageDraw, picture: Path, fonts: Writer, tiles: int) -> None:
    """The picture as the model saw it, enlarged, with the names of its tiles around it."""
    width, height = BOARD[2] - BOARD[0], BOARD[3] - BOARD[1]
    with Image.open(picture) as seen:
        frame.paste(seen.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), BOARD[:2])
    draw.rectangle((BOARD[0] - 1, BOARD[1] - 1, BOARD[2], BOARD[3]), outline=LINE)
    for i in range(tiles):
        x, y = BOARD[0] + (i + 0.5) * width / tiles, BOARD[1] + (i + 0.5) * height / tiles
        draw.text((x, BOARD[3] + 5), "abcdefghijklmnopqrstuvwxyz"[i], SOFT, fonts.small, anchor="ma")
        draw.text((BOARD[0] - 8, y), str(i), SOFT, fonts.small, anchor="rm")


def draw_block(
    draw: ImageDraw.ImageDraw, y: int, label: str, text: str, font: FreeTypeFont, fonts: Writer, num_lines: int
) -> int:
    """A label and its lines in a box of fixed height; where the next one begins."""
    height = 20 * num_lines + 12
    draw.text((LEFT, y), label, SOFT, fonts.label)
    draw.rounded_rectangle((LEFT, y + 17, RIGHT, y + 17 + height), 6, fill=WELL)
    lines = [part for line in text.split("\n") for part in wrap(line, font, RIGHT - LEFT - 20)]
    if len(lines) > num_lines:
        lines = [*lines[: num_lines - 1], lines[num_lines - 1] + " ..."]
    for i, line in enumerate(lines):
        draw.text((LEFT + 10, y + 23 + 20 * i), line, INK, font)
    return y + height + 27


def wrap(line: str, font: FreeTypeFont, width: int) -> list[str]:
    """At spaces, so that each part is at most so many pixels wide."""
    num_chars = max(1, int(0.95 * len(line) * width / max(1.0, font.getlength(line))))
    return textwrap.wrap(line, num_chars, subsequent_indent="  ") if font.getlength(line) > width else [line]


def notes(step: StepRecord, called: bool) -> str:
    """The notepad before the turn, or after its calls."""
    written = [call.arguments["content"] for call in step.calls if called and "content" in call.arguments]
    return written[-1] if written else step.context.rpartition("Notepad:\n")[2]


def spell(name: str, arguments: dict) -> str:
    """A call on one line; a list of small objects as their values."""
    return f"{name}({', '.join(map(spell_value, arguments.values()))})"


def spell_value(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return ", ".join(" ".join(map(str, item.values())) for item in value)
    return json.dumps(value, ensure_ascii=False)


def answer(result: dict) -> str:
    """What the world said of one call, as far as it is a word."""
    content = result["content"] if isinstance(result["content"], dict) else {"result": result["content"]}
    said = content.get("status") or next(
        (word for word in ("blocked", "moved") if content.get(word)), "refused" if "error" in content else "done"
    )
    return f"{result['name']}: {said}"


if __name__ == "__main__":
    run_command(main)
