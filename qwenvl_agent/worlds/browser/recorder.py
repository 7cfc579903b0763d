"""What a person does in a browser window, as steps: the screenshot before, the action, what was hit, what came of it.

A picture is taken whenever the page is at rest after a change, not when something is pressed: by then the pointer would
light up what is about to be clicked, which no agent sees before it decides. Every page counts its changes, and tells
with each deed of the person (`recorder.js`) at which count it was done and whether what was hit stood where the last
picture shows it. A step whose picture does not show that is refused, counted, and stays in the history of later ones.

Keys become one `type` with the text that resulted, notches of the wheel one `scroll`, clicks at one spot a
double_click. What is typed into fields for secrets is never asked of the page.
"""

import base64
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_agent.computer import Action, ActionError
from qwenvl_agent.computer.context import describe
from qwenvl_agent.coordinates import Screen, centre
from qwenvl_agent.worlds.browser.elements import Layout, pixel_box, read_layout
from qwenvl_agent.worlds.browser.window import Frame, free_path

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Dialog, Page
    from playwright.sync_api import Frame as PageFrame

SCRIPT_PATH = Path(__file__).with_name("recorder.js")
QUIET_MS = 150
"""Without a change for so long, a page is at rest."""
RESTLESS_LOOKS = 8
"""Ticks after which a page that goes on moving is taken as it is."""
TICK_MS = 40
SAME_SPOT_PX, DRAG_PX = 4, 5
"""CSS px between clicks of a double click, and above which a press was a drag."""
DOUBLE_CLICK_MS, WHEEL_MS, CHARACTERS_MS, KEYS_MS = 500, 700, 3000, 500
"""Between events that are one action."""
KEPT_LOOKS = 3
CLICKS = {0: "left_click", 1: "middle_click", 2: "right_click"}
MORE_CLICKS = {"left_click": "double_click", "double_click": "triple_click"}
OFFSET = "e => { const r = e.getBoundingClientRect(); return [r.left + e.clientLeft, r.top + e.clientTop]; }"


@dataclass(frozen=True)
class Look:
    """A page as it was at rest. `states`: document and number of changes of each of its frames; `offsets`: CSS px from
    the window's corner to each frame's."""

    png: bytes
    layout: Layout
    states: dict["PageFrame", tuple[str, int]]
    offsets: dict["PageFrame", tuple[float, float]]
    url: str
    title: str


@dataclass
class Target:
    """What was under the pointer; `box` is in pixels of the picture. `is_known`: by the browser's own tree."""

    role: str
    name: str
    box: tuple[int, int, int, int] | None
    is_known: bool


@dataclass
class Step:
    """One deed. `fault` and `reason` say why it is no sample; `kind`, `time` and `key` tell which deeds go on with it."""

    number: int
    kind: str
    look: Look | None
    actions: tuple[Action, ...]
    past: tuple[str, ...]
    time: float
    key: object = None
    target: Target | None = None
    reason: str = ""
    fault: str = ""
    events: list[str] = field(default_factory=list)
    result: dict = field(default_factory=dict)
    after: bytes = b""
    """The next picture."""

    def lines(self, screen: Screen) -> list[str]:
        """The step as later ones have it in their history, in the words of the browser world."""
        told = [describe(action, screen) for action in self.actions]
        if self.events and told:
            told[-1] = f"{told[-1]} ({'; '.join(self.events)})"
        return told


class Tab:
    """A page that is recorded."""

    def __init__(self, page: "Page", frame: Frame):
        self.page = page
        self.looks: list[Look] = []
        self.last_states: dict = {}
        self.num_restless = 0
        self._session = page.context.new_cdp_session(page)
        metrics = {"width": frame.width, "height": frame.height, "deviceScaleFactor": frame.scale, "mobile": False}
        self._session.send("Emulation.setDeviceMetricsOverride", metrics)

    def states(self, name: str, method: str) -> dict["PageFrame", dict]:
        """What `state` or `look` of recorder.js gives in each frame; frames that are on their way are left out."""
        from playwright.sync_api import Error

        found = {}
        for frame in self.page.frames:
            try:
                found[frame] = frame.evaluate(f"globalThis.{name}?.{method}()")
            except Error:
                if self.page.is_closed():
                    raise
        return {frame: state for frame, state in found.items() if state}

    def shoot(self, name: str) -> Look | None:
        """A picture with what stands where on it; None if the page went on meanwhile."""
        from playwright.sync_api import Error

        main = self.page.main_frame
        try:
            states = self.states(name, "look")
            if main not in states:
                return None
            png = self._session.send("Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True})
            layout = read_layout(self.page, self._session)
            offsets = {frame: self._offset(frame) for frame in states}
            after = self.states(name, "state")
        except Error:
            if self.page.is_closed():
                raise
            return None
        before = counts(states)
        if before != counts(after) and self.num_restless < RESTLESS_LOOKS:
            return None
        return Look(base64.b64decode(png["data"]), layout, before, offsets, states[main]["url"], states[main]["title"])

    def _offset(self, frame: "PageFrame") -> tuple[float, float]:
        x = y = 0.0
        while frame.parent_frame:
            left, top = frame.frame_element().evaluate(OFFSET)
            x, y, frame = x + left, y + top, frame.parent_frame
        return x, y


def counts(states: dict["PageFrame", dict]) -> dict["PageFrame", tuple[str, int]]:
    return {frame: (state["document"], state["version"]) for frame, state in states.items()}


class Recorder:
    """Follows all pages of a context. `on_step` is told of every step, again when it grows or its result is known.

    Give it the context before any page is opened, open pages, then `watch`; all in the thread of the browser.
    """

    def __init__(
        self,
        context: "BrowserContext",
        frame: Frame,
        on_step: Callable[[Step], None],
        *,
        downloads_dir: Path,
        is_attended: bool = True,
    ):
        """`is_attended`: a person answers message boxes; else messages are read and questions are cancelled."""
        self.frame, self.on_step, self.downloads_dir = frame, on_step, downloads_dir
        self.steps: list[Step] = []
        self.tabs: list[Tab] = []
        self.num_secrets = 0
        self._is_attended = is_attended
        self._events: list[tuple[Page, PageFrame, dict]] = []
        self._arrived: list = []
        self._press: tuple | None = None
        self._last_look: Look | None = None
        self._state_name, report_name = (f"_{secrets.token_hex(8)}" for _ in range(2))
        context.expose_binding(report_name, self._note)
        script = SCRIPT_PATH.read_text(encoding="utf-8")
        context.add_init_script(script.replace("REPORT", report_name).replace("STATE", self._state_name))
        context.on("page", lambda page: self._arrived.append(page))

    @property
    def screen(self) -> Screen:
        return self.frame.screen

    def watch(self, until: Callable[[], bool] = lambda: False) -> None:
        """Record until that is so, or all pages are closed."""
        from playwright.sync_api import Error

        while not until():
            try:
                if not self._tick():
                    return
            except Error:  # a page was closed while it was asked; the next tick knows
                continue

    def finish(self, status: str) -> None:
        """The task is over: a last step that says so on the picture of what was reached."""
        self._work()
        self._end_press()
        is_acted_on = bool(self.steps) and self._last_look is self.steps[-1].look
        look = None if is_acted_on else self._last_look
        step = self._add("end", look, (Action("terminate", status=status),), 0.0, None)
        if look is None:
            self._refuse(step, "picture_late", "the window was closed before the last picture was taken")
        self.on_step(step)

    def is_settled(self) -> bool:
        """Whether all that was done is recorded, and the last picture shows the page as it is."""
        tab = self.tabs[-1] if self.tabs else None
        is_idle = not self._events and not self._arrived and self._press is None
        return bool(
            is_idle and tab and tab.looks and tab.looks[-1].states == counts(tab.states(self._state_name, "state"))
        )

    # What the browser tells.

    def _note(self, source: dict, event: dict) -> None:
        self._events.append((source["page"], source["frame"], event))

    def _greet(self) -> None:
        while self._arrived:
            page = self._arrived.pop(0)
            if page.is_closed():
                continue
            page.on("dialog", self._answer)
            page.on("download", lambda download: self._events.append((download.page, None, {"download": download})))
            self.tabs.append(Tab(page, self.frame))

    def _answer(self, dialog: "Dialog") -> None:
        self._tell_step(f"{dialog.type}: {dialog.message}"[:200])
        if self._is_attended:
            return
        if dialog.type in ("alert", "beforeunload"):
            dialog.accept()
        else:
            dialog.dismiss()

    def _tell_step(self, event: str) -> None:
        if not self.steps:
            return
        step = self.steps[-1]
        step.events.append(event)
        if step.result:
            step.result["events"] = list(step.events)
            self.on_step(step)

    def _tick(self) -> bool:
        """False once there is no page."""
        self._work()
        self.tabs = [tab for tab in self.tabs if not tab.page.is_closed()]
        if not self.tabs:
            return False
        tab = self.tabs[-1]
        tab.page.wait_for_timeout(TICK_MS)
        self._work()
        self._look(tab)
        return True

    def _look(self, tab: Tab) -> None:
        """Take a picture if the page has changed since the last one and is at rest."""
        states = tab.states(self._state_name, "state")
        now = counts(states)
        if not states or (tab.looks and tab.looks[-1].states == now):
            return
        is_quiet = all(state["quiet"] >= QUIET_MS and state["isLoaded"] for state in states.values())
        tab.num_restless = 0 if is_quiet else tab.num_restless + 1
        if not is_quiet and tab.num_restless < RESTLESS_LOOKS * QUIET_MS / TICK_MS:
            return
        step = self.steps[-1] if self.steps else None
        look = tab.shoot(self._state_name)
        if look is None:
            return
        tab.looks = [*tab.looks[1 - KEPT_LOOKS :], look]
        self._last_look = look
        is_idle = not self._events and self._press is None
        self._work()  # what was done meanwhile belongs to a picture before
        if step is not None and step is self.steps[-1] and is_idle and not step.result:
            self._tell_result(step, look)

    def _tell_result(self, step: Step, look: Look) -> None:
        step.after = look.png
        step.result = {"url": look.url, "title": look.title}
        if step.look is not None:
            step.result["is_changed"] = step.look.png != look.png
        if step.events:
            step.result["events"] = list(step.events)
        self.on_step(step)

    # From what a person does to steps.

    def _work(self) -> None:
        self._greet()
        while self._events:
            page, frame, event = self._events.pop(0)
            if "download" in event:
                self._keep(event["download"])
                continue
            tab = next((tab for tab in self.tabs if tab.page is page), None)
            if tab is None:
                continue
            if tab is not self.tabs[-1]:
                self.tabs.remove(tab)
                self.tabs.append(tab)
            self._do(tab, frame, event)

    def _keep(self, download) -> None:
        path = free_path(self.downloads_dir, download.suggested_filename)
        failure = download.failure()  # waits for the end of it
        if failure:
            self._tell_step(f"download failed: {path.name} ({failure})")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        download.save_as(path)
        self._tell_step(f"downloaded: {path.name}")

    def _do(self, tab: Tab, frame: "PageFrame", event: dict) -> None:
        kind = event["type"]
        if kind == "release":
            self._end_press((tab, frame, event))
            return
        self._end_press()
        if kind == "press":
            if event["button"] in CLICKS:
                self._press = (tab, frame, event, self._find(tab, frame, event))
        elif kind == "typing" and event["isSecret"]:
            self._hide(tab, event)
        else:
            DEEDS[kind](self, tab, frame, event)

    def _find(self, tab: Tab, frame: "PageFrame", event: dict) -> tuple[Look | None, str, str]:
        """The picture that the person acted on, or the reason and the words why there is none."""
        known = [look for look in tab.looks if look.states.get(frame, ("", 0))[0] == event["document"]]
        exact = [look for look in known if look.states[frame][1] == event["version"]]
        if not known:
            return None, "picture_late", "the page had just come: no picture shows it; wait a moment before you act"
        if not event.get("isPlaced", True):
            message = "what was hit is not where the picture shows it, or was not there; wait a moment before you act"
            return None, "not_in_picture", message
        return (exact or known[-1:])[0], "", ""

    def _point(self, look: Look | None, frame: "PageFrame", event: dict) -> tuple[float, float]:
        """Pixels of the picture, on it."""
        left, top = look.offsets.get(frame, (0.0, 0.0)) if look else (0.0, 0.0)
        size, scale = self.screen, look.layout.scale if look else self.screen.scale  # the person may zoom
        x_px, y_px = (event["x"] + left) * scale, (event["y"] + top) * scale
        return min(max(x_px, 0), math.nextafter(size.width_px, 0)), min(max(y_px, 0), math.nextafter(size.height_px, 0))

    def _target(self, look: Look, frame: "PageFrame", event: dict, point: tuple[float, float] | None) -> Target:
        """The element at the point, or at the middle of the event's own box, as the browser's tree has it, else as the
        page's code says."""
        box = self._box(look, frame, event)
        x, y = point or (centre(box) if box else (-1, -1))
        hit = [e for e in look.layout.elements if e.box[0] <= x < e.box[2] and e.box[1] <= y < e.box[3]]
        if hit and frame.parent_frame is None:
            element = min(hit, key=lambda e: (e.box[2] - e.box[0]) * (e.box[3] - e.box[1]))
            return Target(element.role, element.name or element.shown, element.box, True)
        return Target(event["role"], event["name"], box, False)

    def _box(self, look: Look, frame: "PageFrame", event: dict) -> tuple[int, int, int, int] | None:
        """The event's own box in pixels of the picture; None if that is the whole page."""
        if not event["box"]:
            return None
        left, top = look.offsets.get(frame, (0.0, 0.0))
        shift = (left, top, left, top)
        scaled = [(v + d) * look.layout.scale for v, d in zip(event["box"], shift, strict=True)]
        return pixel_box(scaled, self.screen.width_px, self.screen.height_px)

    def _add(self, kind: str, look: Look | None, actions: tuple[Action, ...], time: float, key: object) -> Step:
        if self.steps:
            if look and not self.steps[-1].result and look is not self.steps[-1].look:
                self._tell_result(self.steps[-1], look)  # the next deed came before there was another picture
            self.steps[-1].look, self.steps[-1].after = None, b""  # a long recording must not hold all its pictures
        past = tuple(line for step in self.steps for line in step.lines(self.screen))
        step = Step(len(self.steps), kind, look, actions, past, time, key)
        self.steps.append(step)
        return step

    def _refuse(self, step: Step, reason: str, fault: str) -> None:
        step.reason, step.fault = reason, fault

    def _start(
        self, kind: str, tab: Tab, frame: "PageFrame", event: dict, actions: tuple[Action, ...], key=None
    ) -> Step:
        look, reason, fault = self._find(tab, frame, event)
        step = self._add(kind, look, actions, event["time"], key)
        self._refuse(step, reason, fault)
        return step

    def _going_on(self, kind: str, key: object, event: dict | None = None, within_ms: float = 0) -> Step | None:
        """The last step, if this deed is a part of it; what came of it is then to be seen again."""
        step = self.steps[-1] if self.steps else None
        if step is None or step.kind != kind or step.key != key:
            return None
        if event is not None and event["time"] - step.time > within_ms:
            return None
        step.result = {}
        return step

    def _end_press(self, released: tuple | None = None) -> None:
        """The press becomes a click or a drag; one whose release never came (a page that was left, a list that opened)
        is a click."""
        if self._press is None:
            return
        (tab, frame, event, (look, reason, fault)), self._press = self._press, None
        start = self._point(look, frame, event)
        kind = CLICKS[event["button"]]
        if released and kind == "left_click":
            end = released[2]
            if math.dist((event["x"], event["y"]), (end["x"], end["y"])) > DRAG_PX and released[1] is frame:
                place = self._point(look, frame, end)
                drag = Action("mouse_move", *start), Action("left_click_drag", *place)
                self._save_click(self._add("drag", look, drag, event["time"], None), frame, event, start, reason, fault)
                return
        before = self._going_on("click", tab, event, DOUBLE_CLICK_MS)
        if before and kind == "left_click" and before.actions[0].kind in MORE_CLICKS:
            first = before.actions[0]
            if math.dist(first.point_px, start) <= SAME_SPOT_PX * self.screen.scale:
                before.actions = (Action.click(*first.point_px, MORE_CLICKS[first.kind]),)
                before.time = event["time"]
                self.on_step(before)
                return
        step = self._add("click", look, (Action.click(*start, kind),), event["time"], tab)
        self._save_click(step, frame, event, start, reason, fault)

    def _save_click(self, step: Step, frame, event: dict, point: tuple[float, float], reason: str, fault: str) -> None:
        self._refuse(step, reason, fault)
        if step.look:
            step.target = self._target(step.look, frame, event, point)
        self.on_step(step)

    def _choice(self, tab: Tab, frame: "PageFrame", event: dict) -> None:
        """An option of a list; the list opens outside of the page, where no screenshot reaches: its name is typed.

        Chosen by keys, it is done already.
        """
        by_keys = any(self._going_on(kind, key, event, KEYS_MS) for kind, key in (("key", None), ("characters", tab)))
        if by_keys or not event["text"]:
            return
        step = self._start("choice", tab, frame, event, (Action("type", text=event["text"]),))
        if step.look:
            step.target = self._target(step.look, frame, event, None)
        self.on_step(step)

    def _typing(self, tab: Tab, frame: "PageFrame", event: dict) -> None:
        key = (tab, event["document"], event["id"])
        step = self._going_on("typing", key)
        try:
            actions, reason, fault = typing_actions(event), "", ""
        except ActionError as error:
            actions, reason, fault = (), error.name, str(error)
        if step is None:
            step = self._start("typing", tab, frame, event, actions, key)
            if step.look:
                step.target = self._target(step.look, frame, event, None)
        step.actions = actions
        if reason:
            self._refuse(step, reason, fault)
        self.on_step(step)

    def _hide(self, tab: Tab, event: dict) -> None:
        """A secret is typed: only that it was is kept."""
        key = (tab, event["document"], event["id"])
        if self._going_on("secret", key):
            return
        self.num_secrets += 1
        step = self._add("secret", None, (), event["time"], key)
        self._refuse(step, "secret", "typed into a field for secrets: it is not recorded")
        self.on_step(step)

    def _characters(self, tab: Tab, frame: "PageFrame", event: dict) -> None:
        """Typed where no field is."""
        step = self._going_on("characters", tab, event, CHARACTERS_MS)
        if step is None:
            self.on_step(self._start("characters", tab, frame, event, (Action("type", text=event["text"]),), tab))
            return
        step.actions = (Action("type", text=step.actions[0].text + event["text"]),)
        step.time = event["time"]
        self.on_step(step)

    def _key(self, tab: Tab, frame: "PageFrame", event: dict) -> None:
        try:
            actions, reason, fault = (Action("key", keys=tuple(event["keys"])),), "", ""
        except ActionError as error:
            actions, reason, fault = (), error.name, str(error)
        step = self._start("key", tab, frame, event, actions)
        if reason:
            self._refuse(step, reason, fault)
        self.on_step(step)

    def _wheel(self, tab: Tab, frame: "PageFrame", event: dict) -> None:
        step = self._going_on("wheel", tab, event, WHEEL_MS)
        if step is None:
            step = self._start("wheel", tab, frame, event, (), tab)
        look = step.look or (tab.looks[-1] if tab.looks else None)
        point = step.actions[0].point_px if step.actions else self._point(look, frame, event)
        lengths = {action.kind: action.scroll_px for action in step.actions}
        lengths["scroll"] = lengths.get("scroll", 0.0) - event["down"] * self.screen.scale
        lengths["hscroll"] = lengths.get("hscroll", 0.0) + event["right"] * self.screen.scale
        moved = {kind: length for kind, length in lengths.items() if length} or {"scroll": 0.0}
        step.actions = tuple(Action(kind, *point, scroll_px=length) for kind, length in moved.items())
        step.time = event["time"]
        self.on_step(step)


DEEDS: dict[str, Callable[[Recorder, Tab, "PageFrame", dict], None]] = {
    "choice": Recorder._choice,
    "typing": Recorder._typing,
    "characters": Recorder._characters,
    "key": Recorder._key,
    "wheel": Recorder._wheel,
}
"""What becomes of each event of recorder.js, but press, release and what is secret."""


def typing_actions(event: dict) -> tuple[Action, ...]:
    """The keys that make of the field's text what it became; ActionError for text that is too long."""
    written = (Action("type", text=event["text"]),) if event["text"] else ()
    if event["isWhole"]:
        return (Action("key", keys=("ctrl", "a")), *(written or (Action("key", keys=("backspace",)),)))
    return written or ((Action("key", keys=("backspace",)),) if event["isEmptied"] else ())
