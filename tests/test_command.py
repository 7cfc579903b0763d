"""What a command says and returns when it cannot go on."""

import argparse
import errno
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenvl_agent.command import bounded, command, reason


def ended(capsys, action) -> tuple[int, str]:
    """(status, stderr) of a command that does this."""

    @command("nothing was written")
    def main() -> int:
        action()
        return 0

    status = main()
    return status, capsys.readouterr().err


def raising(error: BaseException):
    def action():
        raise error

    return action


def listen_twice():
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        first.listen()
        second.bind(first.getsockname())


def read_cut_weights():
    path = "cut.safetensors"
    with open(path, "wb") as file:
        file.write(b"\x00" * 20)
    load_file(path)


def write_to_a_full_disk():
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (raising(ValueError("a: b;\n   c")), "error: a: b; c\n"),
        (
            lambda: Path("no/such").read_text(),
            "error: no/such: No such file or directory: there is nothing of that name; ",
        ),
        (write_to_a_full_disk, "error: the disk is full, so what was being written is not whole; "),
        (
            raising(OSError(errno.EROFS, "Read-only file system", "/x/y")),
            "error: /x/y: Read-only file system: nothing ",
        ),
        (listen_twice, "error: Address already in use: another process listens on that port; "),
        (raising(MemoryError()), "error: out of memory (MemoryError): this process cannot go on; lower "),
        (lambda: torch.empty(1 << 58), "error: out of memory ("),
        (
            raising(RuntimeError("unable to mmap 10256 bytes: Cannot allocate memory (12)")),
            "error: out of memory (unable ",
        ),
        (lambda: __import__("flash_attn_of_nobody"), "error: No module named 'flash_attn_of_nobody': a package is "),
        (read_cut_weights, "error: a .safetensors file is damaged or cut off ("),
        (lambda: subprocess.run(["false"], check=True), "error: Command '['false']' returned non-zero exit status 1"),
    ],
)
def test_what_a_user_can_change_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, action, said):
    monkeypatch.chdir(tmp_path)
    status, text = ended(capsys, action)
    assert (status, text.count("\n")) == (2, 1) and text.startswith(said), text


def test_interrupts_say_what_they_cost(capsys):
    assert ended(capsys, raising(KeyboardInterrupt())) == (130, "interrupted: nothing was written\n")
    assert ended(capsys, raising(KeyboardInterrupt("3 of 5 are kept"))) == (130, "interrupted: 3 of 5 are kept\n")


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shapes differ"), AssertionError("never")])
def test_a_fault_of_the_code_keeps_its_traceback(capsys, error):
    with pytest.raises(type(error)):
        ended(capsys, raising(error))


def test_another_rank_that_is_gone_is_no_fault_of_this_one(monkeypatch):
    error = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:46001")
    assert reason(error) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert reason(error).startswith("another rank is gone (")


def test_a_data_workers_error_is_said_without_its_traceback():
    text = (
        'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
    )
    assert (
        reason(ValueError(f"{text}ValueError: a.jsonl:3: bad: ValueError: twice"))
        == "a.jsonl:3: bad: ValueError: twice"
    )


PRINTING = """
import sys
from qwenvl_agent.command import command

@command("")
def main():
    print("x")

sys.exit(main())
"""


def test_json_nested_without_end_is_the_texts_fault():
    with pytest.raises(RecursionError) as raised:
        json.loads("[" * 100_000)
    assert reason(raised.value).startswith("a JSON text that was given is nested too deep")
    assert reason(RecursionError("maximum recursion depth exceeded")) is None  # of this code


def test_the_end_of_a_reader_is_no_traceback():
    """As of `| head`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    said = process.stderr.read()
    assert (
        process.wait(30) == 2 and said.startswith("error: what reads this output has ended: ") and said.count("\n") == 1
    )


def test_output_onto_a_full_disk_is_no_traceback():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", PRINTING], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: the disk is full, ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["nan", "-1", "inf", "25", "many", ""])
def test_an_argument_outside_its_limits_is_named_with_them(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpu", type=bounded(float, 0, 24))
    assert parser.parse_args(["--gpu", "0"]).gpu == 0 and parser.parse_args(["--gpu=24"]).gpu == 24
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([f"--gpu={text}"])
    assert ended.value.code == 2
    is_number = text in ("nan", "-1", "inf", "25")
    expected = f"{text} means nothing here; use 0 to 24" if is_number else f"invalid float value: '{text}'"
    assert f"argument --gpu: {expected}" in capsys.readouterr().err
