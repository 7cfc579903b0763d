"""Episodes of the browser: its own metrics, where its calls point on the page, and its command."""

import json

import pytest
from PIL import Image

import eval as eval_script
from qwenvl_agent.evaluation.figures import metrics_json
from qwenvl_agent.evaluation.report import write_report
from qwenvl_agent.evaluation.results import read_result, write_result
from qwenvl_agent.evaluation.suites import find_suite
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.worlds import Mark
from qwenvl_agent.worlds.browser.browser import NOT_STARTED, mark_of, task_of

SUITE = find_suite("browser", {"tasks": ["own"]})


def call(x: int = 250, y: int = 500, *, effective: bool = True, schema_ok: bool = True) -> CallRecord:
    arguments = {"action": "left_click", "coordinate": [x, y]}
    return CallRecord(
        name="computer_use", arguments=arguments, legal=schema_ok, schema_ok=schema_ok, effective=effective
    )


def episode(seed: int, goals: dict[str, bool], end: str, *calls: CallRecord, harm: int = 0) -> EpisodeRecord:
    reached = [goal for goal, is_reached in goals.items() if is_reached]
    return EpisodeRecord(
        seed=seed,
        mission="Download <the> kitten",
        goals=list(goals),
        reached=reached,
        success=len(reached) == len(goals) and not harm and end == "done",
        progress=len(reached) / max(1, len(goals)),
        turns=len(calls),
        harm=["wrong download"] * harm,
        end_reason=end,
        steps=[StepRecord(context="", picture="pictures/a.png", calls=[one]) for one in calls],
    )


RECORDS = [
    episode(0, {"form.name": True, "form.city": True}, "done", call(), call(effective=False)),
    episode(1, {"get.file": False}, "harm", call(schema_ok=False), harm=1),
    episode(2, {"form.name": True, "form.city": False}, "hung", call()),
    episode(3, {}, "error"),
]


def test_every_started_episode_counts():
    metrics = SUITE.metrics(RECORDS)
    assert (metrics["success_rate"].value, metrics["success_rate"].n) == (0.25, 4)
    assert metrics["progress"].value == pytest.approx(1.5 / 4)
    assert metrics["harm_rate"].value == 0.25
    assert metrics["effective_rate"].value == 0.75
    assert metrics["schema_rate"].value == 0.75
    assert [metrics[f"success_rate/{task}"].value for task in ("form", "get", NOT_STARTED)] == [0.5, 0, 0]
    assert metrics["end_reasons"] == {"done_ok": 1, "harm": 1, "hung": 1, "error": 1}


def test_a_result_is_read_again(tmp_path):
    metrics = SUITE.metrics(RECORDS)
    write_result(tmp_path, {"suite": "browser", "policy": "x"}, RECORDS, metrics)
    result, records, _ = read_result(tmp_path)
    assert records == RECORDS and [task_of(record) for record in records] == ["form", "get", "form", NOT_STARTED]
    assert result["success_rate"] == json.loads(json.dumps(metrics_json(metrics)))["success_rate"]


def test_marks_stand_where_the_call_points():
    assert mark_of(call(250, 999)) == Mark(0.25, 0.999, "left_click")
    assert mark_of(call(schema_ok=False)) is None
    assert mark_of(CallRecord(name="computer_use", arguments={"action": "wait", "time": 1})) is None


@pytest.mark.parametrize(("width", "shown_px"), [(40, 132), (1280, 370)])
def test_the_page_shows_pictures_marks_and_effects(tmp_path, width, shown_px):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (width, 30)).save(tmp_path / "pictures" / "a.png")
    RECORDS[1].steps[0].results = [{"name": "computer_use", "content": {"events": ["downloaded: setup.exe"]}}]
    about = {"suite": "browser", "policy": "x", "world": {"tasks": ["own"]}}
    write_result(tmp_path, about, RECORDS, SUITE.metrics(RECORDS))
    write_report(tmp_path / "report.html", [tmp_path])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="mark"') == 3 and page.count("iVBOR") == 1 and f"width: {shown_px}px" in page
    assert "left:25.0%;top:50.0%" in page and "downloaded: setup.exe" in page and "Download &lt;the&gt; kitten" in page
    assert page.index('data-success="0"') < page.index('data-success="1"')
    assert "its browser hung" in page and "goals reached: 1 of 2" in page and "harm: wrong download" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--policy", "kitten"],
            "world browser has no policy 'kitten': nothing would be played; use oracle, noisy_oracle",
        ),
        (
            ["--policy", "oracle", "--counterfactual", "blind"],
            "counterfactual 'blind' does not exist in the world browser",
        ),
        (["--policy", "oracle", "--data", "x"], "--data with --suite browser: it would change nothing"),
        (["--policy", "oracle", "--world", 'tasks=["kittens"]'], "browser task 'kittens' does not exist"),
        (
            ["--policy", "oracle", "--oracle", "a=1"],
            "world browser has no oracle with settings ['a']: leave them out",
        ),
    ],
)
def test_what_cannot_be_played_is_told(capsys, options, message):
    assert eval_script.main(["--suite", "browser", "--episodes", "1", *options]) == 2
    assert message in capsys.readouterr().err


def test_results_are_compared_on_the_same_rules_only(tmp_path, capsys):
    for name, world in (("a", {"tasks": ["own"]}), ("b", {"tasks": ["own"]}), ("c", {"tasks": ["clicks"]})):
        about = {"suite": "browser", "policy": name, "world": world}
        write_result(tmp_path / name, about, RECORDS, SUITE.metrics(RECORDS))
    assert eval_script.main(["--json", "--compare", *(str(tmp_path / name) for name in "abc")]) == 0
    same, other = json.loads(capsys.readouterr().out)["tests"]
    assert same["num_cases"] == 4 and other["not_paired"] == "another world"
    assert eval_script.main(["--compare", str(tmp_path / "a")]) == 0 and "harm %" in capsys.readouterr().out


def test_a_result_says_all_that_its_world_is_made_of():
    """The rules of a result are those that it was played under, what follows from them included."""
    assert find_suite("browser", SUITE.world.rules).world.rules == SUITE.world.rules
    with pytest.raises(ValueError, match="browser rule names is .*leave it out"):
        find_suite("browser", {"tasks": ["clicks"], "names": ["kitten"]})
