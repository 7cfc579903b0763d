"""The installed packages against the lower bounds of setup.cfg: an older one is named, with what to do. No torch."""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement


@cache
def check_installed() -> None:
    """Once a process, before a model is built: older packages differ in results, or fail far from the cause."""
    try:
        check_versions(requires("qwenvl-agent") or ())
    except PackageNotFoundError:  # run from a checkout that was never installed: nothing says what it needs
        return


def check_versions(requirements: Iterable[str]) -> None:
    """ValueError that names every requirement that the installed packages do not meet; extras are not looked at."""
    unmet = [text for text in map(describe_unmet, map(Requirement, requirements)) if text]
    if unmet:
        wanted = " ".join(f"'{requirement}'" for _, requirement in unmet)
        raise ValueError(
            f"{', '.join(found for found, _ in unmet)}: results or interfaces of such a version differ from what was "
            f"tested; pip install {wanted}"
        )


def describe_unmet(requirement: Requirement) -> tuple[str, str] | None:
    """What is installed instead, and what is wanted; None if all is well."""
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed", str(requirement)
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} {found} is installed", str(requirement)
