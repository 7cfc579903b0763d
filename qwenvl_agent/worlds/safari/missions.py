"""Missions in Korean, English and Chinese: how they are worded, and how wordings are read back.

Words, phrases and sentences are tables. One regular expression made from the same tables finds the targets in any text,
so what can be written can be read, and one lexicon serves the mission, `declare_found` and the oracle. Missions are read
with typing errors too, one in a word, where only one word can be meant; `resolve_target` is strict.
"""

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from qwenvl_agent.worlds.safari.phrasings import (
    HELD_OUT,
    HELD_OUT_PHRASES,
    MORE,
    MORE_PHRASES,
    Phrases,
    Sentences,
)
from qwenvl_agent.worlds.safari.typos import ERRORS, misspellings, script
from qwenvl_agent.worlds.safari.world import Animal

# The first word is the one that plain missions use.
Words = dict[str, dict[str, tuple[str, ...]]]
"""By language and English name."""

COLOUR_WORDS: Words = {
    "ko": {
        "red": ("빨간색", "빨간", "빨강", "붉은"),
        "green": ("초록색", "초록", "녹색", "연두색"),
        "blue": ("파란색", "파란", "파랑"),
        "yellow": ("노란색", "노란", "노랑"),
        "pink": ("분홍색", "분홍", "핑크색", "핑크", "자홍색"),
        "cyan": ("하늘색", "청록색", "시안색"),
        "orange": ("주황색", "주황", "오렌지색"),
        "purple": ("보라색", "보라"),
    },
    "en": {
        "red": ("red",),
        "green": ("green", "lime"),
        "blue": ("blue",),
        "yellow": ("yellow",),
        "pink": ("pink", "magenta"),
        "cyan": ("cyan", "sky blue", "sky-blue", "light blue", "aqua"),
        "orange": ("orange",),
        "purple": ("purple", "violet"),
    },
    "zh": {
        "red": ("红色", "红"),
        "green": ("绿色", "绿"),
        "blue": ("蓝色", "蓝"),
        "yellow": ("黄色", "黄"),
        "pink": ("粉色", "粉红色", "粉红", "品红色"),
        "cyan": ("青色", "天蓝色", "浅蓝色"),
        "orange": ("橙色", "橘色"),
        "purple": ("紫色", "紫"),
    },
}
KIND_WORDS: Words = {
    "ko": {
        "tiger": ("호랑이",),
        "elephant": ("코끼리",),
        "giraffe": ("기린",),
        "monkey": ("원숭이",),
        "zebra": ("얼룩말",),
        "lion": ("사자",),
        "pig": ("돼지",),
        "koala": ("코알라",),
    },
    "en": {
        "tiger": ("tiger",),
        "elephant": ("elephant",),
        "giraffe": ("giraffe",),
        "monkey": ("monkey",),
        "zebra": ("zebra",),
        "lion": ("lion",),
        "pig": ("pig", "hog"),
        "koala": ("koala", "koala bear"),
    },
    "zh": {
        "tiger": ("老虎",),
        "elephant": ("大象",),
        "giraffe": ("长颈鹿",),
        "monkey": ("猴子",),
        "zebra": ("斑马",),
        "lion": ("狮子",),
        "pig": ("猪", "小猪"),
        "koala": ("考拉", "树袋熊", "无尾熊"),
    },
}
PHRASES: Phrases = {
    "ko": ("{colour} {kind}", "{colour} 배경의 {kind}", "{colour} 바탕의 {kind}"),
    "en": ("{colour} {kind}", "{kind} on a {colour} background", "{kind} on the {colour} background"),
    "zh": ("{colour}{kind}", "{colour}的{kind}", "{colour}背景的{kind}"),
}

# By language, number of targets and whether the order is given. [을] and [과] take the form that the sound before needs.
SENTENCES: Sentences = {
    "ko": {
        (1, False): ("{0}[을] 잡아줘", "{0}[을] 찾아줘", "{0}[을] 찾아라.", "{0} 어디 있어? 찾아 줘!"),
        (2, False): ("{0}[과] {1}[을] 잡아줘", "{0}, {1}[을] 모두 찾아줘"),
        (3, False): ("{0}, {1}, {2}[을] 잡아줘", "{0}[과] {1}[과] {2}[을] 모두 찾아줘"),
        (2, True): ("먼저 {0}[을] 잡고 그다음 {1}[을] 잡아줘", "{0}, {1} 순서대로 찾아줘"),
        (3, True): ("먼저 {0}, 그다음 {1}, 마지막으로 {2}[을] 잡아줘", "{0}, {1}, {2} 순서대로 찾아줘"),
    },
    "en": {
        (1, False): ("Find the {0}.", "Catch the {0}!", "Where is the {0}? Go and find it.", "find the {0} please"),
        (2, False): ("Find the {0} and the {1}.", "Catch both the {0} and the {1}!"),
        (3, False): ("Find the {0}, the {1} and the {2}.", "Look for the {0}, the {1} and also the {2}."),
        (2, True): ("Find first the {0}, then the {1}.", "First catch the {0}, after that the {1}."),
        (3, True): ("Find first the {0}, then the {1}, then the {2}.", "First the {0}, next the {1}, last the {2}!"),
    },
    "zh": {
        (1, False): ("找到{0}", "请抓住{0}。", "去找{0}吧！", "帮我找一下{0}"),
        (2, False): ("找到{0}和{1}", "请抓住{0}以及{1}。"),
        (3, False): ("找到{0}、{1}和{2}", "请把{0}、{1}、{2}都抓住。"),
        (2, True): ("先找到{0}，再找到{1}", "首先抓住{0}，然后抓住{1}。"),
        (3, True): ("先找到{0}，再找到{1}，最后找到{2}", "首先抓住{0}，然后{1}，最后{2}。"),
    },
}
PHRASINGS: dict[str, tuple[tuple[Sentences, ...], tuple[Phrases, ...]]] = {
    "usual": ((SENTENCES,), (PHRASES,)),
    "more": ((SENTENCES, MORE), (PHRASES, MORE_PHRASES)),
    "held_out": ((HELD_OUT,), (HELD_OUT_PHRASES,)),
}
"""Sentences and phrases of a target, by the rule `phrasing`."""
ORDER_WORDS = re.compile(
    r"\b(?:first|then|after that|next|in th(?:is|at) order|start with)\b|먼저|그\s?다음|순서|차례|나중에|끝으로|先|再|然后|顺序|接着",
    re.IGNORECASE,
)
PARTICLES = {"을": ("을", "를"), "과": ("과", "와"), "이": ("이", "가"), "은": ("은", "는")}
"""After a consonant, after a vowel."""


def _meanings(table: Words) -> dict[str, str]:
    """word -> canonical English, over all languages."""
    return {word: name for words in table.values() for name, forms in words.items() for word in forms}


COLOUR_OF = _meanings(COLOUR_WORDS)
KIND_OF = _meanings(KIND_WORDS)
COLOUR_NAMES = frozenset(COLOUR_OF.values())


def _misspelt(*tables: Words) -> dict[str, str]:
    """Misspelt word -> canonical English, of each that is no other word and can mean one thing only."""
    words = {word for table in tables for word in _meanings(table)}
    meanings: dict[str, set[str]] = {}
    for table in tables:
        for word, name in _meanings(table).items():
            for other in misspellings(word):
                meanings.setdefault(other, set()).add(name)
    return {other: min(names) for other, names in meanings.items() if len(names) == 1 and other not in words}


MISSPELT = _misspelt(COLOUR_WORDS, KIND_WORDS)


def _choice(table: dict[str, tuple[str, ...]], tolerant: bool) -> str:
    """A group of every word, longest first; a space stands for any white space. `tolerant`: misspelt ones too."""
    words = {word for forms in table.values() for word in forms}
    if tolerant:
        words |= {other for word in words for other in misspellings(word) if other in MISSPELT}
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return "(" + "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in longest_first) + ")"


def _target_pattern(tolerant: bool = False) -> str:
    ko_colour, en_colour, zh_colour = (_choice(COLOUR_WORDS[language], tolerant) for language in COLOUR_WORDS)
    ko_kind, en_kind, zh_kind = (_choice(KIND_WORDS[language], tolerant) for language in KIND_WORDS)
    return "|".join(
        (
            rf"{ko_colour}\s*(?:(?:배경|바탕|칸)(?:의|에)?\s*(?:있는\s*)?)?{ko_kind}",
            rf"\b{en_colour}[\s-]+(?:background\s+)?{en_kind}\b",
            rf"\b{en_kind}\s+(?:on|with|in)\s+(?:an?|the)?\s*{en_colour}(?:\s+(?:background|tile|square))?\b",
            rf"{zh_colour}\s*(?:(?:背景|格子|方块)[上里]?)?\s*的?\s*{zh_kind}",
        )
    )


TARGET = re.compile(_target_pattern(), re.IGNORECASE)
DECLARED = re.compile(rf"(?:(?:the|an?)\s+)?({TARGET.pattern})(?:[을를이가은는])?[.!。！]?", re.IGNORECASE)


@cache
def tolerant_target() -> re.Pattern:
    """TARGET with misspelt words; compiled when it is first needed."""
    return re.compile(_target_pattern(tolerant=True), re.IGNORECASE)


@dataclass(frozen=True)
class Mission:
    """What to find, in the mission's own words too: `wordings[i]` names `targets[i]`."""

    text: str
    targets: tuple[Animal, ...]
    wordings: tuple[str, ...]
    ordered: bool = False

    def wording(self, target: Animal) -> str:
        return self.wordings[self.targets.index(target)]

    def target_named(self, words: str) -> Animal | None:
        """The target that the mission calls just so, typing errors included; None if it calls none so."""
        named = zip(self.targets, map(_folded, self.wordings), strict=True)
        return next((target for target, own in named if own == _folded(words)), None)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def write_mission(
    targets: tuple[Animal, ...],
    ordered: bool,
    language: str,
    rng: random.Random,
    plain: bool = False,
    phrasing: str = "usual",
) -> Mission:
    """A mission for these targets in one of PHRASINGS.

    `plain` takes each language's first words for a target, and of the usual phrasing its first sentence.
    """
    ordered = ordered and len(targets) > 1
    wordings = tuple(word_target(target, language, rng, plain, phrasing) for target in targets)
    sentences = [form for table in PHRASINGS[phrasing][0] for form in table[language][len(targets), ordered]]
    sentence = _pick(sentences, rng, plain and phrasing == "usual")
    return Mission(with_particles(sentence.format(*wordings)), tuple(targets), wordings, ordered)


def word_target(target: Animal, language: str, rng: random.Random, plain: bool = False, phrasing: str = "usual") -> str:
    """Words for a target, as a mission of that phrasing would name it."""
    colour = _pick(COLOUR_WORDS[language][target.colour], rng, plain)
    kind = _pick(KIND_WORDS[language][target.kind], rng, plain)
    phrases = PHRASES[language] if plain else [form for table in PHRASINGS[phrasing][1] for form in table[language]]
    return _pick(phrases, rng, plain).format(colour=colour, kind=kind)


def _pick(forms: Sequence[str], rng: random.Random, plain: bool) -> str:
    return forms[0] if plain else rng.choice(forms)


def with_particles(text: str) -> str:
    """Korean markers like [을] replaced by the particle that the syllable before them asks for."""

    def particle(match: re.Match) -> str:
        has_final_consonant = (ord(match[1]) - ord("가")) % 28 != 0
        return match[1] + PARTICLES[match[2]][0 if has_final_consonant else 1]

    return re.sub(r"(.)\[(.)\]", particle, text)


def with_typos(mission: Mission, share: float, rng: random.Random) -> Mission:
    """The mission with about this share of its letters swapped, dropped or doubled.

    An error after which the mission would be read as another, or not at all, is not made.
    """
    place = 0
    while place < len(mission.text):
        if script(mission.text[place]) and rng.random() < share:
            text = rng.choice(list(ERRORS.values()))(mission.text, place)
            other = read_mission(" ".join(text.split()))
            is_alike = (other.targets, other.ordered) == (mission.targets, mission.ordered)
            if is_alike and [name for words in other.wordings for _, name in find_targets(words)] == [*other.targets]:
                mission = other
        place += 1
    return mission


def read_mission(text: str) -> Mission:
    """The targets named in a mission of any of the languages, each once; none if it names none."""
    text = unicodedata.normalize("NFC", text)
    wordings: dict[Animal, str] = {}
    for wording, animal in find_targets(text):
        wordings.setdefault(animal, wording)
    ordered = len(wordings) > 1 and ORDER_WORDS.search(text) is not None
    return Mission(text, tuple(wordings), tuple(wordings.values()), ordered)


@lru_cache(maxsize=256)  # an episode says the same in each of its turns
def find_targets(text: str) -> tuple[tuple[str, Animal], ...]:
    """Each target named in a text, with the words that name it, misspelt or not."""
    return tuple((match[0], _animal(match)) for match in tolerant_target().finditer(text))


def _animal(match: re.Match) -> Animal:
    words = [re.sub(r"\s+", " ", group.casefold()) for group in match.groups() if group]
    colour = next(name for word in words if (name := _meaning(word)) in COLOUR_NAMES)
    kind = next(name for word in words if (name := _meaning(word)) not in COLOUR_NAMES)
    return Animal(colour, kind)


def _meaning(word: str) -> str:
    return COLOUR_OF.get(word) or KIND_OF.get(word) or MISSPELT[word]


def resolve_target(text: str) -> Animal | None:
    """The target that a declaration names in any of the languages, case and spaces aside; None if it names none."""
    match = DECLARED.fullmatch(_folded(text))
    return find_targets(match[1])[0][1] if match else None
