"""A set of held-out suites (`worlds.held_out`): who plays what, and one table over all results, from records alone.

runs/NAME/eval/difficulty/
    suites.json         the table
    report.html         the table with bars, classes of failures, and a replay of each
    far/                a result, as any other's, of the one that is evaluated
    far_oracle/         the oracle's and the random player's on the same seeds, without pictures
    far_random/
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenvl_agent.config import Config, build_config, complete_saved
from qwenvl_agent.evaluation.episodes import episode_rates
from qwenvl_agent.evaluation.figures import metrics_json
from qwenvl_agent.evaluation.results import read_result
from qwenvl_agent.evaluation.suites import Episodes, Suite, find_suite
from qwenvl_agent.files import read_json, write_json
from qwenvl_agent.inference.load import start_of
from qwenvl_agent.records import EpisodeRecord
from qwenvl_agent.settings import parse
from qwenvl_agent.statistics import bootstrap_ratio
from qwenvl_agent.worlds.held_out import Goal, HeldOutSuite, SuiteSet
from qwenvl_agent.worlds.world import Metrics

TABLE = "suites.json"
ALL = "all"
"""The row of all episodes together."""
BESIDE = ("oracle", "random")
TURNS_OVER_ORACLE = "turns_over_oracle"
LABELS = {
    TURNS_OVER_ORACLE: (
        "turns / oracle's",
        "turns of the missions that both won, over the oracle's on the same seeds",
    )
}
"""Of what no result has by itself."""
NOT_SHARES = (TURNS_OVER_ORACLE,)
FIGURES = ("success_rate", "harm_rate", "invalid_action_rate", TURNS_OVER_ORACLE)
"""Of a set without goals; the others show the figures that have goals."""


@dataclass(frozen=True)
class Part:
    """One suite of a set, ready to be played."""

    name: str
    held_out: HeldOutSuite
    suite: Episodes


@dataclass(frozen=True)
class Chosen:
    """What a command plays: all suites of a set, or some; `suite` is the world as it is evaluated otherwise."""

    name: str
    suite: Episodes
    set: SuiteSet
    parts: tuple[Part, ...]


def choose(suite: Suite, names: Sequence[str]) -> Chosen:
    """The suites that `names` (SET, or SET/SUITE each) mean in a suite's world; ValueError for what there is not."""
    known = suite.world.held_out_suites() if isinstance(suite, Episodes) else {}
    if not known:
        raise ValueError(
            f"--suites {' '.join(names)}: the suite {suite.name} offers no held-out suites: nothing would be played; give "
            "--suite of a world that does (World.held_out_suites)"
        )
    assert isinstance(suite, Episodes)
    sets = dict.fromkeys(name.partition("/")[0] for name in names)
    if len(sets) > 1 or not sets.keys() <= known.keys():
        raise ValueError(
            f"--suites {' '.join(names)}: no set of the world {suite.name} has all of them: they would not fit into one table; "
            f"give one of {', '.join(known)}, or some of its suites as {next(iter(known))}/SUITE"
        )
    (set_name,) = sets
    found = known[set_name]
    asked = [part for _, _, part in (name.partition("/") for name in names)]
    for name in asked:
        if name and name not in found.suites:
            raise ValueError(
                f"--suites {set_name}/{name}: the set has no such suite: nothing would be played; it has {', '.join(found.suites)}"
            )
    chosen = [name for name in found.suites if "" in asked or name in asked]
    return Chosen(set_name, suite, found, tuple(part_of(suite, name, found.suites[name]) for name in chosen))


def part_of(suite: Episodes, name: str, held_out: HeldOutSuite) -> Part:
    made = find_suite(suite.source, held_out.rules_over(suite.world.rules))
    assert isinstance(made, Episodes)
    return Part(name, held_out, made)


# what was seen in training


def seen_in_training(part: Part, run: Path, config: Config) -> str | None:
    """What the recordings that a run's weights have learned from show of what a suite calls unseen: "" if nothing; None
    if it calls nothing so."""
    if not part.held_out.unseen:
        return None
    seen = []
    for path, manifest in recordings(run, config):
        if manifest is None:
            seen.append(f"not known of {path}, where no manifest.json is")
        elif manifest.get("world") == part.suite.world.name:
            found = part.suite.world.seen_in(part.held_out.unseen, recorded_values(manifest))
            seen += [f"{path} shows {found}"] if found else []
    return "; ".join(dict.fromkeys(seen))


def recordings(run: Path, config: Config) -> Iterator[tuple[str, dict | None]]:
    """(path, manifest) of a run's data and of that of the earlier runs whose weights it began with; None: nobody knows."""
    for source in config.data.sources:
        yield source.path, manifest_of(Path(source.path))
    start = start_of(run)
    if start is None:
        return
    earlier = Path(start["run"])
    if (earlier / "config.json").is_file():
        yield from recordings(earlier, build_config(complete_saved(read_json(earlier / "config.json"))))
    else:
        yield str(earlier), None


def manifest_of(path: Path) -> dict | None:
    file = (path if path.is_dir() else path.parent) / "manifest.json"
    return read_json(file) if file.is_file() else None


def recorded_values(manifest: Mapping) -> dict[str, list]:
    """Rule -> the values that a recording was made with: one, or those that its episodes drew."""
    values = {rule: [value] for rule, value in manifest.get("rules", {}).items()}
    for names, counts in manifest.get("varied", {}).items():
        drawn = [value_of(label) for label, number in counts.items() if number]
        values |= {names: drawn}
        if "+" in names:
            columns = zip(*(value for value in drawn if isinstance(value, list)), strict=True)
            values |= {rule: list(column) for rule, column in zip(names.split("+"), columns, strict=False)}
    return values


def value_of(label: str) -> object:
    """JSON, or a text that is none."""
    try:
        return parse(label)
    except ValueError:
        return label


# the table


@dataclass(frozen=True)
class Played:
    """One suite's results by who played it; the one that is evaluated stands first."""

    name: str
    records: dict[str, list[EpisodeRecord]]
    metrics: dict[str, dict]
    suite: Episodes


def directory_of(directory: Path, suite: str, player: str = "") -> Path:
    return directory / (f"{suite}_{player}" if player else suite)


def read_played(directory: Path, name: str) -> Played:
    """The results of one suite in a set's folder."""
    records, metrics = {}, {}
    for path in results_of_suite(directory, name).values():
        result, found, suite = read_result(path)
        records[result["about"]["policy"]], metrics[result["about"]["policy"]] = found, result
    assert isinstance(suite, Episodes)
    return Played(name, records, metrics, suite)


def write_table(directory: Path, about: dict, chosen: Chosen, unseen: Mapping[str, str | None]) -> dict:
    """suites.json from the results in a set's folder; gives its values."""
    played = [read_played(directory, part.name) for part in chosen.parts]
    rows = {one.name: row_of(one) for one in played}
    for part in chosen.parts:
        rows[part.name] |= {"title": part.held_out.title, "unseen": unseen[part.name]}
    for name, row in rows.items():
        row["goals"] = judge_goals(chosen.set.goals_of(name), row["figures"], rows)
    if len(played) > 1:
        rows[ALL] = row_of_all(played) | {"title": "all episodes together", "unseen": None}
        goals = {name: goal for name, goal in goals_of_all(chosen.set).items() if not goal.of}
        rows[ALL]["goals"] = judge_goals(goals, rows[ALL]["figures"], rows)
    columns = list(dict.fromkeys(["success_rate", *(chosen.set.goals or FIGURES)]))
    table = {"about": {**about, "set": chosen.name, "columns": columns}, "suites": rows}
    write_json(directory / TABLE, table)
    return table


def goals_of_all(found: SuiteSet) -> dict[str, Goal]:
    """Of all episodes together, what every suite has as its goal; success is a suite's own."""
    own = {metric: values for metric, values in found.goals.items() if metric != "success_rate"}
    return SuiteSet(suites={ALL: HeldOutSuite(title=ALL, seed_start=0)}, goals=own).goals_of(ALL)


def row_of(played: Played) -> dict:
    """A suite's figures: those of each result, and of the one in focus against the oracle."""
    (focus, metrics), *beside = played.metrics.items()
    figures = {name: value for name, value in metrics.items() if name not in ("about", "end_reasons")}
    figures |= metrics_json(turns_over_oracle([played]))
    return {
        "policy": focus,
        "seeds": metrics["about"]["seeds"],
        "figures": figures,
        "beside": {player: found["success_rate"] for player, found in beside},
        "end_reasons": metrics["end_reasons"],
    }


def row_of_all(played: Sequence[Played]) -> dict:
    """All episodes together: every suite counts with its episodes, and a rate of calls with its calls."""
    focus = next(iter(played[0].metrics))
    world = played[0].suite.world

    def pooled(player: str) -> Metrics:
        return episode_rates(world, [record for one in played for record in one.records.get(player, ())])

    ends: Counter[str] = Counter()
    for one in played:
        ends.update(one.metrics[focus]["end_reasons"])
    players = [player for player in BESIDE if player in played[0].records and player != focus]
    return {
        "policy": focus,
        "seeds": {"count": sum(ends.values())},
        "figures": metrics_json(pooled(focus) | turns_over_oracle(played)),
        "beside": {player: metrics_json(pooled(player))["success_rate"] for player in players},
        "end_reasons": dict(ends.most_common()),
    }


def turns_over_oracle(played: Sequence[Played]) -> Metrics:
    """Turns of the missions that both won, over the oracle's on the same seeds; nothing without an oracle beside."""
    pairs: list[tuple[int, int]] = []
    for one in played:
        focus = next(iter(one.records))
        best = {record.seed: record.turns for record in one.records.get("oracle", ()) if record.success}
        pairs += [(r.turns, best[r.seed]) for r in one.records[focus] if r.success and r.seed in best]
    if not any("oracle" in one.records for one in played):
        return {}
    return {TURNS_OVER_ORACLE: bootstrap_ratio([ours for ours, _ in pairs], [best for _, best in pairs])}


def judge_goals(goals: Mapping[str, Goal], figures: Mapping[str, dict], rows: Mapping[str, dict]) -> dict[str, dict]:
    """By metric: its limits, and whether its value is met; None where there is no value."""
    judged: dict[str, dict] = {}
    for metric, goal in goals.items():
        value = figures.get(metric, {}).get("value")
        # A suite that was not played, or has no such figure, is no whole.
        whole = rows.get(goal.of, {}).get("figures", {}).get(metric, {}).get("value") if goal.of else 1.0
        is_met = None if value is None or whole is None else goal.is_met(value, whole)
        limits = {"least": goal.least, "most": goal.most}
        kept = {side: limit for side, limit in limits.items() if limit != getattr(Goal(), side)}
        judged[metric] = kept | ({"of": goal.of} if goal.of else {}) | {"is_met": is_met}
    return judged


def failures(row: Mapping) -> dict[str, int]:
    """A row's classes of failures, commonest first."""
    return {name: number for name, number in row["end_reasons"].items() if name != "done_ok"}


def is_set(directory: Path) -> bool:
    return (directory / TABLE).is_file()


def results_of(directory: Path) -> list[Path]:
    """The folders of all results of a set."""
    names = [name for name in read_json(directory / TABLE)["suites"] if name != ALL]
    return [path for name in names for path in results_of_suite(directory, name).values()]


def results_of_suite(directory: Path, name: str) -> dict[str, Path]:
    """By player, "" for the one in focus, which stands first."""
    beside = {player: directory_of(directory, name, player) for player in BESIDE}
    return {"": directory_of(directory, name)} | {player: path for player, path in beside.items() if path.is_dir()}


def rewrite_table(directory: Path) -> dict:
    """The table again, from its results' records; what it says about itself and what was seen in training stay."""
    table = read_json(directory / TABLE)
    names = [name for name in table["suites"] if name != ALL]
    _, _, suite = read_result(directory_of(directory, names[0]))
    chosen = choose(suite, [f"{table['about']['set']}/{name}" for name in names])
    return write_table(directory, table["about"], chosen, {name: table["suites"][name]["unseen"] for name in names})
