"""What comes from elsewhere is data and never a program: weights are safetensors, nothing unpickles, no remote code."""

import ast
import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny_run import save_tiny_checkpoint

from qwenvl_agent.config import ModelConfig
from qwenvl_agent.data.readers.recorded import tools_beside
from qwenvl_agent.model.build import build_model
from qwenvl_agent.training.state import check_engine_files

ROOT = Path(__file__).parent.parent
SHIPPED = [
    *(
        path
        for folder in ("qwenvl_agent", "scripts", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ),
    *(ROOT / name for name in ("train.py", "eval.py")),
]
RUN_WHAT_THEY_READ = {
    *("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "cloudpickle.load"),
    *("marshal.loads", "marshal.load", "shelve.open", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"),
}
AUTO_CLASSES = ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoVideoProcessor")


def calls_in(path: Path) -> list[tuple[str, str, dict]]:
    """(place, name as written, keywords) of every call in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        (f"{path.relative_to(ROOT)}:{c.lineno}", ast.unparse(c.func), {k.arg: ast.unparse(k.value) for k in c.keywords})
        for c in calls
    ]


def test_no_program_is_read_as_data():
    found = [(place, name) for path in SHIPPED for place, name, _ in calls_in(path) if name in RUN_WHAT_THEY_READ]
    assert not found
    pickles = [p for path in SHIPPED for p, _, keywords in calls_in(path) if keywords.get("allow_pickle") == "True"]
    assert not pickles


def test_what_a_checkpoint_is_loaded_by_takes_no_code_and_no_pickle():
    """peft's own loading takes safetensors first, and else tensors alone; the folder is looked at before."""
    loads = [call for path in SHIPPED for call in calls_in(path) if call[1].endswith(".from_pretrained")]
    assert len(loads) > 10
    for place, name, keywords in loads:
        if name.startswith(AUTO_CLASSES) or name.startswith("AutoModel"):
            assert keywords.get("trust_remote_code") == "False", (place, name)
        is_model = any(word in name for word in ("AutoModel", "ForConditionalGeneration", '"model"'))
        assert not is_model or keywords.get("use_safetensors") == "True", (place, name)
        assert keywords.get("trust_remote_code", "False") == "False", (place, name)


class Program:
    """What a pickle runs when it is opened."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_pickle_does_what_it_likes(tmp_path):
    """So that the tests below can fail."""
    pickle.loads(pickle.dumps(Program(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


def test_weights_in_a_pickle_are_not_opened(tmp_path):
    base = save_tiny_checkpoint(tmp_path / "base")
    (base / "model.safetensors").unlink()
    torch.save({"x": Program(tmp_path / "ran")}, base / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no \*\.safetensors, .* they are not opened"):
        build_model(ModelConfig(path=str(base), method="lora", dtype="float32", autocast=False), "cpu")
    assert not (tmp_path / "ran").exists()


def test_an_engines_file_that_names_a_program_is_not_opened(tmp_path):
    torch.save({"step": 3, "tensor": torch.zeros(2)}, tmp_path / "good_states.pt")
    check_engine_files(tmp_path)
    torch.save({"step": Program(tmp_path / "ran")}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match=r"names posix\.mkdir, .* resume only what you trained yourself"):
        check_engine_files(tmp_path)
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(pickle.dumps(Program(tmp_path / "ran")))
    with pytest.raises(ValueError, match="is no file of torch's"):
        check_engine_files(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_data_do_not_say_which_code_is_run(tmp_path):
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\ndef make_world(): ...\n")
    (tmp_path / "manifest.json").write_text(f'{{"world": "{tmp_path}/evil.py:make_world"}}')
    with pytest.raises(ValueError, match="data are not trusted with that; if you do trust it, name it in the source"):
        tools_beside(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_lies_beside_data_is_not_read_through_a_link(tmp_path):
    (tmp_path / "secret.json").write_text("[]")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tools.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="leaves the dataset folder"):
        tools_beside(tmp_path / "data")
