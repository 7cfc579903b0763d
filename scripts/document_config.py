"""Write docs/CONFIG.md and the JSON schemas beside configs, sweeps and ablations, from the dataclasses that they describe.

python scripts/document_config.py
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import command
from qwenvl_agent.config import Config
from qwenvl_agent.settings_reference import schema_of, tables_of
from qwenvl_agent.studies.arms import AblationFile
from qwenvl_agent.studies.cells import SweepFile
from qwenvl_agent.worlds import WORLDS, make_world

ROOT = Path(__file__).parent.parent

INTRODUCTION = """\
# Settings

<!-- Made by `python scripts/document_config.py` from the dataclasses; edit those. -->

A config in `configs/` is a JSON object that lists only what differs from the defaults below. `--set key.path=value`
overrides one setting; the value is JSON, or a text if it is none: `--set train.learning_rate=1e-4`, `--set
'model.lora_targets=["q_proj", "v_proj"]'`. An unknown key is an error that names the nearest known one. A run keeps all
of its settings in `runs/NAME/config.json`.

`"$schema": "schema.json"` in a file lets an editor complete and check it (`"../configs/schema.json"` from elsewhere).
`python train.py --help` has this list for a terminal.
"""


def reference() -> str:
    """The text of docs/CONFIG.md."""
    parts = [INTRODUCTION, "## Run\n", tables_of(Config)]
    for name in sorted(WORLDS):
        rules = getattr(make_world(name), "settings", None)
        if dataclasses.is_dataclass(rules):
            parts += [f"\n## eval.world of {name}\n", tables_of(type(rules))]
    parts += ["\n## A sweep's file\n\n`python scripts/sweep.py FILE`; docs/SLURM.md.\n", tables_of(SweepFile, "###")]
    parts += ["\n## An ablation's file\n\n`python scripts/ablate.py FILE`; docs/ABLATIONS.md.\n"]
    parts += [tables_of(AblationFile, "###")]
    return "\n".join(parts) + "\n"


def documents() -> dict[str, str]:
    """Path in the repository -> content."""
    schemas = {
        "configs/schema.json": schema_of(Config, "Settings of a run"),
        "configs/sweeps/schema.json": schema_of(SweepFile, "A sweep over one config"),
        "scripts/ablations/schema.json": schema_of(AblationFile, "An ablation of one config")
        | {"required": ["question"]},  # see cells_of
    }
    written = {path: json.dumps(schema, indent=1, ensure_ascii=False) + "\n" for path, schema in schemas.items()}
    return {"docs/CONFIG.md": reference(), **written}


@command("some files are not written")
def main(argv: Sequence[str] | None = None) -> int:
    if argv if argv is not None else sys.argv[1:]:
        raise ValueError("it takes no arguments: it writes all files, always; leave them out")
    for path, content in documents().items():
        (ROOT / path).write_text(content, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
