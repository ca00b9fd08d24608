"""What annotation files write where a number belongs: read as that number, or None where it is none."""

import math
import reprlib
from numbers import Real

import numpy as np

MAX_SIDE = 1 << 24  # pixels: beyond it float32 no longer tells neighbouring ones apart
FLAGS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def number(value: object) -> float | None:
    """A number, or the one that a text spells, infinite beyond the range of a float; None for anything else.

    >>> number("12.5"), number(10**400), number(True), number("wide"), number("1_0")
    (12.5, inf, None, None, None)
    """
    if type(value) is float:  # as nearly always: the test below is slow
        return value
    if isinstance(value, bool) or not isinstance(value, (Real, str)) or _is_python(value):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def _is_python(value: object) -> bool:
    """Whether a text spells its number as only Python does: 1_000."""
    return isinstance(value, str) and "_" in value


def numbers(values: object) -> list[float] | None:
    """Each of a list's numbers; None where one is none, or where it is no list."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        return None
    read = [found for value in values if (found := number(value)) is not None]
    return read if len(read) == len(values) else None


def whole(value: object) -> int | None:
    """A whole number that 64 bits hold, also one written as 3.0 or as text; None for anything else.

    >>> whole(2**60 + 1), whole("7"), whole(3.0), whole(2.5), whole(2**63), whole(None)
    (1152921504606846977, 7, 3, None, None, None)
    """
    if type(value) is int:  # as nearly all are
        return value if -(2**63) <= value < 2**63 else None
    try:
        plain = not isinstance(value, bool) and not _is_python(value)
        exact = int(value) if plain and isinstance(value, (int, str)) else None
    except ValueError:
        exact = None
    if exact is None:
        rounded = number(value)
        exact = int(rounded) if rounded is not None and rounded.is_integer() else None
    return exact if exact is not None and -(2**63) <= exact < 2**63 else None


def side(value: object) -> int | None:
    """A side of a picture, a whole number of pixels from 1 to MAX_SIDE; None for anything else."""
    pixels = whole(value)
    return pixels if pixels is not None and 0 < pixels <= MAX_SIDE else None


def flag(value: object) -> bool | None:
    """Yes or no, written as 0 or 1, as a truth value or as text; nothing at all is no. None for anything else.

    >>> [flag(value) for value in (0, "0", "1", True, "false", None, "", 2, "crowd")]
    [False, False, True, True, False, False, False, None, None]
    """
    return FLAGS.get("" if value is None else str(value)[:9].strip().lower())


_REPR = reprlib.Repr()
_REPR.maxlevel = 3  # lists in one another may stand for millions of values


def _short(value: object) -> str:
    return _REPR.repr(value) if isinstance(value, (list, tuple, dict)) else str(value)


def shown(value: object) -> str:
    """A value as errors show it, cut to 60 characters; a list's numbers as a person writes them.

    >>> shown([10.0, "2.5", float("nan")]), shown("a b"), shown(10**400)[-9:]
    ('[10, 2.5, nan]', "'a b'", '000000...')
    """
    if isinstance(value, (list, tuple)):
        text = "[" + ", ".join(f"{v:g}" if isinstance(v, float) else _short(v) for v in value[:30]) + "]"
    else:
        text = repr(value[:100]) if isinstance(value, str) else _short(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
