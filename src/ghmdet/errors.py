"""Errors that a user can mend; the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple, get_type_hints


class GhmdetError(ValueError):
    """A mistake in what was given: the text names the file, the record, the value and the mend."""


class DataError(GhmdetError):
    """A data set that cannot be read as it is."""


class Busy(GhmdetError):
    """Another process writes into a folder; the message names it."""


class PartlyDone(DataError):
    """Work that is done but for what could not be read or learnt, which was named; the exit status is 1, not 2."""


class CheckpointError(GhmdetError):
    """A checkpoint that cannot be loaded as it is."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> GhmdetError:
    """The error for a misspelt name, with the nearest known one as a suggestion.

    >>> print(unknown_name("class loss", "gmh-c", ["ce", "focal", "ghm-c"]))
    unknown class loss 'gmh-c': did you mean 'ghm-c'? known: ce, focal, ghm-c
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return GhmdetError(f"unknown {kind} '{name}': {hint}known: {', '.join(known)}")


class Range(NamedTuple):
    """The least and the greatest value of a numeric option: whole numbers where it takes only those."""

    low: float
    high: float

    def check(self, name: str, given: float | tuple[float, ...] | None) -> None:
        """Raise GhmdetError, with the mend, where the value of the option `name`, or one of several, is outside."""
        whole = isinstance(self.low, int)
        for value in given if isinstance(given, tuple) else () if given is None else (given,):
            if not (isinstance(value, int if whole else (int, float)) and self.low <= value <= self.high):
                kind = "a whole number" if whole else "a number"
                raise GhmdetError(
                    f"--{name.replace('_', '-')} {value}: give {kind} from {self.low:.10g} to {self.high:.10g}"
                )


def check_ranges(options: Any) -> None:
    """Check each field of a dataclass whose type is `Annotated` with its Range; raises as `Range.check`."""
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Range):
                value, several = getattr(options, name), "tuple" in str(hint.__origin__)
                if value is not None and isinstance(value, tuple) != several:
                    raise GhmdetError(
                        f"{name} {value!r}: give {'a tuple of numbers' if several else 'one number'}"
                    )
                extra.check(name, value)
