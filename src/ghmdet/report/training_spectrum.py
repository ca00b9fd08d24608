"""What a run's training saw, epoch by epoch: who pulled, in numbers and words, and the counts that a page can show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ghmdet.report.curves import NAMES, Form, class_weights
from ghmdet.report.summary import percent, summarize
from ghmdet.spectrum import BACKGROUND, OBJECTS, REGIONS, Floats, SpectrumCounts

MOST_EPOCHS, MOST_CLASSES = 60, 80  # that a page holds
HALF = REGIONS // 2
PULLERS = ("easy background", "hard background", "objects seen", "objects not yet seen")
_MEANING = {
    "easy background": "background that it already scores low: each place pulls weakly, but they are very many",
    "hard background": "background that it takes for objects",
    "objects seen": "objects that it already scores above one half",
    "objects not yet seen": "objects that it still scores below one half",
}


class Pull(NamedTuple):
    """Shares of the whole gradient by :data:`PULLERS`, in cross entropy and harmonized."""

    epoch: int
    plain: list[float]
    harmonized: list[float]


def form_of(class_loss: str) -> Form:
    """The form of GHM-C that a run is compared with: its own, or the guarded one where it trained with another loss."""
    return "published" if class_loss == "ghm-c-published" else "guarded"


def seen_epochs(spectrum: SpectrumCounts) -> list[int]:
    """Its epochs, counted from 0, that are not empty: a run that was resumed without its file has such."""
    return np.flatnonzero(spectrum.pictures).tolist()


def pulls(spectrum: SpectrumCounts, form: Form) -> list[Pull]:
    """Who pulled in the first epoch and in the last, which may be the same; none where there was no gradient."""
    found = []
    for epoch in _first_and_last(spectrum):
        before, after = _gradients(spectrum[epoch : epoch + 1], form)  # [2, K, M]
        if before.sum():
            found.append(Pull(epoch + 1, _by_puller(before), _by_puller(after)))
    return found


def training_words(spectrum: SpectrumCounts, form: Form, class_loss: str) -> list[str]:
    """What dominated training, a sentence each, the most telling first."""
    found = pulls(spectrum, form)
    if not found:
        return ["Training saw no examples, so nothing can be said of what dominated it."]
    first, last = found[0], found[-1]
    top = PULLERS[int(np.argmax(last.plain))]
    said = [
        f"At the end of training, {top} pulled hardest: {percent(max(last.plain))} of cross entropy's gradient."
        f" That is {_MEANING[top]}."
    ]
    began = PULLERS[int(np.argmax(first.plain))]
    if began != top:
        said.append(f"In the first epoch it was {began}, with {percent(max(first.plain))}.")
    few = [
        summarize(spectrum[epoch : epoch + 1]).figures["few_with_most"] for epoch in _first_and_last(spectrum)
    ]
    if few[-1] and few[-1]["from"]:
        said.append(
            f"{percent(few[-1]['gradient'])} of cross entropy's gradient came from"
            f" {percent(few[-1]['examples'])} of the examples in the last epoch"
            + (
                f" ({percent(few[0]['gradient'])} from {percent(few[0]['examples'])} in the first)."
                if len(few) > 1
                else "."
            )
        )
    objects = [sum(shares[2:]) for shares in (last.plain, last.harmonized)]
    if sum(objects):
        does = (
            "Harmonizing, which this run trained with,"
            if class_loss.startswith("ghm-c")
            else "Harmonizing would change that: it"
        )
        moves = "raises" if objects[1] > objects[0] else "lowers"
        said.append(
            f"{does} {moves} the objects' share of the gradient from {percent(objects[0])} to {percent(objects[1])}"
            f" ({NAMES[form]})."
        )
    return said


def spectrum_json(spectrum: SpectrumCounts, form: Form) -> str:
    """The counts and shares that the page's slider shows, as compact JSON for a <script>.

    Keys: `epochs` (their numbers, at most 60 spread evenly, first and last among them), `classes` ("all classes" first,
    then all of them, or of more than 80 the 40 with the most objects and the 40 with the least), `counts` [E, 1 + K, 2,
    M] to three figures, `before` and `after` [E, 1 + K, 2, M] in thousandths of that class's own gradient, `share`
    [E, 1 + K, 2]: the class's share of the whole gradient before and after, in percent.
    """
    seen = seen_epochs(spectrum)
    places = np.linspace(0, len(seen) - 1, min(len(seen), MOST_EPOCHS)).round().astype(int)
    epochs = [seen[place] for place in places]
    objects = spectrum.examples[:, OBJECTS].sum(axis=(0, 2, 3))
    order = np.argsort(-objects, kind="stable").tolist()
    if len(order) > MOST_CLASSES:
        order = order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
    order.sort()
    counts, before, after, share = [], [], [], []
    for epoch in epochs:
        one = spectrum[epoch : epoch + 1]
        counts.append(_with_all(one.examples[0].sum(axis=2).astype(float), order))
        pair = [_with_all(each, order) for each in _gradients(one, form)]
        sums = [each.sum(axis=(1, 2)) for each in pair]
        parts = [
            np.rint(1000 * each / np.where(whole > 0, whole, 1)[:, None, None])
            for each, whole in zip(pair, sums, strict=True)
        ]
        before.append(parts[0])
        after.append(parts[1])
        share.append(np.stack([100 * whole / max(whole[0], np.finfo(float).tiny) for whole in sums], axis=1))
    names = {
        "epochs": [epoch + 1 for epoch in epochs],
        "classes": ["all classes", *(spectrum.classes[k] for k in order)],
        "after_name": NAMES[form],
    }
    numbers = {"counts": counts, "before": before, "after": after, "share": share}
    parts_of = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in names.items()]
    parts_of += [f"{json.dumps(name)}:{_nested(value)}" for name, value in numbers.items()]
    return ("{" + ",".join(parts_of) + "}").replace("<", "\\u003c")


def _first_and_last(spectrum: SpectrumCounts) -> list[int]:
    seen = seen_epochs(spectrum)
    return sorted({seen[0], seen[-1]}) if seen else []


def _gradients(one: SpectrumCounts, form: Form) -> tuple[Floats, Floats]:
    """The gradient of one epoch in cross entropy and harmonized, [2, K, M] each, the same in total."""
    before = one.gradient[-1].sum(axis=2)
    return before, before * class_weights(one, form)


def _by_puller(gradient: Floats) -> list[float]:
    parts = [
        gradient[BACKGROUND, :, :HALF],
        gradient[BACKGROUND, :, HALF:],
        gradient[OBJECTS, :, :HALF],
        gradient[OBJECTS, :, HALF:],
    ]
    total = gradient.sum() or 1.0
    return [float(part.sum() / total) for part in parts]


def _with_all(by_class: Floats, order: list[int]) -> Floats:
    """[2, K, M] as [1 + classes in `order`, 2, M], the sum over all classes first."""
    return np.concatenate([by_class.sum(axis=1)[None], by_class.transpose(1, 0, 2)[order]])


def _nested(values: Any) -> str:
    if isinstance(values, Iterable):
        return "[" + ",".join(_nested(each) for each in values) + "]"
    return _short(float(values))


def _short(value: float) -> str:
    """A number to three figures, in as few characters as JSON allows.

    >>> [_short(x) for x in (0.0, 7.0, 1234.0, 2_140_400_000.0, 0.01234, 12.5)]
    ['0', '7', '1230', '214e7', '0.0123', '12.5']
    """
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value))) - 2
    digits = round(value / 10.0**exponent)
    while digits % 10 == 0:
        digits, exponent = digits // 10, exponent + 1
    plain = f"{digits * 10**exponent}" if exponent >= 0 else f"{value:.{-exponent}f}"
    return min(plain, f"{digits}e{exponent}", key=len)
