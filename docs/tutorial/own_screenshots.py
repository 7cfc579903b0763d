# %% [markdown]
# # Own screenshots
# From a folder of pictures and a list that you write by hand to an agent that says where to click. Here the pictures are
# drawn by the script, so that it runs everywhere; put your own in their place: everything below stays as it is.
#
#     python docs/tutorial/own_screenshots.py            # minutes on two cores
#     python docs/tutorial/own_screenshots.py --small    # a rehearsal
#
# The tiny model learns the commands' way, not to read: it sees 64 tokens of a screenshot. With `--config
# computer_use_2b` in place of `own_screens_tiny` the same folder trains Qwen3-VL-2B on one 24 GB card (docs/DATA.md).

# %%
import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from qwenvl_agent import load_agent
from qwenvl_agent.cli import augment, check_data, evaluate, predict, train

SMALL = "--small" in sys.argv
NUM_SCREENS, COPIES, STEPS = (6, 1, 3) if SMALL else (24, 6, 300)
OUT = Path("generated/tutorial/screens")
SCREENS = OUT / "screens"
SCREENS.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The pictures and the list
# One entry a task: the instruction, the picture's name, the action, with places in pixels of the picture.

# %%
random.seed(0)
COLOURS = {"red": "#d33", "green": "#2a2", "blue": "#36c", "orange": "#e80"}
labels = []
for i in range(NUM_SCREENS):
    image = Image.new("RGB", (640, 400), "#f4f4f4")
    draw = ImageDraw.Draw(image)
    corners = random.sample([(60, 60), (380, 60), (60, 240), (380, 240)], len(COLOURS))
    for (left, top), colour in zip(corners, COLOURS.values(), strict=True):
        draw.rounded_rectangle((left, top, left + 200, top + 100), 16, fill=colour)
    image.save(SCREENS / f"{i}.png")
    for (left, top), name in zip(corners, COLOURS, strict=True):
        action = {"type": "click", "x": left + 100, "y": top + 50}
        labels.append({"instruction": f"press the {name} button", "screenshot": f"{i}.png", "action": action})
(SCREENS / "labels.json").write_text(json.dumps(labels, indent=1), encoding="utf-8")

# %% [markdown]
# ## Look before training
# What the file is, how its first row reads, whether places lie on the pictures, how many tokens a row takes. With
# `--write` also a config that fits.

# %%
(OUT / "own.json").unlink(missing_ok=True)
assert not check_data.main(
    [
        str(SCREENS),
        "--config",
        "own_screens_tiny",
        "--write",
        str(OUT / "own.json"),
        "--set",
        f"data.cache_dir={OUT / 'cache'}",
    ]
)

# %% [markdown]
# ## More of them
# Crops and scales of the same screens, positions exact. The originals are in the new folder too.

# %%
assert not augment.main(
    [
        str(SCREENS / "labels.json"),
        "--out",
        str(OUT / "more"),
        "--copies",
        str(COPIES),
        "--ways",
        "crop",
        "scale",
        "--overwrite",
    ]
)

# %% [markdown]
# ## Train

# %%
source = f'data.sources=[{{"path": "{OUT / "more"}", "kind": "computer"}}]'
size = [source, f"data.cache_dir={OUT / 'cache'}", f"runs_dir={OUT / 'runs'}", f"train.max_steps={STEPS}"]
size += ["train.batch_size=2", "train.warmup_fraction=0"] if SMALL else []
assert not train.main(["--config", str(OUT / "own.json"), "--overwrite", *(w for one in size for w in ("--set", one))])
run = OUT / "runs" / "own"

# %% [markdown]
# ## Measure
# The screens that were held out, whole episodes: none of their copies was trained on.

# %%
assert not evaluate.main(["--run", str(run), "--suite", "clicks", "--out", str(OUT / "eval")])

# %% [markdown]
# ## Ask it
# On the command line with a picture of the answer, or in Python. Status 1 is an answer of which no action could be read.

# %%
screen = str(SCREENS / "0.png")
status = predict.main(
    ["--run", str(run), "--image", screen, "--instruction", "press the red button", "--draw", str(OUT / "answer.png")]
)
assert status in (0, 1)
print(load_agent(run).act(screen, "press the blue button"))
print(f"look at {OUT / 'answer.png'} and {OUT / 'eval' / 'report.html'}")
