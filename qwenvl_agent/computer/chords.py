"""Keys as people write them -> chords: what is pressed together, one after another."""

import re

from qwenvl_agent.computer.actions import ActionError
from qwenvl_agent.computer.keys import key_name
from qwenvl_agent.computer.tool import MAX_KEYS

MODIFIERS = ("ctrl", "shift", "alt", "meta")
MAX_CHARS = 200
PLUS = re.compile(r"(?<=[^+])\+")
Chord = tuple[str, ...]


def chords_of(keys: object, name: str) -> list[Chord]:
    """ "ctrl+a", "ctrl a", ["ctrl", "a"] -> [("ctrl", "a")]; "Down Down" -> [("Down",), ("Down",)].

    `name` is the action's, plain: a hotkey is one chord, a list of press (pyautogui) is pressed one after another.
    ActionError for keys that can be meant either way, and for what is none.
    """
    if isinstance(keys, str):
        keys = [keys]
    if not isinstance(keys, list | tuple) or not keys or not all(isinstance(key, str) for key in keys):
        raise ActionError("bad_argument", f"keys is {str(keys)[:60]!r}: give a list of names")
    if len(keys) == 1:
        return _checked(_of_text(keys[0], name))
    if all(key_name(key) for key in keys):
        return _checked(_of_keys(tuple(keys), is_one=name != "press"))
    return _checked([chord for key in keys for chord in _of_text(key, "")])


def _of_text(text: str, name: str) -> list[Chord]:
    if key_name(text):
        return [(text,)]
    words = _words(text)
    singles = tuple(chord[0] for chord in words if len(chord) == 1)
    if len(words) == 1:
        return words
    if len(singles) < len(words):
        if name == "hotkey" or any(key_name(key) in MODIFIERS for key in singles):
            raise _unclear(text)
        return words
    is_held = all(key_name(key) in MODIFIERS for key in singles[:-1])
    if name == "hotkey" and not is_held:
        raise _unclear(text)
    return _of_keys(singles, is_one=is_held)


def _of_keys(keys: Chord, is_one: bool) -> list[Chord]:
    """One chord, or one key after another, of which none may be there to be held."""
    if is_one:
        return [keys]
    if any(key_name(key) in MODIFIERS for key in keys):
        raise _unclear(" ".join(keys))
    return [(key,) for key in keys]


def _words(text: str) -> list[Chord]:
    """The chords between spaces; spaces around a plus join."""
    if len(text) > MAX_CHARS:
        raise ActionError("bad_argument", f"keys of {len(text)} characters: give at most {MAX_CHARS}")
    chords: list[list[str]] = []
    is_open = False
    for word in text.split():
        if word == "+" and chords and not is_open:
            is_open = True
            continue
        parts = PLUS.split(word)
        opens = len(parts) > 1 and not parts[-1]
        parts = parts[:-1] if opens else parts
        if is_open:
            chords[-1] += parts
        else:
            chords.append(parts)
        is_open = opens
    if not chords or is_open:
        raise ActionError("unknown_key", f"key {text[:60]!r} does not exist: give keys as 'enter'")
    return [tuple(chord) for chord in chords]


def _checked(chords: list[Chord]) -> list[Chord]:
    longest = max(chords, key=len)
    if len(longest) > MAX_KEYS:
        raise ActionError("bad_argument", f"{len(longest)} keys at once: give at most {MAX_KEYS}")
    return chords


def _unclear(text: str) -> ActionError:
    return ActionError(
        "bad_argument",
        f"keys {text[:60]!r}: together or one after another is not said; write 'ctrl+a', or one action for each",
    )
