import io
import json
import re

import pytest

from qwenvl_agent.cli import report, rescore
from qwenvl_agent.evaluation import results as folders
from qwenvl_agent.evaluation.report import (
    Result,
    call_view,
    cells_of_test,
    choose_cases,
    compare,
    comparison_table,
    metrics_table,
    read_results,
    write_report,
)
from qwenvl_agent.evaluation.step_metrics import RowRecord
from qwenvl_agent.evaluation.suites import find_suite
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.worlds.safari import NoisyOracle, RandomAgent, SafariOracle, SafariRules
from qwenvl_agent.worlds.safari.world import REPORT_SEEDS

WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 12, "tile_px": 16}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folders of three results on the same seeds."""
    directory = tmp_path_factory.mktemp("results")
    rules = SafariRules.from_json(WORLD)
    oracle = SafariOracle(rules)
    policies = {"random": RandomAgent(rules), "noisy": NoisyOracle(oracle), "oracle": oracle}
    for name, policy in policies.items():
        suite = find_suite("safari", WORLD)
        records = suite.play(policy, REPORT_SEEDS[:5], picture_dir=directory / name / "pictures")
        about = folders.describe("safari", name, world=WORLD, seeds={"start": 2_000_000, "count": 5, "set": "report"})
        folders.write_result(directory / name, about, records, suite.metrics(records))
    return [directory / name for name in policies]


def write(directory, name, records, suite="safari", **about):
    about = folders.describe(suite, name, **{"world": WORLD, "dataset_hash": "x"} | about)
    folders.write_result(directory / name, about, records, find_suite(suite).metrics(records))
    return directory / name


def won(seed, success, **values):
    end = {"success": success, "end_reason": "done" if success else "max_turns"}
    return EpisodeRecord(seed=seed, goals=["red tiger"], turns=1, **end, **values)


def test_comparison_pairs_the_seeds(tmp_path):
    first = write(tmp_path, "first", [won(seed, seed < 20) for seed in range(28)])
    second = write(tmp_path, "second", [won(seed, seed >= 20) for seed in range(28)])
    third = write(tmp_path, "third", [won(seed, True) for seed in range(14, 28)])
    other = write(tmp_path, "other", [won(seed, True) for seed in range(28)], world={"width": 50})
    none = write(tmp_path, "none", [won(99, True)])
    younger = write(tmp_path, "younger", [won(1, False)], world={**WORLD, "left_out": []})  # a rule of later, unused
    assert compare([first, younger])["tests"][0]["num_cases"] == 1
    tests = compare([first, second, third, other, none])["tests"]
    assert (tests[0]["only_first"], tests[0]["only_second"], round(tests[0]["p_value"], 3)) == (20, 8, 0.036)
    assert tests[0]["difference"]["value"] == pytest.approx(12 / 28)
    assert (tests[1]["num_cases"], tests[1]["only_second"], tests[1]["p_value"]) == (14, 8, 2 * 0.5**8)
    assert [test["p_value_holm"] for test in tests[:2]] == [tests[0]["p_value"], 4 * 0.5**8]
    assert [test["not_paired"] for test in tests[2:]] == ["another world", "no seeds in common"]


def test_tables_show_every_result(results):
    from rich.console import Console

    console = Console(width=120, file=io.StringIO())
    console.print(comparison_table(compare(results)))
    console.print(metrics_table("oracle", folders.read_result(results[2])[0], find_suite("safari")))
    text = console.file.getvalue()
    for words in (
        "random",
        "noisy",
        "oracle",
        "success %",
        "success",
        "100.0 %",
        "done_ok 5",
        "thought = action",
    ):
        assert words in text, words


def test_a_comparison_says_what_is_subtracted_from_what(results):
    """The first is random play: the oracle wins more, so that its difference is above zero."""
    from rich.console import Console

    comparison = compare([results[0], results[2]])
    [test] = comparison["tests"]
    first, second = (result["metrics"]["success_rate"]["value"] for result in comparison["results"])
    assert second > first and test["difference"]["value"] == first - second
    assert cells_of_test(test)[0].startswith(f"+{100 * (second - first):.1f}\n+")
    equal = {**test, "difference": {"value": 0.0, "low": -0.25, "high": 0.5}}
    assert cells_of_test(equal)[0] == "+0.0\n-50 .. +25"
    console = Console(width=100, file=io.StringIO())
    console.print(comparison_table(comparison))
    text = " ".join(console.file.getvalue().split())
    assert "difference: each minus random, in points" in text
    assert "whoever has to search, an oracle too, stays below 100 %" in text  # of the column efficiency %


def test_results_of_two_suites_have_nothing_in_common(tmp_path, results):
    rows = write(
        tmp_path, "rows", [RowRecord(row_id="a/0", episode="a", step=StepRecord(context="", expected=[]))], "steps"
    )
    with pytest.raises(ValueError, match="suites safari, steps"):
        compare([results[0], rows])


def test_one_failure_of_each_kind_is_shown_before_more_of_a_kind(tmp_path):
    def lost(seed, *places):
        steps = [StepRecord(context=f"Position: ({x}, 5)\n") for x in places]
        return EpisodeRecord(seed=seed, goals=["red tiger"], turns=10, end_reason="max_turns", steps=steps)

    still, about = [5] * 10, range(10)
    records = [lost(1, *still), lost(2, *still), won(3, True), lost(4, *about), lost(5, *still), lost(6, *[1, 2] * 5)]
    write(tmp_path, "lost", records)
    (result,) = read_results([tmp_path / "lost"])
    assert choose_cases(result, 4) == ["1", "4", "6", "3"]
    assert choose_cases(result, 9) == ["1", "4", "6", "2", "5", "3"]
    assert result.metrics["end_reasons"] == {"stands_still": 3, "done_ok": 1, "walks_about": 1, "to_and_fro": 1}


def test_page_is_one_file_with_its_pictures(tmp_path, results):
    write_report(tmp_path / "report.html", results)
    page = (tmp_path / "report.html").read_text()
    pictures = json.loads(re.search(r"const pictures = (\{.*?\});", page).group(1))
    used = set(re.findall(r'data-picture="(\w+)"', page))
    assert used == set(pictures) and len(used) > 10
    assert page.count('<details class="case"') == 5 and page.count('<section class="column"') == 15
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    shown = set(re.findall(r'class="end" data-outcome="(\w+)" data-policy="(\d)"', page))
    assert shown == {(o, str(i)) for i, r in enumerate(read_results(results)) for o in r.outcomes.values()}
    assert "random: done" in page and "the oracle here" in page and "5 of 5 are shown" in page


def test_what_a_model_wrote_is_shown_as_text(tmp_path):
    evil = "<script>alert(1)</script></details>"
    bad = StepRecord(context=evil, text=evil, thought=evil, error="free_text")
    call = CallRecord(name="update_notepad", arguments={"content": evil * 9}, effective=True, result={"status": evil})
    mended = StepRecord(context="c", thought="t", text="raw text", calls=[call], repairs=["code_fence"], expected=[])
    directory = write(tmp_path, evil, [won(1, False, mission=evil, steps=[bad, mended])]).resolve()
    write_report(tmp_path / "report.html", [directory])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script>") == 1 and "alert(1)&lt;/script&gt;" in page
    for words in ("unreadable: free_text", "repaired: code_fence", "raw text"):
        assert words in page, words


def test_failures_are_shown_first_but_not_alone():
    def outcomes(num_failures, num_successes, max_cases):
        records = [won(i, i >= num_failures) for i in range(num_failures + num_successes)]
        result = Result("x", None, {}, records, find_suite("safari"))
        shown = choose_cases(result, max_cases)
        return sum(int(case) < num_failures for case in shown), len(shown)

    assert outcomes(100, 100, 60) == (45, 60)
    assert outcomes(100, 2, 60) == (58, 60)
    assert outcomes(3, 100, 60) == (3, 60)
    assert outcomes(3, 4, 60) == (3, 7)


def test_rows_have_outcomes_too(tmp_path):
    def row(number, *names, error=""):
        calls = [CallRecord(name=name, arguments={"n": number}) for name in names]
        expected = [{"name": "move", "arguments": {"n": 0}}]
        step = StepRecord(
            context="Mission: a\nmore", calls=calls, expected=expected, expected_thought="up", error=error
        )
        return RowRecord(row_id=f"a/{number}", episode="a", step=step)

    records = [row(0, "move"), row(1, "move"), row(2, "done"), row(3, error="empty")]
    result = Result("x", None, {}, records, find_suite("steps"))
    assert list(result.outcomes.values()) == ["same", "other_arguments", "other_tools", "unreadable"]
    assert set(result.outcomes.values()) == set(result.suite.outcomes) and result.successes["a/0"]
    write_report(tmp_path / "report.html", [write(tmp_path, "x", records, "steps")])
    page = (tmp_path / "report.html").read_text()
    assert "Held-out steps" in page and "the label" in page and "Mission: a" in page


def test_calls_read_like_calls():
    actions = [{"direction": "UP", "steps": 2}, {"direction": "LEFT", "steps": 1}]
    assert call_view({"name": "move", "arguments": {"actions": actions}})["text"] == "move(UP 2, LEFT 1)"
    assert call_view({"name": "done", "arguments": {}}) == {"text": "done()", "blocks": []}
    long = {"name": "note", "arguments": {"content": "x" * 61, "page": 2, "bold": True}}
    assert call_view(long) == {"text": "note(2, true)", "blocks": ["x" * 61]}


def test_rescoring_needs_the_records_alone(results, capsys):
    directory = results[0]
    before = (directory / "metrics.json").read_text()
    (directory / "metrics.json").write_text(json.dumps({"about": json.loads(before)["about"]}))
    assert rescore.main([str(directory)]) == 0
    assert (directory / "metrics.json").read_text() == before and (directory / "report.html").exists()


def test_scripts_name_a_users_mistake(tmp_path, results, capsys):
    assert report.main([str(tmp_path / "nothing")]) == 2 and rescore.main([str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err
    assert report.main([str(results[2]), "--out", str(tmp_path / "r.html")]) == 0 and (tmp_path / "r.html").exists()


def test_programs_read_reports_and_rescoring_as_json(tmp_path, results, capsys):
    page = tmp_path / "r.html"
    assert report.main([*map(str, results[:2]), "--out", str(page), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == str(page) and [one["directory"] for one in said["results"]] == [*map(str, results[:2])]
    assert len(said["tests"]) == 1
    assert rescore.main([str(results[0]), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    path = results[0] / "metrics.json"
    assert said == {"path": str(path), **json.loads(path.read_text())}
