"""The site of README and docs: built, with dead links and anchors as errors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'src="images/safari.webp"' in home and 'href="TRAINING.html#configs"' in home
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"METRICS.html", "README.ko.html", "examples/worlds/cards/index.html"} <= pages
    assert "<table>" in home and not re.search(r"<p>\| ", home)  # a table that was not read as one
