"""Bounds of setup.cfg: met by the tested versions, and an older package is named before a model is built."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qwenvl_agent.requirements import check_versions

ROOT = Path(__file__).parent.parent


EXTRAS = ("dev", "browser", "serving", "examples", "play", "docs", "trackio")


def asked_for(section: str, key: str) -> list[str]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup[section][key].strip().splitlines()


def pinned() -> list[tuple[str, str, str]]:
    return [line.partition("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()]


@pytest.fixture(scope="module")
def requirements() -> list[str]:
    return asked_for("options", "install_requires")


def test_the_tested_versions_meet_the_bounds(requirements):
    tested = {name.lower(): version for name, _, version in pinned()}
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(tested[requirement.name.lower()]), requirement
    check_versions(requirements)


def locked() -> list[tuple[Requirement, list[str]]]:
    """Of requirements.lock: each requirement with its hashes."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    words = [line.split(" --hash=") for line in text.splitlines()]
    return [(Requirement(first.strip()), [each.strip() for each in hashes]) for first, *hashes in words]


def test_the_lock_has_the_pins_each_with_its_hashes():
    """What has no pin there is of other machines, or builds what is published as source alone."""
    pins = {canonicalize_name(name): version for name, _, version in pinned()}
    here = {}
    for requirement, hashes in locked():
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement
        if requirement.marker is None or requirement.marker.evaluate():
            here[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    assert {name: version for name, version in here.items() if name != "setuptools"}.items() <= pins.items()
    extras = [Requirement(line) for extra in EXTRAS for line in asked_for("options.extras_require", extra)]
    assert here.keys() >= {canonicalize_name(requirement.name) for requirement in extras}


PEERS = {"llamafactory", "swift", "trl", "liger_kernel"}
"""Of benchmarks/: what ours is measured beside where it is there, mostly in an environment of its own."""
IMPORTED_BY_OTHERS = {"deepspeed": "accelerate", "tensorboard": "torch.utils.tensorboard"}


def imports_of(folders: Sequence[str]) -> dict[str, str]:
    """Top-level packages that files of the repository import, none of its own nor Python's -> one of these files."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / file for file in listed.stdout.split() if (ROOT / file).is_file()]
    # Tests and benchmarks import each other by their plain names, and the package by its own.
    own = {path.stem for path in files if ROOT / "qwenvl_agent" not in path.parents} | {"qwenvl_agent", "scripts"}
    found = {}
    for file in files:
        if file.relative_to(ROOT).parts[0] in folders:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                found |= {name.split(".")[0]: file.relative_to(ROOT).as_posix() for name in names}
    return {name: file for name, file in found.items() if name not in {*sys.stdlib_module_names, *own, *PEERS}}


def distributions(names: Iterable[str]) -> set[str]:
    installed = packages_distributions()
    return {canonicalize_name(installed.get(name, [name])[0]) for name in names}


def declared(*extras: str) -> set[str]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    groups = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    return {canonicalize_name(Requirement(line).name) for group in groups for line in group.strip().splitlines()}


def test_what_is_imported_is_declared():
    package = distributions(imports_of(["qwenvl_agent", "train.py", "eval.py", "scripts"]))
    assert package - declared("browser", "docs", "play") == set()
    rest = distributions(imports_of(["benchmarks", "tests", "examples"]))
    assert rest - declared("browser", "serving", "examples", "dev") == set()


def test_what_is_declared_is_imported():
    names = distributions(imports_of(["qwenvl_agent", "train.py", "eval.py", "scripts"]))
    assert declared() - names == set(IMPORTED_BY_OTHERS)


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
