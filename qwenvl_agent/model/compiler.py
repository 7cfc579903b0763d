"""Whether this machine can compile what a config asks torch to compile; asked before weights are read."""

import os
import shutil
import sysconfig
from pathlib import Path

from qwenvl_agent.config import Config


def check_compilers(config: Config, device_type: str) -> None:
    """ValueError if a step of the config needs a compiler that is not there."""
    if config.model.compile:
        check_compiler("model.compile is true", device_type, "model.compile=false")
    if config.train.pack_tokens and config.model.attention == "sdpa" and device_type == "cuda":
        asked = f"train.pack_tokens is {config.train.pack_tokens}, whose attention on a GPU is a compiled kernel"
        check_compiler(asked, device_type, "train.pack_tokens=0")


def check_compiler(asked: str, device_type: str, remedy: str) -> None:
    """`asked` is what needs it, `remedy` what needs none. torch compiles C++ for a CPU; for a GPU Triton builds launchers
    in C, with Python's headers."""
    if device_type == "cpu":
        missing = "" if shutil.which(os.environ.get("CXX", "g++")) else "C++ compiler (g++, or what $CXX names)"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing = "C compiler (gcc, clang, or what $CC names)"
    else:
        headers = Path(sysconfig.get_paths()["include"])
        missing = "" if (headers / "Python.h").is_file() else f"Python.h in {headers} (the package python3-dev)"
    if missing:
        raise ValueError(f"{asked}, and there is no {missing}: nothing can be compiled; install one, or use {remedy}")
