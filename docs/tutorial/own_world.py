# %% [markdown]
# # A world of your own
# `docs/tutorial/crossing.py` is a game in one file: a Gymnasium environment of some fifty lines, and `make_world`, which
# says what the agent is told of it. Nothing of the package is edited. Read that file first.
#
#     python docs/tutorial/own_world.py            # minutes on two cores
#     python docs/tutorial/own_world.py --small    # a rehearsal

# %%
import sys
from pathlib import Path

from qwenvl_agent.cli import check_world, evaluate, record, train
from qwenvl_agent.worlds import make_world

SMALL = "--small" in sys.argv
EPISODES, STEPS, TEST_EPISODES = (20, 3, 2) if SMALL else (3000, 300, 100)
OUT = Path("generated/tutorial/crossing")
OUT.mkdir(parents=True, exist_ok=True)
WORLD = "docs/tutorial/crossing.py:make_world"

# %% [markdown]
# ## What the agent gets

# %%
env = make_world(WORLD).make_env()
observation, info = env.reset(seed=0)
print(env.system_prompt, observation.text, *(tool.to_json() for tool in env.tools), sep="\n\n")
observation.pictures[0].open().resize((512, 512), 0).save(OUT / "first.png")
env.close()

# %% [markdown]
# ## Does it keep the contract?
# Seeds that make the same game twice, a terminated episode that stays so, results for every call: what `check_env` is for
# environments. Where the oracle can be run over, this is the place to say how often it wins.

# %%
status = check_world.main([WORLD, "--episodes", "10"])
assert status == 0, "a finding says what is wrong, and what to do"

# %% [markdown]
# ## Data, training, measure
# The commands are those of every world; `eval.suite` names the file.

# %%
assert not record.main(
    ["--world", WORLD, "--out", str(OUT / "data"), "--episodes", str(EPISODES), "--noise", "0.1", "--overwrite"]
)

# %%
settings = [
    f'data.sources=[{{"path": "{OUT / "data"}", "kind": "recorded"}}]',
    f"data.cache_dir={OUT / 'cache'}",
    f"runs_dir={OUT / 'runs'}",
    "name=crossing",
    f"eval.suite={WORLD}",
    "eval.world={}",
    "vision.max_tokens_per_image=64",
    "vision.tiles=8",
    f"train.max_steps={STEPS}",
]
settings += ["train.batch_size=4", "train.warmup_fraction=0", "eval.episodes=2", "eval.step_rows=4"] if SMALL else []
assert not train.main(
    ["--config", "configs/safari_tiny.json", "--overwrite", *(w for one in settings for w in ("--set", one))]
)

# %%
run = str(OUT / "runs" / "crossing")
played = ["--episodes", str(TEST_EPISODES), "--out"]
assert not evaluate.main(["--run", run, *played, str(OUT / "eval" / "trained")])
assert not evaluate.main(["--policy", "random", "--suite", WORLD, *played, str(OUT / "eval" / "random")])
assert not evaluate.main(["--policy", "oracle", "--suite", WORLD, *played, str(OUT / "eval" / "oracle")])
assert not evaluate.main(["--compare", *(str(OUT / "eval" / name) for name in ("trained", "random", "oracle"))])
