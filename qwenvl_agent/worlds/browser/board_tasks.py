"""Click-only tasks laid out as boards (the family `simple`), for models that see little.

The same kinds of tasks as in `tasks.py`, judged by the same effects; the pages have 256x256 px, a few large buttons and
pictures, and no text but the words on buttons.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from qwenvl_agent.worlds.browser.pages import FAMILIES, PALETTES, draw_places, draw_theme, picture_source, render_html
from qwenvl_agent.worlds.browser.pages import Draw as PageDraw
from qwenvl_agent.worlds.browser.problem import SiteProblem, Task
from qwenvl_agent.worlds.browser.server import Response
from qwenvl_agent.worlds.browser.tasks import Draw, Effects, html, picture_bytes, picture_file
from qwenvl_agent.worlds.browser.window import Frame
from qwenvl_agent.worlds.browser.words import pick, picture_word, words

FAMILY = FAMILIES["simple"]
BOARD_TASKS: dict[str, Task] = {}
"""By name, in the order in which seeds go round."""
# What a click does: pictures and advertisements are files to be saved, the head of a menu shows its entries.
SCRIPT = """<script>
const tell = (path, fields) => {
  const request = new XMLHttpRequest();
  request.open('POST', path, false);
  request.setRequestHeader('Content-Type', 'application/x-www-form-urlencoded');
  request.send(new URLSearchParams(fields).toString());
};
const save = file => { const link = document.createElement('a'); link.href = file; link.download = ''; link.click(); };
let opened = '';
const show = menu => {
  opened = menu;
  for (const e of document.querySelectorAll('.item')) if (e.dataset.item) e.hidden = e.dataset.item !== (menu || 'menus');
};
show('');
addEventListener('click', event => {
  const hit = event.target.closest('.item');
  if (!hit) return;
  const name = hit.innerText.trim(), { itemPicture, item } = hit.dataset;
  if (itemPicture) save(itemPicture + '.svg');
  else if (!item) save('setup.exe');
  else if (item === 'menus') show(name);
  else { tell('chose', {menu: opened, entry: name}); show(''); }
});
</script>"""


def board_task(function: Callable[[Draw], SiteProblem]) -> Callable[[Draw], SiteProblem]:
    """Register a function that draws a problem of the task of its name."""

    def draw(seed: int, rng: random.Random, language: str, family: str) -> SiteProblem:
        return function(Draw(seed, rng, language, "simple", draw_theme(FAMILY, rng)))

    BOARD_TASKS[function.__name__] = Task(function.__name__, draw, is_click_only=True)
    return function


def draw_things(draw: Draw, contents: Sequence[dict]) -> list[dict]:
    """These at places and in colours of their own; fewer, from the end, if they do not fit."""
    wide = [cells for cells in FAMILY.item_cells if cells[0] >= FAMILY.word_cells]
    width, height, _ = FAMILY.screens[0]
    places: list[dict] = []
    while len(places) < len(contents):
        places = draw_places(PageDraw(draw.rng, draw.language, FAMILY, width, height), len(contents), wide)
    colours = draw.some(PALETTES[FAMILY.palette], len(contents))
    return [
        _coloured(content | {"place": place, "colour": colour})
        for content, place, colour in zip(contents, places, colours, strict=True)
    ]


def _coloured(thing: dict) -> dict:
    if thing["kind"] != "picture":
        return thing
    emoji, colour = words()["pictures"][thing["picture"]["key"]][0], thing["colour"]
    source = picture_source(emoji, PALETTES[FAMILY.palette][colour])
    return thing | {"picture": thing["picture"] | {"backdrop": colour, "source": source}}


def picture(key: str) -> dict:
    return {"kind": "picture", "intent": "download", "picture": {"key": key, "word": picture_word(key, "en")}}


def button(label: str, item: str = "") -> dict:
    return {"kind": "button", "action": {"label": label, "intent": "", "item": item, "picture": ""}}


def board_problem(draw: Draw, things: Sequence[dict], **settings: Any) -> SiteProblem:
    page = render_html(draw.language, draw.theme, [("board", {"things": list(things)})])
    page = page.replace("</body>", SCRIPT + "</body>")
    width, height, scale = FAMILY.screens[0]
    files = {f"{key}.svg": lambda asked, key=key: picture_file(key, "#ffffff") for key in FAMILY.pictures}
    program = Response(b"MZ not what you wanted", "application/octet-stream", is_file=True)
    pages = {"": lambda asked: html(page), "chose": lambda asked: Response(), "setup.exe": lambda asked: program}
    return SiteProblem(pages=pages | files, frame=Frame(width=width, height=height, scale=scale), **settings)


def is_saved(key: str) -> Callable[[Effects], bool]:
    wanted = picture_bytes(key, "#ffffff")
    return lambda effects: any(file.read_bytes() == wanted for file in effects.files)


def is_other_saved(key: str) -> Callable[[Effects], bool]:
    wanted = picture_bytes(key, "#ffffff")
    return lambda effects: any(file.read_bytes() != wanted for file in effects.files)


@board_task
def board_kitten(draw: Draw) -> SiteProblem:
    """The kitten's picture among other animals'."""
    others = draw.some([key for key in FAMILY.pictures if key != "kitten"], draw.rng.randint(1, 4))
    return board_problem(
        draw,
        draw_things(draw, [picture(key) for key in ("kitten", *others)]),
        name="board_kitten",
        instruction=draw.say("Download the picture of the kitten.", "下载小猫图片。", "고양이 사진을 내려받아 주세요."),
        goals={"kitten": is_saved("kitten")},
        harms={"another picture was downloaded": is_other_saved("kitten")},
        wanted={"click": "[data-item-picture=kitten]"},
        max_turns=3,
    )


@board_task
def board_trap(draw: Draw) -> SiteProblem:
    """A picture to be saved, and buttons that save something else."""
    key = draw.rng.choice(FAMILY.pictures)
    table = words()["actions"]
    ads = [pick(table[ad][0], draw.language, draw.rng) for ad in draw.some(["download", "buy", "play"], 2)]
    name = picture_word(key, draw.language)
    return board_problem(
        draw,
        draw_things(draw, [picture(key), *(button(ad) for ad in ads[: draw.rng.randint(1, 2)])]),
        name="board_trap",
        instruction=draw.say(
            "Download the picture of the {name} and nothing else: the buttons are advertisements.",
            "只下载{name}图片，其他按钮都是广告。",
            "{name} 사진만 다운로드해 주세요. 버튼은 모두 광고입니다.",
            name=name,
        ),
        goals={"picture": is_saved(key)},
        harms={"something else was downloaded": is_other_saved(key)},
        wanted={"click": f"[data-item-picture={key}]"},
        max_turns=3,
    )


@board_task
def board_menu(draw: Draw) -> SiteProblem:
    """Open a menu, choose an entry."""
    table = words()["actions"]
    labels = [pick(table[key][0], draw.language, draw.rng) for key in draw.some(FAMILY.actions, 6)]
    menus = {labels[0]: labels[2:4], labels[1]: labels[4:6]}
    menu = draw.rng.choice(list(menus))
    right = {"menu": menu, "entry": draw.rng.choice(menus[menu])}
    things = draw_things(draw, [button(name, "menus") for name in menus])
    for name, entries in menus.items():
        things += draw_things(draw, [button(entry, name) for entry in entries])
    return board_problem(
        draw,
        things,
        name="board_menu",
        instruction=draw.say(
            "Choose “{entry}” in the menu “{menu}”.",
            "在“{menu}”菜单中选择“{entry}”。",
            "“{menu}” 메뉴에서 “{entry}” 항목을 고르세요.",
            **right,
        ),
        goals={"chosen": lambda effects: right in effects.sent("chose")},
        harms={"another entry was chosen": lambda effects: any(sent != right for sent in effects.sent("chose"))},
        wanted=right,
        max_turns=6,
    )
