"""Policies to compare an agent with: the oracle, and random actions.

The oracle may read the page, and is told what the task wants; it acts as an agent does, by mouse and keyboard at
coordinates of the picture, one action a turn. It decides from what is there now, not from what it did, so that it can
go on from any state and be asked beside another policy.
"""

import hashlib
import random
import re
import string
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from qwenvl_agent.computer import Action, to_turn
from qwenvl_agent.computer.tool import KINDS, NAME, STATUSES
from qwenvl_agent.coordinates import GRID
from qwenvl_agent.schema import Answer, Request, ToolCall, Turn
from qwenvl_agent.worlds.browser.board_tasks import BOARD_TASKS
from qwenvl_agent.worlds.browser.env import BrowserEnv
from qwenvl_agent.worlds.browser.rules import BrowserRules
from qwenvl_agent.worlds.browser.session import LostBrowserError
from qwenvl_agent.worlds.browser.tasks import TASKS

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCROLL_SHARE = 0.6
"""Of the window's height, for one turn of the wheel."""
# Of the elements that match and hold the text, the first that a click reaches, at the point closest to its middle that
# does; else the first at all, with where it lies.
FIND = """([selector, text, width, height]) => {
  const shown = e => (e.innerText ?? e.textContent ?? '').replace(/\\s+/g, ' ').trim();
  const found = [...document.querySelectorAll(selector)].filter(e => text === null || shown(e) === text);
  const STEPS = 24;
  const reach = e => {
    const points = [];
    for (const box of e.getClientRects())
      for (let i = 0; i < STEPS; i++) for (let j = 0; j < STEPS; j++) {
        const x = box.left + box.width * (i + 0.5) / STEPS, y = box.top + box.height * (j + 0.5) / STEPS;
        const off = Math.hypot(x - box.left - box.width / 2, y - box.top - box.height / 2);
        if (x >= 1 && y >= 1 && x < width - 1 && y < height - 1) points.push([off, x, y]);
      }
    points.sort((a, b) => a[0] - b[0]);
    const hit = points.find(([, x, y]) => { const top = document.elementFromPoint(x, y); return top && e.contains(top); });
    return hit && {x: hit[1], y: hit[2]};
  };
  for (const e of found) { const point = reach(e); if (point) return {point}; }
  if (!found.length) return null;
  const box = found[0].getBoundingClientRect();
  return {point: null, isBelow: box.top + box.height / 2 > height / 2};
}"""
FIELD = """selector => {
  const field = document.querySelector(selector);
  const all = field.selectionStart === 0 && field.selectionEnd === field.value.length;
  return {value: field.value, isFocused: document.activeElement === field, isSelected: all && field.value !== ''};
}"""


class Eyes:
    """What the oracle sees of a page, and the actions that it knows how to aim."""

    def __init__(self, env: BrowserEnv, page: "Page"):
        self.page, self.wanted = page, env.problem.wanted
        self.instruction, self.events = env.problem.instruction, env.past
        self.screen = env.problem.frame.screen
        self.height_css = self.screen.height_px / self.screen.scale
        self.width_css = self.screen.width_px / self.screen.scale

    def at(self, x_css: float, y_css: float, kind: str = "left_click") -> Action:
        x_px, y_px = self.screen.from_css(x_css, y_css)
        return Action(kind, x_px=x_px, y_px=y_px)

    def find(self, selector: str, text: str | None = None) -> dict | None:
        return self.page.evaluate(FIND, [selector, text, self.width_css, self.height_css])

    def is_there(self, selector: str, text: str | None = None) -> bool:
        """Whether a click reaches it now."""
        found = self.find(selector, text)
        return bool(found and found["point"])

    def click(self, selector: str, text: str | None = None, kind: str = "left_click") -> Action:
        """Click it, or scroll towards it."""
        found = self.find(selector, text)
        if found is None:
            return Action("wait", seconds=0.2)
        if found["point"]:
            return self.at(found["point"]["x"], found["point"]["y"], kind)
        down = SCROLL_SHARE * self.screen.height_px
        middle = (self.screen.width_px / 2, self.screen.height_px / 2)
        return Action("scroll", x_px=middle[0], y_px=middle[1], scroll_px=-down if found["isBelow"] else down)

    def write(self, selector: str, text: str) -> Action | None:
        """The next action towards that text in the field; None if it stands there."""
        field = self.page.evaluate(FIELD, selector)
        if field["value"] == text:
            return None
        if not field["isFocused"]:
            return self.click(selector)
        if field["value"] and not field["isSelected"]:
            return Action("key", keys=("ctrl", "a"))
        return Action("type", text=text)

    def is_checked(self, selector: str) -> bool:
        return self.page.evaluate("selector => document.querySelector(selector).checked", selector)

    def read(self, expression: str, argument: object = None):
        return self.page.evaluate(expression, argument)


Plan = Callable[[Eyes], Action]


# Our own tasks.


def click_wanted(eyes: Eyes) -> Action:
    if "point" in eyes.wanted:
        return eyes.at(*eyes.wanted["point"])
    return eyes.click(eyes.wanted["click"])


def fill_form(eyes: Eyes) -> Action:
    for name, value in eyes.wanted["fields"].items():
        if name == "choice":
            selector = f"[name=choice][value='{value}']"
            if not eyes.is_checked(selector):
                return eyes.click(selector)
        elif (action := eyes.write(f"[name={name}]", value)) is not None:
            return action
    for name, is_wanted in eyes.wanted["ticks"].items():
        if eyes.is_checked(f"[name={name}]") != is_wanted:
            return eyes.click(f"[name={name}]")
    return eyes.click("[type=submit]")


def click_in_turn(eyes: Eyes) -> Action:
    """The first of the wanted that is still there."""
    for selector in eyes.wanted["clicks"]:
        if eyes.is_there(selector):
            return eyes.click(selector)
    return eyes.click(eyes.wanted["clicks"][-1])


def search_and_order(eyes: Eyes) -> Action:
    wanted = eyes.wanted
    if eyes.is_there("h2", wanted["item"]):
        return eyes.click(f"[data-action='{wanted['action']}']")
    if eyes.find(f"[data-item='{wanted['item']}']"):
        return eyes.click(f"[data-item='{wanted['item']}']")
    return eyes.write("[name=q]", wanted["query"]) or Action("key", keys=("enter",))


def drag(eyes: Eyes) -> list[Action]:
    card, box = eyes.wanted["drag"]
    start, end = eyes.click(card, kind="mouse_move"), eyes.click(box, kind="left_click_drag")
    return [start, end]


def use_context_menu(eyes: Eyes) -> Action:
    is_chosen = eyes.read("selector => document.querySelector(selector).matches('.chosen')", eyes.wanted["file"])
    if is_chosen and eyes.is_there(eyes.wanted["entry"]):
        return eyes.click(eyes.wanted["entry"])
    return eyes.click(eyes.wanted["file"], kind="right_click")


def replace_text(eyes: Eyes) -> Action:
    return eyes.write(eyes.wanted["field"], eyes.wanted["text"]) or Action("key", keys=("enter",))


def use_menu(eyes: Eyes) -> Action:
    is_open = eyes.is_there(eyes.wanted["entry"])
    return eyes.click(eyes.wanted["entry"] if is_open else eyes.wanted["head"])


def use_board_menu(eyes: Eyes) -> Action:
    entry = f".item[data-item='{eyes.wanted['menu']}']"
    if eyes.is_there(entry, eyes.wanted["entry"]):
        return eyes.click(entry, eyes.wanted["entry"])
    return eyes.click(".item[data-item=menus]", eyes.wanted["menu"])


def read_price(eyes: Eyes) -> Action:
    if eyes.is_there(".strong", eyes.wanted["page"]):
        return Action("answer", text=eyes.wanted["answer"])
    return eyes.click(f"[data-page='{eyes.wanted['page']}']")


# MiniWoB++: the instruction is read as an agent would.


def quoted(eyes: Eyes) -> list[str]:
    return re.findall(r'"([^"]*)"', eyes.instruction)


def click_quoted(selector: str) -> Plan:
    return lambda eyes: eyes.click(selector, quoted(eyes)[0])


def always(selector: str) -> Plan:
    return lambda eyes: eyes.click(selector)


def click_dialog_button(eyes: Eyes) -> Action:
    label = quoted(eyes)[0]
    return (
        eyes.click(".ui-dialog-titlebar button") if label == "x" else eyes.click(".ui-dialog-buttonset button", label)
    )


def click_color(eyes: Eyes) -> Action:
    colour = re.search(r"Click on the (\S+) colored box", eyes.instruction).group(1)
    return eyes.click(f"#area [data-color='{colour}']")


def click_tab(eyes: Eyes) -> Action:
    return eyes.click("#area ul a", re.search(r"Tab #\d", eyes.instruction).group())


WIDGETS = {"text": "input[data-type=text]", "textarea": "textarea", "button": "button"}


def click_widget(eyes: Eyes) -> Action:
    kind = quoted(eyes)[0]
    return eyes.click(f"#area {WIDGETS.get(kind, f'input[data-type={kind}]')}")


SHAPE = """() => {
  const shape = document.querySelector('#area_svg').children[0];
  const text = shape.textContent.trim();
  if (text) return /\\d/.test(text) ? 'digit' : 'letter';
  return {rect: 'rectangle', circle: 'circle', polygon: 'triangle'}[shape.tagName];
}"""


def identify_shape(eyes: Eyes) -> Action:
    return eyes.click(f"[data-type={eyes.read(SHAPE)}]")


def grid_coordinate(eyes: Eyes) -> Action:
    place = re.search(r"\(-?\d,-?\d\)", eyes.instruction).group()
    return eyes.click(f"circle[id='{place}']")


def focus_text(eyes: Eyes) -> Action:
    number = re.search(r"the (\d)(?:st|nd|rd)", eyes.instruction)
    return eyes.click(f"#tt{number.group(1)}" if number else "#tt")


def click_boxes(eyes: Eyes) -> Action:
    """Tick what the instruction lists; an option is a list of one."""
    listed = re.search(r"Select (.*) and click Submit", eyes.instruction).group(1)
    wanted = [] if listed == "nothing" else listed.split(", ")
    boxes = eyes.read(
        "() => [...document.querySelectorAll('#boxes input')].map(e => [e.parentElement.innerText.trim(), e.checked, e.id])"
    )
    for text, is_checked, key in boxes:
        if (text in wanted) != is_checked:
            return eyes.click(f"#{key}")
    return eyes.click("#subbtn")


def click_sequence(eyes: Eyes) -> Action:
    pushed = eyes.read("() => buttonsPushed.length")
    return eyes.click("#subbtn" if pushed == 0 else "#subbtn2")


def write_and_send(*fields: str) -> Plan:
    """What is quoted, in order, into the fields; the last one again if there are more fields."""

    def plan(eyes: Eyes) -> Action:
        texts = quoted(eyes)
        for i, selector in enumerate(fields):
            action = eyes.write(selector, texts[min(i, len(texts) - 1)])
            if action:
                return action
        return eyes.click("#subbtn")

    return plan


CALCULATE = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "x": lambda a, b: a * b}


def calculate(eyes: Eyes) -> Action:
    first, sign, second = eyes.read("() => document.querySelector('#math-problem').innerText").split()[:3]
    answer = CALCULATE[sign](int(first), int(second))
    return eyes.write("#math-answer", str(answer)) or eyes.click("#subbtn")


def solve(eyes: Eyes) -> Action:
    first, sign, second, _, result = eyes.read("() => document.querySelector('#math-problem').innerText").split()
    if first == "x":
        answer = int(result) - int(second) if sign == "+" else int(result) + int(second)
    else:
        answer = int(result) - int(first) if sign == "+" else int(first) - int(result)
    return eyes.write("#math-answer", str(answer)) or eyes.click("#subbtn")


SHAPES = """() => [...document.querySelectorAll('#area_svg > *')].map(e => {
  const text = e.textContent.trim();
  const words = text ? [text, /\\d/.test(text) ? 'digit' : 'letter']
    : [{rect: 'rectangle', circle: 'circle', polygon: 'triangle'}[e.tagName], 'shape'];
  const size = parseFloat(e.getAttribute('font-size') ?? e.getAttribute('width') ?? 2 * (e.getAttribute('r') ?? e.getBBox().width / 2));
  return [...words, 'item', e.getAttribute('fill'), size > 15 ? 'large' : 'small'];
})"""


def click_shape(eyes: Eyes) -> Action:
    """The first shape of which every word of the instruction is true and which can be reached."""
    words = eyes.instruction.removeprefix("Click on a ").split()
    fitting = [i for i, true in enumerate(eyes.read(SHAPES), 1) if set(words) <= set(true)]
    return eyes.click(", ".join(f"#area_svg > :nth-child({i})" for i in fitting))


PLANS: dict[str, Plan] = {
    **dict.fromkeys(
        ("press_element", "get_picture", "download_kitten", "avoid_trap", "find_by_scrolling"), click_wanted
    ),
    **dict.fromkeys(("board_kitten", "board_trap"), click_wanted),
    "board_menu": use_board_menu,
    "submit_form": fill_form,
    "dismiss_dialog": click_in_turn,
    "search_and_order": search_and_order,
    "move_card": drag,
    "open_file": lambda eyes: eyes.click(eyes.wanted["file"], kind="double_click"),
    "use_context_menu": use_context_menu,
    "replace_text": replace_text,
    "use_menu": use_menu,
    "read_price": read_price,
    "click-test": always("#subbtn"),
    "click-test-2": always("#subbtn"),
    "click-button": click_quoted("#area button"),
    "click-link": click_quoted(".alink"),
    "click-dialog": always(".ui-dialog-titlebar button"),
    "click-dialog-2": click_dialog_button,
    "click-color": click_color,
    "click-shape": click_shape,
    "click-tab": click_tab,
    "click-widget": click_widget,
    "identify-shape": identify_shape,
    "grid-coordinate": grid_coordinate,
    "unicode-test": click_quoted("#area button"),
    "focus-text": focus_text,
    "focus-text-2": focus_text,
    "click-checkboxes": click_boxes,
    "click-option": click_boxes,
    "click-button-sequence": click_sequence,
    "enter-text": write_and_send("#tt"),
    "enter-password": write_and_send("#password", "#verify"),
    "login-user": write_and_send("#username", "#password"),
    "simple-arithmetic": calculate,
    "simple-algebra": solve,
}


class BrowserOracle:
    """Takes the page from the observation (`env.LiveObservation`), so it plays any number of episodes at once."""

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn(request.observation.env)) for request in requests]

    def turn(self, env: BrowserEnv) -> Turn:
        """An empty turn if the browser is lost: the environment says so in its next step. Where a page is just being
        replaced by the next one nothing can be read: then it waits."""
        from playwright.sync_api import Error

        with suppress(LostBrowserError):
            try:
                actions = env.read(lambda page: PLANS[env.problem.name](Eyes(env, page)))
            except Error:
                actions = Action("wait", seconds=0.2)
            return to_turn(actions if isinstance(actions, list) else [actions], env.problem.frame.screen)
        return Turn()


class RandomAgent:
    """Calls that fit the tool's schema, chosen blindly; now and then it says that it is done."""

    def __init__(self, rules: BrowserRules, *, seed: int = 0):
        self.kinds, self.seed = rules.actions, seed

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn(request)) for request in requests]

    def turn(self, request: Request) -> Turn:
        rng = random.Random(f"{self.seed} {hashlib.sha256(request.observation.text.encode()).hexdigest()}")
        return Turn(tool_calls=(ToolCall(NAME, random_arguments(rng, self.kinds)),))


def random_arguments(rng: random.Random, kinds: Sequence[str]) -> dict:
    """Arguments of one action; waiting is short."""
    kind = rng.choice(list(kinds))
    values = {
        "keys": [rng.choice([*string.ascii_lowercase, "enter", "tab", "esc", "down"])],
        "text": "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(1, 8))),
        "coordinate": [rng.randrange(GRID.cells), rng.randrange(GRID.cells)],
        "pixels": rng.randint(-600, 600),
        "time": 0.1,
        "status": rng.choice(STATUSES),
    }
    needed = KINDS[kind].needs
    return {"action": kind, **{name: values[name] for name in values if name in needed}}


assert {*TASKS, *BOARD_TASKS} <= set(PLANS), {*TASKS, *BOARD_TASKS} - set(PLANS)
