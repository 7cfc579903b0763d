"""Missions: what is written is read back, in three languages."""

import random
import unicodedata
from itertools import product

import pytest

from qwenvl_agent.worlds.safari.missions import (
    COLOUR_OF,
    COLOUR_WORDS,
    KIND_OF,
    KIND_WORDS,
    MISSPELT,
    PHRASINGS,
    read_mission,
    resolve_target,
    with_particles,
    with_typos,
    write_mission,
)
from qwenvl_agent.worlds.safari.world import COLOURS, KINDS, Animal

LANGUAGES = ("ko", "en", "zh")
PHRASES = {lang: [p for _, tables in PHRASINGS.values() for t in tables for p in t[lang]] for lang in LANGUAGES}
ANIMALS = [Animal(colour, kind) for colour in COLOURS for kind in KINDS]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_wording_of_every_target_is_understood(language):
    """Alone and in every sentence for one target."""
    colours, kinds = COLOUR_WORDS[language], KIND_WORDS[language]
    assert list(colours) == list(COLOURS) and list(kinds) == list(KINDS)
    sentences = {s for tables, _ in PHRASINGS.values() for table in tables for s in table[language][1, False]}
    for animal, phrase in product(ANIMALS, dict.fromkeys(PHRASES[language])):
        for colour, kind in product(colours[animal.colour], kinds[animal.kind]):
            wording = phrase.format(colour=colour, kind=kind)
            assert resolve_target(wording) == animal, wording
            for sentence in sentences:
                mission = read_mission(with_particles(sentence.format(wording)))
                assert (mission.targets, mission.wordings) == ((animal,), (wording,)), mission.text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("num_targets", [1, 2, 3])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_a_mission_is_read_as_it_was_written(language, num_targets, ordered, plain, phrasing):
    rng = random.Random(f"{language} {num_targets} {ordered}")
    for _ in range(60):
        mission = write_mission(tuple(rng.sample(ANIMALS, num_targets)), ordered, language, rng, plain, phrasing)
        assert read_mission(mission.text) == mission
        assert mission.ordered == (ordered and num_targets > 1)
        assert all(wording in mission.text for wording in mission.wordings)


@pytest.mark.parametrize(
    ("language", "ordered", "text"),
    [
        ("ko", False, "빨간색 호랑이와 파란색 기린을 잡아줘"),
        ("ko", True, "먼저 빨간색 호랑이를 잡고 그다음 파란색 기린을 잡아줘"),
        ("en", False, "Find the red tiger and the blue giraffe."),
        ("en", True, "Find first the red tiger, then the blue giraffe."),
        ("zh", False, "找到红色老虎和蓝色长颈鹿"),
        ("zh", True, "先找到红色老虎，再找到蓝色长颈鹿"),
    ],
)
def test_plain_missions(language, ordered, text):
    targets = (Animal("red", "tiger"), Animal("blue", "giraffe"))
    assert write_mission(targets, ordered, language, random.Random(0), plain=True).text == text


def test_held_out_phrasings_are_in_no_other_set():
    def forms(phrasing, kind):
        tables = PHRASINGS[phrasing][kind]
        by_key = [table[language] for table in tables for language in LANGUAGES]
        groups = [group for table in by_key for group in (table.values() if isinstance(table, dict) else [table])]
        return {form for group in groups for form in group}

    for kind in (0, 1):
        held_out, usual, more = (forms(phrasing, kind) for phrasing in ("held_out", "usual", "more"))
        assert held_out and not held_out & more and usual < more


def test_a_plain_mission_has_plain_words_in_any_sentence():
    rng, target = random.Random(0), (Animal("cyan", "pig"),)
    missions = [write_mission(target, False, "en", rng, plain=True, phrasing="held_out") for _ in range(60)]
    assert {mission.wordings for mission in missions} == {("cyan pig",)}
    assert len({mission.text for mission in missions}) == 4


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_a_mission_with_typos_means_what_it_meant(language, phrasing):
    rng, num_changed, in_targets = random.Random(f"{language} {phrasing}"), 0, 0
    for i in range(120):
        targets = tuple(rng.sample(ANIMALS, 1 + i % 3))
        meant = write_mission(targets, i % 2 == 0, language, rng, phrasing=phrasing)
        mission = with_typos(meant, 0.1, rng)
        assert (mission.targets, mission.ordered) == (meant.targets, meant.ordered)
        assert read_mission(mission.text) == mission
        for target in targets:
            assert mission.target_named(mission.wording(target)) == target
            assert read_mission(f"({mission.wording(target)})").targets == (target,)
        num_changed += mission.text != meant.text
        in_targets += mission.wordings != meant.wordings
    assert num_changed > 50 and in_targets > 20
    assert with_typos(meant, 0.0, rng) == meant


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("Find the rde tigr.", ["red tiger"]),
        ("find teh bllue giraffe and the ornage lino", ["blue giraffe", "orange lion"]),
        ("빨가색 호랑랑이를 찾아줘", ["red tiger"]),
        ("얼말룩 말고 노란 자사", ["yellow lion"]),
        ("找到色红老虎", ["red tiger"]),
        ("Find the rd tiger.", []),  # what is left of a short word is many words
        ("Find the rid tiger.", []),  # another letter is another word
        ("Find the tigr.", []),
    ],
)
def test_one_error_in_a_word_is_read(text, targets):
    assert [animal.name for animal in read_mission(text).targets] == targets


def test_no_error_makes_one_word_of_another():
    """粉红色 without its first character is 红色, another colour: it is read as that, and never written for the other."""
    words = COLOUR_OF.keys() | KIND_OF.keys()
    assert not words & MISSPELT.keys() and "红色" in words
    rng = random.Random(0)
    for _ in range(300):
        mission = with_typos(write_mission((Animal("pink", "pig"),), False, "zh", rng), 0.5, rng)
        assert mission.targets == (Animal("pink", "pig"),)


def test_a_declaration_of_misspelt_words_counts_where_the_mission_has_them():
    assert resolve_target("rde tiger") is None
    assert read_mission("Find the rde tiger.").target_named(" rde  tiger") == Animal("red", "tiger")
    assert read_mission("Find the red tiger.").target_named("rde tiger") is None


def test_the_recorded_missions():
    mission = read_mission("파란색 기린을 잡아줘")
    assert (mission.targets, mission.wordings) == ((Animal("blue", "giraffe"),), ("파란색 기린",))
    mission = read_mission("first the red tiger, then the orange tiger")
    assert mission.targets == (Animal("red", "tiger"), Animal("orange", "tiger")) and mission.ordered


def test_a_target_named_twice_counts_once():
    mission = read_mission("Find the red tiger. Yes, the RED tiger, and no order: the red tiger")
    assert (mission.targets, mission.ordered) == ((Animal("red", "tiger"),), False)
    assert read_mission("Find my keys.").targets == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("red tiger", "red tiger"),
        ("  Red \n TIGER ", "red tiger"),
        ("the red tiger.", "red tiger"),
        ("a Sky  Blue koala bear", "cyan koala"),
        ("tiger on a red background", "red tiger"),
        ("빨간호랑이를", "red tiger"),
        (unicodedata.normalize("NFD", "하늘색 코알라"), "cyan koala"),
        ("红色 老虎", "red tiger"),
        ("粉红色的猪", "pink pig"),
        ("tiger", None),
        ("red", None),
        ("red cow", None),
        ("red tiger and blue lion", None),
        ("there is no red tiger", None),
        ("", None),
    ],
)
def test_what_a_declaration_names(text, name):
    animal = resolve_target(text)
    assert (animal.name if animal else None) == name
