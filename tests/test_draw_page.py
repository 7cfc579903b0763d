"""Pictures of pages for the docs: what a Chromium window shows, from an element that was unfolded."""

import pytest
from loading import load_program
from PIL import Image

PAGE = """<!doctype html><style>body { margin: 0; background: #00f } @media (prefers-color-scheme: dark) { body { background: #f00 } }
div { height: 900px } details { background: #0f0 } p { height: 400px; margin: 0 }</style>
<div></div><details class="case"><summary>one</summary><p>inside</p></details><div></div>"""
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def script():
    return load_program("scripts/draw_page.py")


def test_the_window_begins_at_the_element_that_is_unfolded(script, tmp_path, capsys):
    (tmp_path / "page.html").write_text(PAGE)
    out = tmp_path / "images" / "page.webp"
    window = ["--width", "300", "--height", "300", "--out", str(out)]
    seen = {}
    for name, more in (("top", []), ("dark", ["--scheme", "dark"]), ("case", ["--open", "details.case"])):
        assert script.main([str(tmp_path / "page.html"), *more, *window]) == 0
        with Image.open(out) as picture:
            assert picture.size == (300, 300)
            seen[name] = tuple(round(value / 255) for value in picture.convert("RGB").getpixel((150, 200)))
    assert seen == {"top": (0, 0, 1), "dark": (1, 0, 0), "case": (0, 1, 0)}
    assert script.main([str(tmp_path / "page.html"), "--open", "table", *window]) == 2
    assert "has no 'table'" in capsys.readouterr().err
