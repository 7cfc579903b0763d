"""What a mission and a turn look like, as HTML: all text of worlds and models is escaped."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from qwenvl_agent.computer.drawing import draw_places
from qwenvl_agent.evaluation.report import call_view, step_view
from qwenvl_agent.evaluation.rollout import calls_json
from qwenvl_agent.evaluation.suites import Episodes
from qwenvl_agent.html_templates import render_report
from qwenvl_agent.playground.session import Session
from qwenvl_agent.schema import Answer, Turn

LEAST_PX = 480
"""A smaller picture is shown larger, by whole pixels."""


def state_html(session: Session) -> str:
    """Mission, how it stands, and the text that the agent reads."""
    record, suite = session.record, Episodes(session.world, session.world.name)
    outcome = suite.outcome(record) if session.is_over else ""
    seed_set = session.world.seeds.name_of([record.seed])
    return render_report(
        "play_state.html.jinja",
        mission=record.mission or "(no mission)",
        world=session.world.name,
        seed=record.seed,
        seed_set="" if seed_set == "mixed" else seed_set,
        turn=record.turns + 1,
        outcome=suite.outcomes.get(outcome, outcome.replace("_", " ")),
        is_success=record.success,
        facts=suite.view(record).facts,
        optimal_turns=record.optimal_turns,
        error=record.error,
        context=session.observation.text if session.observation else "",
    )


def answer_html(session: Session, name: str, answer: Answer) -> str:
    """What somebody answers to what is seen now; whether the reference would do the same."""
    return turn_html(name, answer, verdicts_of(session, answer))


def verdicts_of(session: Session, answer: Answer) -> list[tuple[str, str]]:
    """(kind good | bad | odd, text)."""
    found = [("bad", f"unreadable: {answer.error}")] if answer.error else []
    found += [("odd", f"repaired: {name}") for name in answer.repairs]
    is_best = session.is_best(answer.turn)
    return found + (
        [] if is_best is None else [("good", "as the oracle") if is_best else ("odd", "not the oracle's turn")]
    )


def turn_html(name: str, answer: Answer, verdicts: Sequence[tuple[str, str]] = (), note: str = "") -> str:
    return render_report(
        "play_answer.html.jinja",
        name=name,
        thought=answer.turn.thought or answer.turn.text,
        calls=[call_view(call) for call in calls_json(answer.turn)],
        text=answer.text,
        verdicts=verdicts,
        note=note,
    )


def best_html(session: Session) -> str:
    """The reference's turn, or why there is none."""
    best = session.best()
    if best is not None:
        return turn_html("the oracle here", Answer(best))
    why = "the mission is over" if session.is_over else "this world has no oracle that can be asked in any state"
    return turn_html("the oracle here", Answer(Turn()), note=why)


def turns_html(session: Session) -> str:
    """What was played until now, newest first, as a report shows it."""
    pictures: dict[str, str] = {}
    steps = [
        step_view(number, step, session.directory, session.world, pictures) | {"who": who}
        for number, (step, who) in enumerate(zip(session.record.steps, session.played_by, strict=True), 1)
    ]
    return render_report("play_turns.html.jinja", steps=steps[::-1], pictures=pictures)


def seen_image(session: Session, answer: Answer | None = None) -> Image.Image | None:
    """The picture that is seen now, with the places that the answer points to."""
    image = session.image()
    if image is None:
        return None
    times = max(1, LEAST_PX // max(image.size))
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    places = [(mark.x * image.width, mark.y * image.height) for mark in session.marks(answer)] if answer else []
    return draw_places(image, places) if places else image


class Shown(NamedTuple):
    """What the page shows of a mission in play."""

    image: Image.Image | None
    state: str
    answer: str
    """Of the player who was asked, "" if nobody was."""
    best: str
    turns: str


def show(session: Session, name: str = "", answer: Answer | None = None) -> Shown:
    """With the answer of the player of that name, if there is one."""
    return Shown(
        seen_image(session, answer),
        state_html(session),
        answer_html(session, name, answer) if answer else "",
        best_html(session),
        turns_html(session),
    )
