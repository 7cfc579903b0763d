"""Tasks on pages of our own. What counts is the effect: bytes that arrived, fields that the server got, never a look.

A task is a function here that draws a problem from a seed; its page is a template in `task_pages/`. Everything that
could be learned by heart is drawn: what is asked for, where it stands, its colours, sizes and wording, and the language
of the instruction (the pages are in English).
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment

from qwenvl_agent.html_templates import templates_in
from qwenvl_agent.worlds.browser.elements import read_layout
from qwenvl_agent.worlds.browser.instructions import write_instructions
from qwenvl_agent.worlds.browser.pages import EMOJI_FONTS, FAMILIES, PALETTES, draw_page, draw_theme, picture_source
from qwenvl_agent.worlds.browser.problem import Asked, Effects, SiteProblem, Task
from qwenvl_agent.worlds.browser.server import Response
from qwenvl_agent.worlds.browser.window import Frame, Window
from qwenvl_agent.worlds.browser.words import LANGUAGES, picture_word, words

TASKS: dict[str, Task] = {}
"""By name, in the order in which seeds go round."""
SEED_STEP = 10_000_000
"""From a generated page on which nothing can be asked for to the next one, outside of all seed sets."""
MAX_DRAWS = 20

Say = Callable[..., str]
Drawn = dict
"""Keyword arguments of SiteProblem, without the name."""


@dataclass(frozen=True)
class Draw:
    """What a task is drawn with: `say` picks the instruction's wording by language, `theme` is the page's look."""

    seed: int
    rng: random.Random
    language: str
    family: str
    theme: dict

    def say(self, *wordings: str, **parts: str) -> str:
        """One wording for each of LANGUAGES, with its parts filled in."""
        return wordings[LANGUAGES.index(self.language)].format(**parts)

    def some(self, things: Iterable, number: int) -> list:
        return self.rng.sample(list(things), number)

    def page(self, template: str, **values: object) -> Response:
        common = {"theme": self.theme, "palette": PALETTES["muted"], "emoji_fonts": EMOJI_FONTS}
        return html(templates().get_template(f"{template}.html.jinja").render(common | values))


def html(text: str) -> Response:
    return Response(text.encode())


@cache
def templates() -> Environment:
    return templates_in(Path(__file__).parent / "task_pages")


def task(*, clicks_only: bool = False) -> Callable:
    """Register a function that draws a problem of the task of its name."""

    def register(function: Callable[[Draw], SiteProblem]) -> Callable[[Draw], SiteProblem]:
        def draw(seed: int, rng: random.Random, language: str, family: str) -> SiteProblem:
            return function(Draw(seed, rng, language, family, draw_theme(FAMILIES["desktop"], rng)))

        TASKS[function.__name__] = Task(function.__name__, draw, clicks_only)
        return function

    return register


# Pages that the data is drawn from.


@dataclass(kw_only=True)
class GeneratedProblem(SiteProblem):
    """One click on a page of `pages.py`, asked for in the words of `instructions.py`; the page tells what it hit."""

    seed: int
    family: str
    language: str
    ways: tuple[str, ...] = ()
    """Ways of asking (`instructions.WAYS`); all if empty."""
    bind: str = ""
    """What a click does besides: JavaScript of (element, is_target)."""
    frame: Frame = field(default_factory=lambda: Frame(width=1, height=1))

    def draw(self, attempt: int) -> None:
        seed = self.seed + attempt * SEED_STEP
        page = draw_page(self.family, seed, (self.language,))
        self.frame = Frame(width=page.width, height=page.height, scale=page.scale)
        self.pages[""] = lambda asked: html(page.html)

    def prepare(self, window: Window) -> None:
        """Choose the target among what the browser shows; a page on which nothing can be asked for is drawn anew."""
        page = window.page
        for attempt in range(1, MAX_DRAWS):
            layout = read_layout(page)
            rng = random.Random(f"instruction {self.seed} {attempt}")
            written = write_instructions(layout, [self.language], 10, rng)
            written = [one for one in written if not self.ways or one.kind in self.ways]
            if written:
                element = layout.elements[written[0].element]
                x, y = ((value + 0.5) / layout.scale for value in element.point)
                page.evaluate(LISTEN, [x, y])
                if self.bind:
                    page.evaluate(self.bind)
                self.instruction = written[0].text
                self.wanted = {"point": (x, y), "picture": element.picture}
                return
            self.draw(attempt)
            window.resize(self.frame)
            page.reload()
        raise RuntimeError(f"{MAX_DRAWS} pages of {self.family} from seed {self.seed} have nothing to ask for")


LISTEN = """([x, y]) => {
  const INTERACTIVE = 'a[href],button,input,select,textarea,summary,[contenteditable],[onclick],[tabindex],[role]';
  const owner = e => e?.closest(INTERACTIVE) ?? e?.closest('img') ?? null;
  const target = owner(document.elementFromPoint(x, y));
  addEventListener('submit', event => event.preventDefault());
  addEventListener('click', event => {
    const hit = owner(event.target);
    if (!hit) return;
    if (hit.matches('a[href]')) event.preventDefault();
    const request = new XMLHttpRequest();
    request.open('POST', hit === target ? 'right' : 'wrong', false);
    request.send('');
    window.onHit?.(hit);
  }, {capture: true});
}"""
SAVE_PICTURE = """() => {
  window.onHit = hit => {
    if (!hit.dataset.itemPicture) return;
    const link = document.createElement('a');
    link.href = 'pictures/' + hit.dataset.itemPicture + '.svg'; link.download = '';
    link.click();
  };
}"""


def generated(draw: Draw, **settings: Any) -> GeneratedProblem:
    problem = GeneratedProblem(
        instruction="",
        pages={},
        goals={"reached": lambda effects: bool(effects.sent("right"))},
        harms={"another element was clicked": lambda effects: bool(effects.sent("wrong"))},
        max_turns=1,
        seed=draw.seed,
        family=draw.family,
        language=draw.language,
        **{"name": "press_element", **settings},
    )
    problem.draw(0)
    return problem


@task(clicks_only=True)
def press_element(draw: Draw) -> SiteProblem:
    """One click on a generated page."""
    return generated(draw)


@task(clicks_only=True)
def get_picture(draw: Draw) -> SiteProblem:
    """One click on one of several pictures saves it; it must be the one that was asked for."""
    problem = generated(draw, name="get_picture", ways=("picture",), bind=SAVE_PICTURE)

    def is_saved(effects: Effects) -> bool:
        key = problem.wanted.get("picture")
        return bool(key) and [file.read_bytes() for file in effects.files] == [picture_bytes(key, "#ffffff")]

    for key in words()["pictures"]:
        problem.pages[f"pictures/{key}.svg"] = lambda asked, key=key: picture_file(key, "#ffffff")
    problem.goals = {"saved": is_saved}
    return problem


# Files.


def picture_bytes(key: str, colour: str) -> bytes:
    """The picture as an SVG file."""
    return unquote(picture_source(words()["pictures"][key][0], colour).split(",", 1)[1]).encode()


def picture_file(key: str, colour: str) -> Response:
    return Response(picture_bytes(key, colour), "image/svg+xml", is_file=True)


def draw_picture(draw: Draw, key: str) -> dict:
    """The picture for a page: `file` and `colour` are this episode's, so that no bytes can be known before."""
    colour = f"hsl({draw.rng.randrange(360)},70%,{draw.rng.randint(55, 85)}%)"
    return {
        "key": key,
        "word": picture_word(key, "en"),
        "colour": colour,
        "file": f"image_{draw.rng.randrange(10**6):06}.svg",
        "source": picture_source(words()["pictures"][key][0], colour),
    }


def animals() -> list[str]:
    return [key for key, entry in words()["pictures"].items() if entry[4] == "animal"]


def has_bytes(picture: dict) -> Callable[[Effects], bool]:
    wanted = picture_bytes(picture["key"], picture["colour"])
    return lambda effects: any(file.read_bytes() == wanted for file in effects.files)


def has_others(picture: dict) -> Callable[[Effects], bool]:
    wanted = picture_bytes(picture["key"], picture["colour"])
    return lambda effects: any(file.read_bytes() != wanted for file in effects.files)


@task(clicks_only=True)
def download_kitten(draw: Draw) -> SiteProblem:
    """The kitten's picture among other animals', which have no words."""
    others = draw.some([key for key in animals() if key != "kitten"], draw.rng.randint(2, 7))
    pictures = [draw_picture(draw, key) for key in ["kitten", *others]]
    kitten = pictures[0]
    draw.rng.shuffle(pictures)
    gallery = draw.page(
        "gallery",
        title=draw.rng.choice(["Pictures", "Animals", "Gallery", "Free pictures"]),
        pictures=pictures,
        columns=draw.rng.randint(3, 4),
        size=draw.rng.choice([96, 110, 128]),
        label=draw.rng.choice(["Download", "Save", "Get it"]),
        is_button=draw.rng.random() < 0.5,
    )
    files = {
        picture["file"]: lambda asked, picture=picture: picture_file(picture["key"], picture["colour"])
        for picture in pictures
    }
    return SiteProblem(
        name="download_kitten",
        instruction=draw.say("Download the picture of the kitten.", "下载小猫图片。", "고양이 사진을 내려받아 주세요."),
        pages={"": lambda asked: gallery, **files},
        goals={"kitten": has_bytes(kitten)},
        harms={"another picture was downloaded": has_others(kitten)},
        wanted={"click": f"[data-key={kitten['key']}]"},
    )


ADS = (
    ("DOWNLOAD NOW", "Free, fast and safe"),
    ("Start download", "Your file is ready"),
    ("Download (recommended)", "With the download manager"),
    ("FREE DOWNLOAD", "No registration"),
)


@task(clicks_only=True)
def avoid_trap(draw: Draw) -> SiteProblem:
    """The real link is small; the large buttons around it download something else."""
    picture = draw_picture(draw, draw.rng.choice(animals()))
    ads = [
        {"label": label, "note": note, "file": f"setup_{i}.exe"}
        for i, (label, note) in enumerate(draw.some(ADS, draw.rng.randint(1, 2)))
    ]
    parts = ["picture", *ads]
    draw.rng.shuffle(parts)
    page = draw.page("trap", title="", picture=picture, parts=parts, size=draw.rng.choice([640, 1024, 1920]))
    program = Response(b"MZ not what you wanted", "application/octet-stream", is_file=True)
    name = picture_word(picture["key"], draw.language)
    return SiteProblem(
        name="avoid_trap",
        instruction=draw.say(
            "Download the {name} picture and nothing else: the advertisements have buttons of their own.",
            "只下载{name}图片，不要点广告里的下载按钮。",
            "{name} 사진만 내려받아 주세요. 광고의 다운로드 버튼은 누르지 마세요.",
            name=name,
        ),
        pages={
            "": lambda asked: page,
            picture["file"]: lambda asked: picture_file(picture["key"], picture["colour"]),
            **{ad["file"]: lambda asked: program for ad in ads},
        },
        goals={"picture": has_bytes(picture)},
        harms={"something else was downloaded": has_others(picture)},
        wanted={"click": "#real"},
    )


# Forms, lists, dialogs.

CHOICES = {
    "Size": ("small", "medium", "large"),
    "Meal": ("fish", "meat", "vegetables"),
    "Ticket": ("child", "adult", "senior"),
}
CHECKS = {"news": "Send me news", "gift": "It is a gift", "invoice": "I need an invoice"}


@task()
def submit_form(draw: Draw) -> SiteProblem:
    """Text fields, a choice and check boxes; the server must get exactly what was asked for."""
    person = draw.rng.choice(words()["people"])[0]
    wanted = {"name": person, "email": f"{person.split()[0].lower()}{draw.rng.randint(1, 99)}@example.org"}
    label = draw.rng.choice(list(CHOICES))
    wanted["choice"] = draw.rng.choice(CHOICES[label])
    checks = draw.some(CHECKS, draw.rng.randint(1, 2))
    ticked = [name for name in checks if draw.rng.random() < 0.6]
    fields = [
        {"kind": "text", "name": "name", "label": "Name"},
        {"kind": "text", "name": "email", "label": "E-mail"},
        {"kind": "choice", "name": "choice", "label": label, "options": draw.some(CHOICES[label], 3)},
    ]
    draw.rng.shuffle(fields)
    fields += [
        {"kind": "check", "name": name, "label": CHECKS[name], "is_checked": draw.rng.random() < 0.3} for name in checks
    ]
    buttons = draw.some(["submit", "reset"], 2)
    page = draw.page("form", title=draw.rng.choice(["Order", "Registration"]), fields=fields, buttons=buttons)
    thanks = draw.page("message", title="Thank you", text="The form has arrived.")
    ticks = "; ".join(f"{CHECKS[name]}: {'yes' if name in ticked else 'no'}" for name in checks)
    expected = wanted | dict.fromkeys(ticked, "yes")
    return SiteProblem(
        name="submit_form",
        instruction=draw.say(
            "Fill in the form and send it. Name: {name}; E-mail: {email}; {label}: {choice}; {ticks}.",
            "填写并发送表单。Name：{name}；E-mail：{email}；{label}：{choice}；{ticks}。",
            "양식을 채워서 보내 주세요. Name: {name}; E-mail: {email}; {label}: {choice}; {ticks}.",
            label=label,
            ticks=ticks,
            **wanted,
        ),
        pages={"": lambda asked: page, "submitted": lambda asked: thanks},
        goals={
            **{key: lambda effects, key=key: arrived(effects).get(key) == expected[key] for key in wanted},
            "ticks": lambda effects: (
                bool(arrived(effects))
                and [n for n in checks if n in arrived(effects)] == [n for n in checks if n in ticked]
            ),
        },
        harms={"a wrong form was sent": lambda effects: any(form != expected for form in effects.sent("submitted"))},
        wanted={"fields": wanted, "ticks": {name: name in ticked for name in checks}},
        max_turns=20,
    )


def arrived(effects: Effects) -> dict[str, str]:
    """The fields of the last form that was sent."""
    return (effects.sent("submitted") or [{}])[-1]


ADJECTIVES = ("red", "small", "old", "warm", "light", "round", "folding", "wooden", "quiet", "soft")
NOUNS = ("lamp", "chair", "kettle", "blanket", "clock", "mirror", "basket", "tent", "radio", "shelf")


def draw_items(draw: Draw, number: int) -> list[str]:
    """Different names of things, such as `old clock`."""
    every = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    return draw.some(every, number)


@task()
def find_by_scrolling(draw: Draw) -> SiteProblem:
    """One thing of a long list, below what is seen at first."""
    items = draw_items(draw, draw.rng.randint(25, 50))
    item = draw.rng.choice(items[12:])
    page = draw.page("list", title="Things for the house", items=items)
    return SiteProblem(
        name="find_by_scrolling",
        instruction=draw.say("Order the {item}.", "订购“{item}”。", "“{item}” 항목을 주문해 주세요.", item=item),
        pages={"": lambda asked: page, "ordered": lambda asked: Response()},
        goals={"ordered": lambda effects: {"item": item} in effects.sent("ordered")},
        harms={"another thing was ordered": lambda e: any(sent != {"item": item} for sent in e.sent("ordered"))},
        wanted={"click": f"[data-item='{item}']"},
        max_turns=25,
    )


DIALOGS = (
    ("Subscribe to our letter?", "Subscribe", "No, thanks"),
    ("We use cookies. All of them?", "Accept all", "Only what is needed"),
    ("Turn on notifications?", "Allow", "Not now"),
    ("Get our app for this page?", "Get the app", "Stay in the browser"),
)


@task(clicks_only=True)
def dismiss_dialog(draw: Draw) -> SiteProblem:
    """A dialog is in the way: decline, then press what lies behind."""
    question, accept, decline = draw.rng.choice(DIALOGS)
    choices = draw.some([{"key": "accept", "label": accept}, {"key": "decline", "label": decline}], 2)
    width, button = draw.rng.randint(360, 520), draw.rng.choice(["Read on", "Open the article", "Show the report"])
    page = draw.page(
        "dialog",
        title=draw.rng.choice(words()["headlines"])[0],
        text=draw.rng.choice(words()["sentences"])[0],
        depth=draw.rng.randint(20, 200),
        button=button,
        question=question,
        choices=choices,
        width=width,
        is_bar=draw.rng.random() < 0.3,
        place=f"left:{draw.rng.randint(20, 260)}px;top:{draw.rng.randint(80, 300)}px;",
    )
    return SiteProblem(
        name="dismiss_dialog",
        instruction=draw.say(
            "Press “{button}”. Agree to nothing on the way.",
            "点击“{button}”，途中不要同意任何请求。",
            "“{button}” 버튼을 눌러 주세요. 도중에 아무것도 동의하지 마세요.",
            button=button,
        ),
        pages={"": lambda asked: page, "answered": lambda asked: Response(), "opened": lambda asked: Response()},
        goals={
            "declined": lambda effects: {"choice": "decline"} in effects.sent("answered"),
            "opened": lambda effects: bool(effects.sent("opened")),
        },
        harms={"the offer was accepted": lambda effects: {"choice": "accept"} in effects.sent("answered")},
        wanted={"clicks": ["[data-choice=decline]", "#target"]},
        max_turns=6,
    )


@task()
def search_and_order(draw: Draw) -> SiteProblem:
    """Search, choose one of several results, and put it into the cart."""
    noun = draw.rng.choice(NOUNS)
    items = [f"{adjective} {noun}" for adjective in draw.some(ADJECTIVES, draw.rng.randint(3, 6))]
    others = [item for item in draw_items(draw, 30) if not item.endswith(noun)]
    item = draw.rng.choice(items)
    values = {
        "title": draw.rng.choice(words()["site_names"]),
        "search": draw.rng.choice(["Search", "Find", "Go"]),
        "text": draw.rng.choice(words()["sentences"])[0],
        "actions": draw.some(["Add to cart", "Compare", "Remember"], 3),
    }
    stock = draw.some(items + others, len(items + others))

    def show(query: str, found: list[str] | None, name: str = "") -> Response:
        return draw.page("shop", query=query, found=found, item=name, **values)

    def results(asked: Asked) -> Response:
        query = asked.fields.get("q", "").strip().lower()
        return show(query, [name for name in stock if query and query in name])

    right = {"action": "Add to cart", "item": item}
    return SiteProblem(
        name="search_and_order",
        instruction=draw.say(
            "Search for {noun} and put the {item} into the cart.",
            "搜索 {noun}，把“{item}”加入购物车（Add to cart）。",
            "{noun} 검색 후 “{item}” 항목을 장바구니(Add to cart)에 담아 주세요.",
            noun=noun,
            item=item,
        ),
        pages={
            "": lambda asked: show("", None),
            "results": results,
            "item": lambda asked: show("", None, asked.fields.get("name", "")),
            "shop": lambda asked: Response(),
        },
        goals={
            "searched": lambda effects: any(noun in sent.get("q", "").lower() for sent in effects.sent("results")),
            "ordered": lambda effects: right in effects.sent("shop"),
        },
        harms={"something else was done": lambda effects: any(sent != right for sent in effects.sent("shop"))},
        wanted={"query": noun, "item": item, "action": "Add to cart"},
        max_turns=15,
    )


# Other ways of the mouse, and the keyboard.


@task()
def move_card(draw: Draw) -> SiteProblem:
    """Drag a coloured card into a box."""
    names = draw.some(PALETTES["muted"], draw.rng.randint(2, 4))
    places = draw.some([(x, y) for x in (40, 220, 400, 580) for y in (40, 150)], len(names))
    cards = [
        {"name": name, "x": x + draw.rng.randint(0, 30), "y": y, "width": 130, "height": 80}
        for name, (x, y) in zip(names, places, strict=True)
    ]
    boxes = [
        {"name": name, "x": 60 + 360 * i + draw.rng.randint(0, 60), "y": 330 + draw.rng.randint(0, 40)}
        for i, name in enumerate(draw.some(["Left", "Keep", "Later", "Done"], 2))
    ]
    boxes = [box | {"width": 240, "height": 180} for box in boxes]
    page = draw.page("cards", title="Cards", cards=cards, boxes=boxes)
    right = {"card": draw.rng.choice(names), "box": draw.rng.choice(boxes)["name"]}
    return SiteProblem(
        name="move_card",
        instruction=draw.say(
            "Drag the {card} card into the box “{box}”.",
            "把 {card} 卡片拖到“{box}”框里。",
            "{card} 카드를 “{box}” 상자로 끌어다 놓아 주세요.",
            **right,
        ),
        pages={"": lambda asked: page, "moved": lambda asked: Response()},
        goals={"moved": lambda effects: right in effects.sent("moved")},
        harms={"a card was put elsewhere": lambda effects: any(sent != right for sent in effects.sent("moved"))},
        wanted={"drag": (f"[data-card={right['card']}]", f"[data-box={right['box']}]")},
        max_turns=6,
    )


FILES = (("report", ".txt", "📄"), ("holiday", ".jpg", "🖼️"), ("budget", ".xls", "📊"), ("song", ".mp3", "🎵"))
ENTRIES = ("Open", "Rename", "Copy", "Delete")


def draw_files(draw: Draw) -> list[dict]:
    kinds = [draw.rng.choice(FILES) for _ in range(draw.rng.randint(5, 10))]
    files = [{"name": f"{name}_{i + 1}{ending}", "icon": icon} for i, (name, ending, icon) in enumerate(kinds)]
    return draw.some(files, len(files))


def file_problem(draw: Draw, name: str, what: str, instruction: Sequence[str], max_turns: int) -> SiteProblem:
    files = draw_files(draw)
    file = draw.rng.choice(files)["name"]
    right = {"what": what, "file": file}
    entries = draw.some(ENTRIES, len(ENTRIES))
    page = draw.page("files", title=draw.rng.choice(["Files", "Desktop"]), files=files, entries=entries)
    return SiteProblem(
        name=name,
        instruction=draw.say(*instruction, **right),
        pages={"": lambda asked: page, "did": lambda asked: Response()},
        goals={"done": lambda effects: right in effects.sent("did")},
        harms={"something else was done": lambda effects: any(sent != right for sent in effects.sent("did"))},
        wanted={"file": f"[data-file='{file}']", "entry": f"[data-entry={what}]"},
        max_turns=max_turns,
    )


@task()
def open_file(draw: Draw) -> SiteProblem:
    """A double click."""
    wordings = ("Open {file} by a double click.", "双击打开 {file}。", "{file} 파일을 더블클릭해서 열어 주세요.")
    return file_problem(draw, "open_file", "Open", wordings, 4)


@task()
def use_context_menu(draw: Draw) -> SiteProblem:
    """A right click, then an entry of the menu that opens."""
    wordings = (
        "Right-click {file} and choose “{what}”.",
        "右键点击 {file}，选择“{what}”。",
        "{file} 파일을 마우스 오른쪽 버튼으로 눌러 “{what}” 항목을 고르세요.",
    )
    return file_problem(draw, "use_context_menu", draw.rng.choice(ENTRIES[1:]), wordings, 5)


@task()
def replace_text(draw: Draw) -> SiteProblem:
    """What stands in a field must go; Enter saves."""
    labels = draw.some(["Title", "Author", "Place", "Subject"], draw.rng.randint(2, 3))
    values = draw.some([entry[0] for entry in words()["headlines"]], len(labels) + 1)
    notes = [
        {"name": label.lower(), "label": label, "value": value} for label, value in zip(labels, values, strict=False)
    ]
    label, text = draw.rng.choice(labels), values[-1]
    page = draw.page("note", title="Note", notes=notes)
    saved = draw.page("message", title="Saved", text="The note was saved.")
    right = {label.lower(): text}
    return SiteProblem(
        name="replace_text",
        instruction=draw.say(
            "Replace the text of “{label}” by “{text}” and press Enter.",
            "把“{label}”的内容替换为“{text}”，然后按回车。",
            "“{label}” 내용을 “{text}” 문장으로 바꾸고 Enter 키를 눌러 주세요.",
            label=label,
            text=text,
        ),
        pages={"": lambda asked: page, "saved": lambda asked: saved},
        goals={"saved": lambda effects: right in effects.sent("saved")},
        harms={"something else was saved": lambda effects: any(sent != right for sent in effects.sent("saved"))},
        wanted={"field": f"[name={label.lower()}]", "text": text},
        max_turns=8,
    )


MENUS = {
    "File": ("New", "Open", "Save as", "Export", "Print"),
    "Edit": ("Undo", "Copy", "Paste", "Find"),
    "View": ("Zoom in", "Zoom out", "Full screen"),
    "Help": ("Manual", "Report a fault", "About"),
}


@task(clicks_only=True)
def use_menu(draw: Draw) -> SiteProblem:
    """Open a menu, choose an entry."""
    menus = [{"name": name, "entries": draw.some(MENUS[name], len(MENUS[name]))} for name in draw.some(MENUS, 4)]
    menu = draw.rng.choice(menus)
    right = {"menu": menu["name"], "entry": draw.rng.choice(menu["entries"])}
    page = draw.page("menu", title="Editor", menus=menus, text=draw.rng.choice(words()["sentences"])[0])
    return SiteProblem(
        name="use_menu",
        instruction=draw.say(
            "Choose “{entry}” in the menu “{menu}”.",
            "在“{menu}”菜单中选择“{entry}”。",
            "“{menu}” 메뉴에서 “{entry}” 항목을 고르세요.",
            **right,
        ),
        pages={"": lambda asked: page, "chose": lambda asked: Response()},
        goals={"chosen": lambda effects: right in effects.sent("chose")},
        harms={"another entry was chosen": lambda effects: any(sent != right for sent in effects.sent("chose"))},
        wanted={"head": f"[data-menu={right['menu']}] .head", "entry": f".open [data-entry='{right['entry']}']"},
        max_turns=6,
    )


@task()
def read_price(draw: Draw) -> SiteProblem:
    """A question whose answer stands on another page."""
    pages = draw.some(["Tools", "Garden", "Kitchen", "Office"], 3)
    items = draw_items(draw, 18)
    rows = [
        {"item": item, "price": f"{draw.rng.randint(3, 99)}.{draw.rng.choice(['00', '50', '90'])}", "stock": stock}
        for item, stock in zip(items, [draw.rng.randint(0, 40) for _ in items], strict=True)
    ]
    tables = {page: rows[6 * i : 6 * i + 6] for i, page in enumerate(pages)}
    where = draw.rng.choice(pages)
    row = draw.rng.choice(tables[where])

    def show(page: str) -> Response:
        return draw.page("prices", title="Price list", pages=pages, current=page, rows=tables[page])

    return SiteProblem(
        name="read_price",
        instruction=draw.say(
            "What does the {item} cost? It is on the page “{where}”. Answer with the number.",
            "“{item}”的价格是多少？它在“{where}”页上。请用数字回答。",
            "“{item}” 가격은 얼마인가요? “{where}” 페이지에 있습니다. 숫자로 답해 주세요.",
            item=row["item"],
            where=where,
        ),
        pages={"": lambda asked: show(pages[0]), **{page: lambda asked, page=page: show(page) for page in pages}},
        goals={"answered": lambda effects: is_number(effects.answer, float(row["price"]))},
        harms={
            "wrong answer": lambda effects: (
                effects.answer is not None and not is_number(effects.answer, float(row["price"]))
            )
        },
        wanted={"page": where, "answer": row["price"]},
        max_turns=6,
    )


def is_number(text: str | None, value: float) -> bool:
    """Whether an answer is that number, perhaps with a currency sign."""
    try:
        return float((text or "").strip(" $€£¥₩.").replace(",", "")) == value
    except ValueError:
        return False
