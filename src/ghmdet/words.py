"""Counts as sentences say them."""


def many(count: int, what: str) -> str:
    """A count and the noun that goes with it; a noun is given in the singular, others in its plural too: box/boxes.

    >>> many(1, "picture"), many(1203, "picture"), many(0, "box/boxes"), many(1, "box/boxes")
    ('1 picture', '1203 pictures', '0 boxes', '1 box')
    """
    one, _, more = what.partition("/")
    return f"{count} {one if count == 1 else more or one + 's'}"
