"""Do the pins have wheels for other machines than this one? Nothing is installed; pip is asked for each kind of machine.

    python scripts/check_platforms.py                                    # all kinds, a table
    python scripts/check_platforms.py --only "macos arm64" --json

What is asked for is what `make install` installs on such a machine: the requirements of setup.cfg and of its extras, at
the versions of constraints.txt, as far as their environment markers hold there. pip evaluates markers for the machine
it runs on, so that they are evaluated here, from the installed packages' own metadata. Status 1 if a wheel is missing.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.progress import track
from rich.table import Table

from qwenvl_agent.command import Parser, command

ROOT = Path(__file__).parent.parent
EXTRAS = ("dev", "browser", "serving", "examples", "play", "docs", "trackio")
PYTHONS = ("3.11", "3.12", "3.13")
PATCH = 5
"""The least of each; the site's own packages want 3.11.5."""
GLIBC = range(17, 40)
MACHINES = {
    "linux x86-64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux arm64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "macos arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
NO_WHEEL = re.compile(r"No matching distribution found for ([\w.-]+)==")
FROM_SOURCE = {"deepspeed"}
"""Published as source alone; it builds nothing unless asked to."""


@command("not every kind of machine was asked about")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    kinds = [(machine, python) for machine in args.only or MACHINES for python in PYTHONS]
    found = [look(*kind) for kind in track(kinds, "asking pip", console=Console(stderr=True), disable=args.json)]
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return 1 if any(one["missing"] for one in found) else 0


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=MACHINES, help="these machines (default: all)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON and nothing else")
    return parser


def look(machine: str, python: str) -> dict:
    """What would be installed there, and what of it has no wheel."""
    environment = environment_of(machine, python)
    names, unknown = closure(roots(), environment)
    pins = {name: version for name, version in pinned().items() if name in names}
    unpinned = sorted(names - set(pins) - unknown)
    missing = sorted(without_wheels(pins, machine, python))
    return {
        "machine": machine,
        "python": python,
        "packages": len(names),
        "missing": [name for name in missing if name not in FROM_SOURCE],
        "from_source": [name for name in missing if name in FROM_SOURCE],
        "unpinned": unpinned,
        "not_looked_into": sorted(unknown),
    }


def environment_of(machine: str, python: str) -> dict[str, str]:
    """As PEP 508's markers see that machine."""
    fixed = {"os_name": "posix", "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {**MACHINES[machine], **fixed, "python_version": python, "python_full_version": f"{python}.{PATCH}"}


def roots() -> list[Requirement]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    groups = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in EXTRAS)]
    return [Requirement(line) for group in groups for line in group.strip().splitlines() if not line.startswith("#")]


def pinned() -> dict[str, str]:
    pairs = (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    return {canonicalize_name(name): version for name, version in pairs}


def closure(wanted: Iterable[Requirement], environment: dict[str, str]) -> tuple[set[str], set[str]]:
    """(all packages that these bring there, those of them that are not installed here, so that theirs are not known)"""
    names: set[tuple[str, str]] = set()
    unknown: set[str] = set()
    left = list(wanted)
    while left:
        requirement = left.pop()
        if requirement.marker and not requirement.marker.evaluate(environment | {"extra": ""}):
            continue
        for extra in ("", *sorted(requirement.extras)):
            key = (canonicalize_name(requirement.name), extra)
            if key not in names:
                names.add(key)
                left += brought_by(*key, environment, unknown)
    return {name for name, _ in names}, unknown


def brought_by(name: str, extra: str, environment: dict[str, str], unknown: set[str]) -> Iterator[Requirement]:
    """Of one of its extras, or "" for none: with markers that hold there, which are then left out."""
    try:
        lines = requires(name) or ()
    except PackageNotFoundError:
        unknown.add(name)
        return
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        plain_holds = marker is None or marker.evaluate(environment | {"extra": ""})
        if plain_holds if not extra else (not plain_holds and marker.evaluate(environment | {"extra": extra})):
            requirement.marker = None
            yield requirement


def without_wheels(pins: dict[str, str], machine: str, python: str) -> Iterator[str]:
    """pip names the first one that it cannot find; so it is asked again without it."""
    left = dict(pins)
    while left:
        name = ask_pip(left, machine, python)
        if name is None:
            return
        del left[name]
        yield name


def ask_pip(pins: dict[str, str], machine: str, python: str) -> str | None:
    """The first of the pins without a wheel for that machine, None if all have one."""
    with tempfile.TemporaryDirectory() as target:
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--target", target]
        tags = [word for tag in tags_of(machine) for word in ("--platform", tag)]
        wanted = [f"{name}=={version}" for name, version in pins.items()]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            *options,
            "--only-binary=:all:",
            *tags,
            "--python-version",
            f"{python}.{PATCH}",
        ]
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    found = NO_WHEEL.search(done.stderr)
    if not found:
        raise ValueError(f"pip does not answer ({done.stderr.strip()[-300:]}): nothing is known; look at its settings")
    return canonicalize_name(found[1])


def tags_of(machine: str) -> list[str]:
    """Of a system of this year: glibc 2.39, macOS 14."""
    arch = MACHINES[machine]["platform_machine"]
    if MACHINES[machine]["sys_platform"] == "darwin":
        return [f"macosx_14_0_{arch}"]
    return [*(f"manylinux_2_{minor}_{arch}" for minor in reversed(GLIBC)), f"manylinux2014_{arch}", f"linux_{arch}"]


def show(found: Sequence[dict]) -> None:
    table = Table("machine", "Python", "packages", "without a wheel", "from source", "not pinned")
    for one in found:
        lists = (", ".join(one[key]) or "-" for key in ("missing", "from_source", "unpinned"))
        table.add_row(one["machine"], one["python"], str(one["packages"]), *lists)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
