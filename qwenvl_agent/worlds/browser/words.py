"""The words of the generated pages and of the instructions about them, in three languages (`words.json`)."""

import json
import random
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh", "ko")
WORDS_PATH = Path(__file__).with_name("words.json")


@cache
def words() -> dict:
    """The whole table. Every list of words has one entry a language, in the order of LANGUAGES."""
    return json.loads(WORDS_PATH.read_text(encoding="utf-8"))


def variants(entry: list[str], language: str) -> list[str]:
    """The ways to say an entry in one language: `Save|Save changes` are two."""
    return entry[LANGUAGES.index(language)].split("|")


def pick(entry: list[str], language: str, rng: random.Random) -> str:
    return rng.choice(variants(entry, language))


def picture_word(key: str, language: str) -> str:
    """What a picture shows, in a word."""
    return words()["pictures"][key][1 + LANGUAGES.index(language)]
