"""What a step would have to compile is refused before weights are read, where nothing can compile it."""

import sysconfig

import pytest

from qwenvl_agent.config import build_config
from qwenvl_agent.model.compiler import check_compilers

COMPILED = {"name": "x", "model": {"path": "tiny", "compile": True}}
PACKED = {"name": "x", "model": {"path": "tiny", "attention": "sdpa"}, "train": {"pack_tokens": 4096}}


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without compilers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def add(folder, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("values", "device", "message"),
    [
        (COMPILED, "cpu", r"model.compile is true, and there is no C\+\+ compiler .*use model.compile=false$"),
        (COMPILED, "cuda", r"model.compile is true, and there is no C compiler \(gcc, .*use model.compile=false$"),
        (PACKED, "cuda", r"train.pack_tokens is 4096, whose .* no C compiler .*use train.pack_tokens=0$"),
    ],
)
def test_without_a_compiler_what_needs_one_is_refused(bare, values, device, message):
    with pytest.raises(ValueError, match=message):
        check_compilers(build_config(values), device)


def test_packs_on_a_cpu_and_what_compiles_nothing_need_none(bare):
    check_compilers(build_config(PACKED), "cpu")
    check_compilers(build_config({"name": "x", "model": {"path": "tiny"}}), "cuda")


def test_a_gpus_launchers_need_pythons_headers_too(bare, monkeypatch):
    add(bare, "gcc")
    (bare / "Python.h").write_text("")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(bare)})
    check_compilers(build_config(COMPILED), "cuda")
    (bare / "Python.h").unlink()
    with pytest.raises(
        ValueError, match=r"there is no Python.h in .* \(the package python3-dev\): nothing can be compiled"
    ):
        check_compilers(build_config(PACKED), "cuda")
