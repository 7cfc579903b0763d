"""Keys by the names that the tool uses, and by those that people and browsers use."""

NAMED_KEYS = {
    "ctrl": "Control",
    "shift": "Shift",
    "alt": "Alt",
    "meta": "Meta",
    "enter": "Enter",
    "tab": "Tab",
    "space": "Space",
    "esc": "Escape",
    "backspace": "Backspace",
    "delete": "Delete",
    "insert": "Insert",
    "home": "Home",
    "end": "End",
    "pageup": "PageUp",
    "pagedown": "PageDown",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "capslock": "CapsLock",
    **{f"f{i}": f"F{i}" for i in range(1, 13)},
}
"""The tool's name of a key -> a browser's (`KeyboardEvent.key`, which is what Playwright takes). Characters name
themselves."""

ALIASES = {
    **{browser.lower(): name for name, browser in NAMED_KEYS.items()},
    **dict.fromkeys(
        ("control", "ctrlleft", "ctrlright", "controlleft", "controlright", "lcontrol", "rcontrol"), "ctrl"
    ),
    **dict.fromkeys(("shiftleft", "shiftright", "lshift", "rshift"), "shift"),
    **dict.fromkeys(("altleft", "altright", "option", "lmenu", "rmenu"), "alt"),
    **dict.fromkeys(("win", "winleft", "winright", "super", "cmd", "command", "windows"), "meta"),
    **dict.fromkeys(("return", "kpenter", "\n"), "enter"),
    "\t": "tab",
    **dict.fromkeys((" ", "spacebar"), "space"),
    "del": "delete",
    "ins": "insert",
    **dict.fromkeys(("pgup", "prior"), "pageup"),
    **dict.fromkeys(("pgdn", "pgdown", "next"), "pagedown"),
}

CHARACTERS = {
    **{
        "plus": "+",
        "minus": "-",
        "equal": "=",
        "equals": "=",
        "underscore": "_",
        "comma": ",",
        "period": ".",
        "dot": ".",
    },
    **{"slash": "/", "backslash": "\\", "semicolon": ";", "colon": ":", "apostrophe": "'", "grave": "`"},
    **{"bracketleft": "[", "bracketright": "]", "asterisk": "*", "question": "?", "exclam": "!", "at": "@"},
}
"""Names of characters, as X11 has them."""


def key_name(text: str) -> str:
    """The tool's name of a key; "" if there is no such key. A printable character names itself, letters in lower case."""
    if len(text) == 1 and text.isprintable() and text != " ":
        return text.lower() if text.isascii() else text
    plain = text if len(text) == 1 else text.strip().lower().replace("_", "").replace("-", "")
    return plain if plain in NAMED_KEYS else ALIASES.get(plain) or CHARACTERS.get(plain, "")


def browser_key(name: str) -> str:
    """What a browser calls a key that `key_name` gave."""
    return NAMED_KEYS.get(name, name)
