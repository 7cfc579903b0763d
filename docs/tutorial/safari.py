# %% [markdown]
# # The safari in a quarter of an hour
# From a world to an agent that plays it, with what lies between: the world, its oracle, recorded data, the mask, the
# training, the measure, one decision of the trained agent. No GPU and no network.
#
# Run it cell by cell in an editor that knows `# %%`, or whole from the repository's root:
#
#     python docs/tutorial/safari.py             # the settings of `make demo`: about a quarter of an hour on two cores
#     python docs/tutorial/safari.py --small     # a rehearsal: everything in small, nothing is learned

# %%
import shlex
import sys
from pathlib import Path

from qwenvl_agent import load_policy
from qwenvl_agent.cli import evaluate, record, show, train
from qwenvl_agent.config import load_config
from qwenvl_agent.schema import Request
from qwenvl_agent.worlds import make_world

SMALL = "--small" in sys.argv
EPISODES, STEPS, TEST_EPISODES = (12, 4, 2) if SMALL else (7500, 800, 200)
OUT = Path("generated/tutorial/safari")
OUT.mkdir(parents=True, exist_ok=True)
CONFIG = "configs/safari_tiny.json"

# %% [markdown]
# ## The world
# A world makes environments; a seed is a park. The agent sees 10 by 10 tiles of it, is given a mission, and has tools.

# %%
config = load_config(CONFIG)
world = make_world("safari", config.eval.world)
env = world.make_env()
observation, info = env.reset(seed=2_000_000)
print(observation.text)
print("tools:", *(tool.name for tool in env.tools))
observation.pictures[0].open().resize((480, 480), 0).save(OUT / "first.png")

# %% [markdown]
# ## The oracle
# It knows the way, and thinks aloud about what the picture shows. Its turns are what will be learned.

# %%
oracle = world.make_oracle()
over = False
while not over:
    (answer,) = oracle.act([Request(env.system_prompt, env.tools, (), observation)])
    print(f"- {answer.turn.thought}\n  {[(call.name, dict(call.arguments)) for call in answer.turn.tool_calls]}")
    observation, reward, terminated, truncated, info = env.step(answer.turn)
    over = terminated or truncated
print("success:", info["success"], " turns of a player who knows the park:", info.get("optimal_turns"))
env.close()

# %% [markdown]
# ## Data
# The oracle's games as rows: a picture, a prompt, a turn. Half of the turns are from other states than the oracle comes
# to by itself, so that the agent learns to go on after its own mistakes. These are the options of `make demo`.

# %%
RECORD = """--noise 0.2 --resets 0.5 --near 0.35 --state at_zone=0.5 --vary 'num_animals={"10": 65, "120": 35}'
    --oracle=max_path=6 --oracle=max_final_path=6 --oracle=waypoints=regions --oracle=thought_form=looking
    --oracle=false_starts=0.15 --workers 2"""
assert not record.main(
    ["--config", CONFIG, "--out", str(OUT / "data"), "--episodes", str(EPISODES), "--overwrite", *shlex.split(RECORD)]
)

# %% [markdown]
# ## What is learned
# Each token of the assistant's turn and nothing else. `show` draws it; `--audit` proves it for every row.

# %%
SOURCES = f'data.sources=[{{"path": "{OUT / "data"}"}}]'
settings = ["--set", SOURCES, "--set", f"data.cache_dir={OUT / 'cache'}"]
assert not show.main(["--config", CONFIG, *settings, "--rows", "1", "--out", str(OUT / "samples.html")])

# %% [markdown]
# ## Training
# The loop is `train.py`, short enough to read. The tiny base has seen parks before, but no mission.

# %%
run = OUT / "runs" / "safari"
size = [f"train.max_steps={STEPS}", f"runs_dir={OUT / 'runs'}", "name=safari"]
size += ["eval.episodes=2", "eval.step_rows=4", "train.batch_size=4"] if SMALL else []
size += ["train.warmup_fraction=0"] if SMALL else []
assert not train.main(["--config", CONFIG, *settings, "--overwrite", *(w for one in size for w in ("--set", one))])

# %% [markdown]
# ## The measure
# Parks that nobody has seen: the agent, and a player who draws its calls. Every rate comes with its interval.

# %%
oracle_too = ["--oracle", "max_path=6", "--oracle", "max_final_path=6"]
oracle_too += ["--oracle", "waypoints=regions", "--oracle", "thought_form=looking"]
played = ["--episodes", str(TEST_EPISODES), "--out"]
assert not evaluate.main(["--run", str(run), *oracle_too, *played, str(OUT / "eval" / "trained")])
assert not evaluate.main(["--policy", "random", "--config", CONFIG, *played, str(OUT / "eval" / "random")])
assert not evaluate.main(["--compare", str(OUT / "eval" / "trained"), str(OUT / "eval" / "random")])

# %% [markdown]
# ## One decision
# The trained agent is a policy as the oracle is: requests in, answers out.

# %%
policy = load_policy(run)
env = world.make_env()
observation, _ = env.reset(seed=2_000_001)
(answer,) = policy.act([Request(env.system_prompt, env.tools, (), observation)])
print(answer.error or answer.turn)
env.close()
print(f"pages to open: {OUT / 'samples.html'}, {OUT / 'eval' / 'trained' / 'report.html'}, {OUT / 'first.png'}")
