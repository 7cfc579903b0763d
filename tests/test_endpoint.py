"""The endpoint policy against a scripted server on loopback; the real one is in test_serve.py."""

import base64
import io
import json
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import TURNS, request_of, tiny_processor
from PIL import Image
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

import eval as evaluation
from qwenvl_agent.config import EvalConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.pixels import pixel_values
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.inference import endpoint
from qwenvl_agent.inference.endpoint import EndpointPolicy, to_chat
from qwenvl_agent.records import read_records
from qwenvl_agent.schema import ToolCall, Turn

pytestmark = pytest.mark.loopback

VISION = VisionConfig(max_tokens_per_image=100, min_tokens_per_image=4)
CALL = '{"name": "declare_done", "arguments": {}}'
RIGHT = f"I am there.\n<tool_call>\n{CALL}\n</tool_call>"
DONE = Turn("I am there.", (ToolCall("declare_done", {}),))


def build_collator(processor, format_name="native") -> Collator:
    return Collator(processor, FORMATS[format_name], PromptConfig(), VISION, TrainConfig())


def pictures_in(messages) -> list[Image.Image]:
    urls = [p["image_url"]["url"] for m in messages if isinstance(m["content"], list) for p in m["content"][:-1]]
    return [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) for url in urls]


def served_ids(messages, tokenizer, token_px) -> list[int]:
    """The ids that a server makes of the messages: ChatML, and as many pads as a picture has tokens."""
    pads = iter("<|image_pad|>" * (im.width * im.height // token_px**2) for im in pictures_in(messages))
    text = ""
    for message in messages:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        written = [p["text"] if p["type"] == "text" else f"<|vision_start|>{next(pads)}<|vision_end|>" for p in parts]
        text += f"<|im_start|>{message['role']}\n{''.join(written)}<|im_end|>\n"
    return tokenizer(text + "<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]


def completion(text, num_prompt, **message) -> dict:
    finish = message.pop("finish_reason", "stop")
    choice = {"message": {"role": "assistant", "content": text} | message, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": num_prompt, "completion_tokens": 9}}


def right(body, number) -> None:
    """The right answer to every request."""


class Server:
    """`reply(body, number)` gives (status, JSON) or None for the right answer; `bodies` are what was asked."""

    def __init__(self, collator, reply=right):
        self.collator, self.reply, self.bodies, self.headers = collator, reply, [], []
        self.lock = threading.Lock()

    def answer(self, body, headers):
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            number = len(self.bodies)
        return self.reply(body, number) or (200, completion(RIGHT, self.count(body)))

    def count(self, body) -> int:
        with self.lock:
            return len(served_ids(body["messages"], self.collator.tokenizer, self.collator.geometry.token_px))


@contextmanager
def serving(server: Server):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply = server.answer(body, self.headers) if self.path == "/v1/chat/completions" else (404, {})
            payload = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def collator():
    return build_collator(tiny_processor(1))


def policy_of(url, collator, **options) -> EndpointPolicy:
    settings = {"max_new_tokens": 30, "batch_size": 4}
    settings |= {key: options.pop(key) for key in list(options) if key in EvalConfig.__dataclass_fields__}
    options = {"first_pause_s": 0.01} | options
    return EndpointPolicy(url, "tiny", collator, collator.fmt, EvalConfig(**settings), **options)


def act(collator, requests, reply=right, **options):
    """(answers, the server that gave them)"""
    server = Server(collator, reply)
    with serving(server) as url:
        return policy_of(url, collator, **options).act(requests), server


OF_INSTRUCT = [name for name in FORMATS if name != "think"]
"""A server of an Instruct checkpoint begins no answer in a think block: tests/test_think.py serves an exported folder."""


@pytest.mark.parametrize("name", OF_INSTRUCT)
def test_the_served_prompt_has_the_ids_and_pixels_of_the_local_one(name):
    collator = build_collator(tiny_processor(1), name)
    requests = [request_of(steps, pictures) for steps, pictures in ((0, 0), (0, 2), (6, 1))]
    _, server = act(collator, requests, batch_size=1)
    for request, body in zip(requests, server.bodies, strict=True):
        local = collator.encode_prompt([request])
        assert served_ids(body["messages"], collator.tokenizer, 16) == local["input_ids"][0].tolist()
        if "patches" in local:
            made = collator.image_processor(images=pictures_in(body["messages"]), return_tensors="pt")
            assert made["image_grid_thw"].tolist() == local["image_grid_thw"].tolist()
            assert torch.equal(made["pixel_values"], pixel_values(local))
        assert "tools" not in body and all(set(message) == {"role", "content"} for message in body["messages"])


@pytest.mark.parametrize("name", OF_INSTRUCT)
def test_the_published_template_makes_the_local_ids(auto_processor, real_processor, name):
    collator = build_collator(real_processor, name)
    for request in (request_of(0, 0), request_of(6, 1, size=256), request_of(1, 2, size=300, system="")):
        _, server = act(collator, [request])
        messages = server.bodies[0]["messages"]
        images = iter(pictures_in(messages))
        for message in messages:
            if isinstance(message["content"], list):
                message["content"] = [
                    p if p["type"] == "text" else {"type": "image", "image": next(images)} for p in message["content"]
                ]
        made = auto_processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        local = collator.encode_prompt([request])
        assert made["input_ids"].tolist() == local["input_ids"].tolist()
        if "patches" in local:
            assert torch.equal(made["pixel_values"], pixel_values(local))


def test_control_tokens_in_what_is_seen_stay_text():
    prompt = "<|im_start|>user\n<\\|im_end|>\n<tool_response>\n{}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert to_chat(prompt, []) == [{"role": "user", "content": "<\\|im_end|>\n<tool_response>\n{}\n</tool_response>"}]
    with pytest.raises(AssertionError, match="not made of messages"):
        to_chat(prompt.removesuffix("\n"), [])


def test_requests_are_under_way_together_and_answers_keep_their_order(collator):
    barrier = threading.Barrier(4, timeout=20)

    def reply(body, number):
        barrier.wait()  # breaks unless four requests wait at once
        system = body["messages"][0]["content"]
        return 200, completion(system[:4], server.count(body))

    server = Server(collator, reply)
    requests = [request_of(0, 1, system=f"No {i}. Play.") for i in range(8)]
    with serving(server) as url:
        answers = policy_of(url, collator).act(requests)
    assert [answer.turn.text for answer in answers] == [f"No {i}" for i in range(8)]


def test_what_a_request_asks_for(collator):
    _, server = act(collator, [request_of()], api_key="k", fields={"top_k": 5})
    assert {key: server.bodies[0][key] for key in server.bodies[0] if key != "messages"} == {
        "model": "tiny",
        "max_tokens": 30,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 5,
    }
    assert server.headers[0]["Authorization"] == "Bearer k"
    _, server = act(collator, [request_of()] * 3, temperature=0.7, seed=5, batch_size=1)
    assert [(body["temperature"], body["seed"]) for body in server.bodies] == [(0.7, 6), (0.7, 7), (0.7, 8)]
    drawn = [replace(request_of(), draw=draw) for draw in ("0/0", "0/1", "0/0")]
    _, server = act(collator, drawn, temperature=0.7, seed=5, batch_size=1, draws_each=True)
    seeds = [body["seed"] for body in server.bodies]
    assert seeds[0] == seeds[2] == drawn[0].draw_number(5) != seeds[1] and max(seeds) < 2**31


def test_white_pictures_if_asked_for(collator):
    _, server = act(collator, [request_of()], blank_pictures=True)
    assert pictures_in(server.bodies[0]["messages"])[0].getcolors() == [(160 * 160, (255, 255, 255))]


def answer_to(collator, text, **message):
    """The policy's answer where the server gives `text` and `message`."""
    count = Server(collator).count
    answers, _ = act(collator, [request_of()], lambda body, number: (200, completion(text, count(body), **message)))
    return answers[0]


def test_what_the_model_wrote_is_read_as_locally(collator):
    assert act(collator, [request_of()])[0][0].turn == DONE
    broken = '<tool_call>\n{"name": "move", "arguments": {"actions'
    for text, ended in ((broken, "stop"), ("", "stop"), (None, "stop"), ("a <|im_start|>", "stop")):
        answer = answer_to(collator, text, finish_reason=ended)
        assert answer == collator.fmt.parse(text or "", request_of().tools) and answer.error
    endless = answer_to(collator, RIGHT, finish_reason="length")
    assert (endless.error, endless.text, endless.turn) == ("endless", RIGHT, Turn())
    assert answer_to(collator, RIGHT + "<|im_end|>", finish_reason="length").turn == DONE


def test_calls_that_the_server_took_out_are_put_back_and_said(collator):
    call = {"id": "1", "type": "function", "function": {"name": "declare_done", "arguments": "{}"}}
    answer = answer_to(collator, "I am there.", tool_calls=[call], finish_reason="tool_calls")
    assert (answer.turn, answer.text, answer.repairs) == (DONE, RIGHT, ("parsed_by_server",))
    alone = answer_to(collator, None, tool_calls=[call, call], finish_reason="tool_calls")
    assert alone.turn == Turn(tool_calls=DONE.tool_calls * 2)
    thinking = answer_to(collator, RIGHT, reasoning_content="hm")
    assert thinking.error == "control_token"


def test_a_busy_server_is_asked_again_a_few_times(collator):
    for status in (429, 503):
        answers, server = act(collator, [request_of()], lambda body, n, status=status: (status, {}) if n < 3 else None)
        assert answers[0].turn == DONE and len(server.bodies) == 3
    answers, server = act(collator, [request_of()], lambda body, number: (503, {"error": "full"}))
    assert (answers[0].error, answers[0].turn, len(server.bodies)) == ("no_answer", Turn(), 5)
    assert re.search(r"5 tries \(status 503: .*full.*start the server", answers[0].text)


def busy_until(collator, retry_after: str, num_busy: int, **options):
    """(answer, requests, seconds) of a server that is busy so often, and says when to come back."""

    def behave(connection):
        if len(asked) < num_busy:
            asked.append("busy")
            head = f"HTTP/1.1 429 Too Many\r\nRetry-After: {retry_after}\r\nContent-Length: 4\r\n\r\nfull"
            connection.sendall(head.encode())
        else:
            asked.append("answered")
            body = json.dumps(completion(RIGHT, num_tokens)).encode()
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    asked: list[str] = []
    with streaming(behave) as url:
        policy = policy_of(url, collator, **options)
        _, num_tokens = policy._prompt(request_of())
        started = time.monotonic()
        answer = policy.act([request_of()])[0]
    return answer, asked, time.monotonic() - started


def test_a_server_that_says_when_to_come_back_is_asked_then(collator):
    """However often: it is there, and has no room yet."""
    answer, asked, seconds = busy_until(collator, "0", 8)
    assert answer.turn == DONE and asked == ["busy"] * 8 + ["answered"]
    answer, asked, seconds = busy_until(collator, "1", 1)
    assert answer.turn == DONE and seconds >= 1
    answer, asked, seconds = busy_until(collator, "soon", 9)
    assert answer.error == "no_answer" and asked == ["busy"] * 5


def test_a_server_that_has_no_room_in_time_is_not_waited_for(collator):
    answer, asked, seconds = busy_until(collator, "86400", 9, timeout_s=20.0)
    assert answer.error == "no_answer" and asked == ["busy"] and seconds < 10
    assert "could be asked again in 86400 s (status 429: full), and 20 s are all" in answer.text


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
    ],
)
def test_when_to_come_back_is_a_number_or_a_date(header, seconds):
    assert endpoint.seconds_in(header) == seconds


def test_a_text_longer_than_all_tokens_that_were_asked_for_is_no_answer(collator):
    """It would be in every later prompt of its episode."""
    limit = endpoint.MAX_TOKEN_CHARS * 30
    assert answer_to(collator, RIGHT.rjust(limit)).turn.tool_calls == DONE.tool_calls
    answer = answer_to(collator, RIGHT.rjust(limit + 1))
    assert answer.error == "no_answer" and f"sends {limit + 1} characters where 30 tokens" in answer.text


def test_a_failure_of_the_server_is_an_outcome_of_that_request(collator):
    def reply(body, number):
        return (500, {"error": "malformed call"}) if "No 1" in body["messages"][0]["content"] else None

    requests = [request_of(0, 1, system=f"No {i}. Play.") for i in range(3)]
    answers, server = act(collator, requests, reply)
    assert [answer.error for answer in answers] == ["", "server_error", ""] and len(server.bodies) == 4
    answers, _ = act(collator, [request_of()], lambda body, number: (500, {}) if number == 1 else None)
    assert answers[0].turn == DONE


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, {"error": "no model tiny"}), "refuses a request for the model 'tiny' .status 404: .*no model tiny"),
        ((200, b"<html>"), "not as OpenAI's chat completions do .*<html>"),
        ((200, {"choices": []}), "not as OpenAI's chat completions do .IndexError"),
        ((200, {"choices": [{"message": {"content": "a"}}]}), "KeyError: 'usage'"),
        ((200, completion("a", 7)), "counts 7 prompt tokens and the same prompt has \\d+ here"),
        ((500, {"detail": "boom"}), "fails on its first request .status 500: .*boom"),
    ],
)
def test_a_server_that_cannot_be_evaluated_is_one_message(collator, reply, message):
    server = Server(collator, lambda body, number: reply)
    with serving(server) as url, pytest.raises(ValueError, match=message):
        policy_of(url, collator).check()


def test_the_check_asks_for_one_token_about_a_picture(collator):
    server = Server(collator)
    with serving(server) as url:
        policy_of(url + "/", collator).check()
    assert [body["max_tokens"] for body in server.bodies] == [1]
    assert len(pictures_in(server.bodies[0]["messages"])) == 1


def test_a_server_without_an_answer_in_time(collator):
    release = threading.Event()
    server = Server(collator, lambda body, number: release.wait(20) and None)
    with serving(server) as url:
        answer = policy_of(url, collator, timeout_s=0.2).act([request_of()])[0]
        release.set()
    assert answer.error == "no_answer" and len(server.bodies) == 1
    assert re.search("not answered within 0.2 s.*lower eval.batch_size", answer.text)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def drip(connection, head: bytes) -> None:
    """A byte every 50 ms for ever."""
    connection.sendall(head)
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def flood(connection, head: bytes) -> None:
    """400 MB."""
    connection.sendall(head)
    for _ in range(400):
        connection.sendall(b" " * 2**20)


@contextmanager
def streaming(behave):
    """The URL of a server that does this with every connection, once it has read something."""

    def serve():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    behave(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (partial(drip, head=HEAD + b"X-Slow: "), "not answered within 1 s"),
        (partial(drip, head=HEAD + b"\r\n"), "not answered within 1 s"),
        (partial(drip, head=HEAD + b"Content-Length: 99999\r\n\r\n"), "not answered within 1 s"),
        (partial(flood, head=HEAD + b"Content-Length: 419430400\r\n\r\n"), "sends more than 8388608 bytes"),
        (partial(flood, head=HEAD + b"\r\n"), "sends more than 8388608 bytes"),
    ],
    ids=["headers drip", "body drips", "long body drips", "400 MB", "400 MB of no stated length"],
)
def test_a_slow_or_endless_answer_is_over_in_time(collator, behave, said):
    with streaming(behave) as url:
        started = time.monotonic()
        answer = policy_of(url, collator, timeout_s=1.0).act([request_of()])[0]
        assert time.monotonic() - started < 5
    assert answer.error == "no_answer" and said in answer.text


def test_after_an_error_no_other_request_is_waited_for(collator):
    release = threading.Event()

    def reply(body, number):
        return (200, completion("a", 7)) if "No 0" in body["messages"][0]["content"] else release.wait(20) and None

    server = Server(collator, reply)
    requests = [request_of(0, 1, system=f"No {i}. Play.") for i in range(3)]
    with serving(server) as url:
        started = time.monotonic()
        with pytest.raises(ValueError, match="counts 7 prompt tokens"):
            policy_of(url, collator, timeout_s=20.0).act(requests)
        assert time.monotonic() - started < 5
        release.set()


def test_a_request_that_begins_after_another_ones_error_is_not_waited_for_either(collator, monkeypatch):
    class LateCall(endpoint.Call):
        def __init__(self, client, timeout_s):
            if threading.current_thread().name.endswith("_1"):
                assert policy.is_stopped.wait(10)
            super().__init__(client, timeout_s)

    monkeypatch.setattr(endpoint, "Call", LateCall)
    release = threading.Event()

    def reply(body, number):
        return (200, completion("a", 7)) if "No 0" in body["messages"][0]["content"] else release.wait(20) and None

    server = Server(collator, reply)
    with serving(server) as url:
        policy = policy_of(url, collator, timeout_s=20.0)
        started = time.monotonic()
        with pytest.raises(ValueError, match="counts 7 prompt tokens"):
            policy.act([request_of(0, 1, system=f"No {i}. Play.") for i in range(2)])
        assert time.monotonic() - started < 5
        release.set()


def nested(depth: int) -> bytes:
    return b'{"choices": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>Bad gateway</html>",
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        nested(100_000),
        {"choices": {}},
        {"choices": [None], "usage": {}},
        {"choices": ["text"], "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": "I am there."}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": None}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": {"content": ["a"]}}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": {"content": 5}}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": {"tool_calls": "call"}}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": {"tool_calls": [{"function": {}}]}}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": {"content": "a"}}], "usage": "none"},
        {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "7"}},
        {"choices": [{"message": {"content": "a"}}]},
    ],
    ids=lambda reply: str(reply)[:40],
)
def test_what_is_no_completion_costs_that_request(collator, reply):
    requests = [request_of(0, 1, system=f"No {i}. Play.") for i in range(3)]
    answers, _ = act(
        collator, requests, lambda body, number: (200, reply) if "No 1" in body["messages"][0]["content"] else None
    )
    assert [answer.error for answer in answers] == ["", "no_answer", ""]
    assert "not as OpenAI's chat completions do (" in answers[1].text


def test_half_a_character_is_written_as_a_question_mark(collator):
    assert answer_to(collator, "a \ud83d b").text == "a ? b"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000/v1", "http://", "http://a:b/v1", "ftp://a/v1", ""])
def test_a_wrong_url(collator, url):
    with pytest.raises(ValueError, match="is no URL: nothing can be asked"):
        policy_of(url, collator)


@pytest.mark.parametrize("url", ["http://me:word@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=word"])
def test_a_secret_in_a_url_is_refused_and_not_repeated(collator, url):
    with pytest.raises(ValueError, match="put the key into ENDPOINT_API_KEY") as refusal:
        policy_of(url, collator)
    assert "word@" not in str(refusal.value) and "key=" not in str(refusal.value)


# eval.py

WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 3, "tile_px": 16}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    checkpoint = save_tiny_checkpoint(directory / "base")
    config = tiny_config(directory, checkpoint, save_dataset(directory / "data"), eval={"world": WORLD})
    return save_config(config, directory / "config.json")


def run(*arguments) -> int:
    return evaluation.main([str(argument) for argument in arguments])


def file_collator(config_file) -> Collator:
    from qwenvl_agent.config import load_config
    from qwenvl_agent.model.build import build_processor

    config = load_config(config_file)
    processor = build_processor(config.model, config.vision)
    return Collator(processor, FORMATS["native"], config.prompt, config.vision, config.train)


def test_eval_plays_a_served_model(tmp_path, config_file, capsys):
    server = Server(file_collator(config_file))
    with serving(server) as url:
        endpoint = ["--endpoint", url, "--model", "exports/agent", "--config", config_file]
        assert (
            run(
                *endpoint,
                "--suite",
                "safari",
                "--episodes",
                2,
                "--out",
                tmp_path / "out",
                "--json",
                "--field",
                "top_k=3",
            )
            == 0
        )
    about = json.loads(capsys.readouterr().out)["about"]
    assert about["policy"] == f"agent at {url}" and (about["endpoint"], about["model"]) == (url, "exports/agent")
    assert about["config"]["prompt"]["format"] == "native" and about["seeds"]["count"] == 2
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert [record.end_reason for record in records] == ["done", "done"]
    assert [record.steps[0].text for record in records] == [RIGHT, RIGHT]
    assert {body["top_k"] for body in server.bodies} == {3} and len(server.bodies) == 3


def test_one_page_of_html_costs_one_episode(tmp_path, config_file, capsys):
    """The first request is the check; the world has three turns."""
    server = Server(file_collator(config_file), lambda body, number: (200, b"<html>") if number == 3 else None)
    out = tmp_path / "out"
    with serving(server) as url:
        endpoint = ["--endpoint", url, "--model", "exports/agent", "--config", config_file]
        assert run(*endpoint, "--suite", "safari", "--episodes", 4, "--out", out, "--set", "eval.batch_size=1") == 0
    records = read_records(out / "records.jsonl")
    assert [record.end_reason for record in records] == ["done", "error", "done", "done"]
    assert "not as OpenAI's chat completions do" in records[1].error and records[1].steps == []
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["error_rate"]["value"], metrics["error_rate"]["n"]) == (0.25, 4)
    assert list(metrics)[:3] == ["about", "success_rate", "error_rate"]
    assert re.search(r"crashed +. +25.0 %", capsys.readouterr().out)
    assert "1 of them ended with an error" in (out / "report.html").read_text()


def test_a_server_that_falls_silent_is_no_result(tmp_path, config_file, capsys):
    server = Server(
        file_collator(config_file), lambda body, number: (404, {"error": "gone"}) if number % 4 != 1 else None
    )
    out = tmp_path / "out"
    with serving(server) as url:
        endpoint = ["--endpoint", url, "--model", "exports/agent", "--config", config_file]
        assert run(*endpoint, "--suite", "safari", "--episodes", 3, "--out", out) == 2
        assert run(*endpoint, "--suite", "steps", "--rows", 3, "--out", out) == 2
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for line in (first, second):
        assert "all 3 cases ended with an error" in line and "status 404" in line and "gone" in line
    assert {path.name for path in out.iterdir()} == {"failed"}


def test_eval_with_a_dead_endpoint(tmp_path, config_file, capsys):
    url = f"http://127.0.0.1:{free_port()}/v1"
    out = tmp_path / "out"
    endpoint = ["--endpoint", url, "--model", "x", "--config", config_file]
    assert run(*endpoint, "--suite", "safari", "--out", out, "--episodes", 1) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert re.search(rf"error: {url} does not answer after 5 tries \(.*refused.*start the server or correct", message)
    assert "Traceback" not in message and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "oracle", "--endpoint", "http://127.0.0.1:1/v1"], "--endpoint without --model"),
        (["--model", "tiny", "--field", "a=1"], "--field without --endpoint"),
        (["--endpoint", "nowhere", "--model", "tiny"], "'nowhere' is no URL"),
        (["--endpoint", "http://127.0.0.1:1/v1", "--model", "tiny", "--field", "a"], "has no '='"),
    ],
)
def test_a_users_mistake_is_one_message(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_turns_of_the_history_go_as_text(collator):
    _, server = act(collator, [request_of(len(TURNS), 0)])
    roles = [message["role"] for message in server.bodies[0]["messages"]]
    assert roles[:4] == ["system", "user", "assistant", "user"] and "tool" not in roles
    assert server.bodies[0]["messages"][2]["content"].count("<tool_call>") == 1
    assert all(isinstance(message["content"], str) for message in server.bodies[0]["messages"])
