"""Pictures of pages as data: instruction and action, every element of a picture, and questions about them.

Three kinds of rows. Actions are in the form of `docs/DATA.md` (`screenshot` with `action`), in pixels of the picture.
Elements are one row a picture, in pixels, to measure against. Questions are conversations whose answers are JSON with
`bbox_2d` on the model's grid, the key and the unit that Qwen3-VL was trained with.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence

from qwenvl_agent.coordinates import Screen
from qwenvl_agent.worlds.browser.camera import Shot
from qwenvl_agent.worlds.browser.elements import Element
from qwenvl_agent.worlds.browser.instructions import (
    MEANS,
    PHRASES,
    Instruction,
    Scene,
    Speaker,
    call_it,
    spoken_role,
    write_instructions,
)
from qwenvl_agent.worlds.browser.pages import FAMILIES, REPORT_SEEDS
from qwenvl_agent.worlds.browser.words import picture_word

QUESTIONS = ("list", "where", "at")


def sample_id(shot: Shot) -> str:
    return f"{shot.page.family}_{shot.page.seed:07d}"


def instruction_languages(page_language: str, languages: Sequence[str]) -> list[str]:
    """What to draw from: the page's own language as often as all of `languages` together."""
    return [page_language] * len(languages) + list(languages)


def target_name(element: Element) -> str:
    """A short name in the style of `kitten_image`: what it shows or is for, and what it is."""
    about = element.picture or element.icon or element.intent.split(" ")[-1] or element.shown
    return re.sub(r"\W+", "_", f"{about} {element.role}".strip()).lower()


def action_rows(shot: Shot, screenshot: str, number: int, languages: Sequence[str], rng: random.Random) -> list[dict]:
    """Up to `number` instructions on the picture, each with its click; those of report seeds are marked as test."""
    spoken = instruction_languages(shot.page.language, languages)
    written = write_instructions(shot.layout, spoken, number, rng)
    return [_action_row(shot, screenshot, index, instruction) for index, instruction in enumerate(written)]


def _action_row(shot: Shot, screenshot: str, index: int, instruction: Instruction) -> dict:
    element, page = shot.layout.elements[instruction.element], shot.page
    row = {
        "id": f"{sample_id(shot)}_{index}",
        "instruction": instruction.text,
        "screenshot": screenshot,
        "image_size": [shot.layout.width, shot.layout.height],
        "action": {
            "type": "click",
            "x": element.point[0],
            "y": element.point[1],
            "target": target_name(element),
            "reasoning": instruction.reasoning,
        },
        "box": list(element.box),
        "split": "test" if page.seed in REPORT_SEEDS else "train",
        "origin": "generated",
        "details": {
            "family": page.family,
            "seed": page.seed,
            "kind": MEANS[instruction.kind],
            "way": instruction.kind,
            "language": instruction.language,
            "page_language": page.language,
            "theme": "dark" if page.theme["is_dark"] else "light",
            "scale": page.scale,
            "role": element.role,
            "name": element.name,
            "visible": round(element.visible, 3),
            "hit_boxes": [list(box) for box in element.hit_boxes],
        },
    }
    offered = FAMILIES[page.family].offered_actions
    return row | ({"actions": list(offered)} if offered else {})


def in_reading_order(elements: Sequence[Element]) -> list[Element]:
    """From the top, and from the left where two share more than half of a line."""
    lines: list[list[Element]] = []
    for element in sorted(elements, key=lambda e: (e.box[1] + e.box[3]) / 2):
        middle = (element.box[1] + element.box[3]) / 2
        if lines and lines[-1][0].box[1] <= middle <= lines[-1][0].box[3]:
            lines[-1].append(element)
        else:
            lines.append([element])
    return [element for line in lines for element in sorted(line, key=lambda e: e.box[0])]


def describe(scene: Scene, element: Element, speaker: Speaker) -> str:
    """The element in a phrase, with what it belongs to if that can be read."""
    phrase, group = call_it(element, speaker), scene.titled_group(element)
    return speaker.say("of_group", np=phrase, title=group[1]) if group else phrase


def entry(scene: Scene, element: Element, speaker: Speaker) -> dict:
    """Type, text, description, state and content of picture; the caller adds where it is."""
    values = {
        "type": spoken_role(element),
        "text": element.text or element.value or element.placeholder,
        "description": describe(scene, element, speaker),
        "state": list(element.state),
        "image": picture_word(element.picture, speaker.language) if element.picture else element.picture_text,
    }
    return {key: value for key, value in values.items() if value or key in ("type", "text", "description")}


def elements_row(shot: Shot, screenshot: str) -> dict:
    """Every element of the picture, in its pixels; described in the page's language."""
    scene, speaker = Scene(shot.layout), Speaker(shot.page.language, random.Random(0))
    return {
        "id": sample_id(shot),
        "screenshot": screenshot,
        "image_size": [shot.layout.width, shot.layout.height],
        "language": shot.page.language,
        "scale": shot.page.scale,
        "elements": [
            entry(scene, e, speaker)
            | {"role": e.role, "name": e.name, "box": list(e.box), "point": list(e.point)}
            | {"visible": round(e.visible, 3)}
            for e in in_reading_order(shot.layout.elements)
        ],
    }


def question_rows(shot: Shot, screenshot: str, number: int, languages: Sequence[str], rng: random.Random) -> list[dict]:
    """Up to `number` conversations of one question about the picture: the list first, then where and what in turn."""
    asked, rows = set(), []
    for index in range(number):
        speaker = Speaker(rng.choice(instruction_languages(shot.page.language, languages)), rng)
        kind = QUESTIONS[0] if index == 0 else QUESTIONS[1 + index % 2]
        question, answer = next(ASK[kind](shot, speaker, rng), ("", ""))
        if question and question not in asked:
            asked.add(question)
            rows.append(_conversation(shot, screenshot, index, kind, speaker.language, question, answer))
    return rows


def _conversation(shot: Shot, screenshot: str, index: int, kind: str, language: str, question: str, answer: object):
    """A row that any reader of conversations takes."""
    return {
        "id": f"{sample_id(shot)}_{kind}_{index}",
        "images": [screenshot],
        "messages": [
            {"role": "user", "content": f"<image>\n{question}"},
            {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)},
        ],
        "details": {"family": shot.page.family, "seed": shot.page.seed, "kind": kind, "language": language},
    }


def grid_box(element: Element, screen: Screen) -> list[int]:
    x1, y1, x2, y2 = element.box
    return [*screen.to_norm(x1, y1), *screen.to_norm(x2, y2)]


def screen_of(shot: Shot) -> Screen:
    return Screen(shot.layout.width, shot.layout.height, shot.layout.scale)


def ask_list(shot: Shot, speaker: Speaker, rng: random.Random) -> Iterator[tuple[str, object]]:
    scene, screen = Scene(shot.layout), screen_of(shot)
    found = [
        entry(scene, e, speaker) | {"bbox_2d": grid_box(e, screen)} for e in in_reading_order(shot.layout.elements)
    ]
    yield speaker.say("list"), found


def ask_where(shot: Shot, speaker: Speaker, rng: random.Random) -> Iterator[tuple[str, object]]:
    """Where something is that a phrase means alone."""
    scene, screen = Scene(shot.layout), screen_of(shot)
    for element in rng.sample(scene.elements, len(scene.elements)):
        ways = [PHRASES[kind] for kind in ("name", "picture", "icon", "colour", "group", "neighbour")]
        phrases = [phrase for way in ways for phrase in way(scene, element, speaker)]
        if phrases:
            answer = {"type": spoken_role(element), "bbox_2d": grid_box(element, screen)}
            yield speaker.say("where", np=rng.choice(phrases)), answer


def ask_at(shot: Shot, speaker: Speaker, rng: random.Random) -> Iterator[tuple[str, object]]:
    """What is at the point of an element."""
    scene, screen = Scene(shot.layout), screen_of(shot)
    for element in rng.sample(scene.elements, len(scene.elements)):
        x, y = screen.to_norm(element.point[0] + 0.5, element.point[1] + 0.5)
        answer = entry(scene, element, speaker) | {"bbox_2d": grid_box(element, screen)}
        yield speaker.say("at", x=x, y=y), answer


ASK = {"list": ask_list, "where": ask_where, "at": ask_at}
