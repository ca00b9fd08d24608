"""Errors that a user can mend; the command line prints them as one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GhmdetError(ValueError):
    """A mistake in what was given: the text names the file, the record, the value and the mend."""


class DataError(GhmdetError):
    """A data set that cannot be read as it is."""


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
