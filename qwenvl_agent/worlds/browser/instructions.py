"""What a person could say to have one element of a page clicked: by name, by purpose, by look, by place, by relation.

Every way returns nothing unless what it says holds for exactly one element of the picture, so that an instruction has
one answer. What counts as "exactly one" stands in the way itself: the same words, the same purpose (or one of
`same_intent` in words.json), the same picture, another element within the margin of a place. Ways that speak of places
do so only if all elements in the viewport can be clicked: one that lies dimmed behind a dialog would count, too.

The words are in `words.json`, in three languages; an instruction's language need not be the page's, whose own words are
quoted as they stand.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from qwenvl_agent.worlds.browser.elements import Element, Group, Layout
from qwenvl_agent.worlds.browser.pages import PALETTES
from qwenvl_agent.worlds.browser.words import LANGUAGES, picture_word, variants, words

MAX_NAME_CHARS = 40
READABLE = 0.75
"""Share of an element that must be in view for its words to be read and its shape to be seen."""
COLOUR_DISTANCE = 40
"""Red, green and blue together may differ this much from a named colour."""
CELL_MARGIN = 0.04
"""Share of the picture's side that an element's middle keeps from the borders of its ninth."""


@dataclass(frozen=True)
class Instruction:
    """A request for a click on `layout.elements[element]`; `kind` is a key of WAYS."""

    text: str
    kind: str
    language: str
    element: int
    reasoning: str


def final_consonant(word: str) -> bool | None:
    """Whether the last letter of a Korean word ends in a consonant; None for other scripts."""
    letters = [character for character in word if character.isalnum()]
    if not letters or not "가" <= letters[-1] <= "힣":
        return None
    return (ord(letters[-1]) - ord("가")) % 28 != 0


PARTICLES = {"를": ("을", "를", "을(를)"), "는": ("은", "는", "은(는)")}
"""After a consonant, after a vowel, and after what has no Korean reading."""


def with_particle(word: str, particle: str) -> str:
    after_consonant, after_vowel, either = PARTICLES[particle]
    final = final_consonant(word)
    return word + (either if final is None else after_consonant if final else after_vowel)


class Speaker:
    """Puts one language's phrases together."""

    def __init__(self, language: str, rng: random.Random):
        self.language = language
        self.rng = rng

    def say(self, phrase: str, **parts: object) -> str:
        """A phrase of words.json; in it `{np를}` is the part `np` with that particle."""
        template = self.rng.choice(variants(words()["phrases"][phrase], self.language))
        filled = {
            name + particle: with_particle(str(part), particle)
            for (name, part), particle in product(parts.items(), PARTICLES)
        }
        return template.format(**parts, **filled)

    def word(self, table: str, key: str | int) -> str:
        return variants(words()[table][key], self.language)[0]

    def role(self, element: Element) -> str:
        return self.word("roles", spoken_role(element))

    def icon(self, key: str) -> str:
        return words()["icons"][key][1 + LANGUAGES.index(self.language)]

    def intent(self, element: Element) -> str:
        """The sentence that states the element's purpose; empty if none is known, or it lacks what that is done to."""
        kind, _, key = element.intent.rpartition(" ")
        table = words()["fields"] if kind == "field" else words()["actions"] if not kind else {}
        if key not in table:
            return ""
        item = picture_word(element.item_picture, self.language) if element.item_picture else element.item
        sentence = self.rng.choice(variants(table[key][1], self.language))
        return sentence.format(item=item) if item or "{item}" not in sentence else ""


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


class Scene:
    """A layout with the questions that the ways ask of it."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.elements = layout.elements
        self.places_hold = layout.num_hidden == 0

    def is_only(self, target: Element, key: Callable[[Element], object]) -> bool:
        """Whether no other element has the target's key."""
        return [e is target for e in self.elements if key(e) == key(target)] == [True]

    def peers(self, target: Element) -> list[Element]:
        return [e for e in self.elements if e is not target and spoken_role(e) == spoken_role(target)]

    def group(self, element: Element) -> Group | None:
        return self.layout.groups[element.group] if element.group >= 0 else None

    def titled_group(self, element: Element) -> tuple[int, str] | None:
        """The nearest group around it whose title can be read and belongs to no other group."""
        index = element.group
        while index >= 0:
            group = self.layout.groups[index]
            if group.title:
                is_only = [other.title for other in self.layout.groups].count(group.title) == 1
                return (index, group.title) if group.is_title_seen and is_only else None
            index = group.parent
        return None

    def is_inside(self, element: Element, group: int) -> bool:
        index = element.group
        while index >= 0 and index != group:
            index = self.layout.groups[index].parent
        return index == group

    def is_item_seen(self, element: Element) -> bool:
        """Whether what the element's purpose speaks of can be seen."""
        if element.item_picture:
            return any(e.picture == element.item_picture and e.visible >= READABLE for e in self.elements)
        if not element.item or element.intent.startswith("field"):
            return True
        group = self.group(element)
        is_title = group is not None and group.is_title_seen and group.title == element.item
        return is_title or any(e.shown == element.item and e.visible >= READABLE for e in self.elements)


def is_readable(element: Element) -> bool:
    """Whether its words can be read and are short enough to be quoted."""
    return bool(element.shown) and len(element.shown) <= MAX_NAME_CHARS and element.visible >= READABLE


def spoken_role(element: Element) -> str:
    """What a person would call it, a key of `roles` in words.json: a link that is a picture is a picture."""
    if element.picture_text and not element.text and element.role in ("link", "image"):
        return "image"
    return element.role if element.role in words()["roles"] else "generic"


def shown_words(element: Element) -> str:
    return element.shown.casefold()


def intent_of(element: Element) -> tuple:
    """Purposes that a sentence could mean alike are equal."""
    alike = [key for key, group in enumerate(words()["same_intent"]) if element.intent in group]
    return (tuple(alike) or element.intent, element.item, element.item_picture) if element.intent else (id(element),)


def colour_of(rgb: tuple[int, int, int] | None) -> str:
    """The name of a colour, empty if it has none here."""
    if rgb is None:
        return ""
    for palette in PALETTES.values():
        for name, value in palette.items():
            named = [int(value[i : i + 2], 16) for i in (1, 3, 5)]
            if sum(abs(a - b) for a, b in zip(named, rgb, strict=True)) <= COLOUR_DISTANCE:
                return name
    return ""


def centre(element: Element) -> tuple[float, float]:
    x1, y1, x2, y2 = element.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def ninth(x: float, y: float, width: int, height: int) -> int:
    """0 to 8, row by row."""
    return min(int(3 * x / width), 2) + 3 * min(int(3 * y / height), 2)


# Ways to speak of an element: each gives phrases that mean it, or whole sentences, or nothing.


def by_name(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    """What is written on it; the kind of element with it if another kind says the same."""
    if not is_readable(target):
        return
    name, role = target.shown, speaker.role(target)
    if scene.is_only(target, shown_words):
        yield speaker.say("name", name=name)
    if scene.is_only(target, lambda e: (shown_words(e), spoken_role(e))):
        yield speaker.say("named", name=name, role=role)


def by_picture(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    if not target.picture or target.visible < READABLE:
        return
    word = picture_word(target.picture, speaker.language)
    if scene.is_only(target, lambda e: e.picture):
        yield speaker.say("picture", word=word)
    elif target.backdrop and scene.is_only(target, lambda e: (e.picture, e.backdrop)):
        yield speaker.say("picture_on", word=word, colour=speaker.word("colours", target.backdrop))


def by_icon(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    if target.icon and target.visible >= READABLE and scene.is_only(target, lambda e: e.icon):
        yield speaker.say("icon", icon=speaker.icon(target.icon))


def by_colour(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    colour = colour_of(target.background)
    if (
        colour
        and target.visible >= READABLE
        and scene.is_only(target, lambda e: (colour_of(e.background), spoken_role(e)))
    ):
        yield speaker.say("colour", colour=speaker.word("colours", colour), role=speaker.role(target))


def by_place(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    """The only one of its kind in a ninth of the screen, clear of the borders."""
    peers = scene.peers(target)
    if not peers or not scene.places_hold:
        return
    width, height = scene.layout.width, scene.layout.height

    def touched(element: Element) -> set[int]:
        """The ninths that its middle is in or within the margin of."""
        (x, y), dx, dy = centre(element), CELL_MARGIN * width, CELL_MARGIN * height
        return {ninth(max(x + a, 0), max(y + b, 0), width, height) for a, b in product((-dx, dx), (-dy, dy))}

    own = touched(target)
    if len(own) == 1 and not any(own & touched(peer) for peer in peers):
        yield speaker.say("place", role=speaker.role(target), place=speaker.word("places", own.pop()))


def by_extreme(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    """The outermost of its kind on one side: the middle of every other lies beyond its inner edge."""
    peers = scene.peers(target)
    if not peers or not scene.places_hold or target.visible < READABLE:
        return
    x1, y1, x2, y2 = target.box
    beyond = {
        "left": all(centre(e)[0] > x2 for e in peers),
        "right": all(centre(e)[0] < x1 for e in peers),
        "top": all(centre(e)[1] > y2 for e in peers),
        "bottom": all(centre(e)[1] < y1 for e in peers),
    }
    for side, holds in beyond.items():
        if holds:
            extreme = speaker.word("extremes", side)
            yield speaker.say("extreme", extreme=extreme, role=speaker.role(target))


def by_order(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    """Counted among its kind in a bar, menu or list of tabs of which there is one, all of it in view."""
    group = scene.group(target)
    if group is None or group.role not in words()["groups"]:
        return
    if [other.role for other in scene.layout.groups].count(group.role) > 1 or not scene.places_hold:
        return
    members = [e for e in scene.peers(target) if scene.is_inside(e, target.group)] + [target]
    line = in_line(members)
    if len(members) < 3 or not line or any(e.visible < READABLE for e in members):
        return
    index = line.index(target)
    ordinals = [speaker.word("ordinals", index)] if index < len(words()["ordinals"]) else []
    if target is line[-1]:
        ordinals.append(variants(words()["last"], speaker.language)[0])
    for ordinal in ordinals:
        place = speaker.word("groups", group.role)
        yield speaker.say("ordinal", ordinal=ordinal, role=speaker.role(target), group=place)


def in_line(elements: Sequence[Element]) -> list[Element]:
    """From left to right or from top to bottom, empty if they stand neither in one row nor in one column."""
    for axis in (0, 1):
        ordered = sorted(elements, key=lambda e: e.box[axis])
        is_apart = all(a.box[axis + 2] <= b.box[axis] for a, b in zip(ordered, ordered[1:], strict=False))
        first = max(e.box[1 - axis] for e in elements)
        last = min(e.box[3 - axis] for e in elements)
        if is_apart and first < last:
            return ordered
    return []


def by_group(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    """What alone in a card, row or form has these words, this icon or this kind, where others elsewhere do, too."""
    found = scene.titled_group(target)
    if not found or target.visible < READABLE:
        return
    index, title = found
    members = [e for e in scene.elements if scene.is_inside(e, index)]
    role = speaker.role(target)
    inner = []
    if is_readable(target) and [shown_words(e) for e in members].count(shown_words(target)) == 1:
        inner.append(speaker.say("named", name=target.shown, role=role))
    if target.icon and [e.icon for e in members].count(target.icon) == 1:
        inner.append(speaker.say("icon", icon=speaker.icon(target.icon)))
    if not inner and [spoken_role(e) for e in members].count(spoken_role(target)) == 1:
        inner.append(speaker.say("plain", role=role))
    for phrase in inner:
        yield speaker.say("of_group", np=phrase, title=title)


def by_neighbour(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    """The nearest of its kind on one side of an element that can be named."""
    if not scene.places_hold or target.visible < READABLE:
        return
    for anchor in scene.elements:
        if anchor is target:
            continue
        side = side_of(target, anchor)
        if side and nearest(scene, anchor, side, target) is target:
            names = [*by_name(scene, anchor, speaker), *by_picture(scene, anchor, speaker)]
            if names:
                yield speaker.say(side, role=speaker.role(target), anchor=names[-1])


def side_of(element: Element, anchor: Element) -> str:
    """Where the element lies as seen from the anchor, if their middles are in line; empty otherwise."""
    (x, y), (x1, y1, x2, y2) = centre(element), anchor.box
    if element.box[0] <= centre(anchor)[0] <= element.box[2] and x1 <= x <= x2:
        return "above" if element.box[3] <= y1 else "below" if element.box[1] >= y2 else ""
    if element.box[1] <= centre(anchor)[1] <= element.box[3] and y1 <= y <= y2:
        return "left_of" if element.box[2] <= x1 else "right_of" if element.box[0] >= x2 else ""
    return ""


def gap(element: Element, anchor: Element) -> float:
    """Distance between two boxes in pixels."""
    a, b = element.box, anchor.box
    dx, dy = max(a[0] - b[2], b[0] - a[2], 0), max(a[1] - b[3], b[1] - a[3], 0)
    return (dx * dx + dy * dy) ** 0.5


def nearest(scene: Scene, anchor: Element, side: str, like: Element) -> Element | None:
    """The nearest of a kind on that side, None unless it is near and all others on that side are twice as far."""
    beyond = {
        "above": lambda e: centre(e)[1] < anchor.box[1],
        "below": lambda e: centre(e)[1] > anchor.box[3],
        "left_of": lambda e: centre(e)[0] < anchor.box[0],
        "right_of": lambda e: centre(e)[0] > anchor.box[2],
    }[side]
    others = sorted(
        (e for e in (like, *scene.peers(like)) if e is not anchor and beyond(e)), key=lambda e: gap(e, anchor)
    )
    near = max(scene.layout.width, scene.layout.height) / 4
    if not others or gap(others[0], anchor) > near:
        return None
    is_clear = len(others) == 1 or gap(others[1], anchor) > 2 * gap(others[0], anchor) + 8
    return others[0] if is_clear else None


def by_intent(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    """What it is for, as a whole sentence."""
    sentence = speaker.intent(target)
    if sentence and scene.is_only(target, intent_of) and scene.is_item_seen(target):
        yield sentence


def by_switch(scene: Scene, target: Element, speaker: Speaker) -> Iterator[str]:
    """On or off, for what can be either."""
    if target.role in ("checkbox", "switch") and is_readable(target) and scene.is_only(target, shown_words):
        yield speaker.say("turn_off" if "checked" in target.state else "turn_on", name=target.shown)


Way = Callable[[Scene, Element, Speaker], Iterator[str]]
PHRASES: dict[str, Way] = {
    "name": by_name,
    "picture": by_picture,
    "icon": by_icon,
    "colour": by_colour,
    "place": by_place,
    "extreme": by_extreme,
    "order": by_order,
    "group": by_group,
    "neighbour": by_neighbour,
}
"""Ways whose phrases stand in a request to click."""
SENTENCES: dict[str, Way] = {"intent": by_intent, "switch": by_switch}
WAYS = PHRASES | SENTENCES
MEANS = {
    "name": "name",
    "switch": "name",
    **dict.fromkeys(("picture", "icon", "colour", "intent"), "description"),
    **dict.fromkeys(("place", "extreme", "order"), "position"),
    **dict.fromkeys(("group", "neighbour"), "relation"),
}
"""By what each way means an element."""


def call_it(element: Element, speaker: Speaker) -> str:
    """A phrase that names the element; not always only this one, but never another."""
    role = speaker.role(element)
    if element.shown and len(element.shown) <= MAX_NAME_CHARS:
        return speaker.say("named", name=element.shown, role=role)
    if element.picture:
        return speaker.say("picture", word=picture_word(element.picture, speaker.language))
    if element.icon:
        return speaker.say("icon", icon=speaker.icon(element.icon))
    if element.name and len(element.name) <= MAX_NAME_CHARS:
        return speaker.say("named", name=element.name, role=role)
    colour = colour_of(element.background)
    if colour:
        return speaker.say("colour", colour=speaker.word("colours", colour), role=role)
    return speaker.say("plain", role=role)


def reason(scene: Scene, element: Element, speaker: Speaker) -> str:
    """A short thought that names what is clicked and where it is."""
    place = speaker.word("places", ninth(*centre(element), scene.layout.width, scene.layout.height))
    return capitalised(speaker.say("reasoning", np=call_it(element, speaker), place=place))


def requests(scene: Scene, element: Element, kind: str, speaker: Speaker) -> list[str]:
    """All instructions of one kind that mean this element and no other."""
    if kind in SENTENCES:
        return list(SENTENCES[kind](scene, element, speaker))
    return [capitalised(speaker.say("click", np=phrase)) for phrase in PHRASES[kind](scene, element, speaker)]


def write_instructions(layout: Layout, languages: Sequence[str], number: int, rng: random.Random) -> list[Instruction]:
    """Up to `number` instructions, each for another element while there are some left, of kinds drawn evenly.

    The language of each is drawn from `languages` (repeat one to have it more often).
    """
    scene = Scene(layout)
    targets = [e for e in layout.elements if "disabled" not in e.state]
    left = {kind: rng.sample(targets, len(targets)) for kind in WAYS}
    written: list[Instruction] = []
    used: set[int] = set()
    while len(written) < number and left:
        kind = rng.choice(list(left))
        if not left[kind]:
            del left[kind]
            continue
        left[kind].sort(key=lambda e: id(e) in used)  # stable: unused ones first
        element = left[kind].pop(0)
        speaker = Speaker(rng.choice(list(languages)), rng)
        texts = requests(scene, element, kind, speaker)
        if texts:
            used.add(id(element))
            index = layout.elements.index(element)
            reasoning = reason(scene, element, speaker)
            written.append(Instruction(rng.choice(texts), kind, speaker.language, index, reasoning))
    return written
