"""An ablation's report: one list of blocks, written as Markdown with pictures beside it and as one HTML file.

    report/
        report.md   report.html   cells.csv   differences.csv   cases.html
        arms.png  differences.png  curves.png  funnel.png  thoughts.png  first_errors.png  offline_online.png

What stands in it follows from the records by fixed rules, the sentences of the summary too.
"""

import base64
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from qwenvl_agent.evaluation.report import p_text, write_report
from qwenvl_agent.evaluation.step_metrics import consistency
from qwenvl_agent.html_templates import render_report
from qwenvl_agent.statistics import Interval
from qwenvl_agent.studies import ablation_plots as plots
from qwenvl_agent.studies.ablation import (
    CONSTRAINED,
    EXACT_SEEDS,
    LEVEL,
    MISSIONS,
    SHARES,
    Cell,
    Contrast,
    Study,
    arm_interval,
    as_played,
    associations,
    constrained_study,
    decisions_learned,
    losses_of_plays,
    pooled_share,
)
from qwenvl_agent.studies.diagnosis import CLASSES, QUADRANTS, first_errors, quadrants

SHOWN_LOSSES = ("all", "thought", "call", "values")


@dataclass(frozen=True)
class Text:
    text: str
    is_list: bool = False
    """A line of a list."""


@dataclass(frozen=True)
class Command:
    """The one that made the report."""

    text: str


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Rows:
    headings: Sequence[str]
    cells: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    path: Path
    caption: str


Block = Text | Command | Heading | Rows | Figure


def write_study(directory: Path, study: Study, command: str) -> list[Path]:
    """Write the report; the paths written."""
    directory.mkdir(parents=True, exist_ok=True)
    blocks = [*front(study, command), *(body(directory, study) if study.by_arm else ())]
    title = study.name.replace("_", " ")
    written = [directory / "report.md", directory / "report.html"]
    written[0].write_text(as_markdown(title, blocks), encoding="utf-8")
    written[1].write_text(as_html(title, blocks), encoding="utf-8")
    written += [block.path for block in blocks if isinstance(block, Figure)]
    if study.by_arm:
        written += [
            write_cells(directory / "cells.csv", study),
            write_differences(directory / "differences.csv", study),
        ]
        written += write_cases(directory / "cases.html", study)
    return written


# blocks


def front(study: Study, command: str) -> list[Block]:
    """Question, answer, and what the reader must know before the figures."""
    cells = [cell for by_seed in study.by_arm.values() for cell in by_seed.values()]
    missions = sorted({len(cell.missions) for cell in cells})
    played = " to ".join(map(str, sorted({missions[0], missions[-1]}))) if missions else "no"
    blocks: list[Block] = [
        Text(study.question),
        Text(
            f"{len(study.by_arm)} of {len(study.arms)} arms, {len(cells)} of {len(study.cells)} cells (arm and training "
            f"seed), {played} missions each, the same for all. Baseline: {study.baseline}. Primary outcome: "
            f"{study.text_of(study.outcomes[0])}."
        ),
        Command(command),
        Heading("What it shows"),
        *(Text(sentence, is_list=True) for sentence in conclusions(study)),
    ]
    if study.notes:
        blocks += [Heading("Before you read the figures"), *(Text(note, is_list=True) for note in study.notes)]
    return blocks


def body(directory: Path, study: Study) -> list[Block]:
    blocks: list[Block] = [
        Heading("Arms"),
        arms_table(study),
        Figure(plots.plot_arms(directory / "arms.png", study), "Primary outcome."),
    ]
    if study.contrasts:
        blocks += [Heading("Differences"), *difference_tables(study)]
        blocks.append(Figure(plots.plot_forest(directory / "differences.png", study), FOREST_TEXT))
    blocks += diagnosis_blocks(directory, study) if has_reference(study) else [Text(NO_REFERENCE_TEXT)]
    plays = losses_of_plays(study.by_arm)
    blocks += constrained_blocks(study, [one for one in plays if one.name == CONSTRAINED])
    losses = [one for one in plays if one.name != CONSTRAINED]
    if losses:
        blocks += [Heading("What success rests on"), Text(COUNTERFACTUALS_TEXT), losses_table(losses)]
    blocks += [Heading("Held-out rows"), offline_table(study), Text(OFFLINE_TEXT)]
    found = associations(study.by_arm)
    if found:
        blocks.append(associations_table(found))
    if any(cell.rows or cell.lines for cells in study.by_arm.values() for cell in cells.values()):
        blocks.append(
            Figure(plots.plot_association(directory / "offline_online.png", study), "Offline figures and success.")
        )
        blocks += [Heading("Training"), Figure(plots.plot_curves(directory / "curves.png", study), "Training loss.")]
    return [*blocks, Heading("What was run"), cost_table(study), *provenance(study)]


def has_reference(study: Study) -> bool:
    """Whether any turn stands beside a reference's."""
    cells = [cell for by_seed in study.by_arm.values() for cell in by_seed.values()]
    return any(plots.has_reference(step) for c in cells for record in c.missions.values() for step in record.steps)


def diagnosis_blocks(directory: Path, study: Study) -> list[Block]:
    """Turns held against the reference's."""
    return [
        Heading("Where turns are lost"),
        Text(FUNNEL_TEXT),
        Figure(plots.plot_funnel(directory / "funnel.png", study), "Turns that pass each stage, of all turns."),
        Heading("Thought and action"),
        thoughts_table(study),
        Text(THOUGHTS_TEXT),
        Figure(plots.plot_quadrants(directory / "thoughts.png", study), "Turns by thought and action."),
        Heading("First error of each failed mission"),
        errors_table(study),
        Text(ERRORS_TEXT),
        Figure(plots.plot_first_errors(directory / "first_errors.png", study), "Failed missions by first error."),
    ]


NO_REFERENCE_TEXT = (
    "This world has no reference (`World.make_reference`) whose turn could stand beside each of the agent's: where turns "
    "are lost, and whether thought or action is at fault, cannot be told."
)
FOREST_TEXT = (
    "Differences against the baseline. Thick: 95 % over missions, of these trained models; thin: over training seeds "
    "too; filled: p < 0.05 (Holm, these models)."
)
FUNNEL_TEXT = (
    "Every stage is a share of all turns, all training seeds together; whiskers are 95 % intervals over missions. "
    '"Read" counts repaired answers; "read strictly" does not.'
)
THOUGHTS_TEXT = (
    "Consistency: of the turns whose thought announces a turn (coverage), those that do what it announces. The "
    "quadrants hold thought and action against the oracle's turn on the same observation."
)
ERRORS_TEXT = (
    "The first turn that is not as good as the oracle's, by what it got wrong; see docs/ABLATIONS.md. Perception, "
    "planning and execution need a thought in a readable form: compare them between arms that write one."
)
COUNTERFACTUALS_TEXT = (
    "The same missions by the same models, with one thing changed; success normally, success then, and the loss with "
    "its 95 % interval over missions. Who loses nothing did not use it. A changed notepad concerns only missions that "
    "last until then (share changed)."
)
CONSTRAINED_TEXT = (
    "The same missions by the same models, which choose only among tokens of their format's grammar: what ends is read "
    "strictly, and its calls fit the tools' schemas. A difference between arms that is left is not one of malformed "
    "text. Endless: turns that reach the limit of tokens, and count as failed."
)
OFFLINE_TEXT = (
    "Loss over argument values alone can be compared between formats; over all tokens or whole calls it cannot, because "
    "formats differ in how many easy tokens they spend. Tokens a turn: supervised, of the same turns."
)


def conclusions(study: Study) -> list[str]:
    """What may be said of the primary outcome, by rule; of constrained decoding first, where it was played."""
    constrained = constrained_study(study)
    if constrained is None:
        return verdicts(study)
    by_decoding = {"Constrained": verdicts(constrained), "Free": verdicts(study)}
    return [f"{name} decoding: {sentence}" for name, sentences in by_decoding.items() for sentence in sentences]


def verdicts(study: Study) -> list[str]:
    primary = [one for one in study.contrasts if one.outcome == study.outcomes[0]]
    if not primary:
        return ["Nothing yet: there are no two arms with a training seed and missions in common."]
    return [conclusion(one) for one in primary] + floor_or_ceiling(study)


def conclusion(one: Contrast) -> str:
    what = f"{one.arm} {points(one.first, one.outcome)} against {one.baseline} {points(one.second, one.outcome)}"
    size = f"difference {signed(one.difference, one.outcome)} over missions"
    if one.p_arms_holm is not None and one.p_arms_holm < LEVEL:
        verdict = f"the arms differ, over {len(one.seeds)} training seeds too (p {p_shown(one.p_arms_holm)}, Holm)"
    elif one.p_models_holm < LEVEL:
        verdict = f"these trained models differ (p {p_shown(one.p_models_holm)}, Holm); {trained_again(one)}"
    else:
        verdict = f"no difference is shown (p {p_shown(one.p_models_holm)}, Holm; {over_seeds_text(one)})"
        if one.only_first + one.only_second == 0:
            verdict += "; not one mission tells them apart"
        elif one.missions_needed:
            verdict += f"; to show one of this size takes about {one.missions_needed} missions"
    return f"{what}: {size}; {verdict}."


def trained_again(one: Contrast) -> str:
    """Whether arms that are trained again would differ, where no exact test shows it."""
    if one.p_arms is None and (one.over_seeds.low > 0 or one.over_seeds.high < 0):
        return (
            f"{over_seeds_text(one)}, an approximate interval without 0: that the arms differ when trained again is "
            f"likely, and its exact test needs {EXACT_SEEDS} seeds"
        )
    return f"that the arms do when trained again is not shown ({over_seeds_text(one)})"


def over_seeds_text(one: Contrast) -> str:
    if math.isnan(one.over_seeds.low):
        return "one training seed says nothing about that"
    return f"over {len(one.seeds)} training seeds {signed(one.over_seeds, one.outcome)}"


def floor_or_ceiling(study: Study) -> list[str]:
    """A warning where arms cannot differ because all win or none does."""
    if study.outcomes[0] != "success":
        return []
    means = [arm_interval(cells, "success").value for cells in study.by_arm.values()]
    if max(means) < 0.05:
        return ["No arm wins one mission in twenty: they cannot differ in success; look at the turns, or train longer."]
    if min(means) > 0.95:
        return ["Every arm wins nearly all missions: they cannot differ in success; play harder ones."]
    return []


def arms_table(study: Study) -> Rows:
    """A column an arm; of the primary outcome every training seed, too."""
    primary, arms = study.outcomes[0], study.by_arm
    rows = [["training seeds", *(", ".join(map(str, cells)) for cells in arms.values())]]
    for name in study.outcomes:
        rows.append([study.text_of(name), *(with_interval(arm_interval(cells, name), name) for cells in arms.values())])
        if name == primary:
            by_seed = [", ".join(points(cell.mean(name), name) for cell in cells.values()) for cells in arms.values()]
            rows.append(["by training seed", *by_seed])
            rows.append(["spread of training seeds", *(spread_text(cells, name) for cells in arms.values())])
    note = "In brackets 95 % intervals over missions. Spread: standard deviation between training seeds of the arm."
    return Rows(["", *arms], rows, note)


def spread_text(cells: dict[int, Cell], outcome: str) -> str:
    if len(cells) < 2:
        return "one seed"
    values = [cell.mean(outcome) for cell in cells.values()]
    mean = sum(values) / len(values)
    return points(math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)), outcome)


def difference_tables(study: Study) -> list[Block]:
    rows = []
    for one in study.contrasts:
        rows.append(
            [
                study.text_of(one.outcome),
                f"{one.arm} - {one.baseline}",
                signed(one.difference, one.outcome),
                p_shown(one.p_models_holm),
                "-" if math.isnan(one.over_seeds.low) else signed(one.over_seeds, one.outcome),
                "-" if one.p_arms_holm is None else p_shown(one.p_arms_holm),
                "-" if math.isnan(one.spread) else points(one.spread, one.outcome),
                f"{one.only_first} / {one.only_second}",
            ]
        )
    headings = ["outcome", "arms", "difference, these models", "p", "difference, over seeds", "p over seeds"]
    headings += ["spread of baseline", "better / worse"]
    note = (
        f"p: exact flip test over missions, McNemar's exact test with one training seed; Holm "
        "over the arms in the primary outcome, and over all other rows. "
        f"Over seeds: training seeds and missions both drawn by chance; p is exact, from {EXACT_SEEDS} seeds on. "
        "Better / worse: pairs of training seed and mission."
    )
    blocks: list[Block] = [Rows(headings, rows, note)]
    success = [one for one in study.contrasts if one.outcome == "success"]
    if success:
        power = [
            [
                f"{one.arm} - {one.baseline}",
                "-" if one.effect is None else f"{one.effect:+.2f}",
                "no difference to find" if one.missions_needed is None else str(one.missions_needed),
                "none: no mission tells them apart" if one.detectable is None else points(one.detectable, "success"),
            ]
            for one in success
        ]
        headings = ["success of", "Cohen's h", "missions to show it (power 80 %)", "what these missions can show"]
        blocks.append(Rows(headings, power, "Power of McNemar's test at the discordance found (Connor 1987)."))
    return blocks


def thoughts_table(study: Study) -> Rows:
    rows = []
    for arm, cells in study.by_arm.items():
        pairs = [(str(r.seed), step) for cell in cells.values() for r in cell.missions.values() for step in r.steps]
        found = consistency(pairs, study.world.agrees)
        counts = quadrants(study.world, [step for _, step in pairs])
        covered = sum(counts[name] for name in QUADRANTS)
        shares = [share_text(counts[name], covered) for name in QUADRANTS]
        intervals = [with_interval(found[name], "success") for name in ("thought_coverage", "thought_consistency")]
        rows.append([arm, *intervals, *shares])
    headings = ["arm", "coverage", "consistency", "both right", "thought right, action wrong"]
    return Rows([*headings, "thought wrong, action right", "both wrong"], rows)


def errors_table(study: Study) -> Rows:
    rows = []
    for arm, cells in study.by_arm.items():
        counts = first_errors(study.world, [record for cell in cells.values() for record in cell.missions.values()])
        failed = sum(counts.values())
        rows.append([arm, str(failed), *(share_text(counts[name], failed) for name in (*CLASSES, "none"))])
    return Rows(["arm", "failed", *CLASSES, "none found"], rows)


def constrained_blocks(study: Study, losses: Sequence) -> list[Block]:
    """The missions free and constrained, arm by arm; then the arms against the baseline, both constrained."""
    constrained = constrained_study(study)
    if constrained is None:
        return []
    rows = []
    for one in losses:
        free = {seed: study.by_arm[one.arm][seed] for seed in one.seeds}
        plays = (free, {seed: as_played(cell, CONSTRAINED) for seed, cell in free.items()})
        shares = [
            " / ".join(points(pooled_share(cells, holds).value, "success") for cells in plays)
            for holds in (is_strict, is_endless)
        ]
        figures = [points(one.normal, "success"), points(one.changed, "success")]
        rows.append([one.arm, *figures, signed(one.difference, "success"), p_shown(one.p_models), *shares])
    headings = ["arm", "success, free", "constrained", "free - constrained", "p", "read strictly, free / constrained"]
    note = "p: exact flip test over missions, not adjusted. Shares are of all turns."
    blocks: list[Block] = [Heading("Constrained decoding"), Text(CONSTRAINED_TEXT)]
    blocks.append(Rows([*headings, "endless, free / constrained"], rows, note))
    if constrained.contrasts:
        blocks += [Text("The arms against the baseline, all with constrained decoding:")]
        blocks += difference_tables(constrained)
    new = [note for note in constrained.notes if note not in study.notes]
    return [*blocks, *(Text(note, is_list=True) for note in new)]


def is_strict(step) -> bool:
    return not step.error and not step.repairs


def is_endless(step) -> bool:
    return step.error == "endless"


def losses_table(losses: Sequence) -> Rows:
    rows = [
        [
            one.arm,
            one.name.replace("_", " "),
            points(one.share_changed, "success"),
            points(one.normal, "success"),
            points(one.changed, "success"),
            signed(one.difference, "success"),
            p_shown(one.p_models),
        ]
        for one in losses
    ]
    headings = ["arm", "change", "share changed", "success", "success then", "difference (first - then)", "p"]
    return Rows(headings, rows, "p: exact flip test over missions, not adjusted.")


def offline_table(study: Study) -> Rows:
    """Means over training seeds."""
    rows = []
    for arm, cells in study.by_arm.items():
        accuracy = [cell.argument_accuracy for cell in cells.values() if cell.rows]
        losses = [mean_of(cells, f"eval/token_loss/{part}", "{:.4f}") for part in SHOWN_LOSSES]
        tokens = mean_of(cells, "eval/turn_tokens", "{:.1f}")
        rows.append([arm, points(sum(accuracy) / len(accuracy), "success") if accuracy else "-", *losses, tokens])
    losses = [f"loss, {'argument values' if part == 'values' else part}" for part in SHOWN_LOSSES]
    return Rows(["arm", "whole call right", *losses, "tokens a turn"], rows, "Means over training seeds.")


def mean_of(cells: dict[int, Cell], key: str, form: str) -> str:
    values = [cell.last[key] for cell in cells.values() if key in cell.last]
    return form.format(sum(values) / len(values)) if values else "-"


def associations_table(found: Sequence) -> Rows:
    rows = [
        [
            one.name,
            str(one.num_cells),
            f"{one.rho:+.2f}",
            p_shown(one.p_value),
            "-" if math.isnan(one.rho_within) else f"{one.rho_within:+.2f}",
        ]
        for one in found
    ]
    headings = ["held-out figure", "cells", "rank correlation with success", "p", "correlation within arms"]
    note = "Spearman's; p by permutation, as if cells were independent, which cells of one arm are not."
    return Rows(headings, rows, note)


def cost_table(study: Study) -> Rows:
    rows = []
    for arm, cells in study.by_arm.items():
        learned = sorted({decisions_learned(cell) for cell in cells.values()} - {None})
        seconds = [cell.about["seconds"] for cell in cells.values() if "seconds" in cell.about]
        turns = sum(len(record.steps) for cell in cells.values() for record in cell.missions.values())
        row = [arm, ", ".join(map(str, learned)) or "-", mean_of(cells, "train/tokens_per_s", "{:.0f}")]
        row += [
            f"{sum(seconds) / len(seconds):.0f}" if seconds else "-",
            f"{turns / sum(seconds):.1f}" if seconds else "-",
        ]
        rows.append(row)
    headings = ["arm", "decisions learned from", "training tokens/s", "seconds to play the missions", "turns/s"]
    return Rows(headings, rows, "Means over training seeds; times depend on what else the machine did.")


def provenance(study: Study) -> list[Block]:
    """Data, prompts, seeds and versions."""
    rows = []
    for cells in study.by_arm.values():
        for cell in cells.values():
            about = cell.about
            seeds = about.get("seeds", {})
            rows.append(
                [
                    cell.name,
                    str(cell.seed),
                    about.get("config", {}).get("prompt", {}).get("format", "-"),
                    str(cell.data.get("dataset_hash", "-")),
                    str(about.get("prompt_hash", "-")),
                    f"{seeds.get('start', '-')} + {seeds.get('count', '-')} ({seeds.get('set', '-')})",
                ]
            )
    versions = next(
        (c.about["versions"] for cells in study.by_arm.values() for c in cells.values() if "versions" in c.about), {}
    )
    text = "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) if versions else ""
    headings = ["cell", "training seed", "format", "data", "prompt", "mission seeds"]
    return [Rows(headings, rows), *([Text(text)] if text else [])]


# figures as text


def points(value: float, outcome: str) -> str:
    return f"{100 * value:.1f} %" if outcome in SHARES else f"{value:.1f}"


def with_interval(interval: Interval, outcome: str) -> str:
    if math.isnan(interval.value):
        return "-"
    scale = 100 if outcome in SHARES else 1
    return f"{points(interval.value, outcome)} [{scale * interval.low:.1f}, {scale * interval.high:.1f}]"


def signed(interval: Interval, outcome: str) -> str:
    scale = 100 if outcome in SHARES else 1
    value, low, high = (scale * number for number in interval[:3])
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def p_shown(p_value: float) -> str:
    return p_text(p_value)


def share_text(number: int, total: int) -> str:
    return f"{100 * number / total:.1f} % ({number})" if total else "-"


# files


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    lines = [f"# {title[:1].upper()}{title[1:]}", ""]
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        match block:
            case Heading(text):
                lines += [f"## {text}", ""]
            case Command(text):
                lines += ["```bash", text, "```", ""]
            case Text(text, is_list):
                lines.append(f"- {text}" if is_list else text)
                if not (is_list and isinstance(following, Text) and following.is_list):
                    lines.append("")
            case Figure(path, caption):
                lines += [f"![{caption}]({path.name})", ""]
            case Rows(headings, cells, note):
                lines += [row_line(headings), "|" + "---|" * len(headings), *map(row_line, cells), ""]
                lines += [note, ""] if note else []
    return "\n".join(lines).rstrip() + "\n"


def row_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """One file, pictures inside."""
    views = [{"kind": type(block).__name__, **vars(block)} for block in blocks]
    for view in views:
        if view["kind"] == "Figure":
            view["data"] = base64.b64encode(view["path"].read_bytes()).decode()
    return render_report("ablation.html.jinja", title=title, blocks=views)


def write_cells(path: Path, study: Study) -> Path:
    """A line a cell: every outcome, the last logged losses."""
    rows = []
    for arm, cells in study.by_arm.items():
        for seed, cell in cells.items():
            logged = {
                key: value
                for key, value in cell.last.items()
                if key.startswith(("eval/token_loss/", "eval/turn_tokens"))
            }
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "missions": len(cell.missions),
                    **{n: cell.mean(n) for n in study.outcomes},
                    **logged,
                }
            )
    return write_csv(path, rows)


def write_differences(path: Path, study: Study) -> Path:
    """A line a contrast, every figure of it; intervals in three columns."""
    rows = []
    for one in study.contrasts:
        row = {}
        for field in fields(one):
            value = getattr(one, field.name)
            if isinstance(value, Interval):
                row |= {f"{field.name}_{key}": number for key, number in value._asdict().items() if key != "n"}
            else:
                row[field.name] = " ".join(map(str, value)) if isinstance(value, tuple) else value
        rows.append(row)
    return write_csv(path, rows)


def write_csv(path: Path, rows: Sequence[dict]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_cases(path: Path, study: Study) -> list[Path]:
    """Missions turn by turn, the arms beside each other, of the first training seed that all have."""
    seeds = set.intersection(*(set(cells) for cells in study.by_arm.values()))
    if not seeds:
        return []
    arms = [study.baseline] if study.baseline in study.by_arm else []
    arms += [arm for arm in study.by_arm if arm != study.baseline]
    write_report(path, [study.by_arm[arm][min(seeds)].directory / "eval" / MISSIONS for arm in arms])
    return [path]
