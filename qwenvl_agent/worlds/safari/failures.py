"""How a mission that ran out of turns was lost, from its record alone: what its last turns did."""

import re

from qwenvl_agent.records import EpisodeRecord

LAST_TURNS = 10
OUTCOMES = {
    "stands_still": f"out of turns: the last {LAST_TURNS} on one tile",
    "to_and_fro": f"out of turns: the last {LAST_TURNS} on at most half as many tiles",
    "walks_about": "out of turns: on ever new tiles",
}
POSITION = re.compile(r"^Position: (\(.*\))$", re.MULTILINE)


def way_lost(record: EpisodeRecord) -> str:
    """The key of OUTCOMES that its last turns fit; max_turns if their contexts are not the safari's."""
    places = [POSITION.findall(step.context) for step in record.steps[-LAST_TURNS:]]
    if not all(places):
        return "max_turns"
    num_places = len({found[0] for found in places})
    return "stands_still" if num_places == 1 else "to_and_fro" if num_places <= LAST_TURNS // 2 else "walks_about"
