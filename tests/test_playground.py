"""The playground without its page: missions in play, who may be asked, what is shown, and who may reach it."""

import asyncio
import json
import threading

import pytest
from PIL import Image

from qwenvl_agent.cli import play
from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.inference.load import find
from qwenvl_agent.playground import views
from qwenvl_agent.playground.playground import MAX_SESSIONS, Playground, WorldChoice, find_worlds
from qwenvl_agent.playground.server import Guard
from qwenvl_agent.playground.session import Player, Session, by_hand
from qwenvl_agent.schema import NO_ANSWER, Answer, ToolCall, Turn
from qwenvl_agent.worlds import make_world

CORRIDOR = "tests/corridor_world.py:make_world"
EXAMPLES = [f"examples/worlds/{name}/world.py:make_world" for name in ("cards", "frozen_lake", "minigrid")]
RIGHT = Turn("Go on.", (ToolCall("act", {"actions": ["right"]}),))


@pytest.fixture
def session():
    opened = Session(make_world(CORRIDOR), 5)
    yield opened
    opened.close()


class Writes:
    """A policy that always answers the same."""

    def __init__(self, answer: Answer):
        self.answer, self.requests = answer, []

    def act(self, requests):
        self.requests += requests
        return [self.answer] * len(requests)


def calls_of(turn: Turn) -> list[tuple]:
    return [(call.name, call.arguments) for call in turn.tool_calls]


# a mission


@pytest.mark.parametrize("name", [CORRIDOR, "safari", *EXAMPLES])
def test_a_mission_is_played_as_an_evaluation_plays_it(name):
    world = make_world(name)
    seed = world.seeds.report.start
    session = Session(world, seed)
    player = Player("oracle", world.make_policy("oracle"))
    while not session.is_over:
        session.play(session.ask(player), player.name)
    [record] = rollout(world.make_env, world.make_policy("oracle"), [seed], reference=world.make_reference())
    assert session.record.success and session.played_by == ["oracle"] * record.turns
    ours, theirs = session.record.to_json(), record.to_json()
    for step in ours["steps"]:
        assert (session.directory / step["picture"]).is_file()
        step["picture"] = ""
        for call in step["calls"]:  # an evaluation judges them later, from the records
            call["legal"] = call["optimal"] = None
    for step in theirs["steps"]:
        for call in step["calls"]:
            call["legal"] = call["optimal"] = None
    assert ours == theirs
    session.close()
    assert not session.directory.exists()


def test_asking_plays_nothing_and_is_done_once_a_state(session):
    policy = Writes(Answer(RIGHT))
    player = Player("writes", policy)
    before = session.observation.text
    assert session.ask(player) is session.ask(player)
    assert len(policy.requests) == 1 and session.observation.text == before and not session.record.steps
    session.play(session.ask(player), "writes")
    session.ask(player)
    assert len(policy.requests) == 2 and session.observation.text != before


def test_another_context_and_picture_are_asked_about_and_not_kept(session):
    policy = Writes(Answer(RIGHT))
    session.ask_about(Player("writes", policy), "Mission: stay", Image.new("RGB", (64, 32), "red"))
    [request] = policy.requests
    assert request.observation.text == "Mission: stay"
    assert request.observation.pictures[-1].open().getpixel((0, 0)) == (255, 0, 0)
    assert request.tools == session.tools() and not session.record.steps
    session.ask_about(Player("writes", policy), "no picture", None)
    assert policy.requests[-1].observation.pictures == ()


def test_a_player_is_shown_as_many_steps_as_its_prompts_have(session):
    for _ in range(2):
        session.play_best()
    lengths = [len(session.request_of(Player("any", Writes(Answer(RIGHT)), steps)).history) for steps in (0, 1, 2, 9)]
    assert lengths == [0, 1, 2, 2]


def test_the_best_turn_is_the_references(session):
    best = session.best()
    assert best == session.reference.act([session.request_of(Player("any", Writes(Answer(RIGHT))))])[0].turn
    assert session.is_best(best) is True and session.is_best(Turn(text="I wait.")) is None
    other = Turn(tool_calls=(ToolCall(best.tool_calls[0].name, {"actions": ["left"]}),))
    assert session.is_best(other) is False
    session.play_best()
    assert session.played_by == ["the oracle"] and session.record.steps[0].calls[0].optimal


def test_a_mission_that_is_over_takes_no_turn(session):
    while not session.is_over:
        session.play_best()
    assert session.best() is None
    for act in (session.play_best, lambda: session.play(Answer(RIGHT), "me")):
        with pytest.raises(ValueError, match="the mission is over"):
            act()


def test_a_silent_server_ends_no_mission(session):
    with pytest.raises(ValueError, match="gives no answer"):
        session.ask(Player("silent", Writes(Answer(Turn(), "no route", NO_ANSWER))))
    assert not session.is_over and not session.record.steps


def test_a_world_that_crashes_is_told(session):
    env = session._episode.env
    env.step = lambda turn: 1 / 0
    session.play(Answer(RIGHT), "me")
    assert session.record.end_reason == "error" and "ZeroDivisionError" in views.state_html(session)


# by hand


def test_a_persons_calls_are_read_and_refused(session):
    tools = session.tools()
    name = tools[0].name
    one = {"name": name, "arguments": session.best().tool_calls[0].arguments}
    assert calls_of(by_hand("I go.", json.dumps(one), tools).turn) == [(name, one["arguments"])]
    assert calls_of(by_hand("", json.dumps([one, one]), tools).turn) == [(name, one["arguments"])] * 2
    for text, words in (
        ("go right", "no JSON"),
        ("[]", "no call"),
        ('{"name": "act"}', "is no call"),
        ("3", "3 is no call"),
        ('{"name": "fly", "arguments": {}}', f"no tool 'fly'.*use {name}"),
        (json.dumps({"name": name, "arguments": {}}), f"{name}: .*correct the arguments"),
    ):
        with pytest.raises(ValueError, match=words):
            by_hand("", text, tools)


# who is there


@pytest.fixture
def playground():
    opened = Playground({}, {"corridor": WorldChoice(CORRIDOR), "long": WorldChoice(CORRIDOR, {"length": 9})})
    yield opened
    opened.close()


def test_only_what_the_command_named_is_opened(playground):
    with pytest.raises(ValueError, match="none of corridor, long"):
        playground.run(playground.start, "me", "play", EXAMPLES[0], 1)
    with pytest.raises(ValueError, match="no model here"):
        playground.run(playground.model, "/tmp/somewhere")
    session = playground.run(playground.start, "me", "play", "corridor", 1)
    with pytest.raises(ValueError, match="no policy"):
        playground.run(playground.player, "elsewhere", session)


def test_rules_of_the_page_go_over_the_worlds(playground):
    start = playground.start
    assert playground.run(start, "me", "play", "long", 1).world.rules["length"] == 9
    assert playground.run(start, "me", "play", "long", 1, '{"length": 12}').world.rules["length"] == 12
    for rules, words in (("{", "no JSON"), ("[1]", "no object"), ('{"colour": 1}', "no rule 'colour'")):
        with pytest.raises(ValueError, match=words):
            playground.run(start, "me", "play", "corridor", 1, rules)
    for seed in (-1, 1.5, "one"):
        with pytest.raises(ValueError, match="give a whole number"):
            playground.run(start, "me", "play", "corridor", seed)


def test_missions_are_a_users_own_and_are_closed(playground):
    run, start = playground.run, playground.start
    first = run(start, "me", "A", "corridor", 1)
    second = run(start, "me", "B", "corridor", 1)
    other = run(start, "you", "A", "corridor", 2)
    assert run(playground.session, "me", "A") is first and run(playground.session, "you", "A") is other
    closed = type(first._episode.env.game).num_closed if hasattr(first._episode.env, "game") else None
    run(playground.leave, "me")
    assert not first.directory.exists() and not second.directory.exists() and other.directory.exists()
    assert closed is None or type(other._episode.env.game).num_closed == closed + 2
    with pytest.raises(ValueError, match="no mission is in play"):
        run(playground.session, "me", "A")
    for seed in range(MAX_SESSIONS):
        run(start, f"user {seed}", "A", "corridor", seed)
    assert not other.directory.exists()  # the one that was used longest ago


def test_all_work_is_done_in_one_thread(playground):
    seen = set()
    threads = [
        threading.Thread(target=lambda: seen.add(playground.run(threading.current_thread).name)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1


def test_players_are_models_and_the_worlds_policies(playground):
    assert playground.run(playground.player_names, "corridor") == ["oracle", "noisy_oracle", "random"]
    session = playground.run(playground.start, "me", "play", "corridor", 1)
    oracle = playground.run(playground.player, "oracle", session)
    assert playground.run(playground.player, "oracle", session) is oracle
    assert playground.run(session.ask, oracle).turn == session.best()


# a model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of random weights: its answers cannot be read."""
    from tiny_run import save_tiny_checkpoint

    return find(str(save_tiny_checkpoint(tmp_path_factory.mktemp("model"))), overrides=["eval.max_new_tokens=4"])


def test_a_prompts_tokens_are_those_of_training(model):
    playground = Playground({"tiny": model}, {"corridor": WorldChoice(CORRIDOR)}, device="cpu")
    session = playground.run(playground.start, "me", "play", "corridor", 1)
    player = playground.run(playground.player, "tiny", session)
    from qwenvl_agent.playground.tokens import prompt_html

    answer = playground.run(session.ask, player)
    assert answer.error and "unreadable" in views.answer_html(session, "tiny", answer)
    page = playground.run(prompt_html, session, player)
    # What cannot be read is no turn: the reference's stands in, with weights, behind the prompt.
    assert "the turn is of the oracle" in page and ", call, weight 1" in page and "&lt;|image_pad|&gt; x " in page
    assert page.index("&lt;|image_pad|&gt;") < page.index('<span title="')
    image, result = playground.run(playground.click, "tiny", Image.new("RGB", (320, 200), "white"), "open the menu")
    assert image.size == (320, 200) and result["action"] is None and result["image_size"] == [320, 200]
    with pytest.raises(ValueError, match="no screenshot"):
        playground.run(playground.click, "tiny", None, "open the menu")
    with pytest.raises(ValueError, match="instruction is empty"):
        playground.run(playground.click, "tiny", Image.new("RGB", (320, 200)), " ")
    playground.close()


def test_a_run_brings_its_world(model, tmp_path):
    import dataclasses

    config = dataclasses.replace(
        model.config, eval=dataclasses.replace(model.config.eval, suite=CORRIDOR, world={"length": 8})
    )
    worlds = find_worlds({"mine": dataclasses.replace(model, config=config)}, ["safari"], {"width": 30})
    assert list(worlds)[:2] == ["safari", f"{CORRIDOR}, as mine learned it"]
    assert worlds["safari"].rules == {"width": 30} and worlds[f"{CORRIDOR}, as mine learned it"].rules == {"length": 8}
    assert worlds["browser"] == WorldChoice("browser")


# what is shown


def test_text_of_worlds_and_models_is_no_html(session):
    answer = Answer(Turn("<b>${alert(1)}</b>", (ToolCall("x", {"a": "<script>"}),)), "<i>", "unread")
    shown = views.answer_html(session, "<u>", answer)
    assert "<b>${" not in shown and "<script>" not in shown and "<u>" not in shown and "&lt;script&gt;" in shown


def test_a_mission_is_shown_turn_by_turn(session):
    assert "No turn is played yet" in views.turns_html(session)
    while not session.is_over:
        session.play_best()
    shown = views.show(session)
    assert shown.turns.count('class="step"') == session.record.turns and 'class="tag good">optimal' in shown.turns
    assert "tag good" in shown.state and "the mission is over" in shown.best and shown.answer == ""
    assert shown.image.size == (384, 64)  # twice: three times would be beyond LEAST_PX


# who may reach it


def ask_guard(path: str, host: str, body: bytes, kind: bytes = b"text/html") -> tuple[int, dict, bytes]:
    sent = []

    async def app(scope, receive, send):
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[:9], "more_body": True})
        await send({"type": "http.response.body", "body": body[9:]})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"host", host.encode())]}
    asyncio.run(Guard(app, "secret", frozenset({"127.0.0.1:1"}))(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/secret/", "127.0.0.1:1", 200),
        ("/secret/queue/join", "127.0.0.1:1", 200),
        ("/", "127.0.0.1:1", 403),
        ("/secre/", "127.0.0.1:1", 403),
        ("/secret/", "evil.example", 403),
        ("/secret/", "127.0.0.1:2", 403),
    ],
)
def test_without_its_token_or_under_another_name_nothing_is_answered(path, host, status):
    found, headers, body = ask_guard(path, host, b"hello, all of you", b"text/plain")
    assert found == status and (body == b"hello, all of you") == (status == 200)
    assert b"default-src 'self'" in headers[b"content-security-policy"]


def test_a_page_names_no_other_host():
    page = (
        b'<html><link rel="manifest" href="/manifest.json" /><link rel="preconnect" href="https://fonts.example" /><link rel="stylesheet" href="./own.css">'
        b'<script\n src="https://cdn.example/frame.js" async></script><meta content="http://pictures.example/a.jpg"/>'
        b"<script src='./own.js'></script>hi</html>"
    )
    _, headers, body = ask_guard("/secret/", "127.0.0.1:1", page)
    assert body == b'<html><link rel="stylesheet" href="./own.css"><script src=\'./own.js\'></script>hi</html>'
    assert headers[b"content-length"] == str(len(body)).encode()
    assert ask_guard("/secret/x.js", "127.0.0.1:1", page, b"text/javascript")[2] == page


# the command


def test_the_command_refuses_before_it_opens_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert play.main([]) == 2
    assert "runs/safari_tiny is no folder of a run" in capsys.readouterr().err
    assert play.main(["--endpoint", "http://127.0.0.1:1/v1"]) == 2
    assert "--endpoint without --model" in capsys.readouterr().err
    with pytest.raises(ValueError, match="named twice"):
        play.find_sources(play.build_parser().parse_args(["--model", "tiny", "--model", "tiny"]))
    assert list(play.find_sources(play.build_parser().parse_args(["--model", "tiny"]))) == ["tiny"]
    assert play.find_sources(play.build_parser().parse_args(["--world", "safari"])) == {}
