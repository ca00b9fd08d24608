"""What training saw, epoch by epoch: which examples pulled, in numbers and in sentences, and the slider's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np

from ghmdet.report.reweighting import PLAIN, reweighted
from ghmdet.report.summary import few_with_most, words
from ghmdet.spectrum import OBJECTS, REGIONS, Floats, SpectrumCounts

MOST_EPOCHS, MOST_CLASSES = 60, 80  # that a page holds
PULLERS = ("easy background", "hard background", "objects seen", "objects not yet seen")


def each_epoch(spectrum: SpectrumCounts) -> dict[int, SpectrumCounts]:
    """Its epochs by number, from 1, without empty ones (there are some if a run resumed without its file)."""
    return {int(i) + 1: spectrum[i : i + 1] for i in np.flatnonzero(spectrum.pictures)}


def pulls(spectrum: SpectrumCounts, form: str) -> dict[int, dict[str, list[float]]]:
    """The shares of :data:`PULLERS` in the gradient of the first epoch and of the last, by loss: PLAIN and `form`.

    Without epochs that have no gradient.
    """
    epochs = each_epoch(spectrum)
    return {
        number: {loss: _by_puller(reweighted(epochs[number], loss)) for loss in (PLAIN, form)}
        for number in sorted({*list(epochs)[:1], *list(epochs)[-1:]})
        if epochs[number].gradient.any()
    }


def training_words(spectrum: SpectrumCounts, form: str, class_loss: str) -> list[str]:
    """What dominated training, a sentence each, the most telling first."""
    found = pulls(spectrum, form)
    if not found:
        return ["Training saw no examples, so nothing can be said of what dominated it."]
    first, last = found[min(found)], found[max(found)]
    began, top = (PULLERS[int(np.argmax(one[PLAIN]))] for one in (first, last))
    return words(
        "training",
        began=began,
        top=top,
        first=max(first[PLAIN]),
        last=max(last[PLAIN]),
        before=few_with_most(spectrum[min(found) - 1 : min(found)]) if len(found) > 1 else None,
        few=few_with_most(spectrum[max(found) - 1 : max(found)]),
        trained=class_loss.startswith("ghm-c"),
        form=form,
        plain=sum(last[PLAIN][2:]),
        harmonized=sum(last[form][2:]),
    )


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
