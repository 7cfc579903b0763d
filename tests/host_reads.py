"""Counts where a training run reads a tensor on the host, which would stop a GPU: run in a test, or as a rank.

    accelerate launch --multi_gpu --num_processes 2 tests/host_reads.py CONFIG OUT     # OUT/rank_R.json

There is no GPU here, so every tensor of the training process stands for one on the device; batches come from a worker,
whose work on the host is its own. Watched are all ways in which a value or a shape that a device knows comes to the host:
scalars, lists, arrays, masks as indices, and operators whose result is as long as the values say.
"""

import json
import os
import sys
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

OPERATORS = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "is_nonzero",
    "equal",
    "bincount",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
LENGTH_IS_A_VALUE = {"repeat_interleave": "output_size"}
"""Operators that ask the device for the length of their result, unless it is given."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
METHODS = {torch.Tensor.tolist: "tolist", torch.Tensor.numpy: "numpy", torch.Tensor.cpu: "cpu"}
"""What a tensor of a CPU answers without an operator."""


class HostReads:
    """Around a run of train.py: `by_step[run.step]` counts reads by who made them, as `training/metrics.py read`.

    `run.step` counts the steps that were taken: what is read under 2 is read after the second step and in the third.
    """

    def __init__(self):
        self.by_step: dict[int, Counter] = {}
        self.modes = [_Operators(self), _Methods(self)]

    def __enter__(self) -> "HostReads":
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def record(self) -> None:
        frames = [(frame.f_code, frame) for frame, _ in traceback.walk_stack(sys._getframe(2))]
        step = next((f.f_locals["run"].step for code, f in frames if is_loop(code) and "run" in f.f_locals), None)
        reader = next((name for name in (name_of(code) for code, _ in frames) if name), "")
        self.by_step.setdefault(step, Counter())[reader] += 1


class _Operators(TorchDispatchMode):
    def __init__(self, reads: HostReads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        asks_length = name in LENGTH_IS_A_VALUE and (kwargs or {}).get(LENGTH_IS_A_VALUE[name]) is None
        if name in OPERATORS or by_mask or asks_length:
            self.reads.record()
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, reads: HostReads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in METHODS:
            self.reads.record()
        return func(*args, **(kwargs or {}))


def is_loop(code) -> bool:
    return code.co_name == "train" and Path(code.co_filename) == ROOT / "train.py"


def name_of(code) -> str:
    """File and function, ours from the repository on and others' from their package; "" for torch and these tests."""
    path = Path(code.co_filename)
    if path.is_relative_to(ROOT / "tests") or "/site-packages/torch/" in str(path) or not path.is_absolute():
        return ""
    if path.is_relative_to(ROOT) and ".venv" not in path.parts:
        return f"{path.relative_to(ROOT)} {code.co_name}"
    package = str(path).rpartition("/site-packages/")[2] if "/site-packages/" in str(path) else ""
    return package and f"{package} {code.co_name}"


def main(config_path: str, out: str) -> None:
    from qwenvl_agent.config import load_config
    from train import train

    with HostReads() as reads:
        train(load_config(config_path))
    rank = os.environ.get("RANK", "0")
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / f"rank_{rank}.json").write_text(json.dumps(reads.by_step))


if __name__ == "__main__":
    main(*sys.argv[1:])
