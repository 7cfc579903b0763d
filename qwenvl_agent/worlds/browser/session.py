"""A browser in a thread of its own, so that whatever a page does, the caller gets an answer in time.

Playwright's calls wait for the page: one that hangs would hang the agent. Here every call runs in the browser's thread
under a time limit; a browser that does not answer is killed, and `LostBrowserError` says so. Browsers are used again by later
episodes, each of which has a context (cookies, storage, windows) of its own; one that was lost never is.
"""

import atexit
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import psutil

from qwenvl_agent.worlds.browser.chromium import open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

START_SECONDS = 180
"""A start takes half a second on a free machine, and half a minute on a crowded one."""
KILL_SECONDS = 10
MAX_MEMORY_BYTES = 2 * 2**30
"""Of a browser with all its processes, without what they share; ten times what ours and MiniWoB++'s pages take."""
MEMORY_SECONDS = 1.0
"""Between looks."""
Result = TypeVar("Result")


class LostBrowserError(RuntimeError):
    """The browser did not answer in time and was killed, or died by itself; `name` is hung, died or crashed."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


class BrowserThread:
    """One running Chromium. `call` is its only door; Playwright's objects never leave its thread."""

    def __init__(self, has_namespace: bool | None = None):
        """`has_namespace`: as `open_browser` takes it."""
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._started: Future = Future()
        self.is_lost = False
        self.death = "the browser died: the episode cannot go on"
        self._has_namespace = has_namespace
        self._thread = threading.Thread(target=self._run, name="browser", daemon=True)
        self._thread.start()
        self.pid = self._started.result(START_SECONDS)
        threading.Thread(target=self._watch_memory, name="browser memory", daemon=True).start()

    def _run(self) -> None:
        try:
            with open_browser(reach="own", has_namespace=self._has_namespace) as browser:
                processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
                self._started.set_result(next(p["id"] for p in processes if p["type"] == "browser"))
                for job, done in iter(self._jobs.get, None):
                    self._do(job, done, browser)
        except BaseException as error:  # it goes to whoever waits for the start; later it is the end of a lost browser
            if not self._started.done():
                self._started.set_exception(error)

    def _do(self, job: Callable, done: Future, browser: "Browser") -> None:
        try:
            done.set_result(job(browser))
        except BaseException as error:  # it goes to whoever called
            self.is_lost = self.is_lost or not browser.is_connected()
            done.set_exception(LostBrowserError("died", self.death) if self.is_lost else error)

    def _watch_memory(self) -> None:
        """A page that takes all of it would have the kernel choose whom to end: perhaps a training."""
        try:
            process = psutil.Process(self.pid)
        except psutil.NoSuchProcess:  # it has died already
            return
        while self._thread.is_alive() and process.is_running():
            self._thread.join(MEMORY_SECONDS)
            if memory_of(process) > MAX_MEMORY_BYTES:
                self.death = f"the page took more than {MAX_MEMORY_BYTES / 2**30:g} GiB: its browser was ended"
                self.kill()

    def call(self, job: "Callable[[Browser], Result]", limit_s: float) -> Result:
        """`job(browser)`, run in the browser's thread; LostBrowserError if that takes longer than `limit_s` seconds."""
        if self.is_lost:
            raise LostBrowserError("died", f"{self.death}; reset the environment")
        done: Future = Future()
        self._jobs.put((job, done))
        try:
            return done.result(limit_s)
        except TimeoutError:
            if done.done():  # the job's own TimeoutError
                raise
            if self.is_lost:  # ended for another reason, while its driver had nothing more to say
                raise LostBrowserError("died", self.death) from None
            self.kill()
            raise LostBrowserError("hung", f"the page did not answer in {limit_s:g} s: its browser was ended") from None

    def kill(self) -> None:
        """End the browser whatever it does; calls that wait get an error."""
        self.is_lost = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        self.close()

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(KILL_SECONDS)


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and all below it that they share with nobody; 0 if it has ended."""
    num_bytes = 0
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = one.memory_info()
                num_bytes += memory.rss - getattr(memory, "shared", 0)
    return num_bytes


_idle: list[BrowserThread] = []


def take_browser() -> BrowserThread:
    """One that is free, or a new one. Give it back with `return_browser`."""
    while _idle:
        browser = _idle.pop()
        if is_alive(browser):
            return browser
    return BrowserThread()


def return_browser(browser: BrowserThread) -> None:
    if not browser.is_lost:
        _idle.append(browser)


def is_alive(browser: BrowserThread) -> bool:
    """Whether it answers: what Playwright remembers of a browser that died a moment ago may be older."""
    try:
        browser.call(lambda running: running.new_browser_cdp_session().detach(), START_SECONDS)
    except Exception:  # whatever it was, another browser is taken in its place
        browser.kill()
        return False
    return True


@atexit.register
def close_browsers() -> None:
    """End all browsers that no episode uses."""
    while _idle:
        _idle.pop().close()
