"""A live Chromium: tasks on pages of this machine, done by mouse and keyboard, judged by what happened.

Description
    A task opens a page of our own (`tasks.py`) or of MiniWoB++ (`miniwob.py`) in a headless browser. The agent sees
    screenshots and acts at coordinates; it cannot read the page.

Mission Space
    A seed is a task and its variation (`rules.BrowserRules`): instruction, contents, order, colours.

Action Space
    A `Turn`: calls of computer_use, run in order, at most `max_calls`.

Observation Encoding
    One screenshot and the text of `computer.context`: the task, and one line for each earlier call with what the window
    told about it (`window.py`).

Rewards
    1 at the end if every goal of the task is reached and no harm was done, else 0.

Termination
    The effect itself, harm, `terminate` or `answer` terminate; `max_turns`, `episode_seconds` and a browser that was
    lost truncate.

Registered Configurations
    `BrowserRules`; its defaults play all tasks of our own.
"""

import io
import tempfile
import time
import weakref
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from qwenvl_agent.computer import Action, ActionError, build_tool, read_call
from qwenvl_agent.computer.context import SYSTEM_PROMPT, describe, observation
from qwenvl_agent.schema import Observation, Picture, ToolCall, ToolResult, Turn
from qwenvl_agent.worlds.browser.problem import Problem, Verdict
from qwenvl_agent.worlds.browser.rules import BrowserRules
from qwenvl_agent.worlds.browser.server import page_server
from qwenvl_agent.worlds.browser.session import BrowserThread, LostBrowserError, return_browser, take_browser
from qwenvl_agent.worlds.browser.window import Window

PREPARE_SECONDS = 120
"""For opening an episode's first page, whatever `step_seconds` is: no agent has done anything yet."""


@dataclass(frozen=True)
class LiveObservation(Observation):
    """An observation with the way back to its page, which only an oracle takes; it compares and prints without it."""

    env: "BrowserEnv | None" = field(default=None, compare=False, repr=False)


class BrowserEnv:
    """One episode at a time, in a browser that no other episode uses meanwhile. `close` gives the browser back.

    `info` of reset and step: task, mission, goals (with the task's name before the dot), reached,
    harm, events, results, calls (name, legal, effective of each call of the turn),
    files, success and end_reason: "" while it goes on; done, harm, gave_up (terminate with failure), max_turns,
    time_limit; hung, died, crashed for a browser that was lost.
    """

    def __init__(self, rules: BrowserRules):
        self.rules = rules
        self.tools = (build_tool(rules.actions),)
        self.system_prompt = SYSTEM_PROMPT
        self.end_reason = ""
        self.problem: Problem | None = None
        self.is_open = False
        self._open = ExitStack()
        self._unclosed = weakref.finalize(self, self._open.close)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        """ValueError where no browser can be started. A browser that was lost between episodes is replaced."""
        self.close()
        self.seed = 0 if seed is None else seed
        self.problem = problem = self.rules.draw(self.seed)
        self.max_turns = self.rules.max_turns or problem.max_turns
        self.turn = 0
        self.seconds = 0.0
        self.end_reason = ""
        self.past: list[str] = []
        self.num_invalid_calls = 0
        try:
            self._open_window()
        except BaseException:
            self.close()
            raise
        return self.observation(), self.info((), [], self.window.take_events())

    def _open_window(self) -> None:
        problem = self.problem
        url = self._open.enter_context(page_server().mount(problem))
        folder = self._downloads_dir()
        self.browser: BrowserThread = take_browser()
        self._open.callback(return_browser, self.browser)

        from playwright.sync_api import Error

        def start(browser) -> tuple[Window, bytes, Verdict]:
            window = Window(
                browser, problem.frame, page_server().origin, folder, lambda: problem.effects.num_files_sent
            )
            try:
                window.open(url + problem.start)
                problem.prepare(window)
                return window, window.look(), problem.judge(window.page)
            except BaseException as error:  # else the next episode would share the browser with this page
                is_gone = isinstance(error, Error) and window.is_gone
                window.close()
                if is_gone:
                    raise gone(error) from error
                raise

        self.window, self.png, self.verdict = self.browser.call(start, PREPARE_SECONDS)
        self._open.callback(close_window, self.browser, self.window)
        self.is_open = True

    def _downloads_dir(self) -> Path:
        if self.rules.downloads_dir:
            return Path(self.rules.downloads_dir) / f"seed_{self.seed}"
        return Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="downloads_")))

    def close(self) -> None:
        """Close the page and give the browser back; `reset` opens another."""
        self.is_open = False
        self._open.close()

    def step(self, turn: Turn) -> tuple[Observation, float, bool, bool, dict]:
        if not self.is_open:
            raise ValueError(f"the episode has ended ({self.end_reason}): a step has no meaning; call reset first")
        results, flags, events = [], [], []
        for number, call in enumerate(turn.tool_calls):
            if self.end_reason:
                break
            result, legal, effective = self.run_call(call, number)
            events += result.get("events", ())
            results.append(ToolResult(call.name, result))
            flags.append({"name": call.name, "legal": legal, "effective": effective})
        if not turn.tool_calls:
            results.append(ToolResult("", {"status": "no_tool_call"}))
        self.turn += 1
        self._count_limits()
        info = self.info(tuple(results), flags, events)
        observation = self.observation()
        if self.end_reason:
            self.close()
        is_terminated = self.end_reason in ("done", "harm", "gave_up")
        return observation, float(info["success"]), is_terminated, bool(self.end_reason) and not is_terminated, info

    def _count_limits(self) -> None:
        if not self.end_reason and self.seconds >= self.rules.episode_seconds:
            self.end_reason = "time_limit"
        elif not self.end_reason and self.turn >= self.max_turns:
            self.end_reason = "max_turns"

    def observation(self) -> Observation:
        image = Image.open(io.BytesIO(self.png)).convert("RGB")
        screen = self.problem.frame.screen
        assert image.size == (screen.width_px, screen.height_px), (image.size, screen)
        past = self.past[len(self.past) - min(len(self.past), self.rules.past_steps) :]
        seen = observation(Picture.from_image(image), self.problem.instruction, past)
        return LiveObservation(seen.text, seen.pictures, self)

    def info(self, results: tuple[ToolResult, ...], flags: list[dict], events: list[str]) -> dict:
        name, goals = self.problem.name, self.verdict.goals
        is_enough = not self.rules.must_terminate or self.end_reason == "done"
        return {
            "results": results,
            "calls": flags,
            "events": events,
            "task": name,
            "mission": self.problem.instruction,
            "goals": [f"{name}.{goal}" for goal in goals],
            "reached": [f"{name}.{goal}" for goal, is_reached in goals.items() if is_reached],
            "harm": list(self.verdict.harm),
            "invalid_calls": self.num_invalid_calls,
            "files": [path.name for path in self.problem.effects.files],
            "end_reason": self.end_reason,
            "success": self.verdict.is_success and is_enough and self.end_reason not in LOST,
        }

    def run_call(self, call: ToolCall, number: int = 0) -> tuple[dict, bool, bool]:
        """The result of a call, whether it was legal, and whether it changed anything."""
        if number >= self.rules.max_calls:
            return self._refuse("too_many_calls", f"only {self.rules.max_calls} calls of a turn are run")
        try:
            action = read_call(call, self.problem.frame.screen)
        except ActionError as error:
            return self._refuse(error.name, str(error))
        if action.kind not in self.rules.actions:
            return self._refuse("unknown_action", f"{action.kind} is not offered")
        if action.kind in ("terminate", "answer"):
            return self._declare(action), True, True
        return self._act(action)

    def _refuse(self, name: str, message: str) -> tuple[dict, bool, bool]:
        self.num_invalid_calls += 1
        return {"status": name, "error": message}, False, False

    def _declare(self, action: Action) -> dict:
        """The agent says that it is done, or what the answer is: the episode ends."""
        self.problem.effects.answer = action.text
        with suppress(LostBrowserError):
            self.verdict = self._in_page(lambda browser: self.problem.judge(self.window.page))
        if not self.end_reason:
            self.end_reason = "gave_up" if action.status == "failure" else "done"
        return {"status": "ended"}

    def _act(self, action: Action) -> tuple[dict, bool, bool]:
        window, problem = self.window, self.problem

        def act(browser) -> tuple[bytes, list[str], Verdict]:
            png = window.do(action)
            problem.effects.files = list(window.files)
            return png, window.take_events(), problem.judge(window.page)

        before, num_requests = self.png, len(problem.effects.journal)
        try:
            self.png, events, self.verdict = self._in_page(act)
        except LostBrowserError as error:
            self._remember(action, [str(error)])
            return {"status": error.name, "error": str(error), "events": [str(error)]}, True, False
        self._remember(action, events)
        self._end_by_effect()
        effective = self.png != before or len(problem.effects.journal) > num_requests or bool(events)
        return {"status": "ok", **({"events": events} if events else {})}, True, effective

    def _remember(self, action: Action, events: list[str]) -> None:
        line = describe(action, self.problem.frame.screen)
        self.past.append(f"{line} ({'; '.join(events)})" if events else line)

    def _end_by_effect(self) -> None:
        if self.verdict.harm:
            self.end_reason = "harm"
        elif self.verdict.is_over or (self.verdict.is_success and not self.rules.must_terminate):
            self.end_reason = "done"

    def _in_page(self, job, limit_s: float | None = None):
        """`job(browser)` in the browser's thread; a browser that is lost ends the episode."""
        from playwright.sync_api import Error

        start = time.monotonic()
        try:
            return self.browser.call(job, limit_s or self.rules.step_seconds)
        except LostBrowserError as error:
            self.end_reason = error.name
            raise
        except Error as error:
            if not self.window.is_gone:
                raise
            self.end_reason = "crashed"
            raise gone(error) from error
        finally:
            self.seconds += time.monotonic() - start

    def read(self, job):
        """`job(page)` for an oracle: it may look at the page, and is trusted to change nothing."""
        return self._in_page(lambda browser: job(self.window.page))


LOST = ("hung", "died", "crashed")


def gone(error: Exception) -> LostBrowserError:
    """The window is gone or its page crashed: the browser lives, but the episode has nothing left to act on."""
    return LostBrowserError("crashed", f"the page is gone ({str(error).splitlines()[0]})")


def close_window(browser: BrowserThread, window: Window) -> None:
    """A context that does not close takes its browser along."""
    with suppress(Exception):
        if not browser.is_lost:
            browser.call(lambda running: window.close(), PREPARE_SECONDS)
