"""Jinja templates that write HTML: all values are shown as text, and one that is missing is an error."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates_in(folder: Path, *, trims_lines: bool = False) -> Environment:
    """`trims_lines`: a tag that stands alone on its line leaves no line in the page."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=trims_lines,
        lstrip_blocks=trims_lines,
    )


def render_report(template: str, **values: object) -> str:
    """A page of `assets/` for people, such as `report.html.jinja`."""
    return _reports().get_template(template).render(values)


@cache
def _reports() -> Environment:
    return templates_in(Path(__file__).parent / "assets", trims_lines=True)
