"""benchmarks/operators.py at a tiny model's widths, on a CPU: every operation runs, or says why it does not."""

import json

import pytest
import torch
from loading import load_program


@pytest.fixture(scope="module")
def operators():
    return load_program("benchmarks/operators.py")


def test_every_operation_is_measured_or_says_why_not(operators, capsys):
    options = ["--model", "tiny", "--rows", "2", "--tokens", "24", "--repeats", "1", "--device", "cpu"]
    assert operators.main([*options, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures)[3:] == list(operators.OPERATIONS)
    left_out = {name for name, value in figures.items() if isinstance(value, str)}
    assert left_out == {"head's loss, Liger's"} and all(figures[n] > 0 for n in figures.keys() - left_out)
    text = operators.describe(figures)
    assert text.count("\n") == 1 + len(figures) and "| head's loss, Liger's | not measured: " in text


def test_the_forms_of_one_operation_are_the_same_operation(operators, monkeypatch):
    """Else their times could not be compared: losses of the head in both forms, attention with and without a mask."""
    sizes = operators.Sizes(operators.find_architecture("tiny"), 2, 24, torch.device("cpu"), torch.float32)
    found = []

    def kept(forward, *inputs):
        found.append(forward())
        return lambda: None

    monkeypatch.setattr(operators, "both", kept)
    for pair in (("head_loss", "whole_logits"), ("padded_attention", "masked_attention")):
        found.clear()
        for name in pair:
            torch.manual_seed(0)
            getattr(operators, name)(sizes)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
