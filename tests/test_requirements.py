"""Bounds of setup.cfg: met by the tested versions, and an older package is named before a model is built."""

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from qwenvl_agent.requirements import check_versions

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def requirements() -> list[str]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options"]["install_requires"].strip().splitlines()


def test_the_tested_versions_meet_the_bounds(requirements):
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().split())
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(tested[requirement.name.lower()]), requirement
    check_versions(requirements)


def test_what_follows_torch_has_a_bound(requirements):
    bounded = {requirement.name for requirement in map(Requirement, requirements) if requirement.specifier}
    assert {"torch", "torchvision", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes"} <= bounded


def install(directory: Path, name: str, version: str, *requires: str) -> None:
    """Its metadata, as pip leaves them."""
    folder = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]) + "\n")


def test_an_older_package_is_named_before_a_model_is_built(requirements, tmp_path):
    install(tmp_path, "torch", "2.11.0")
    install(tmp_path, "qwenvl-agent", "0.1.0", *requirements)
    program = "from qwenvl_agent.model.build import load_model_config; load_model_config('tiny')"
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "torch 2.11.0 is installed: results or interfaces" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("pip install 'torch>=2.14'")
