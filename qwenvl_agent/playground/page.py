"""The page, of gradio, which is imported when a page is built: the extra `play`.

Every event is a few lines: it names what was clicked, lets the playground do it in its own thread, and shows the result.
"""

import functools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

import qwenvl_agent
from qwenvl_agent.command import reason
from qwenvl_agent.evaluation.rollout import calls_json
from qwenvl_agent.playground.playground import Playground
from qwenvl_agent.playground.session import Session, by_hand
from qwenvl_agent.playground.views import Shown, seen_image, show, state_html, turn_html, turns_html
from qwenvl_agent.schema import Turn, tool_named
from qwenvl_agent.worlds.baselines import random_call

if TYPE_CHECKING:
    import gradio

CSS_PATH = Path(qwenvl_agent.__file__).parent / "assets" / "playground.css"
FONT = ("system-ui", "sans-serif")
MONOSPACE = ("ui-monospace", "monospace")
TITLE = "qwenvl-agent playground"
PLAY, SIDES = "play", ("A", "B")
AGENTS_TURN, BEST_TURN = "the agent's turn", "the oracle's turn"
MAX_TURNS_AT_ONCE = 200
"""Of `to the end`, in a world that has no limit of its own."""


def theme() -> "gradio.themes.Base":
    """Fonts of the system: gradio's own would be fetched."""
    import gradio as gr

    return gr.themes.Default(primary_hue="blue", font=FONT, font_mono=MONOSPACE)


def build_page(playground: Playground) -> "gradio.Blocks":
    """The page with its tabs; a user is a tab of a browser, and their missions end with it."""
    import gradio as gr

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# Playground")
        with gr.Tab("Play"):
            play_tab(page, playground)
        with gr.Tab("Compare"):
            compare_tab(page, playground)
        with gr.Tab("Screenshot"):
            screenshot_tab(playground)

        def leave(request: gr.Request) -> None:
            playground.run(playground.leave, request.session_hash)

        page.unload(leave)
    return page


def told(function: Callable) -> Callable:
    """What a user can change is told on the page; a fault of this code is a fault."""
    import gradio as gr

    def tell(error: Exception) -> None:
        text = reason(error)
        if text is not None:
            raise gr.Error(text, duration=None, print_exception=False) from None

    @functools.wraps(function)
    def framed(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            tell(error)
            raise

    @functools.wraps(function)
    def framed_each(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except Exception as error:
            tell(error)
            raise

    import inspect

    return framed_each if inspect.isgeneratorfunction(function) else framed


# playing one mission


@dataclass(frozen=True)
class PlayParts:
    """What stands on the tab of one mission."""

    world: Any
    rules: Any
    seed: Any
    start: Any
    shown: tuple[Any, ...]
    """Picture, state, answer, best call and turns, as `show` gives them."""
    player: Any
    ask: Any
    play: Any
    best_turn: Any
    to_the_end: Any
    begin_with: Any
    thought: Any
    calls: Any
    hand: Any
    context: Any
    picture: Any
    again: Any
    other: Any
    look: Any
    tokens: Any

    @property
    def renewed(self) -> list[Any]:
        """What another state changes, as `renewed` gives it: what was asked before a turn is not of the state behind it."""
        return [*self.shown, self.context, self.picture, self.other, self.tokens]


def play_tab(page: "gradio.Blocks", playground: Playground) -> None:
    parts = lay_out_play(playground)
    bind_mission(page, playground, parts)
    bind_turns(playground, parts)
    bind_hand(playground, parts)
    bind_questions(playground, parts)


def lay_out_play(playground: Playground) -> PlayParts:
    import gradio as gr

    world, rules, seed, start = mission_row(playground)
    with gr.Row():
        with gr.Column(scale=2):
            seen = gr.Image(label="what is seen", interactive=False, elem_classes="seen", format="png", buttons=[])
            state = gr.HTML()
        with gr.Column(scale=3):
            player = player_choice(playground, "agent", 0)
            with gr.Row():
                ask, play = gr.Button("Ask"), gr.Button("Play its turn", variant="primary")
                best_turn, to_the_end = gr.Button("Play the oracle's"), gr.Button("To the end")
            answer, best = gr.HTML(elem_id="answer"), gr.HTML(elem_id="best")
            with gr.Accordion("By hand", open=False):
                begin_with = gr.Dropdown([AGENTS_TURN, BEST_TURN], label="begin with", value=None)
                thought = gr.Textbox(label="thought", lines=2)
                calls = gr.Code(label="calls, as JSON", language="json", value="[]", lines=4)
                hand = gr.Button("Play by hand")
            with gr.Accordion("Change what is seen, and ask again", open=False):
                context = gr.Textbox(label="context", lines=8)
                picture = gr.ImageEditor(label="picture", type="pil", format="png", layers=False, image_mode="RGB")
                again, other = gr.Button("Ask about this"), gr.HTML(elem_id="other")
            with gr.Accordion("The prompt, token by token", open=False):
                look, tokens = gr.Button("Show the tokens and their weights"), gr.HTML(elem_id="tokens")
    gr.Markdown("### Turns")
    shown = (seen, state, answer, best, gr.HTML(elem_id="turns"))
    return PlayParts(
        *(world, rules, seed, start, shown, player, ask, play, best_turn, to_the_end),
        *(begin_with, thought, calls, hand, context, picture, again, other, look, tokens),
    )


def bind_mission(page: "gradio.Blocks", playground: Playground, parts: PlayParts) -> None:
    import gradio as gr

    @told
    def on_start(world: str, rules: str, seed: float, request: gr.Request) -> tuple:
        def act() -> tuple:
            session = playground.start(request.session_hash, PLAY, world, seed, rules)
            tools = [tool.name for tool in session.tools()]
            return (*renewed(session), gr.Dropdown([AGENTS_TURN, BEST_TURN, *tools], value=None), "", "[]")

        return playground.run(act)

    outputs = [*parts.renewed, parts.begin_with, parts.thought, parts.calls]
    for event in (parts.start.click, page.load):
        event(on_start, [parts.world, parts.rules, parts.seed], outputs)
    parts.world.change(lambda name: other_players(playground, name, 1)[0], parts.world, parts.player)


def bind_turns(playground: Playground, parts: PlayParts) -> None:
    import gradio as gr

    @told
    def on_ask(name: str, request: gr.Request) -> Shown:
        def act() -> Shown:
            session = mission_of(playground, request)
            return show(session, name, session.ask(playground.player(name, session)))

        return playground.run(act)

    def play_turn(name: str, request: gr.Request) -> tuple[tuple, bool]:
        session = mission_of(playground, request)
        session.play(session.ask(playground.player(name, session)), name)
        return renewed(session), session.is_over

    @told
    def on_play(name: str, request: gr.Request) -> tuple:
        return playground.run(play_turn, name, request)[0]

    @told
    def on_play_on(name: str, request: gr.Request) -> Iterator[tuple]:
        for _ in range(MAX_TURNS_AT_ONCE):
            now, is_over = playground.run(play_turn, name, request)
            yield now
            if is_over:
                return

    @told
    def on_best(request: gr.Request) -> tuple:
        def act() -> tuple:
            session = mission_of(playground, request)
            session.play_best()
            return renewed(session)

        return playground.run(act)

    parts.ask.click(on_ask, parts.player, list(parts.shown))
    parts.play.click(on_play, parts.player, parts.renewed)
    parts.to_the_end.click(on_play_on, parts.player, parts.renewed)
    parts.best_turn.click(on_best, None, parts.renewed)


def bind_hand(playground: Playground, parts: PlayParts) -> None:
    import gradio as gr

    @told
    def on_hand(thought: str, calls: str, request: gr.Request) -> tuple:
        def act() -> tuple:
            session = mission_of(playground, request)
            session.play(by_hand(thought, calls, session.tools()), "by hand")
            return renewed(session)

        return playground.run(act)

    @told
    def on_begin(what: str | None, name: str, request: gr.Request) -> tuple[str, str]:
        def act() -> tuple[str, str]:
            turn = turn_to_begin_with(mission_of(playground, request), what, playground, name)
            return turn.thought, json.dumps(calls_json(turn), ensure_ascii=False, indent=1)

        return playground.run(act)

    parts.hand.click(on_hand, [parts.thought, parts.calls], parts.renewed)
    parts.begin_with.input(on_begin, [parts.begin_with, parts.player], [parts.thought, parts.calls])


def bind_questions(playground: Playground, parts: PlayParts) -> None:
    import gradio as gr

    @told
    def on_again(name: str, text: str, edited: dict | None, request: gr.Request) -> str:
        def act() -> str:
            session = mission_of(playground, request)
            image = (edited or {}).get("composite")
            found = session.ask_about(playground.player(name, session), text, image)
            size = f"a picture of {image.width}x{image.height} px" if image else "no picture"
            return turn_html(f"{name}, of what is changed", found, note=f"asked with this context and {size}")

        return playground.run(act)

    @told
    def on_look(name: str, request: gr.Request) -> str:
        from qwenvl_agent.playground.tokens import prompt_html  # here, because it imports torch

        def act() -> str:
            session = mission_of(playground, request)
            return prompt_html(session, playground.player(name, session))

        return playground.run(act)

    parts.again.click(on_again, [parts.player, parts.context, parts.picture], parts.other)
    parts.look.click(on_look, parts.player, parts.tokens)


def mission_of(playground: Playground, request: "gradio.Request") -> Session:
    return playground.session(request.session_hash, PLAY)


def renewed(session: Session) -> tuple:
    """Another state: what the page shows of it, its context and picture to change, and nothing that was asked before."""
    seen = session.observation
    return (*show(session), seen.text if seen else "", session.image(), "", "")


def turn_to_begin_with(session: Session, what: str | None, playground: Playground, name: str) -> Turn:
    """The turn that a person goes on from: the agent's, the reference's, or a call of a tool with arguments that fit."""
    if what == AGENTS_TURN:
        return session.ask(playground.player(name, session)).turn
    if what == BEST_TURN:
        return session.best() or Turn()
    tool = tool_named(session.tools(), what or "")
    return Turn(tool_calls=(random_call(tool, random.Random(0)),)) if tool else Turn()


# two on one seed


def compare_tab(page: "gradio.Blocks", playground: Playground) -> None:
    import gradio as gr

    world, rules, seed, start = mission_row(playground)
    with gr.Row():
        step, on = gr.Button("Play a turn of both", variant="primary"), gr.Button("Both to the end")
    columns = []
    with gr.Row():
        for index, side in enumerate(SIDES):
            with gr.Column(min_width=300):
                player = player_choice(playground, f"agent {side}", index)
                seen = gr.Image(label=side, interactive=False, elem_classes="seen", format="png", buttons=[])
                columns.append((player, seen, gr.HTML(elem_id=f"state{side}"), gr.HTML(elem_id=f"turns{side}")))
    players = [column[0] for column in columns]
    shown = [component for column in columns for component in column[1:]]

    def side_of(session: Session) -> tuple:
        return seen_image(session), state_html(session), turns_html(session)

    def both(request: gr.Request) -> list[Session]:
        return [playground.session(request.session_hash, side) for side in SIDES]

    @told
    def on_start(world: str, rules: str, seed: float, request: gr.Request) -> list:
        def act() -> list:
            opened = [playground.start(request.session_hash, side, world, seed, rules) for side in SIDES]
            return [value for session in opened for value in side_of(session)]

        return playground.run(act)

    def play_both(names: tuple[str, ...], request: gr.Request) -> tuple[list, bool]:
        sessions = both(request)
        for session, name in zip(sessions, names, strict=True):
            if not session.is_over:
                session.play(session.ask(playground.player(name, session)), name)
        return [value for session in sessions for value in side_of(session)], all(s.is_over for s in sessions)

    @told
    def on_step(first: str, second: str, request: gr.Request) -> list:
        return playground.run(play_both, (first, second), request)[0]

    @told
    def on_play_on(first: str, second: str, request: gr.Request) -> Iterator[list]:
        for _ in range(MAX_TURNS_AT_ONCE):
            now, is_over = playground.run(play_both, (first, second), request)
            yield now
            if is_over:
                return

    start.click(on_start, [world, rules, seed], shown)
    world.change(lambda name: other_players(playground, name, len(SIDES)), world, players)
    step.click(on_step, players, shown)
    on.click(on_play_on, players, shown)


# screenshots


def screenshot_tab(playground: Playground) -> None:
    import gradio as gr

    models = playground.run(playground.screen_models)
    if not models:
        gr.Markdown("No model was named: start the playground with `--run` or `--model`.")
        return
    with gr.Row():
        with gr.Column(scale=2):
            model = gr.Dropdown(models, value=models[0], label="model, those that learned screens first")
            image = gr.Image(label="screenshot", type="pil", sources=["upload", "clipboard"], format="png")
            instruction = gr.Textbox(label="instruction", placeholder="open the menu")
            ask = gr.Button("Ask", variant="primary")
        with gr.Column(scale=3):
            drawn = gr.Image(label="what it would do", interactive=False, format="png", elem_id="drawn", buttons=[])
            result = gr.JSON(label="its action, in pixels of the screenshot", elem_id="action")

    @told
    def on_ask(name: str, image: Image.Image | None, instruction: str) -> tuple[Image.Image, dict]:
        return playground.run(playground.click, name, image, instruction)

    for event in (ask.click, instruction.submit):
        event(on_ask, [model, image, instruction], [drawn, result])


# what tabs share


def mission_row(playground: Playground) -> tuple[Any, Any, Any, Any]:
    """World, rules, seed, and the button that opens the mission."""
    import gradio as gr

    names = list(playground.worlds)
    first = playground.run(playground.world_choice(names[0]).make, {}).seeds.report.start
    with gr.Row(equal_height=True):
        world = gr.Dropdown(names, value=names[0], label="world", scale=3)
        rules = gr.Textbox(label="rules over its own, as JSON", placeholder='{"width": 30}', scale=2)
        seed = gr.Number(value=first, label="seed", precision=0, minimum=0, scale=1)
        start = gr.Button("Start", scale=1)
    return world, rules, seed, start


def player_choice(playground: Playground, label: str, index: int) -> Any:
    """A choice of players, at first the one of that index, or the last there is."""
    import gradio as gr

    names = playground.run(playground.player_names, next(iter(playground.worlds)))
    return gr.Dropdown(names, value=names[min(index, len(names) - 1)], label=label)


def other_players(playground: Playground, world: str, num: int) -> list[Any]:
    """Choices of players for another world."""
    import gradio as gr

    names = playground.run(playground.player_names, world)
    return [gr.Dropdown(names, value=names[min(index, len(names) - 1)]) for index in range(num)]
