"""Pages for people, in Chromium: nothing is cut off on a narrow screen, and text can be read in light and dark."""

import threading

import pytest
from conftest import request_of, tiny_processor
from PIL import Image

import eval as evaluation
from qwenvl_agent.cli import annotate, report
from qwenvl_agent.config import PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.curation.annotation import Annotation, find_pictures, look_at
from qwenvl_agent.curation.marks import Mark
from qwenvl_agent.curation.sample_folder import SampleFolder
from qwenvl_agent.curation.samples import write_samples
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.schema import Picture, Row, ToolCall, Turn
from qwenvl_agent.studies.ablation_report import Command, Figure, Heading, Rows, Text, as_html

pytestmark = pytest.mark.browser
REACH = "machine"
"""Of this file's browser: its pages are our own servers'."""

PAGES = ("report", "screens", "suites", "ablation", "samples", "annotate")
WIDTHS = (400, 1280)
LEAST_CONTRAST = 4.5
"""Of text and what is behind it: level AA of the Web Content Accessibility Guidelines."""
LONG = "a_name_without_a_place_to_break_it_that_is_longer_than_a_narrow_screen_is_wide"
RULES = [
    "--world=width=20",
    "--world=height=20",
    "--world=num_trees=48",
    "--world=num_animals=10",
    "--world=max_turns=6",
]

OPEN_ALL = "() => document.querySelectorAll('details').forEach(one => { one.open = true; })"
OUTSIDE = """() => {
  const width = document.documentElement.clientWidth;
  const isInside = element => {  // of a part that scrolls by itself
    for (let one = element.parentElement; one && one !== document.body; one = one.parentElement)
      if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(one).overflowX)) return true;
    return false;
  };
  const outside = [...document.body.querySelectorAll('*')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && box.height && (box.right > width + 1 || box.left < -1) && !isInside(element);
  });
  return outside.map(one => `${one.tagName} ${one.className.baseVal ?? one.className} ${Math.round(one.getBoundingClientRect().right)}`);
}"""
FAINT = """least => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([red, green, blue]) => [red, green, blue].map(value => value / 255)
    .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const [red, green, blue, alpha = 1] = numbers(getComputedStyle(one).backgroundColor);
      if (alpha > 0.99) return [red, green, blue];
    }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
  };
  const found = new Set();
  for (const element of document.body.querySelectorAll('*')) {
    if (['SCRIPT', 'STYLE', 'OPTION'].includes(element.tagName) || !element.checkVisibility() || element.disabled) continue;
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const pair = [light(numbers(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < least) found.add(`${element.tagName} ${element.className} ${contrast.toFixed(2)}: ${element.textContent.trim().slice(0, 30)}`);
  }
  return [...found];
}"""


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """Of every page, each made as its command makes it."""
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "report": episodes_page(folder),
        "screens": screens_page(folder),
        "suites": suites_page(folder),
        "ablation": ablation_page(folder),
        "samples": samples_page(folder),
    }
    with SampleFolder(folder / "marked") as samples:
        (folder / "shots").mkdir()
        Image.new("RGB", (900, 600), "white").save(folder / "shots" / f"{LONG}.png")
        server = annotate.AnnotationServer(Annotation(look_at(find_pictures([folder / "shots"])), samples))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield {name: path.as_uri() for name, path in made.items()} | {"annotate": server.address}
        server.shutdown()
        thread.join()
        server.server_close()


def evaluate(*arguments) -> None:
    assert evaluation.main([str(argument) for argument in arguments]) == 0


def episodes_page(folder):
    for policy in ("random", "oracle"):
        evaluate("--policy", policy, "--suite", "safari", *RULES, "--episodes", 3, "--out", folder / policy, "--json")
    assert report.main([str(folder / "random"), str(folder / "oracle"), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


def screens_page(folder):
    Image.new("RGB", (1200, 800), "white").save(folder / "screen.png")
    row = '{"instruction": "open %s", "screenshot": "screen.png", "image_size": [1200, 800], "split": "test", '
    row += '"action": {"type": "click", "x": %d, "y": 200}, "box": [%d, 190, %d, 210]}'
    lines = [row % (LONG, 300 + i, 290 + i, 310 + i) for i in range(3)]
    (folder / "dataset.jsonl").write_text("\n".join(lines) + "\n")
    results = [folder / f"clicks_{policy}" for policy in ("random", "oracle")]
    for policy, out in zip(("random", "oracle"), results, strict=True):
        evaluate("--policy", policy, "--suite", "clicks", "--data", folder, "--out", out, "--json")
    assert report.main([*map(str, results), "--out", str(folder / "screens.html")]) == 0
    return folder / "screens.html"


def suites_page(folder):
    evaluate(
        *("--policy", "random", "--suite", "safari", *RULES, "--world=num_targets=[1]", "--world=plain_missions=true"),
        *("--episodes", 2, "--suites", "difficulty/near", "difficulty/unseen_font", "--out", folder / "set", "--json"),
    )
    return folder / "set" / "report.html"


def ablation_page(folder):
    Image.new("RGB", (1200, 500), "white").save(folder / "plot.png")
    headings = ["arm", *(f"a heading of some words, number {i}" for i in range(6))]
    blocks = [
        Text(f"Which of them? {LONG}", is_list=True),
        Command(f"python scripts/ablate.py {LONG}/{LONG}.json --local 1"),
        Heading("Arms"),
        Rows(headings, [[LONG, *("12.3 (1.2 to 34.5)" for _ in range(6))]], "What it is."),
        Figure(folder / "plot.png", "Primary outcome."),
    ]
    (folder / "ablation.html").write_text(as_html("base: which?", blocks))
    return folder / "ablation.html"


def samples_page(folder):
    weights = TrainConfig(weight_thought=0.25)
    collator = Collator(tiny_processor(1), FORMATS["hybrid"], PromptConfig(), VisionConfig(tiles=10), weights)
    turn = Turn(
        "The tiger is to the right of me.", (ToolCall("move", {"actions": [{"direction": "RIGHT", "steps": 2}]}),)
    )
    samples = [collator.sample(Row("one", request_of(), turn, f"{LONG}:1"))]
    screen = Picture.from_image(Image.new("RGB", (1600, 900), "white"))
    marks = [Mark(f"{LONG}:1", f"open {LONG}", screen, turn.tool_calls, ((300.0, 200.0),), (290, 190, 310, 210))]
    write_samples(folder / "samples.html", samples, LONG, marks)
    return folder / "samples.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_off_and_all_text_can_be_read(browser, addresses, name, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(addresses[name])
    page.wait_for_load_state("networkidle")
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(FAINT, LEAST_CONTRAST) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(paper) < 60) if scheme == "dark" else (min(paper) > 200)
    context.close()


def test_names_of_rows_stay_in_sight_beside_their_figures(browser, addresses):
    """At 400 px a table is wider than the screen: it scrolls, and its first column does not."""
    context = browser.new_context(viewport={"width": 400, "height": 900})
    page = context.new_page()
    page.goto(addresses["ablation"])
    lefts = """() => { const table = document.querySelector('.scroll'); table.scrollLeft = 300;
      return [...table.querySelectorAll('tbody tr:first-child td')].slice(0, 2).map(cell => cell.getBoundingClientRect().left); }"""
    name, figure = page.evaluate(lefts)
    assert 0 <= name < 60 and figure < name
    context.close()
