"""Commands that cannot be carried out: one line on stderr, no traceback, an exact status."""

import importlib
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """What stands in braces in the commands below."""
    directory = tmp_path_factory.mktemp("places")
    model = save_tiny_checkpoint(directory / "model")
    dataset = save_dataset(directory / "data")
    for name in ("empty", "cut"):
        shutil.copytree(model, directory / name)
    weights = directory / "empty" / "model.safetensors"
    weights.unlink()
    cut = directory / "cut" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    config = save_config(tiny_config(directory, model, dataset), directory / "config.json")
    (directory / "file").write_text("a file")
    return {
        "config": str(config),
        "dir": str(directory),
        "empty": str(directory / "empty"),
        "cut": str(directory / "cut"),
        "file": str(directory / "file"),
        "picture": str(directory / "data" / "0.png"),
        "data": str(dataset),
    }


def main_of(command: str):
    return importlib.import_module(command.replace("/", ".")).main


PREDICT = "--image {picture} --instruction go"
COMMANDS = [
    ("eval", "--policy oracle --world width=big", "width"),
    ("scripts/generate_oracle", "--set width=big --out {dir}/oracle --episodes 1", "width"),
    ("eval", "--policy oracle --episodes 1 --out {file}/out", "{file}/out"),
    ("eval", "--run {dir}/none", "{dir}/none"),
    ("eval", "--model {empty} --config {config} --suite safari", "{empty}"),
    ("eval", "--model {cut} --config {config} --suite safari", "{cut}"),
    ("eval", "--model {dir} --config {config}", "{dir}"),
    ("eval", "--compare {dir}/none", "{dir}/none"),
    ("train", "--config {dir}/none.json", "{dir}/none.json"),
    ("train", "--config {config} --set runs_dir={file}/runs", "{file}/runs"),
    ("train", "--config {config} --set data.cache_dir={file}/cache --set name=a", "{file}/cache"),
    ("train", "--config {config} --set model.path={cut} --set name=b", "{cut}"),
    ("train", "--config {config} --set model.path={empty} --set name=c", "{empty}"),
    ("train", "--config {config} --set model.attention=flash_attention_2 --set name=d", "install"),
    ("qwenvl_agent/cli/predict", PREDICT + " --run {dir}/none", "{dir}/none"),
    ("qwenvl_agent/cli/predict", PREDICT + " --run {dir}/data", "{dir}/data"),
    ("qwenvl_agent/cli/predict", PREDICT + " --model {empty}", "{empty}"),
    ("qwenvl_agent/cli/predict", "--image {dir}/none.png --instruction go --model tiny", "{dir}/none.png"),
    ("scripts/show_batch", "--config {config} --html {file}/x.html", "{file}/x.html"),
    ("scripts/show_batch", "--config {dir}/none.json", "{dir}/none.json"),
    ("scripts/plan_vram", "--config {config} --model-config {dir}/none", "{dir}/none"),
    ("scripts/merge_adapter", "{dir}/none --out {dir}/merged", "{dir}/none"),
    ("scripts/report", "{dir}/none", "{dir}/none"),
    ("scripts/rescore", "{dir}/none", "{dir}/none"),
    ("scripts/plot_fewshot", "{dir}/none --out {dir}/x.png", "{dir}/none"),
    ("scripts/make_random_checkpoint", "--size 2b --processor {dir}/none --out {dir}/random", "{dir}/none"),
    ("scripts/sweep", "{dir}/none.json", "{dir}/none.json"),
    ("scripts/ablate", "{dir}/none.json", "{dir}/none.json"),
    ("scripts/convert_data", "--data {dir}/none --layout aguvis --pictures {dir} --out {dir}/converted", ""),
    ("scripts/augment_clicks", "{dir}/none --out {dir}/augmented", ""),
    ("scripts/annotate", "{dir}/none --out {dir}/annotated --no-open", "{dir}/none"),
    ("scripts/record_clicks", "{dir}/none.html --instruction go --out {dir}/recorded", "{dir}/none.html"),
    ("scripts/check_gpu", "--config {dir}/none.json", ""),
    ("scripts/smoke", "--config {dir}/none.json --base {dir} --out {dir}/smoke", "{dir}/none.json"),
    ("scripts/generate_oracle", "--out {file}/oracle --episodes 1", "{file}/oracle"),
    ("scripts/build_sprites", "--font {dir}/none.ttf --out {dir}/sprites.png", "{dir}/none.ttf"),
]


@pytest.mark.parametrize(("command", "words", "named"), COMMANDS, ids=[f"{c} {w}"[:70] for c, w, _ in COMMANDS])
def test_what_cannot_be_done_is_one_line(places, capfd, monkeypatch, command, words, named):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", [command, *(word.format_map(places) for word in words.split())])
    assert main_of(command)() == 2
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and named.format_map(places) in errors[0] and "; " in errors[0], captured.err
    assert "hub" not in errors[0] or "predict" not in command


def test_a_port_in_use_is_one_line(places, capfd, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [str(Path(places["picture"])), "--out", places["dir"] + "/marked", "--no-open", "--port"]
        monkeypatch.setattr(sys, "argv", ["annotate", *words, str(server.getsockname()[1])])
        assert main_of("scripts/annotate")() == 2
    assert "error: Address already in use: another process listens on that port; " in capfd.readouterr().err


@pytest.mark.parametrize("module", ["playwright"])
def test_a_missing_package_is_one_line(places, module):
    """In a process in which it cannot be imported."""
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv[0] = 'eval.py'; import runpy; "
    code += "runpy.run_path('eval.py', run_name='__main__')"
    words = ["--policy", "oracle", "--suite", "browser", "--episodes", "1", "--out", places["dir"] + "/browser"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Playwright is not installed" in done.stderr and "Traceback" not in done.stderr
