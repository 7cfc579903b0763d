"""What goes to a model hub, and what never does; the hub is a server of this machine that speaks its interface."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from qwenvl_agent.cli import push
from qwenvl_agent.hub import look_through, upload

pytestmark = pytest.mark.loopback
CARD = "---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n\n# agent\n"


@pytest.fixture
def folder(tmp_path):
    """As `export` leaves it, in small."""
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "qwenvl_agent.json").write_text('{"name": "agent", "data": {"sources": [{"path": "/home/ana/clicks"}]}}')
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


class Hub(BaseHTTPRequestHandler):
    """Takes commits of small files, as huggingface_hub sends them."""

    def do_GET(self):  # noqa: N802
        self.answer(404, {})

    def do_POST(self):  # noqa: N802
        body = (
            self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self.chunks()
        )
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            self.answer(200, {"url": "http://127.0.0.1/ana/agent"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                200, {"success": True, "commitUrl": "https://huggingface.co/ana/agent/commit/1", "commitOid": "1"}
            )
        else:
            self.answer(404, {})

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    yield server
    server.shutdown()
    server.server_close()


def test_just_what_was_looked_at_goes(folder, hub, capsys):
    assert push.main([str(folder), "ana/agent", "--private", "--json"]) == 0
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.asked[0] == ("/api/repos/create", "Bearer hf_" + "x" * 34)
    said = json.loads(capsys.readouterr().out)
    assert said["commit"] == "https://huggingface.co/ana/agent/commit/1" and said["files"][-1] == {
        "name": "qwenvl_agent.json",
        "bytes": 70,
    }


def test_a_dry_run_lists_what_would_go_and_asks_nobody(folder, hub, capsys):
    assert push.main([str(folder), "ana/agent", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["256", "model.safetensors"]
    assert lines[-2:] == [
        "note: paths of this machine stand in it: /home/ana/clicks",
        f"would go to ana/agent: 4 files, {sum(path.stat().st_size for path in folder.iterdir()):,} bytes",
    ]
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("optimizer.safetensors", "a state of an optimizer or of a run"),
        ("rank_0.json", "a state of an optimizer or of a run"),
        ("deepspeed/mp_rank_00_model_states.pt", "a state of an optimizer or of a run"),
        ("dataset.jsonl", "rows of data or pictures"),
        ("images/1.png", "rows of data or pictures"),
        ("train-00000.parquet", "rows of data or pictures"),
        ("pytorch_model.bin", "a pickle, which runs code where it is loaded"),
        (".env", "a file that may hold secrets"),
        ("hf_token", "a file that may hold secrets"),
        ("id_ed25519", "a file that may hold secrets"),
        ("notes.txt", "no part of an export"),
        ("more/config.json", "no part of an export"),
    ],
)
def test_what_is_no_part_of_a_model_stays(folder, name, why):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(ValueError, match=f"nothing was pushed: {name} is {why}; take them out"):
        look_through(folder, "ana/agent")


SECRETS = {
    "a token of the Hugging Face hub": "hf_" + "aB3" * 12,
    "an API key": "sk-proj-" + "aB3_" * 8,
    "a key of AWS": "AKIA" + "A1B2" * 4,
    "a token of GitHub": "ghp_" + "aB3" * 12,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a password in an address": "http://ana:geheim@10.0.0.1/v1",
}


@pytest.mark.parametrize(("what", "secret"), SECRETS.items())
def test_secrets_in_what_goes_are_named_by_their_line_and_not_shown(folder, what, secret):
    (folder / "README.md").write_text(f"{CARD}\nkey: {secret}\n")
    with pytest.raises(ValueError, match=f"README.md:8 holds {what}") as error:
        look_through(folder, "ana/agent")
    assert secret not in str(error.value)


def test_a_link_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / "vocab.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match="vocab.json is a link, and what it points to would go"):
        look_through(folder, "ana/agent")


def test_a_run_is_sent_to_export_first(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="is a run or a checkpoint: .* first `qwenvl-agent export"):
        look_through(tmp_path, "ana/agent")


@pytest.mark.parametrize(("gone", "said"), [("README.md", "has no README.md"), ("model.safetensors", "has no weights")])
def test_what_nobody_could_use_is_refused(folder, gone, said):
    (folder / gone).unlink()
    with pytest.raises(ValueError, match=said):
        look_through(folder, "ana/agent")
    with pytest.raises(ValueError, match="is no repository of a hub"):
        look_through(folder, "agent")


def test_a_hub_that_is_not_there_or_a_token_that_is_missing_is_one_line(folder, hub, monkeypatch, capsys):
    hub.shutdown()
    hub.server_close()
    assert push.main([str(folder), "ana/agent"]) == 2
    assert capsys.readouterr().err.startswith("error: ana/agent: nothing was pushed (")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        ValueError, match="there is no token of the hub on this machine.; `hf auth login`, or set HF_TOKEN"
    ):
        upload(look_through(folder, "ana/agent"), private=False, revision=None, message="m")
