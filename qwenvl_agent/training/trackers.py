"""Where a run's figures and settings go besides TensorBoard and metrics.jsonl: trackio and wandb, as Accelerate has them.

Pictures and transcripts are TensorBoard's alone. A run that resumes goes on under its name there (trackio), or under the
id in RUN/tracker.json (wandb); --overwrite begins a new one.
"""

import secrets
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from qwenvl_agent.config import Config, TrainConfig, to_json
from qwenvl_agent.files import read_json, write_json
from qwenvl_agent.training.metrics import TENSORBOARD, flatten, plain

ID_FILE = "tracker.json"


def trackers_outside(train_cfg: TrainConfig) -> list[str]:
    """Those that are not TensorBoard; ValueError for one that is not installed, which Accelerate would leave out."""
    names: list[str] = [name for name in train_cfg.trackers if name != TENSORBOARD]
    for name in names:
        if find_spec(name) is None:
            raise ValueError(
                f"train.trackers has {name}, which is not installed: nothing would be logged there; pip install "
                f"'qwenvl-agent[{name}]', or leave it out"
            )
    return names


def start_trackers(config: Config, accelerator: Accelerator, first_step: int) -> list[GeneralTracker]:
    """The run in each of them, with its settings; ValueError with the tracker's own words if one does not start."""
    if not accelerator.log_with:
        return []
    names = ", ".join(map(str, accelerator.log_with))
    run_id = None
    if accelerator.is_main_process:
        run_id = id_of(config.run_dir, is_new=not first_step)
    resume = "allow" if first_step else "never"
    options = {
        "trackio": {"name": config.name, "resume": resume, "embed": False},
        "wandb": {"name": config.name, "id": run_id, "resume": resume, "dir": str(config.run_dir)},
    }
    settings = plain(flatten(to_json(config)))
    try:
        accelerator.init_trackers(config.train.tracker_project, settings, options)
    except Exception as error:  # each has errors of its own: a login, a network, a version
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"train.trackers ({names}) cannot start ({text}): the run would not be logged there; correct that, or leave it out"
        ) from error
    return list(accelerator.trackers)


def id_of(run_dir: Path, *, is_new: bool) -> str:
    path = run_dir / ID_FILE
    if is_new or not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    return read_json(path)["id"]
