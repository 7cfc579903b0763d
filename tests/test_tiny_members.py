"""The small models that families are compared with, and that the comparison is on the demo's own recipe."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from loading import load_program
from safetensors.torch import load_file
from tiny_run import save_dataset, tiny_config

from qwenvl_agent.families import FAMILIES
from qwenvl_agent.model.build import checkpoint_path
from qwenvl_agent.studies.arms import load_ablation
from train import train

ROOT = Path(__file__).parents[1]
EMBEDDING = "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def script():
    return load_program("scripts/make_tiny_member.py")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_member_has_the_bases_eyes_and_words_and_trains(script, tmp_path, capsys, family):
    out = tmp_path / "member"
    assert script.main(["--family", family, "--out", str(out)]) == 0
    member, base = (load_file(Path(folder) / "model.safetensors") for folder in (out, checkpoint_path("tiny")))
    seen = [name for name in member if ".visual." in name or name == EMBEDDING]
    assert EMBEDDING in seen and len(seen) > 20
    assert all(torch.equal(member[name], base[name].to(member[name].dtype)) for name in seen)
    alike = [n for n in member.keys() & base.keys() - set(seen) if n.endswith("proj.weight")]
    assert not any(torch.equal(member[name], base[name].to(member[name].dtype)) for name in alike)
    assert script.main(["--family", family, "--out", str(out)]) == 2
    assert "exists: its files would be lost" in capsys.readouterr().err
    data = save_dataset(tmp_path / "data", 8)
    model, short = {"method": "full"}, {"max_steps": 2, "save_every": 2}
    config = tiny_config(tmp_path, out, data, model=model, train=short, eval={"step_rows": 0})
    train(config)
    assert (config.run_dir / "checkpoints/last/model/model.safetensors").is_file()


def test_families_are_compared_on_the_demos_recipe():
    """One command that makes the data, however it is started; and the same oracle judges."""
    demo = (ROOT / "scripts/demo.sh").read_text(encoding="utf-8")
    reference = re.search(r"^oracle=\((.+)\)$", demo, re.MULTILINE)[1].split()
    text = re.search(r"^run (python scripts/generate_oracle.py (?:.*\\\n)*.*)$", demo, re.MULTILINE)[1]
    words = shlex.split(text.replace("\\\n", " ").replace("$config", "configs/safari_tiny.json"))
    at = words.index("${reference[@]}")
    words[at : at + 1] = [f"--oracle={setting}" for setting in reference]
    words.remove("--overwrite")
    study = load_ablation(ROOT / "scripts/ablations/family.json")
    assert study.prepare["generated/safari_tiny/manifest.json"] == words
    assert [f"{key}={value}" for key, value in sorted(study.missions.oracle.items())] == sorted(reference)
    assert study.arms == tuple(FAMILIES)
    for cell in study.sweep.cells:
        assert f"{cell.config.model.path}/config.json" in study.prepare and cell.config.train.max_steps == 800
