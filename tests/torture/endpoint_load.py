"""64 episodes at once against a server that delays, drops, drips, floods, answers garbage, is busy, or closes halfway.

A case is an evaluation of 64 episodes of a small world, whose server draws for each request what it does with it. It
held if each episode was accounted for once, each record was on the disk when its episode was told to have ended, right
answers won, the run was over in bounded time, and no thread, connection or memory was left.
"""

import gc
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from attack import Attack, Outcome, random_of
from conftest import tiny_processor
from corridor_world import corridor

from qwenvl_agent.config import EvalConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.evaluation.unfinished import Unfinished
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.inference.endpoint import EndpointPolicy
from qwenvl_agent.records import EpisodeRecord, read_records

NUM_EPISODES = 64
MAX_TURNS = 4
TIMEOUT_S, PATIENT_S = 4.0, 120.0
"""Of a request where some never are answered, and where all are: there only a crowded machine takes long."""
MEMORY_BYTES = 1.5 * 2**30
"""More than before that the run may take: 64 bodies of 8 MiB, as bytes and as what is read of them."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class HostileServer:
    """`draw(rng, number)` names what is done with a request; `num_tokens(body)` counts its prompt as we do."""

    def __init__(self, seed: int, menu: dict[str, float], answer: Callable[[dict], bytes]):
        self.menu, self.answer = menu, answer
        self.done: Counter[str] = Counter()
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            connection.settimeout(3 * TIMEOUT_S)
            with self._lock:
                kinds, weights = zip(*self.menu.items(), strict=True)
                (kind,) = self._rng.choices(kinds, weights)
                self.done[kind] += 1
            if kind == "drops":
                return
            body = read_request(connection)
            DEEDS[kind](connection, body, self.answer)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # until the asker has all of it


def read_request(connection: socket.socket) -> dict:
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(65536)
    head, _, body = content.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    return json.loads(body)


def whole(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def delay(connection, body, answer) -> None:
    time.sleep(0.7)
    connection.sendall(whole(answer(body)))


def never(connection, body, answer) -> None:
    with suppress(OSError):
        connection.recv(1)  # until the asker gives up


def drip(connection, body, answer) -> None:
    connection.sendall(HEAD + b"\r\n")
    for _ in range(1000):
        connection.sendall(b" ")
        time.sleep(0.05)


def flood(connection, body, answer) -> None:
    connection.sendall(HEAD + b"\r\n")
    for _ in range(64):
        connection.sendall(b" " * 2**20)


def half(connection, body, answer) -> None:
    content = whole(answer(body))
    connection.sendall(content[: len(content) // 2])


def long_text(connection, body, answer) -> None:
    """Of 4 MB, in a completion that is otherwise right."""
    value = json.loads(answer(body))
    value["choices"][0]["message"]["content"] = "a " * 2**21 + value["choices"][0]["message"]["content"]
    connection.sendall(whole(json.dumps(value).encode()))


def garbage(connection, body, answer) -> None:
    content = answer(body)
    rng = random.Random(len(content) + len(str(body)))
    value = rng.choice(
        (b"", b"<html>", b"null", b"[" * 50000, rng.randbytes(99), content[:40], b'{"choices": []}', b"\xff")
    )
    connection.sendall(
        rng.choice((whole(value), value, HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", whole(value, "299 ?")))
    )


def busy(connection, body, answer, status="429 Too Many Requests", after="1") -> None:
    connection.sendall(whole(b'{"error": "full"}', status, f"Retry-After: {after}\r\n"))


DEEDS: dict[str, Callable] = {
    "answers": lambda connection, body, answer: connection.sendall(whole(answer(body))),
    "delays": delay,
    "never answers": never,
    "drips": drip,
    "floods": flood,
    "closes halfway": half,
    "answers garbage": garbage,
    "answers 4 MB": long_text,
    "429, come back": busy,
    "429, come back in a day": lambda *given: busy(*given, after="86400"),
    "429, a broken time": lambda *given: busy(*given, after="soon, -1, \x7f"),
    "503": lambda *given: busy(*given, status="503 Busy", after="0"),
    "500": lambda connection, body, answer: connection.sendall(whole(b"boom", "500 Failed")),
    "404": lambda connection, body, answer: connection.sendall(whole(b"gone", "404 Gone")),
    "redirects": lambda connection, body, answer: connection.sendall(
        whole(b"", "302 Found", "Location: http://127.0.0.1:1/\r\n")
    ),
    "drops": None,  # before it reads
}
MENUS: dict[str, dict[str, float]] = {
    "all answered": {"answers": 1},
    "delays": {"answers": 1, "delays": 1},
    "drops": {"answers": 3, "drops": 1},
    "drips, never answers": {"answers": 20, "drips": 1, "never answers": 1},
    "floods, answers 4 MB": {"answers": 8, "floods": 1, "answers 4 MB": 1},
    "closes halfway": {"answers": 2, "closes halfway": 1},
    "answers garbage": {"answers": 6, "answers garbage": 1},
    "429 with Retry-After": {"answers": 1, "429, come back": 1, "429, a broken time": 0.2},
    "429 for a day": {"answers": 12, "429, come back in a day": 1},
    "500, 503, 404, redirects": {"answers": 9, "500": 1, "503": 1, "404": 1, "redirects": 1},
    "all at once": {"answers": 16} | {kind: 1 for kind in DEEDS if kind != "answers"},
    "nothing but faults": {kind: 1 for kind in DEEDS if kind not in ("answers", "delays")},
}
HARMLESS = {"answers", "delays", "429, come back"}
"""What every episode survives."""


class Setting:
    """A policy of 64 requests at once, and the world; the answers walk to the right."""

    def __init__(self):
        vision = VisionConfig(max_tokens_per_image=100, min_tokens_per_image=4)
        self.collator = Collator(tiny_processor(1), FORMATS["native"], PromptConfig(), vision, TrainConfig())
        self.world = corridor(6, max_turns=MAX_TURNS)
        self._lock = threading.Lock()

    def policy(self, url: str, prompts: dict[str, int], timeout_s: float) -> EndpointPolicy:
        cfg = EvalConfig(max_new_tokens=60, batch_size=NUM_EPISODES)
        policy = EndpointPolicy(
            url, "tiny", self.collator, self.collator.fmt, cfg, timeout_s=timeout_s, first_pause_s=0.05
        )
        original = policy._prompt

        def remember(request):
            """The server must count prompts as we do; it looks them up."""
            body, number = original(request)
            with self._lock:
                prompts[json.dumps(body["messages"])] = number
            return body, number

        policy._prompt = remember
        return policy


def answer_by(prompts: dict[str, int]) -> Callable[[dict], bytes]:
    call = '<tool_call>\n{"name": "right", "arguments": {}}\n</tool_call>'

    def answer(body: dict) -> bytes:
        message = {"role": "assistant", "content": f"On.\n{call}"}
        usage = {"prompt_tokens": prompts[json.dumps(body["messages"])], "completion_tokens": 9}
        return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()

    return answer


@contextmanager
def memory_peak() -> Iterator[list[int]]:
    """The most that this process has taken more than at the start of the block."""
    process, done, found = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.05):
            found[0] = max(found[0], process.memory_info().rss - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def attack(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    setting = Setting()
    for case in cases:
        kind = list(MENUS)[case % len(MENUS)]
        folder = scratch / f"case_{case}"
        fallen = try_load(setting, random_of(seed, case).randrange(2**32), MENUS[kind], folder)
        yield Outcome(kind, not fallen, fallen[:400], tried=NUM_EPISODES, fallen=NUM_EPISODES if fallen else 0)


def try_load(setting: Setting, seed: int, menu: dict[str, float], folder: Path) -> str:
    """What went wrong, in one line."""
    prompts: dict[str, int] = {}
    server = HostileServer(seed, menu, answer_by(prompts))
    is_harmless = set(menu) <= HARMLESS
    policy = setting.policy(server.url, prompts, PATIENT_S if is_harmless else TIMEOUT_S)
    wrong, threads = [], threading.active_count()
    seeds = range(seed % 10**6, seed % 10**6 + NUM_EPISODES)
    started = time.monotonic()
    with memory_peak() as peak, Unfinished(folder, EpisodeRecord, {}, say=lambda text: None) as unfinished:

        def note(record: EpisodeRecord) -> None:
            unfinished.add([record])
            lines = unfinished.path.read_bytes().splitlines()
            if json.loads(lines[-1])["seed"] != record.seed:
                wrong.append(f"the record of {record.seed} was not on the disk when its episode had ended")

        records = rollout(setting.world.make_env, policy, seeds, batch_size=NUM_EPISODES, on_progress=note)
        on_disk = read_records(unfinished.path, EpisodeRecord)
    server.close()
    seconds = time.monotonic() - started
    limit = MAX_TURNS * TIMEOUT_S + 180  # the rest is the making of prompts, on a crowded machine
    if Counter(record.seed for record in on_disk) != Counter(seeds) or [r.seed for r in records] != list(seeds):
        wrong.append(f"{len(on_disk)} records on the disk, {len(records)} returned, for {NUM_EPISODES} episodes")
    if seconds > limit:
        wrong.append(f"took {seconds:.0f} s, at most {limit:.0f} s are allowed")
    if peak[0] > MEMORY_BYTES:
        wrong.append(f"took {peak[0] / 2**20:.0f} MiB")
    unexplained = [
        r for r in records if not r.success and not r.error and r.end_reason not in ("max_turns", "parse_abort")
    ]
    if unexplained:
        wrong.append(f"{len(unexplained)} episodes ended without a reason: {unexplained[0].end_reason!r}")
    if is_harmless and (lost := [r for r in records if r.error]):
        wrong.append(f"{len(lost)} episodes were lost to a server that answers: {lost[0].error[-200:]}")
    policy.client.close()
    gc.collect()
    if left := threads_left(threads):
        wrong.append(f"{left} threads are left")
    return "; ".join(wrong)


def threads_left(before: int) -> int:
    """The server's own end with their connections."""
    deadline = time.monotonic() + 3 * TIMEOUT_S + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.1)
    return max(0, threading.active_count() - before)


ATTACK = Attack(
    "endpoint_load",
    "64 episodes at once against a server that delays, drops, drips, floods, is busy, answers garbage, closes halfway",
    full=3 * len(MENUS),
    quick=2,
    seconds=1200,
    run=attack,
    alone=True,
)
