"""How much of a file may be rejected before a run on the rest of it is more likely a mistake than a choice.

The default of `data.max_rejected` is a tenth: one slip among ten rows written by hand passes and is named in the summary;
what is wrong with a whole form, a unit, or a folder of pictures costs more than that. Records that say themselves that
they are not to be learned (a test split) are left out on purpose and do not count.
"""

import json
from collections.abc import Sequence

from qwenvl_agent.config import DataConfig

REASONS_NAMED = 3


def rejected_share(about: dict) -> float:
    """Of a source's part of the report: records that are rejected against their owner's will, of all records."""
    return (about["num_rejected_records"] - about["num_left_out"]) / max(1, about["num_records"])


def check_rejected(sources: Sequence[dict], data_cfg: DataConfig) -> None:
    """ValueError for the first source of which more than data.max_rejected is rejected: counts, places, remedy."""
    for about in sources:
        share = rejected_share(about)
        if share > data_cfg.max_rejected:
            raise ValueError(
                f"{about['path']}: {about['num_rejected_records'] - about['num_left_out']} of {about['num_records']} records "
                f"are rejected ({share:.1%}), and data.max_rejected is {data_cfg.max_rejected:.1%}: what is left may not "
                f"be what was to be learned; correct them (all: {about['rejects_path']}; "
                f"qwenvl-agent check-data {about['path']} --kind {about['kind']}), or raise data.max_rejected:\n"
                f"{_first_of_each(about)}"
            )


def _first_of_each(about: dict) -> str:
    """The most frequent reasons, each with its first place."""
    named: dict[str, str] = {}
    with open(about["rejects_path"], encoding="utf-8") as file:
        for line in file:
            reject = json.loads(line)
            named.setdefault(reject["reason"], f"{reject['source']}: {reject['message']}")
    counts = list(about["reject_reasons"].items())[:REASONS_NAMED]
    return "\n".join(f"  {count} x, first {named[reason]}" for reason, count in counts)
