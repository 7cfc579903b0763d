"""What is said of how far work is, on a terminal and in a file."""

import io
import time

import pytest
from rich.console import Console

from qwenvl_agent.progress import Bar, clock, tracked


@pytest.fixture
def now(monkeypatch):
    """Stands in for time.monotonic: a list whose last entry is the time."""
    times = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    return times


def test_a_file_gets_a_line_every_half_minute_with_the_time_left(now, capsys):
    with Bar("episodes", 300, done=100) as bar:
        for _ in range(100):
            now.append(now[-1] + 1.0)
            bar.advance(2, note="7 won")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "episodes: 160/300 after 0:30, left 1:10, 7 won"
    assert said[1:] == [
        "episodes: 220/300 after 1:00, left 0:40, 7 won",
        "episodes: 280/300 after 1:30, left 0:10, 7 won",
        "episodes: 300/300 after 1:40, 7 won",
    ]


def test_what_is_over_soon_leaves_no_line(now, capsys):
    assert list(tracked("abc", "letters", 3)) == ["a", "b", "c"]
    with Bar("letters", 9, quiet=True) as bar:
        now.append(1000.0)
        bar.advance()
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_an_error_says_nothing_of_progress(now, capsys):
    with pytest.raises(ValueError, match="broken"), Bar("rows", 9) as bar:
        now.append(140.0)
        bar.advance()
        raise ValueError("broken")
    assert capsys.readouterr().err == "rows: 1/9 after 0:40, left 5:20\n"


def test_a_terminal_gets_a_bar():
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Bar("rows", 4, console=screen) as bar:
        bar.advance(4, note="all won")
    assert "rows" in screen.file.getvalue() and "4/4" in screen.file.getvalue() and "all won" in screen.file.getvalue()


def test_times_are_as_long_as_they_must_be():
    assert [clock(seconds) for seconds in (0.9, 61, 3723)] == ["0:00", "1:01", "1:02:03"]


def test_without_a_total_there_is_no_time_left(now, capsys):
    with Bar("rows", None) as bar:
        now.append(131.0)
        bar.advance(12)
    assert capsys.readouterr().err.splitlines()[0] == "rows: 12 after 0:31"
