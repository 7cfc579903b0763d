"""The browser world in a real headless Chromium: its edges, its judgement, its limits, and that the oracle wins."""

import mmap
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.schema import Request, ToolCall, Turn
from qwenvl_agent.worlds import make_env, make_oracle
from qwenvl_agent.worlds.browser import BrowserRules, RandomAgent, chromium, session, window
from qwenvl_agent.worlds.browser.miniwob import MINIWOB
from qwenvl_agent.worlds.browser.oracle import PLANS
from qwenvl_agent.worlds.browser.problem import Effects, SiteProblem, Task
from qwenvl_agent.worlds.browser.server import Asked, Response
from qwenvl_agent.worlds.browser.tasks import TASKS, is_number
from qwenvl_agent.worlds.browser.window import Frame, free_path

needs_browser = pytest.mark.browser
CLICK_TASKS = ("press_element", "get_picture", "download_kitten", "avoid_trap", "dismiss_dialog", "use_menu")


@pytest.fixture(scope="module")
def chrome():
    try:
        chromium.find_chromium()
    except ValueError as error:
        pytest.skip(str(error))
    yield
    session.close_browsers()


def turn(*calls: dict) -> Turn:
    return Turn(tool_calls=tuple(ToolCall("computer_use", arguments) for arguments in calls))


def click(x: int, y: int, action: str = "left_click") -> dict:
    return {"action": action, "coordinate": [x, y]}


CENTRE = turn(click(500, 500))


def problem(body: str, pages: dict | None = None, **settings) -> SiteProblem:
    """A page of 400x300 CSS px of which nothing is wanted but a POST to `won`."""
    page = Response(f"<!DOCTYPE html><title>T</title><body style='margin:0'>{body}".encode())
    return SiteProblem(
        **{
            "name": "test",
            "instruction": "Do it.",
            "pages": {"": lambda asked: page, "won": lambda asked: Response(), **(pages or {})},
            "goals": {"won": lambda effects: bool(effects.sent("won"))},
            "frame": Frame(width=400, height=300),
            **settings,
        }
    )


@pytest.fixture
def play(chrome, monkeypatch):
    """An environment at a page of the test's own, already reset."""
    envs = []

    def start(body: str, pages: dict | None = None, rules: dict | None = None, **settings):
        made = problem(body, pages, **settings)
        monkeypatch.setitem(TASKS, "test", Task("test", lambda seed, rng, language, family: made))
        env = make_env("browser", tasks=["test"], **(rules or {}))
        envs.append(env)
        env.first = env.reset(seed=0)
        return env

    yield start
    for env in envs:
        env.close()


WHOLE = "style='position:fixed;inset:0;width:100%;height:100%;border:0'"


def test_rules_are_checked():
    with pytest.raises(ValueError, match="unknown key 'browser.task'.*nearest known key: 'tasks'"):
        make_env("browser", task=["own"])
    with pytest.raises(ValueError, match="browser task 'click-buton' does not exist.*did you mean click-button"):
        make_env("browser", tasks=["click-buton"])
    with pytest.raises(ValueError, match="browser.languages is \\['de'\\]: no task can be drawn"):
        make_env("browser", languages=["de"])
    with pytest.raises(ValueError, match="max_calls is 0"):
        make_env("browser", max_calls=0)


def test_seeds_go_round_the_tasks():
    rules = BrowserRules.from_json({"tasks": ["clicks", "click-test", "use_menu"]})
    assert rules.names == (*CLICK_TASKS, "click-test")
    assert [rules.task_of(seed).name for seed in range(6, 9)] == ["click-test", "press_element", "get_picture"]


def test_there_are_enough_tasks_and_a_plan_for_each():
    assert len(TASKS) >= 8 and len(MINIWOB) >= 16 and set(TASKS) | set(MINIWOB) <= set(PLANS)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("press_element", "get_picture")])
def test_a_seed_is_one_problem_and_another_seed_another(name):
    rules = BrowserRules(tasks=(name,))

    def drawn(seed: int) -> tuple:
        made = rules.draw(seed)
        return made.instruction, made.wanted, made.pages[""](None).body

    assert drawn(3) == drawn(3)
    assert len({drawn(seed)[2] for seed in range(8)}) == 8
    assert not rules.draw(3).judge(None).is_success


def test_names_of_files_cannot_leave_the_folder(tmp_path):
    assert free_path(tmp_path, "../../etc/passwd") == tmp_path / "passwd"
    assert free_path(tmp_path, "..\\a.svg") == tmp_path / "a.svg"
    assert free_path(tmp_path, "..") == tmp_path / "download"
    (tmp_path / "a.svg").touch()
    assert free_path(tmp_path, "a.svg") == tmp_path / "a_2.svg"
    assert free_path(tmp_path, "a\0b\n\u202e\ud800.svg") == tmp_path / "ab.svg"
    assert free_path(tmp_path, "a" * 300 + ".tar") == tmp_path / ("a" * 196 + ".tar")
    free_path(tmp_path, "ä" * 300).touch()  # two bytes each
    assert free_path(tmp_path, "ä" * 300) == tmp_path / ("ä" * 100 + "_2")
    free_path(tmp_path, "." * 3 + "x" * 300 + "." + "y" * 300).touch()


def test_an_answer_is_compared_as_a_number():
    assert is_number("€ 12.5", 12.5) and is_number("12.50", 12.5)
    assert not is_number("12", 12.5) and not is_number("", 0.0) and not is_number(None, 0.0)


@needs_browser
def test_the_effect_ends_the_episode(play):
    env = play(f"<button {WHOLE} onclick=\"fetch('won', {{method: 'POST'}})\">Win</button>")
    observation, info = env.first
    assert observation.text == "Task: Do it." and observation.pictures[0].width == 400
    assert info["goals"] == ["test.won"] and info["reached"] == []
    _, reward, terminated, truncated, info = env.step(CENTRE)
    assert (reward, terminated, truncated, info["end_reason"], info["success"]) == (1.0, True, False, "done", True)
    assert info["reached"] == ["test.won"] and info["results"][0].content == {"status": "ok"}
    with pytest.raises(ValueError, match="the episode has ended"):
        env.step(CENTRE)


@needs_browser
def test_what_a_call_may_be(play):
    env = play("<p>Nothing</p>", rules={"actions": ["left_click", "type"], "max_calls": 2})
    calls = turn({"action": "left_click"}, {"action": "key", "keys": ["a"]}, click(1, 1))
    _, _, _, _, info = env.step(calls)
    assert [result.content["status"] for result in info["results"]] == [
        "missing_argument",
        "unknown_action",
        "too_many_calls",
    ]
    assert info["invalid_calls"] == 3 and [flags["legal"] for flags in info["calls"]] == [False] * 3
    _, _, _, _, info = env.step(Turn())
    assert info["results"][0].content == {"status": "no_tool_call"}
    _, _, _, _, info = env.step(Turn(tool_calls=(ToolCall("open_url", {"url": "http://localhost"}),)))
    assert info["results"][0].content["status"] == "unknown_tool"


@needs_browser
def test_mouse_and_keyboard_reach_the_page(play):
    """At a device scale of 2 the pictures are twice as large, and clicks land where they are seen."""
    script = """<script>
      const log = [];
      for (const kind of ['click', 'dblclick', 'contextmenu', 'auxclick'])
        addEventListener(kind, e => log.push(kind + ' ' + Math.round(e.clientX) + ',' + Math.round(e.clientY)));
      addEventListener('mousedown', e => { if (e.button === 0) log.push('down ' + e.detail); });
      addEventListener('keydown', e => log.push((e.ctrlKey && e.key !== 'Control' ? 'ctrl+' : '') + e.key));
      addEventListener('scroll', e => log.push('scroll ' + Math.round(scrollY)));
    </script><textarea id="t" style="margin-top:200px"></textarea><div style="height:2000px">"""
    env = play(script, frame=Frame(width=400, height=300, scale=2))
    assert (env.first[0].pictures[0].width, env.first[0].pictures[0].height) == (800, 600)

    def log() -> list[str]:
        return env.read(lambda page: page.evaluate("log.splice(0)"))

    env.step(turn(click(250, 500)))
    assert log() == ["down 1", "click 100,150"]
    env.step(turn(click(250, 500, "triple_click")))
    assert log()[-3:] == ["dblclick 100,150", "down 3", "click 100,150"]
    env.step(turn(click(500, 100, "right_click"), click(500, 100, "middle_click")))
    assert log() == ["contextmenu 200,30", "auxclick 200,30", "auxclick 200,30"]
    env.step(turn({"action": "scroll", "coordinate": [500, 500], "pixels": -100}))
    assert log()[-1] == "scroll 30"
    env.step(turn({"action": "scroll", "pixels": 1000}))
    assert log()[-1] == "scroll 0"
    env.step(turn({"action": "key", "keys": ["ctrl", "a"]}))
    assert log() == ["Control", "ctrl+a"]
    env.step(turn(click(50, 750), {"action": "type", "text": "고양이 🐱\nok"}))
    assert env.read(lambda page: page.input_value("#t")) == "고양이 🐱\nok"


@needs_browser
def test_a_drag_starts_where_the_pointer_is(play):
    script = """<script>
      addEventListener('mousedown', e => window.from = [e.clientX, e.clientY]);
      addEventListener('mouseup', e => { window.to = [e.clientX, e.clientY]; });
    </script>"""
    env = play(script)
    env.step(turn(click(250, 200, "mouse_move"), click(500, 600, "left_click_drag")))
    assert env.read(lambda page: page.evaluate("[window.from, window.to]")) == [[100, 60], [200, 180]]


@needs_browser
def test_message_boxes_are_answered_and_told(play):
    ask = "alert('Hello'); window.agreed = confirm('Sure?'); window.name_ = prompt('Name?')"
    env = play(f'<button {WHOLE} onclick="{ask}">Ask</button>')
    observation, _, _, _, info = env.step(CENTRE)
    assert info["events"] == ["alert accepted: Hello", "confirm cancelled: Sure?", "prompt cancelled: Name?"]
    assert info["results"][0].content["events"] == info["events"]
    assert "(alert accepted: Hello; confirm cancelled: Sure?" in observation.text
    assert env.read(lambda page: page.evaluate("[window.agreed, window.name_]")) == [False, None]


@needs_browser
def test_nobody_is_kept_from_leaving_a_page(play):
    stay = "<script>onbeforeunload = e => { e.preventDefault(); e.returnValue = 'stay' }</script>"
    env = play(f"{stay}<a {WHOLE} href='next'>Next</a>", {"next": lambda asked: Response(b"<h1>next</h1>")})
    _, _, _, _, info = env.step(CENTRE)
    assert [event.split(":")[0] for event in info["events"]] == ["beforeunload accepted"]
    assert env.read(lambda page: page.inner_text("h1")) == "next"


@needs_browser
def test_new_windows_are_closed_and_told(play):
    env = play(f"<button {WHOLE} onclick=\"for (let i = 0; i < 3; i++) window.open('other')\">Open</button>")
    _, _, _, _, info = env.step(CENTRE)
    assert info["events"] and all(event.startswith("new window closed") for event in info["events"])
    assert env.read(lambda page: len(page.context.pages)) == 1


@needs_browser
@pytest.mark.parametrize(
    "page",
    [
        f"<button {WHOLE} onclick=\"window.open('ADDRESS', '_blank', 'noopener')\">Open</button>",
        f"<a {WHOLE} target=_blank href='ADDRESS'>Open</a>",
        f"<button {WHOLE} onclick='f.submit()'>Open</button><form id=f action='ADDRESS' target=_blank></form>",
    ],
)
def test_a_window_elsewhere_is_refused_before_it_has_a_frame(play, page):
    env = play(page.replace("ADDRESS", "http://127.0.0.1:9/x"), rules={"step_seconds": 20})
    _, _, _, _, info = env.step(CENTRE)
    assert [event.removesuffix("?") for event in info["events"]] == [
        "new window closed: http://127.0.0.1:9/x",
        "blocked: http://127.0.0.1:9/x",
    ]
    assert info["end_reason"] == "" and env.read(lambda page: len(page.context.pages)) == 1


@needs_browser
def test_webrtc_sends_nothing_past_the_proxy(play):
    """Without a namespace no other wall stands before its datagrams."""
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.bind(("127.0.0.1", 0))
    ear.settimeout(3)
    session.close_browsers()
    session.return_browser(session.BrowserThread(has_namespace=False))
    server = f"stun:127.0.0.1:{ear.getsockname()[1]}"
    play(
        f"<script>const c = new RTCPeerConnection({{iceServers: [{{urls: '{server}'}}]}}); c.createDataChannel('x');"
        "c.createOffer().then(o => c.setLocalDescription(o))</script>"
    )
    with pytest.raises(TimeoutError):
        ear.recv(1)
    ear.close()
    session.close_browsers()


@needs_browser
@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="the running program is found in /proc")
def test_the_browser_knows_every_switch_of_its_walls(play):
    """One that it does not know it ignores without a word; a name that was changed left a wall open once."""
    program = Path(f"/proc/{play('<p>Nothing</p>').browser.pid}/exe")
    with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        known = {
            name
            for name in map(switch_name, (*chromium.CONFINED, *chromium.NO_UDP, chromium.POPUPS))
            if code.find(b"\0" + name + b"\0") >= 0
        }
    walls = set(map(switch_name, (*chromium.CONFINED, chromium.POPUPS)))
    assert walls <= known and set(map(switch_name, chromium.NO_UDP)) & known


def switch_name(switch: str) -> bytes:
    return switch.removeprefix("--").partition("=")[0].encode()


@needs_browser
def test_a_page_that_crashes_at_load_is_a_lost_browser(play):
    deep = "let e = document.body; for (let i = 0; i < 1e5; i++) e = e.appendChild(document.createElement('div'))"
    with pytest.raises(session.LostBrowserError, match="the page is gone"):
        play(f"<script>document.addEventListener('DOMContentLoaded', () => {{ {deep} }})</script>")


@needs_browser
def test_a_page_opens_no_window_by_itself(play):
    """As in a person's browser: one at a click, none at load; each try is told, and nothing waits for what never comes."""
    env = play("<script>open('at_load')</script><p>Nothing</p>", {"at_load": lambda asked: Response(b"never seen")})
    assert [event.partition(":")[0] for event in env.first[1]["events"]] == ["new window closed"]
    assert not env.problem.effects.sent("at_load")
    started = time.monotonic()
    env.step(CENTRE)
    assert time.monotonic() - started < window.LOAD_MS / 1000


@needs_browser
def test_a_page_that_takes_too_much_memory_loses_its_browser(play, monkeypatch):
    monkeypatch.setattr(session, "MAX_MEMORY_BYTES", 600 * 2**20)
    eat = "const a = []; setInterval(() => a.push(new Uint8Array(2 ** 26).fill(1)), 10)"
    env = play(f'<button {WHOLE} onclick="{eat}">Eat</button>')
    browser = env.browser
    for _ in range(10):
        _, _, _, truncated, info = env.step(turn({"action": "wait", "time": 1}) if env.turn else CENTRE)
        if truncated:
            break
    assert truncated and info["end_reason"] in ("died", "crashed") and "more than 0.585938 GiB" in browser.death
    monkeypatch.undo()
    session.close_browsers()


@needs_browser
@pytest.mark.parametrize("address", ["http://example.invalid/x", "http://127.0.0.1:9/x", "file:///etc/passwd"])
def test_a_page_cannot_leave_its_server(play, address):
    """Another server on this machine is no more its business than the network is; the page stays on the screen."""
    go = f"location.href = '{address}'"
    env = play(f'<button {WHOLE} onclick="{go}">Leave</button>')
    _, _, terminated, _, info = env.step(CENTRE)
    assert not terminated and env.read(lambda page: page.inner_text("button")) == "Leave"
    if not address.startswith("file:"):  # which the browser itself refuses
        assert info["events"] == [f"blocked: {address}"]
    env.read(lambda page: page.evaluate(f"fetch('{address}').catch(() => null).then(() => null)"))
    assert env.read(lambda page: page.evaluate("location.pathname.length")) > 1


@needs_browser
def test_downloads_arrive_in_the_run_folder(play, tmp_path):
    saved = {"cat.bin": lambda asked: Response(b"\x00cat", "application/octet-stream", is_file=True)}
    env = play(
        f"<a {WHOLE} href='cat.bin' download>Save</a>",
        saved,
        {"downloads_dir": str(tmp_path)},
        goals={"two": lambda effects: len(effects.files) == 2},
    )
    _, _, terminated, _, info = env.step(CENTRE)
    assert not terminated and info["events"] == ["downloaded: cat.bin"]
    _, reward, _, _, info = env.step(CENTRE)
    assert reward == 1.0 and info["files"] == ["cat.bin", "cat_2.bin"]
    assert (tmp_path / "seed_0" / "cat_2.bin").read_bytes() == b"\x00cat"


@needs_browser
@pytest.mark.parametrize("trap", ["for (;;);", "for (;;) alert('again')"])
def test_a_page_that_hangs_fails_its_episode_only(play, trap):
    env = play(f'<button {WHOLE} onclick="{trap}">Hang</button>', rules={"step_seconds": 2})
    _, reward, terminated, truncated, info = env.step(CENTRE)
    assert (reward, terminated, truncated, info["end_reason"]) == (0.0, False, True, "hung")
    assert "did not answer in 2 s" in info["results"][0].content["error"]
    observation, info = env.reset(seed=1)
    assert info["end_reason"] == "" and observation.pictures[0].width == 400


@needs_browser
def test_a_browser_that_dies_fails_its_episode_and_is_replaced(play):
    env = play("<p>Nothing</p>")
    os.kill(env.browser.pid, signal.SIGKILL)
    _, _, _, truncated, info = env.step(CENTRE)
    assert truncated and info["end_reason"] in ("died", "crashed") and not info["success"]
    _, info = env.reset(seed=1)
    idle = env.browser
    env.close()
    os.kill(idle.pid, signal.SIGKILL)  # between episodes
    assert env.reset(seed=2)[1]["end_reason"] == "" and env.browser is not idle


@needs_browser
def test_a_page_that_never_comes_is_told(play, monkeypatch):
    env = play(f"<a {WHOLE} href='never'>Go</a>", {"never": lambda asked: Response(never=True)})
    monkeypatch.setattr("qwenvl_agent.worlds.browser.window.LOAD_MS", 300)  # the first page comes when it can
    _, _, terminated, truncated, info = env.step(CENTRE)
    assert not terminated and not truncated and info["end_reason"] == ""
    assert [event.split(":")[0] for event in info["events"]] == ["stopped loading, there was no answer"]
    assert env.read(lambda page: page.inner_text("a")) == "Go"


@needs_browser
def test_limits(play):
    env = play("<p>Nothing</p>", rules={"max_turns": 2})
    assert env.step(CENTRE)[3] is False
    _, _, terminated, truncated, info = env.step(CENTRE)
    assert (terminated, truncated, info["end_reason"]) == (False, True, "max_turns")
    env = play("<p>Nothing</p>", rules={"episode_seconds": 0.001})
    assert env.step(CENTRE)[4]["end_reason"] == "time_limit"


@needs_browser
def test_saying_that_it_is_done_is_no_effect(play):
    env = play("<p>Nothing</p>")
    _, reward, terminated, _, info = env.step(turn({"action": "terminate", "status": "success"}))
    assert (reward, terminated, info["end_reason"]) == (0.0, True, "done")
    env = play("<p>Nothing</p>")
    assert env.step(turn({"action": "terminate", "status": "failure"}))[4]["end_reason"] == "gave_up"


@needs_browser
def test_it_may_be_asked_for(play):
    body = f"<button {WHOLE} onclick=\"fetch('won', {{method: 'POST'}})\">Win</button>"
    env = play(body, rules={"must_terminate": True})
    _, reward, terminated, _, info = env.step(CENTRE)
    assert (reward, terminated, info["reached"]) == (0.0, False, ["test.won"])
    assert env.step(turn({"action": "terminate", "status": "success"}))[1] == 1.0


@needs_browser
def test_harm_ends_in_failure(play):
    env = play(
        # One after the other: of two requests at once a busy server may answer the second after the step's end.
        f"<button {WHOLE} onclick=\"fetch('bad', {{method: 'POST'}}).then(() => fetch('won', {{method: 'POST'}}))\">"
        "Both</button>",
        {"bad": lambda asked: Response()},
        harms={"something bad": lambda effects: bool(effects.sent("bad"))},
    )
    _, reward, terminated, _, info = env.step(CENTRE)
    assert (reward, terminated, info["end_reason"], info["harm"]) == (0.0, True, "harm", ["something bad"])
    assert len(info["harm"]) == 1 and not info["success"]


@needs_browser
def test_the_oracle_solves_every_task_of_our_own_at_once(chrome):
    """Two episodes at a time, each in a browser of its own."""
    world = {"tasks": ["own"]}
    policy = make_oracle("browser", world)
    records = rollout(lambda: make_env("browser", **world), policy, range(len(TASKS)), batch_size=2)
    assert {record.goals[0].split(".")[0]: (record.success, record.error) for record in records} == dict.fromkeys(
        TASKS, (True, "")
    )


@needs_browser
def test_the_oracle_solves_miniwob_and_chance_does_not(chrome):
    pytest.importorskip("miniwob")
    names = ("click-test-2", "click-dialog-2", "click-checkboxes", "login-user")
    world = {"tasks": names}

    def run(policy, rules) -> list[bool]:
        return [r.success for r in rollout(lambda: make_env("browser", **rules), policy, range(len(names)))]

    assert run(make_oracle("browser", world), world) == [True] * len(names)
    assert sum(run(RandomAgent(BrowserRules.from_json(world)), {**world, "max_turns": 2})) <= 1


@needs_browser
def test_a_covered_button_is_clicked_where_it_is_free(play):
    """As in click-test-2, where the middle of the one button may lie under the other."""
    place = "position:absolute;width:80px;height:80px;top:50px"
    env = play(
        f"<button id='subbtn' style='{place};left:50px' onclick=\"fetch('won', {{method: 'POST'}})\">ONE</button>"
        f"<button style='{place};left:30px' onclick=\"fetch('bad')\">TWO</button>",
        name="click-test-2",
    )
    (answer,) = make_oracle("browser", {}).act([Request("", env.tools, (), env.first[0])])
    x, _ = answer.turn.tool_calls[0].arguments["coordinate"]
    assert x > 110 / 400 * 1000
    assert env.step(answer.turn)[1] == 1.0


def test_effects_are_told_apart_by_path():
    effects = Effects()
    problem_ = problem("", {"x": lambda asked: Response(b"x", is_file=True)}, effects=effects)
    assert problem_.respond(Asked("GET", "x")).body == b"x" and problem_.respond(Asked("GET", "y")).status == 404
    assert effects.num_files_sent == 1 and effects.sent("y") == [{}] and effects.sent("z") == []
