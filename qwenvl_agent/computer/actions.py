"""One action at the mouse or the keyboard, in pixels of the screenshot; from and to the model's calls.

    screen = Screen.of(picture)                            # coordinates.py
    turn = to_turn([Action.click(300, 80)], screen, "I click the search box.")
    turn.tool_calls[0].arguments                           # {"action": "left_click", "coordinate": [156, 74]}
    read_call(turn.tool_calls[0], screen)                  # Action("left_click", x_px=299.52, y_px=79.92)

What is read here is strictly the tool's; what people and other models write instead is read by `dialects`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qwenvl_agent.computer.keys import key_name
from qwenvl_agent.computer.tool import (
    CLICKS,
    KINDS,
    MAX_TEXT_CHARS,
    MAX_WAIT_SECONDS,
    NAME,
    STATUSES,
    argument_error,
)
from qwenvl_agent.coordinates import GRID, Screen, is_finite
from qwenvl_agent.schema import ToolCall, Turn

FIELDS = {
    "coordinate": ("x_px", "y_px"),
    "text": ("text",),
    "keys": ("keys",),
    "pixels": ("scroll_px",),
    "time": ("seconds",),
    "status": ("status",),
}
"""The fields of an `Action` that each argument of the tool becomes."""


class ActionError(ValueError):
    """Why no action can be read; `name` is short and stable, for counting."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Action:
    """`kind` is one of `tool.KINDS`; of the other fields it has those that its kind takes, the rest are None.

    x_px, y_px may be NaN-free floats anywhere: whether they are on a screen is that screen's to say. `scroll_px` is a
    length in pixels of the picture: above 0 up (scroll) or right (hscroll), as Qwen's tool has it; `wheel_px` has the
    browser's signs. A left_click_drag starts where the pointer is: put a mouse_move before it.
    """

    kind: str
    x_px: float | None = None
    y_px: float | None = None
    text: str | None = None
    keys: tuple[str, ...] | None = None
    scroll_px: float | None = None
    seconds: float | None = None
    status: str | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ActionError("unknown_action", f"action {self.kind!r} does not exist: use one of {', '.join(KINDS)}")
        object.__setattr__(self, "keys", self.keys if self.keys is None else tuple(self.keys))
        self._check_fields()
        self._check_values()

    def _check_fields(self) -> None:
        kind = KINDS[self.kind]
        needed = [field for name in kind.needs for field in FIELDS[name]]
        allowed = needed + [field for name in kind.may_have for field in FIELDS[name]]
        given = [name for names in FIELDS.values() for name in names if getattr(self, name) is not None]
        for name in needed:
            if name not in given:
                raise ActionError("missing_argument", f"{self.kind} has no {name}: nothing can be done; give it")
        for name in given:
            if name not in allowed:
                raise ActionError("extra_argument", f"{self.kind} takes no {name}: it would be lost; leave it out")
        if (self.x_px is None) != (self.y_px is None):
            raise ActionError("missing_argument", f"{self.kind} has only one of x_px and y_px: give both or none")

    def _check_values(self) -> None:
        for name in ("x_px", "y_px", "scroll_px", "seconds"):
            value = getattr(self, name)
            if value is not None and not is_finite(value):
                raise ActionError("bad_argument", f"{name} is {value}: nothing can be done there; give a finite number")
        if self.seconds is not None and not 0 <= self.seconds <= MAX_WAIT_SECONDS:
            raise ActionError("bad_argument", f"wait of {self.seconds} s: give 0 to {MAX_WAIT_SECONDS} seconds")
        if self.status is not None and self.status not in STATUSES:
            raise ActionError("bad_argument", f"status is {self.status[:60]!r}: use one of {', '.join(STATUSES)}")
        if self.text is not None and len(self.text) > MAX_TEXT_CHARS:
            raise ActionError("bad_argument", f"text of {len(self.text)} characters: give at most {MAX_TEXT_CHARS}")
        unknown = [key for key in self.keys or () if not key_name(key)]
        if unknown or self.keys == ():
            raise ActionError("unknown_key", f"key {(unknown or [''])[0][:60]!r} does not exist: give keys as 'enter'")
        object.__setattr__(self, "keys", self.keys and tuple(key_name(key) for key in self.keys))

    @classmethod
    def click(cls, x_px: float, y_px: float, kind: str = "left_click") -> "Action":
        return cls(kind, x_px=x_px, y_px=y_px)

    @property
    def is_click(self) -> bool:
        return self.kind in CLICKS

    @property
    def point_px(self) -> tuple[float, float] | None:
        """Where it happens, if it has a place."""
        return None if self.x_px is None or self.y_px is None else (self.x_px, self.y_px)

    @property
    def wheel_px(self) -> tuple[float, float]:
        """(right, down) of a scroll, the signs of a browser's wheel event."""
        assert self.scroll_px is not None, self
        return (self.scroll_px, 0.0) if self.kind == "hscroll" else (0.0, -self.scroll_px)


def to_arguments(action: Action, screen: Screen) -> dict:
    """The arguments of the call, in the order in which the tool's schema lists them."""
    arguments: dict = {"action": action.kind}
    if action.keys is not None:
        arguments["keys"] = list(action.keys)
    if action.text is not None:
        arguments["text"] = action.text
    if action.point_px is not None:
        arguments["coordinate"] = list(screen.to_norm(*action.point_px))
    if action.scroll_px is not None:
        arguments["pixels"] = GRID.encode_length(action.scroll_px, _scrolled_side(action.kind, screen))
    if action.seconds is not None:
        arguments["time"] = action.seconds
    if action.status is not None:
        arguments["status"] = action.status
    return arguments


def from_arguments(arguments: dict, screen: Screen) -> Action:
    """The action in pixels; ActionError if the arguments are not strictly the tool's."""
    name, message = argument_error(arguments)
    if name:
        raise ActionError(name, message)
    fields = {FIELDS[key][0]: arguments[key] for key in ("text", "keys", "time", "status") if key in arguments}
    if "coordinate" in arguments:
        fields["x_px"], fields["y_px"] = screen.to_px(*GRID.parse([int(v) for v in arguments["coordinate"]]))
    if "pixels" in arguments:
        fields["scroll_px"] = GRID.decode_length(arguments["pixels"], _scrolled_side(arguments["action"], screen))
    return Action(arguments["action"], **fields)


def _scrolled_side(kind: str, screen: Screen) -> int:
    return screen.width_px if kind == "hscroll" else screen.height_px


def to_call(action: Action, screen: Screen) -> ToolCall:
    return ToolCall(NAME, to_arguments(action, screen))


def read_call(call: ToolCall, screen: Screen) -> Action:
    """The action in pixels; ActionError if the call is not strictly one of computer_use."""
    if call.name != NAME:
        raise ActionError("unknown_tool", f"tool {call.name[:60]!r} does not exist here: call {NAME}")
    return from_arguments(call.arguments, screen)


def to_turn(actions: Iterable[Action], screen: Screen, thought: str = "") -> Turn:
    """One call an action; ValueError if the thought or a text cannot be taught (`schema.Turn`)."""
    return Turn(thought, tuple(to_call(action, screen) for action in actions))


def read_turn(turn: Turn, screen: Screen) -> tuple[Action, ...]:
    """All actions of a turn; ActionError names the first call that is none. No calls: no actions."""
    return tuple(read_call(call, screen) for call in turn.tool_calls)
