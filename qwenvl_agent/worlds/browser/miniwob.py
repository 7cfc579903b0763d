"""MiniWoB++ (Farama Foundation, MIT licence) as tasks: its pages from the `miniwob` package, its reward as it is.

Success is a raw reward of exactly 1.0, as in the benchmark's own binary reward: partial rewards and the time discount
count for nothing. The timer is lifted, because an agent's speed is the machine's; the number of turns is limited
instead. Pages are 160x210 CSS px and shown at three times that, else their words are too small to read.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_agent.files import confined_path
from qwenvl_agent.worlds.browser.problem import Effects, Task, Verdict
from qwenvl_agent.worlds.browser.server import MISSING, Asked, Response
from qwenvl_agent.worlds.browser.window import Frame, Window

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Dialogs of the pages overflow the 160x210 area, so the window is larger than what is shown.
FRAME = Frame(width=500, height=320, scale=3, shown=(160, 210))
MAX_TURNS = 10
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".png": "image/png",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
}
NAMES = (
    *("click-test", "click-test-2", "click-button", "click-link", "click-dialog", "click-dialog-2", "click-color"),
    *("click-shape", "click-tab", "click-widget", "identify-shape", "grid-coordinate", "unicode-test"),
    *("focus-text", "focus-text-2", "click-checkboxes", "click-option", "click-button-sequence"),
    *("enter-text", "enter-password", "login-user", "simple-arithmetic", "simple-algebra"),
)
# EPISODE_MAX_TIME stays below 2^31 ms, beyond which a timer fires at once. The cover that asks to start again would lie
# over the last picture.
START = """async seed => {
  const style = document.createElement('style');
  style.textContent = '#sync-task-cover { visibility: hidden !important; pointer-events: none !important }';
  document.head.append(style);
  Math.seedrandom(seed);
  core.EPISODE_MAX_TIME = 1e9;
  core.startEpisodeReal();
  for (let i = 0; i < 100 && !WOB_TASK_READY; i++) await new Promise(resolve => setTimeout(resolve, 10));
  const said = core.getUtterance();
  return typeof said === 'string' ? said : said.utterance;
}"""
STATE = "() => ({isDone: WOB_DONE_GLOBAL, reward: WOB_RAW_REWARD_GLOBAL})"


@cache
def html_folder() -> Path:
    """The pages of the package; ValueError if it is not installed. It is not imported: that would load Selenium."""
    spec = find_spec("miniwob")
    if spec is None or spec.origin is None:
        raise ValueError(
            "the package miniwob is not installed: its tasks cannot be played; pip install 'qwenvl-agent[browser]', or "
            "choose tasks of our own (own, clicks)"
        )
    return Path(spec.origin).parent / "html"


@dataclass(kw_only=True)
class MiniwobProblem:
    """One of the benchmark's pages, seeded. `reward` is its raw reward once the page is done."""

    name: str
    seed: int
    instruction: str = ""
    frame: Frame = FRAME
    max_turns: int = MAX_TURNS
    wanted: dict = field(default_factory=dict)
    effects: Effects = field(default_factory=Effects)
    reward: float | None = None

    @property
    def start(self) -> str:
        return f"miniwob/{self.name}.html"

    def respond(self, asked: Asked) -> Response:
        self.effects.journal.append(asked)
        try:
            path = confined_path(html_folder(), asked.path)
            return Response(path.read_bytes(), KINDS.get(path.suffix, "application/octet-stream"))
        except (OSError, ValueError):
            return MISSING

    def prepare(self, window: Window) -> None:
        self.instruction = window.page.evaluate(START, str(self.seed))

    def judge(self, page: "Page") -> Verdict:
        state = page.evaluate(STATE)
        if not state["isDone"]:
            return Verdict({"reward": False})
        self.reward = float(state["reward"])
        is_right = self.reward == 1.0
        return Verdict({"reward": is_right}, () if is_right else (f"raw reward {self.reward:g}",), is_over=True)


def task_of(name: str) -> Task:
    return Task(name, lambda seed, rng, language, family: MiniwobProblem(name=name, seed=seed))


MINIWOB: dict[str, Task] = {name: task_of(name) for name in NAMES}
"""Tasks that one screenshot at a time is enough for, and that our oracle plays."""
