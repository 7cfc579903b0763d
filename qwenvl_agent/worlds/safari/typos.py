"""Typing errors: letters (of Korean and Chinese: syllables and characters) that are swapped, dropped or doubled.

`misspellings` lists what one error makes of a word, so that readers know them; `misspell` makes one in a text.
"""

from collections.abc import Callable, Iterator, Mapping

HANGUL, HANGUL_END, NUM_FINALS = ord("가"), ord("힣"), 28
"""Syllables stand in one block, those that differ only in their final consonant side by side, 28 each."""
MIN_DROPPED = {"latin": 4, "hangul": 3, "han": 3}
"""Letters of a word from which one may be dropped: what is left of a shorter one is many words."""


def script(letter: str) -> str:
    """latin, hangul or han; "" for what is no letter of these."""
    if not letter.isalpha():
        return ""
    if HANGUL <= ord(letter) <= HANGUL_END:
        return "hangul"
    return "han" if "\u4e00" <= letter <= "\u9fff" else "latin"


def swapped(text: str, place: int) -> str:
    """With the letter at `place` and the next changed about; unchanged if there is no next one."""
    pair = text[place : place + 2]
    if len(pair) < 2 or script(pair[0]) != script(pair[1]):
        return text
    return text[:place] + pair[::-1] + text[place + 2 :]


def dropped(text: str, place: int) -> str:
    return text[:place] + text[place + 1 :]


def doubled(text: str, place: int) -> str:
    return text[:place] + text[place] + text[place:]


def opened(text: str, place: int) -> str:
    """A Korean syllable without its final consonant; unchanged if it has none."""
    if script(text[place]) != "hangul":
        return text
    return text[:place] + chr(ord(text[place]) - (ord(text[place]) - HANGUL) % NUM_FINALS) + text[place + 1 :]


ERRORS: Mapping[str, Callable[[str, int], str]] = {
    "swapped": swapped,
    "dropped": dropped,
    "doubled": doubled,
    "opened": opened,
}


def misspellings(word: str) -> Iterator[str]:
    """Each other spelling that one error makes of a word and that is still told from it. A word's first letter stays."""
    num_letters = sum(bool(script(letter)) for letter in word)
    for place, letter in enumerate(word):
        if not script(letter):
            continue
        for name, make in ERRORS.items():
            if name == "dropped" and (place == 0 or num_letters < MIN_DROPPED[script(letter)]):
                continue
            other = make(word, place)
            if other != word:
                yield other
