"""Hooks of mkdocs.yml: pages and files outside of docs/, and Markdown as GitHub reads it.

README.md is the site's index.md; every other file keeps its place in the repository, and those of docs/ theirs in docs/.
Whatever a page links to is brought along, so `mkdocs build --strict` finds a link that leads nowhere.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "README.ko.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^( *```\w*)(.*)")
"""GitHub ignores what stands behind the language; Python-Markdown then sees no block."""
BLOCK = re.compile(r"^(\||[-*+] |\d+\. )")


def on_files(files: Files, config) -> Files:
    """Add the pages outside of docs/, then what the pages link to."""
    outside = [ROOT / name for name in PAGES] + sorted(ROOT.glob("examples/**/README.md"))
    for path in filter(Path.is_file, outside):
        add(files, config, path)
    for file in [file for file in files if file.is_documentation_page()]:
        for target in targets_of(Path(file.abs_src_path)):
            add(files, config, target)
    return files


def add(files: Files, config, path: Path) -> None:
    if files.get_file_from_path(place_of(path)) is None:
        files.append(File.generated(config, place_of(path), abs_src_path=str(path)))


def place_of(path: Path) -> str:
    """Where a file of the repository is in the site."""
    name = path.relative_to(ROOT).as_posix()
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def targets_of(page: Path) -> Iterator[Path]:
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        if target := target_of(page, link[2]):
            yield target


def target_of(page: Path, link: str) -> Path | None:
    """The file of the repository that a link of a page means; of a folder its README. None: an address, an anchor."""
    name = unquote(link.partition("#")[0])
    if not name or ":" in name:
        return None
    target = Path(os.path.normpath(page.parent / name))
    if target == ROOT / "docs":
        return ROOT / "README.md"
    target = target / "README.md" if target.is_dir() else target
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    source = Path(page.file.abs_src_path)

    def relink(link: re.Match) -> str:
        target = target_of(source, link[2])
        if target is None:
            return link[0]
        anchor = "".join(link[2].partition("#")[1:])
        place = os.path.relpath(place_of(target), Path(page.file.src_uri).parent)
        return f"{link[1]}{place}{anchor}{link[3]}"

    return spaced(LINK.sub(relink, markdown))


def spaced(markdown: str) -> str:
    """With an empty line before each list and table, and a language alone at a fence: Python-Markdown needs both."""
    lines: list[str] = []
    is_fenced = False
    for line in markdown.split("\n"):
        before = lines[-1] if lines else ""
        begins = BLOCK.match(line) and before.strip() and not BLOCK.match(before) and not before.startswith(" ")
        if begins and not is_fenced:
            lines.append("")
        fence = FENCE.match(line)
        is_fenced ^= bool(fence)
        lines.append(fence[1] if fence else line)
    return "\n".join(lines)
