"""How far the reading of a file has come."""

from collections.abc import Callable

Note = Callable[[int], None]
"""Is told now and then how many bytes are read."""


def ignore(num_bytes: int) -> None:
    pass
