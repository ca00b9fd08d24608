"""What training saw, epoch by epoch: which examples pulled, in numbers and in sentences, and the slider's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ghmdet.report.reweighting import GUARDED, PLAIN, PUBLISHED, reweighted
from ghmdet.report.summary import few_with_most, percent
from ghmdet.spectrum import OBJECTS, REGIONS, Floats, SpectrumCounts

MOST_EPOCHS, MOST_CLASSES = 60, 80  # that a page holds
PULLERS = {
    "easy background": "background that it already scores low: each place pulls weakly, but there are very many",
    "hard background": "background that it takes for objects",
    "objects seen": "objects that it already scores above one half",
    "objects not yet seen": "objects that it still scores below one half",
}


class Pull(NamedTuple):
    """The shares of :data:`PULLERS` in the whole gradient, under cross entropy and harmonized."""

    epoch: int
    plain: list[float]
    harmonized: list[float]


def form_of(class_loss: str) -> str:
    """The form of GHM-C to compare a run with: its own, or the guarded form where it trained with another loss."""
    return PUBLISHED if class_loss == "ghm-c-published" else GUARDED


def each_epoch(spectrum: SpectrumCounts) -> dict[int, SpectrumCounts]:
    """Its epochs by number, from 1, without empty ones (there are some if a run resumed without its file)."""
    return {int(i) + 1: spectrum[i : i + 1] for i in np.flatnonzero(spectrum.pictures)}


def pulls(spectrum: SpectrumCounts, form: str) -> list[Pull]:
    """Who pulled in the first epoch and in the last, which may be the same one; epochs without a gradient left out."""
    epochs = each_epoch(spectrum)
    return [
        Pull(number, *(_by_puller(reweighted(epochs[number], loss)) for loss in (PLAIN, form)))
        for number in sorted({min(epochs, default=0), max(epochs, default=0)} - {0})
        if epochs[number].gradient.any()
    ]


def training_words(spectrum: SpectrumCounts, form: str, class_loss: str) -> list[str]:
    """What dominated training, a sentence each, the most telling first."""
    found = pulls(spectrum, form)
    if not found:
        return ["Training saw no examples, so nothing can be said of what dominated it."]
    first, last = found[0], found[-1]
    began, top = (list(PULLERS)[int(np.argmax(one.plain))] for one in (first, last))
    said = [
        f"At the end of training, {top} pulled hardest, with {percent(max(last.plain))} of cross entropy's gradient."
        f" That is {PULLERS[top]}."
    ]
    if began != top:
        said.append(f"In the first epoch it was {began}, with {percent(max(first.plain))}.")
    few = [few_with_most(spectrum[one.epoch - 1 : one.epoch]) for one in (first, last)]
    if few[1] and few[1]["from"]:
        said.append(
            f"{percent(few[1]['gradient'])} of cross entropy's gradient came from {percent(few[1]['examples'])} of the"
            " examples in the last epoch"
            + (
                f" ({percent(few[0]['gradient'])} from {percent(few[0]['examples'])} in the first)."
                if few[0] and len(found) > 1
                else "."
            )
        )
    objects = [sum(shares[2:]) for shares in (last.plain, last.harmonized)]
    if sum(objects):
        does = ("raises", "lowers") if class_loss.startswith("ghm-c") else ("would raise", "would lower")
        with_it = ", which this run was trained with," if class_loss.startswith("ghm-c") else ""
        said.append(
            f"Harmonizing{with_it} {does[objects[1] <= objects[0]]} the objects' share of the gradient from"
            f" {percent(objects[0])} to {percent(objects[1])} ({form})."
        )
    return said


def slider_json(spectrum: SpectrumCounts, form: str) -> str:
    """What the page's slider shows of training, as compact JSON for a <script>.

    `epochs`: their numbers, at most 60 spread evenly, the first and the last among them. `classes`: "all classes", then
    each of them, or of more than 80 the 40 with the most objects and the 40 with the fewest. `counts` [E, 1 + K, 2, M]:
    1000 log10 of the number of examples, -1 where there are none. `before` and `after`, likewise: thousandths of the
    class's own gradient under cross entropy and harmonized. `share` [E, 1 + K, 2]: percent that the class has of the
    whole gradient, before and after.
    """
    epochs = each_epoch(spectrum)
    places = np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_EPOCHS)).round().astype(int)
    shown = [list(epochs)[place] for place in places]
    order = np.argsort(-spectrum.examples[:, OBJECTS].sum(axis=(0, 2, 3)), kind="stable").tolist()
    if len(order) > MOST_CLASSES:
        order = order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
    order.sort()

    def table(of: Callable[[SpectrumCounts], Floats]) -> Floats:
        """[2, K, M] of each epoch as [E, 1 + classes in `order`, 2, M], the sum over all classes first."""
        by_class = np.stack([of(epochs[number]) for number in shown]).swapaxes(1, 2)
        return np.concatenate([by_class.sum(axis=1, keepdims=True), by_class[:, order]], axis=1)

    counts = table(lambda one: one.examples[0].sum(axis=2).astype(float))
    pair = [table(partial(reweighted, loss=loss)) for loss in (PLAIN, form)]
    sums = [each.sum(axis=(2, 3)) for each in pair]  # [E, 1 + K]
    before, after = (
        np.rint(1000 * each / np.where(whole > 0, whole, 1)[..., None, None])
        for each, whole in zip(pair, sums, strict=True)
    )
    share = 100 * np.stack(sums, axis=2) / np.maximum(sums[0][:, :1, None], np.finfo(float).tiny)
    values = {
        "epochs": shown,
        "classes": ["all classes", *(spectrum.classes[k] for k in order)],
        "form": form,
        "counts": np.where(counts > 0, np.rint(1000 * np.log10(np.maximum(counts, 1))), -1)
        .astype(int)
        .tolist(),
        "before": before.astype(int).tolist(),
        "after": after.astype(int).tolist(),
        "share": share.round(4).tolist(),
    }
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _by_puller(gradient: Floats) -> list[float]:
    """The shares of [2, K, M] by kind and half of the regions."""
    parts = gradient.sum(axis=1).reshape(2, 2, REGIONS // 2).sum(axis=2).ravel()
    shares: list[float] = (parts / (parts.sum() or 1.0)).tolist()
    return shares
