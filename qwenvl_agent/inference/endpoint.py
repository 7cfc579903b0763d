"""A model behind an OpenAI-compatible server as a policy: the served model gets the prompts of the local one.

The prompt's text, tools included, is cut at its own control tokens into plain system, user and assistant messages, of
which the server's chat template makes the same text again; pictures go at the size that the model sees, so that the
server has nothing to resize. (`/completions` would take the text as it is, but no pictures.) A server says with every
answer how many prompt tokens it counted: one that counts others than we do evaluates something else and is refused.

Once a server has shown what it is (`check`), a request that it leaves without an answer costs that request alone:
whatever it sends, however slowly and however much of it, the request is over in time and its Answer says why.
"""

import base64
import copy
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx2
from PIL import Image

from qwenvl_agent.config import EvalConfig
from qwenvl_agent.families import DEFAULT, Family, Template
from qwenvl_agent.formats import Format
from qwenvl_agent.schema import NO_ANSWER, Answer, Observation, Picture, Request, Turn

BUSY = {408, 429, 502, 503, 504}
"""Answers of a server, or of a proxy before it, that may be another one a moment later."""
FAILED = 500
MAX_BYTES = 8 * 2**20
"""Of the body of an answer: an endless one would fill the memory."""
MAX_TOKEN_CHARS = 512
"""Of one token; no vocabulary has longer ones. What is longer than all tokens that were asked for is no model's, and would
be in every later prompt of its episode."""


class NoAnswerError(ValueError):
    """One request has no answer that can be read."""


class EndpointPolicy:
    """The model called `model` at `url` (which ends in /v1), with up to `cfg.batch_size` requests under way at once.

    Answers are those of `ModelPolicy`, with three names more: the error `server_error` if the server fails on one
    request twice (one that parses tool calls does so on a malformed one), the error `no_answer` if nothing comes that
    can be read (then `text` says why), and the repair `parsed_by_server` if it gives calls in place of the text, which
    is then put together again from them. A server out of reach or busy is asked `max_tries` times, with pauses that
    double from `first_pause_s` on; one that says when to come back (Retry-After) is asked then, which is no try; and all of
    that within `timeout_s`. `fields` go into every request, such as
    {"skip_special_tokens": False} for vLLM, which otherwise hides control tokens in an answer. With `draws_each` a
    request's seed is made of its `draw` and `seed`, else requests have the seeds after `seed`, one after the other.
    """

    def __init__(
        self,
        url: str,
        model: str,
        collator,
        fmt: Format,
        cfg: EvalConfig,
        *,
        blank_pictures: bool = False,
        seed: int = 0,
        draws_each: bool = False,
        fields: dict | None = None,
        api_key: str = "",
        max_tries: int = 5,
        first_pause_s: float = 0.5,
        timeout_s: float = 600.0,
    ):
        check_url(url)
        if cfg.constrained:
            raise ValueError(
                "eval.constrained is true with a served model: its tokens are chosen there, where no grammar of ours "
                "holds; set eval.constrained=false, or evaluate the checkpoint here"
            )
        if cfg.max_thought_tokens:
            raise ValueError(
                f"eval.max_thought_tokens is {cfg.max_thought_tokens} with a served model: its thoughts are ended there; set it "
                "to 0, or evaluate the checkpoint here"
            )
        self.url, self.model, self.collator, self.fmt, self.cfg = url.rstrip("/"), model, collator, fmt, cfg
        self.blank_pictures, self.fields = blank_pictures, fields or {}
        self.sampling_seed, self.draws_each = seed, draws_each
        self.max_tries, self.first_pause_s = max_tries, first_pause_s
        self.client = httpx2.Client(
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=httpx2.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            # A connection for each request, so that it can be cut when its time is up.
            limits=httpx2.Limits(max_connections=cfg.batch_size, max_keepalive_connections=0),
            trust_env=False,  # a proxy of the environment would be asked for loopback addresses too
        )
        self.timeout_s = timeout_s
        self.is_stopped = threading.Event()
        self.under_way: set[Call] = set()

    def with_seed(self, seed: int) -> "EndpointPolicy":
        """The same model, whose answers are drawn by another seed."""
        other = copy.copy(self)
        other.sampling_seed = seed
        return other

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of the requests; ValueError if the server evaluates something else."""
        if self.blank_pictures:
            from qwenvl_agent.inference.policy import blank

            requests = [blank(request) for request in requests]
        prompts = [self._prompt(request) for request in requests]
        self.is_stopped.clear()
        pool = ThreadPoolExecutor(self.cfg.batch_size)
        try:
            return list(pool.map(self._answer, prompts, requests))
        finally:
            self.is_stopped.set()  # after an error the others pause no more, and wait no more
            for call in list(self.under_way):
                call.cut()
            pool.shutdown(cancel_futures=True)

    def check(self) -> None:
        """Ask for one token; ValueError if the server is out of reach, has no such model, or has another prompt."""
        picture = Picture.from_image(Image.new("RGB", (self.collator.geometry.token_px,) * 2, "white"))
        body, num_tokens = self._prompt(Request("Answer.", (), (), Observation("What is it?", (picture,))))
        self.is_stopped.clear()
        status, content = self._post(body | {"max_tokens": 1})
        if status == FAILED:
            raise ValueError(f"{self.url} fails on its first request ({said(status, content)}): see the server's log")
        self._read(content, num_tokens)

    def _prompt(self, request: Request) -> tuple[dict, int]:
        """The body of a request, and the number of its prompt's tokens."""
        encoded = self.collator.encode(request, None, "request")
        urls = [png_url(pixels) for pixels in encoded.load_pixels()]
        body = {
            "model": self.model,
            "messages": to_chat("".join(span.text for span in encoded.spans), urls, self.fmt.family, self.fmt.opening),
            "max_tokens": self.cfg.max_new_tokens,
            "temperature": self.cfg.temperature,
            "top_p": 1.0,
        }
        if self.cfg.temperature > 0 and self.draws_each:
            body["seed"] = request.draw_number(self.sampling_seed)
        elif self.cfg.temperature > 0:
            self.sampling_seed += 1
            body["seed"] = self.sampling_seed
        return body | self.fields, len(encoded.input_ids)

    def _answer(self, prompt: tuple[dict, int], request: Request) -> Answer:
        body, num_tokens = prompt
        try:
            status, content = self._post(body)
            if status == FAILED:
                return Answer(Turn(), text="", error="server_error")
            text, ended, is_parsed = self._read(content, num_tokens)
        except NoAnswerError as error:
            return Answer(Turn(), text=str(error), error=NO_ANSWER)
        if not ended:
            return Answer(Turn(), text=text, error="endless")
        answer = self.fmt.parse(text, request.tools)
        return replace(answer, repairs=(*answer.repairs, "parsed_by_server")) if is_parsed else answer

    def _post(self, body: dict) -> tuple[int, bytes]:
        """(status, body) of the server's answer, perhaps FAILED; NoAnswerError if there is none, or it refuses."""
        num_failures, reason, attempt, pause_s = 0, "", 0, 0.0
        with self._call() as call:
            while attempt < self.max_tries:
                if pause_s >= call.seconds_left():
                    raise NoAnswerError(
                        f"{self.url} could be asked again in {pause_s:g} s ({reason}), and {self.timeout_s:g} s are all that a request "
                        "has: nothing can be evaluated; lower eval.batch_size, or wait until the server has room"
                    )
                self.is_stopped.wait(pause_s)
                attempt, pause_s = attempt + 1, self.first_pause_s * 2**attempt
                try:
                    status, content, wait_s = call.post(f"{self.url}/chat/completions", body)
                except httpx2.RequestError as error:
                    if call.is_cut or isinstance(error, httpx2.ReadTimeout):
                        raise NoAnswerError(
                            f"{self.url} has not answered within {self.timeout_s:g} s: there is nothing to read; "
                            "lower eval.batch_size, so that fewer requests wait for each other"
                        ) from None
                    reason = str(error) or type(error).__name__
                    continue
                num_failures += status == FAILED
                if status // 100 == 2 or num_failures == 2:
                    return status, content
                reason = said(status, content)
                if status not in BUSY | {FAILED}:
                    raise NoAnswerError(
                        f"{self.url} refuses a request for the model {self.model!r} ({reason}): correct it"
                    )
                if wait_s is not None and status in BUSY:
                    attempt, pause_s = attempt - 1, max(wait_s, self.first_pause_s)
        raise NoAnswerError(
            f"{self.url} does not answer after {self.max_tries} tries ({reason}): nothing can be evaluated; start the "
            "server or correct the URL"
        )

    @contextmanager
    def _call(self) -> "Iterator[Call]":
        call = Call(self.client, self.timeout_s)
        self.under_way.add(call)
        if self.is_stopped.is_set():  # by an error in another request, after its round of cutting
            call.cut()
        try:
            yield call
        finally:
            self.under_way.discard(call)
            call.end()

    def _read(self, content: bytes, num_tokens: int) -> tuple[str, bool, bool]:
        """(text, whether it came to its end, whether the server has parsed it)."""
        try:
            choice, usage = first_choice(content)
            text, is_parsed = written_text(choice["message"], self.fmt.family)
            # A server that found calls says so, whether or not they came to an end.
            is_full = is_parsed and usage["completion_tokens"] >= self.cfg.max_new_tokens
            counted = usage["prompt_tokens"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise NoAnswerError(
                f"{self.url} answers, but not as OpenAI's chat completions do ({type(error).__name__}: {error}; "
                f"{start_of(content)!r}): nothing can be read; correct the URL, which usually ends in /v1"
            ) from None
        if counted != num_tokens:
            raise ValueError(
                f"{self.url} counts {counted} prompt tokens and the same prompt has {num_tokens} here: its chat "
                "template, tokenizer or picture budget is another one, so it would be another evaluation; serve what "
                "qwenvl-agent export wrote, and give the settings of the run with --config"
            )
        if len(text) > MAX_TOKEN_CHARS * self.cfg.max_new_tokens:
            raise NoAnswerError(
                f"{self.url} sends {len(text)} characters where {self.cfg.max_new_tokens} tokens were asked for: no model "
                "writes that; correct the server"
            )
        text, end, _ = text.partition(
            self.fmt.family.template.turn_end
        )  # asked to keep control tokens, a server may keep this one too
        is_cut = choice.get("finish_reason") == "length" or is_full
        return text, bool(end) or not is_cut, is_parsed


class Call:
    """One request with all its tries; when its time is up its connection is cut, in whatever it is.

    A time limit of the client's is for each read, so a server that sends a byte a second would never reach it.
    """

    def __init__(self, client: httpx2.Client, timeout_s: float):
        self.client, self.is_cut, self.stream = client, False, None
        self.deadline = time.monotonic() + timeout_s
        self.timer = threading.Timer(timeout_s, self.cut)
        self.timer.daemon = True
        self.timer.start()

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def post(self, url: str, body: dict) -> tuple[int, bytes, float | None]:
        """(status, body of the answer, seconds that the server asks to wait); NoAnswerError if it is too large,
        RequestError if there is none."""
        if self.is_cut:
            raise httpx2.ReadTimeout("no time is left")
        with self.client.stream("POST", url, json=body, extensions={"trace": self._note_stream}) as response:
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise NoAnswerError(
                        f"{url} sends more than {MAX_BYTES} bytes: no completion is that long; correct it"
                    )
        if self.is_cut:  # which a body of no stated length takes for its end
            raise httpx2.ReadTimeout("no time is left")
        return response.status_code, bytes(content), seconds_in(response.headers.get("Retry-After", ""))

    def cut(self) -> None:
        self.is_cut = True
        connection = self.stream and self.stream.get_extra_info("socket")
        if connection:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.timer.cancel()

    def _note_stream(self, name: str, info: dict) -> None:
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self.stream = info["return_value"]
            if self.is_cut:  # while it was connecting
                self.cut()


def seconds_in(retry_after: str) -> float | None:
    """What the header says, in seconds or as a date; None if it says neither."""
    if retry_after.strip().isascii() and retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (until - datetime.now(until.tzinfo)).total_seconds())


def first_choice(content: bytes) -> tuple[dict, dict]:
    """(choices[0], usage) of a completion; some ValueError, KeyError, TypeError ... for what is none."""
    body = json.loads(content)
    choice, usage = body["choices"][0], body["usage"]
    if type(usage["prompt_tokens"]) is not int:
        raise TypeError(f"usage.prompt_tokens is {usage['prompt_tokens']!r}")
    return choice, usage


def check_url(url: str) -> None:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"endpoint {url!r} is no URL: nothing can be asked; write http://HOST:PORT/v1")
    if parsed.userinfo or parsed.query:
        raise ValueError(
            f"endpoint {parsed.scheme}://...{parsed.host} has a user, a password or a query in it: every result names its endpoint, "
            "and would tell them; put the key into ENDPOINT_API_KEY"
        )


def to_chat(prompt: str, urls: Sequence[str], family: Family = DEFAULT, opening: str | None = None) -> list[dict]:
    """Messages of which a chat template makes `prompt` again; a picture's pads are replaced by its URL.

    `opening` is the format's, which ends the prompt; None: the family's.

    All are plain text: what stood in the template's fields for tools and calls is written out.
    """
    pictures = iter(urls)
    template = family.template
    found = template.message.findall(prompt)
    rest = "".join(template.turn(role, content) for role, content in found) + template.assistant
    rest += template.opening if opening is None else opening
    assert rest == prompt, f"not made of messages: {prompt[-200:]!r}"
    messages = [{"role": role, "content": parts_of(content, pictures, template)} for role, content in found]
    left_over = len(list(pictures))
    assert not left_over, f"{left_over} of {len(urls)} pictures have no place in the prompt"
    return messages


def parts_of(content: str, urls: Iterator[str], template: Template) -> str | list[dict]:
    """Text and pictures in order; text alone stays a string."""
    first, *others = template.picture.split(content)
    if not others:
        return first
    texts = [[{"type": "text", "text": text}] if text else [] for text in (first, *others)]
    parts = texts[0]
    for text in texts[1:]:
        parts += [{"type": "image_url", "image_url": {"url": next(urls)}}, *text]
    return parts


def png_url(pixels) -> str:
    """A data URL of a (C, H, W) uint8 tensor, lossless."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def written_text(message: dict, family: Family) -> tuple[str, bool]:
    """What the model wrote, put together again where a server has taken calls or thinking out of the text."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    blocks = [family.calls.write_served(call["name"], call["arguments"]) for call in calls]
    thinking = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise TypeError(f"message.content is {type(content).__name__}, not text")
    text = (f"{family.template.think_begin}{thinking}{family.template.think_end}" if thinking else "") + content
    written = family.calls.between.join(blocks)
    written = text + family.calls.gap + written if text and blocks else text + written
    return written.encode("utf-8", "replace").decode(), bool(calls or thinking)  # JSON may hold half a character


def said(status: int, content: bytes) -> str:
    """A refusal in one line."""
    return f"status {status}: {' '.join(start_of(content).split())[:300]}"


def start_of(content: bytes) -> str:
    return content[:400].decode("utf-8", "replace")
