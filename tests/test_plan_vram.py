"""plan_vram: what it prints, its exit status, and where the rows come from."""

import json
from pathlib import Path

import pytest
from tiny_run import save_dataset

from qwenvl_agent.cli import plan

ROOT = Path(__file__).parents[1]
SAFARI_2B, SAFARI_8B = (str(ROOT / "configs" / f"safari_{size}.json") for size in ("2b", "8b"))


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = plan.main(argv)
    return (status, *capsys.readouterr())


def test_safari_2b_fits_24_gb_and_says_for_which_rows(capsys):
    status, out, err = run(capsys, "--config", SAFARI_2B, "--gpu", "24")
    assert status == 0 and "fits 24 GB" in out and "micro-batch of 2 rows" in out
    # Its data is recorded by the user: the plan says what it took instead.
    assert "planning for the config's budget with typical text" in err and "rows: budget of the config" in out


def test_what_does_not_fit_ends_with_1_and_the_cheapest_change(capsys):
    args = ("--config", SAFARI_2B, "--row-tokens", "8192", "--image-tokens", "4096", "--set", "train.batch_size=16")
    status, out, _ = run(capsys, *args, "--gpu", "24")
    assert status == 1 and "does not fit 24 GB; cheapest change: --set train.batch_size=" in out


def test_json_holds_the_plan_in_bytes(capsys):
    args = ("--config", SAFARI_8B, "--gpu", "80", "--gpus", "4", "--row-tokens", "1000", "--json")
    status, out, _ = run(capsys, *args)
    report = json.loads(out)
    assert status == 0 and report["fits"] and report["gpus"] == 4
    assert sum(report["parts"].values()) == report["peak_bytes"] == max(report["moments"].values())
    assert report["row"] == {"tokens": 1000, "image_tokens": 100, "supervised": 150, "source": "as asked"}
    assert report["change"] is None


def test_the_change_in_the_json_makes_it_fit(capsys):
    args = ("--config", SAFARI_8B, "--gpu", "24", "--gpus", "1", "--set", "train.zero_stage=0", "--row-tokens", "1000")
    status, out, _ = run(capsys, *args, "--gpu", "16", "--json")
    change = json.loads(out)["change"]
    assert status == 1 and change["peak_bytes"] < 16 * 2**30
    again = [arg for override in change["set"] for arg in ("--set", override)]
    assert run(capsys, *args, "--gpu", "16", *again)[0] == 0


def test_rows_come_from_the_data_if_it_is_there(capsys, tmp_path):
    dataset = save_dataset(tmp_path / "data")
    values = json.loads(Path(SAFARI_2B).read_text())
    values["data"] = {"sources": [{"path": str(dataset), "kind": "chat"}], "cache_dir": str(tmp_path / "cache")}
    values["vision"] = {}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(values))
    status, out, err = run(capsys, "--config", str(config))
    assert status == 0 and not err
    # 64 x 64 px are raised to the processor's minimum, 64 tokens.
    assert "64 vision" in out and "rows: longest of" in out


def test_another_architecture_is_read_from_its_folder(capsys):
    tiny = str(ROOT / "qwenvl_agent" / "assets" / "tiny")
    args = ("--config", SAFARI_2B, "--row-tokens", "500", "--json")
    small, large = (
        json.loads(run(capsys, *args, *more)[1])["parts"]["weights"] for more in (("--model-config", tiny), ())
    )
    assert small < 0.01 * large


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model-config", "no/such"), "model 'no/such' is no folder with a config.json"),
        (("--row-tokens", "100", "--image-tokens", "200"), "a row of 100 tokens cannot hold 200 vision"),
        (("--gpus", "0", "--row-tokens", "900"), "0 GPUs"),
        (("--set", "train.zero_stag=1"), "unknown key 'train.zero_stag'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys, args, message):
    status, out, err = run(capsys, "--config", SAFARI_2B, *args)
    assert status == 2 and not out and err.startswith("error: ") and message in err and err.count("\n") == 1
