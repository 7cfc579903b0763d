"""The one way to a model: a run, one of its checkpoints, an adapter, merged or published weights, a server.

    find(path, ...)            Source: what the path names, and the settings that go with it; nothing heavy is loaded
    load_model(source)         config, model in eval mode, processor
    open_policy(source)        what answers requests: the model of this process, or the served one
    load_policy(path, ...)     all of it in one call

One decision: settings are settled before weights are read, so that a mistake in them costs no minutes, and a run keeps
those that it was trained with.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from qwenvl_agent.checksums import find_damage
from qwenvl_agent.config import FORMAT_NAMES, Config, build_config, complete_saved, load_config, settle_prompt, to_json
from qwenvl_agent.files import read_json
from qwenvl_agent.schema import Policy
from qwenvl_agent.settings import apply_override, check_choice, read_values

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qwenvl_agent.inference.endpoint import EndpointPolicy
    from qwenvl_agent.inference.policy import ModelPolicy
    from qwenvl_agent.model.build import Processor

AGENT_CONFIG = "qwenvl_agent.json"
"""Beside merged weights: the run's config."""
START = "start.json"
"""In a run's folder: the earlier run whose weights it began with (`training.start`)."""
OF_A_RUN = ("eval.", "model.autocast=")
"""Overrides that a run takes: how it answers, not what it learned."""


@dataclass(frozen=True)
class Source:
    """A model that was found: `path` is a checkpoint's folder, a folder or hub id of weights, or a server's name of it."""

    path: str
    config: Config
    endpoint: str = ""
    """URL of the OpenAI-compatible server that has the model; "" for one that is loaded here."""
    run: Path | None = None
    """Of a checkpoint: the folder of its run; None for anything else."""
    autocast: bool | Literal["auto"] = "auto"
    """Of a checkpoint: whether it computes in bfloat16 whatever it was trained in; auto: as it was trained."""

    @property
    def weights(self) -> str:
        """Tells the weights from others of that name: the folder's own name and its files' newest time."""
        times = [path.stat().st_mtime_ns for path in Path(self.path).rglob("*.safetensors")]
        return "" if self.endpoint else f"{Path(self.path).resolve().name} {max(times, default=0)}"


class LoadedModel(NamedTuple):
    """A model in eval mode with the config and processor that go with it; of a checkpoint, the training's config."""

    config: Config
    model: "nn.Module"
    processor: "Processor"


def load_policy(
    path: str | Path,
    *,
    checkpoint: str = "",
    endpoint: str = "",
    config: str | Path | None = None,
    format: str = "",  # noqa: A002 (the name that configs and command lines have)
    overrides: Sequence[str] = (),
    device: str | None = None,
    **options,
) -> Policy:
    """The policy of a run's folder, a checkpoint, merged weights, an adapter, a local model, a hub id or a server.

    It answers any `schema.Request`, of whatever world. A run comes with its own settings, merged weights with those
    that lie beside them; for anything else `config` gives picture budget and format. `checkpoint` (of a run): best,
    last or step_000500. `endpoint`: the URL of an OpenAI-compatible server, which has `path` as its model.
    `overrides`: as `eval.temperature=0.7`. Requests are asked as the run's rows were (`prompt.ask_for_thought`); of a run
    of both sorts each as its own `asks_for_thought` says. `device`: None for a GPU if there is one; `options`: blank_pictures, and
    `fields` of each request to a server.
    """
    source = find(path, checkpoint=checkpoint, endpoint=endpoint, config=config, format=format, overrides=overrides)
    return open_policy(source, device=device, **options)


# where a model is, and its settings


def find(
    path: str | Path,
    *,
    checkpoint: str = "",
    endpoint: str = "",
    config: str | Path | None = None,
    format: str = "",  # noqa: A002
    overrides: Sequence[str] = (),
) -> Source:
    """What `path` names, with its settings; the arguments are those of `load_policy`."""
    if format:
        check_choice("format", format, FORMAT_NAMES)
    if not endpoint and run_of(Path(path)):
        return find_run(path, checkpoint=checkpoint, config=config, format=format, overrides=overrides)
    if checkpoint:
        raise ValueError(f"checkpoint {checkpoint!r} of {path}, which is no run: there is none; leave it out")
    by_format = [f"prompt.format={format}"] if format else []
    settings = settle_prompt(settings_of(str(path), config, [*overrides, *by_format]))
    if not endpoint:  # whose prompts are made with the tokenizer that the config names
        settings = replace(settings, model=replace(settings.model, path=str(path)))
    return Source(str(path), settings, endpoint)


def find_run(
    path: str | Path,
    *,
    checkpoint: str = "",
    config: str | Path | None = None,
    format: str = "",  # noqa: A002
    overrides: Sequence[str] = (),
) -> Source:
    """`find` of what has to be a run or a checkpoint: as it was trained, but for how it answers."""
    if config or format or not all(override.startswith(OF_A_RUN) for override in overrides):
        raise ValueError(
            f"{path} is a run, which has its own settings: a config, a format, or overrides of anything but eval.* and "
            "model.autocast would not fit what it learned; leave them out, or override how it answers, as in "
            "eval.temperature=0.7"
        )
    folder = run_of(Path(path)) or Path(path)
    # Resolved: `best` and `last` move on with the training, a curriculum's folder of checkpoints with its stages.
    directory = locate_checkpoint(folder / "checkpoints" / checkpoint if checkpoint else folder).resolve()
    of_eval = [override for override in overrides if override.startswith("eval.")]
    settings = settle_prompt(build_config(with_overrides(to_json(saved_config(directory)), of_eval)))
    autocast = with_overrides({}, overrides).get("model", {}).get("autocast", "auto")
    is_own = (folder / "checkpoints").is_dir() and not (folder / "checkpoints").is_symlink()
    run = folder if is_own else directory.parent.parent
    return Source(str(directory), settings, run=run, autocast=autocast)


def with_overrides(values: dict, overrides: Sequence[str]) -> dict:
    """A copy of JSON values with `key.path=value` set."""
    values = json.loads(json.dumps(values))
    for override in overrides:
        apply_override(values, override)
    return values


def run_of(path: Path) -> Path | None:
    """The run or checkpoint that a folder is, or is the weights of; None if it is neither."""
    if (path / "checkpoints").is_dir() or is_checkpoint(path):
        return path
    return path.parent if path.name == "model" and is_checkpoint(path.parent) else None


def is_checkpoint(path: Path) -> bool:
    return (path / "model").is_dir() and (path / "config.json").is_file()


def settings_of(path: str, config: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Those of the config file, of merged weights, or the defaults."""
    if config and Path(config).name == AGENT_CONFIG:
        return build_config(with_overrides(complete_saved(read_values(config)), overrides))
    if config:
        return load_config(config, overrides)
    beside = Path(path) / AGENT_CONFIG
    if beside.is_file():
        # Merged weights are plain ones, whatever way they were trained in.
        as_plain = ["model.method=lora", f"model.path={json.dumps(path)}"]
        return build_config(with_overrides(complete_saved(read_values(beside)), [*as_plain, *overrides]))
    return build_config(with_overrides({"name": "eval", "model": {"path": path, "method": "lora"}}, overrides))


def locate_checkpoint(path: Path) -> Path:
    """A checkpoint, or a run's `best`, else `last`."""
    for directory in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        if directory.is_symlink() and not directory.exists():
            raise ValueError(
                f"{directory} points to {os.readlink(directory)}, which is gone: that checkpoint cannot be loaded; name "
                "another one"
            )
        if (directory / "model").is_dir():
            return directory
    raise ValueError(f"{path} holds no checkpoint: there is nothing to load; give runs/NAME of a run that has saved")


def saved_config(checkpoint: Path) -> Config:
    """A checkpoint's own config, without a look at its weights."""
    with suppress(FileNotFoundError):  # an earlier version's has no checksums
        check_whole(checkpoint, ("config.json",))
    return build_config(complete_saved(read_json(checkpoint / "config.json")))


def check_whole(checkpoint: Path, parts: tuple[str, ...]) -> None:
    """ValueError if the files whose paths begin so are not as they were written; FileNotFoundError if nobody can know."""
    damage = find_damage(checkpoint, parts)
    if damage:
        others = sorted(
            {path.name for path in checkpoint.resolve().parent.glob("step_*")} - {checkpoint.resolve().name}
        )
        raise ValueError(
            f"{damage}: what this checkpoint says would not be what was trained; bring the file back, or name another "
            f"checkpoint ({', '.join(others) or 'there is none'})"
        )


# models


def load_model(
    source: Source, *, device: "torch.device | str | None" = None, say: Callable[[str], None] | None = None
) -> LoadedModel:
    """Of a checkpoint, or of weights; one line tells `say` (by default stderr) in what precision it computes."""
    from qwenvl_agent.model.precision import announce

    load = load_checkpoint if source.run else load_weights
    return load(source, device or default_device(), say or announce)


def load_checkpoint(source: Source, device: "torch.device | str", say: Callable[[str], None]) -> LoadedModel:
    """As it was trained, unless that is slow here or `source.autocast` says otherwise; compared with its checksums."""
    from qwenvl_agent.model.build import build_for_evaluation, build_processor
    from qwenvl_agent.model.precision import choose_for_evaluation

    directory, config = Path(source.path), source.config
    check_checkpoint(directory)
    processor = build_processor(config.model, config.vision)
    precision = choose_for_evaluation(config.model, device, source.autocast)
    say(precision.line)
    # Evaluation recomputes nothing, and adapters need no gradient.
    model_cfg = replace(config.model, gradient_checkpointing=False)
    model = build_for_evaluation(model_cfg, precision, device, directory / "model")
    return LoadedModel(config, model.requires_grad_(False), processor)


def check_checkpoint(directory: Path) -> None:
    """ValueError for a damaged one: a number must not be that of another checkpoint than it says."""
    try:
        check_whole(directory, ("config.json", "model/"))
    except FileNotFoundError:
        print(f"{directory} has no checksums (saved by an earlier version): taken as it is", file=sys.stderr)


def load_weights(source: Source, device: "torch.device | str", say: Callable[[str], None]) -> LoadedModel:
    """Published or merged weights, or an adapter on its base, in the config's precision."""
    from qwenvl_agent.model.build import bind_precision, build_processor, load_base
    from qwenvl_agent.model.precision import choose

    path, config = source.path, source.config
    base = base_of_adapter(path)
    # Nothing trains, so the weights need no float32 masters.
    method = "lora" if config.model.method == "full" else config.model.method
    precision = choose(replace(config.model, path=base or path, method=method, train_vision=False), device)
    say(precision.line)
    processor = build_processor(precision.model, config.vision)
    model = load_base(precision.model, device, None)
    if base:
        from peft import PeftModel

        if Path(path).is_dir() and not (Path(path) / "adapter_model.safetensors").is_file():
            raise ValueError(
                f"adapter {path} has no adapter_model.safetensors: of weights in another file (a pickle) nothing is read; save "
                "it with safe_serialization=True"
            )
        model = PeftModel.from_pretrained(model, path)
    model = model.eval().requires_grad_(False)
    bind_precision(model, precision.model, device)
    return LoadedModel(config, model, processor)


def base_of_adapter(path: str) -> str:
    """The base of the adapter that a folder or hub id is; "" if it is none."""
    from qwenvl_agent.model.build import checkpoint_path, load_model_config

    folder = Path(checkpoint_path(path))
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        return ""
    if not folder.is_dir():
        try:
            load_model_config(path)
            return ""
        except ValueError as error:
            no_model = error  # unless it is an adapter's id
    from peft import PeftConfig  # here, because it is slow and loud

    try:
        base = PeftConfig.from_pretrained(path).base_model_name_or_path
    except (ValueError, OSError, TypeError):
        if folder.is_dir():
            raise ValueError(
                f"{folder}/adapter_config.json cannot be read: its adapter fits nothing; save it again"
            ) from None
        raise no_model from None
    if not base:
        raise ValueError(f"adapter {path!r} does not name its base: it fits nothing; add base_model_name_or_path to it")
    return base


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# policies


def open_policy(
    source: Source, *, device: str | None = None, fields: dict | None = None, **options: Any
) -> "ModelPolicy | EndpointPolicy":
    """The model of this process, or the served one after a request that shows that it answers.

    Either has the `collator` that makes its prompts. `fields` go into each request to a server; `options`, of both:
    blank_pictures, seed, draws_each.
    """
    if source.endpoint:
        return endpoint_policy(source, fields=fields, **options)
    if fields:
        raise ValueError(
            f"fields {sorted(fields)} without a server: there is no request to put them into; leave them out"
        )
    return local_policy(load_model(source, device=device), **options)


def local_policy(loaded: LoadedModel, **options) -> "ModelPolicy":
    """Of the model in this process; `options` are those of `ModelPolicy`."""
    from qwenvl_agent.data.collator import build_collator
    from qwenvl_agent.inference.policy import ModelPolicy

    collator = build_collator(loaded.processor, loaded.config)
    return ModelPolicy(loaded.model, loaded.processor, collator, collator.fmt, loaded.config.eval, **options)


def endpoint_policy(source: Source, **options) -> "EndpointPolicy":
    """Prompts are made with the tokenizer and picture budget of the config, else of the model's own folder or id.

    The server's key, if it wants one, is ENDPOINT_API_KEY in the environment; `options`: those of `EndpointPolicy`.
    """
    from qwenvl_agent.data.collator import build_collator
    from qwenvl_agent.inference.endpoint import EndpointPolicy
    from qwenvl_agent.model.build import build_processor

    config = source.config
    collator = build_collator(build_processor(config.model, config.vision), config)
    key = os.environ.get("ENDPOINT_API_KEY", "")
    policy = EndpointPolicy(source.endpoint, source.path, collator, collator.fmt, config.eval, api_key=key, **options)
    policy.check()
    return policy


def describe(source: Source, policy: "ModelPolicy | EndpointPolicy") -> dict:
    """What a result says about the model that it is of."""
    from qwenvl_agent.inference.endpoint import EndpointPolicy

    processor = policy.collator.processor
    about: dict = {
        "config": to_json(source.config),
        "processor": {"name": processor.name, **asdict(processor.geometry)},
        "blank_pictures": policy.blank_pictures,
    }
    if isinstance(policy, EndpointPolicy):
        return about | {"endpoint": source.endpoint, "model": source.path}
    from qwenvl_agent.model.build import base_of

    about["precision"] = {"evaluated": base_of(policy.model).precision}
    if not source.run:
        return about
    about["precision"]["trained"] = source.config.model.precision
    return about | {"checkpoint": Path(source.path).name, "dataset_hash": dataset_hash(source.run)}


def start_of(run: Path) -> dict | None:
    """What a run began with, if that were an earlier run's weights: run, checkpoint, step, mode, base, path."""
    return read_json(run / START) if (run / START).exists() else None


def dataset_hash(run: Path) -> str | None:
    """Of what a run was trained on; None if it does not say."""
    data = run / "data.json"
    return read_json(data)["dataset_hash"] if data.exists() else None
