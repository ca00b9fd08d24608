"""What losses make of a spectrum: weights and gradients by region, the numbers behind the figures.

All of them take the last epoch of a :class:`SpectrumCounts` and treat its pass as one batch, where training has moving
averages over many. Losses are compared at the same total gradient, that of cross entropy (or authentic smooth L1):
how large a loss is as a whole is its weight's business, and says nothing of how it treats its examples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from ghmdet.functional import smooth_l1_gradient_norm
from ghmdet.functional.density import RegionCounts, region_weights
from ghmdet.spectrum import MU, OBJECTS, REGIONS, Floats, Ints, SpectrumCounts

Form = Literal["published", "guarded"]

CENTRES: Floats = (np.arange(REGIONS) + 0.5) / REGIONS
BOX_REGIONS = 10  # of GHM-R
OHEM_RATIO = 3  # background examples for each object's, as functional.ohem_loss keeps
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


def class_weights(spectrum: SpectrumCounts, form: Form) -> Floats:
    """The weight of an example of each class and region, [K, M]: β of GHM-C, at cross entropy's total gradient.

    "published": one density, normalised by the occupied regions. "guarded": Σ L / max(R(g), P) for each class. 0 in
    regions that are empty.
    """
    examples = spectrum.examples[-1].sum(axis=2)  # [2, K, M]
    table = _region_counts(examples.sum(axis=0), examples[OBJECTS].sum(axis=1))
    if form == "guarded":
        weights = region_weights(table, table.occupied, "none", "positives")
    else:
        joint = RegionCounts(table.table.sum(0, keepdim=True))
        weights = region_weights(joint, joint.occupied, "occupied", 0.0).expand_as(table.regions)
    gradient = spectrum.gradient[-1].sum(axis=(0, 2))  # [K, M]
    return weights.numpy() * _ratio(gradient.sum(), (weights.numpy() * gradient).sum())


def ohem_weights(spectrum: SpectrumCounts) -> Floats:
    """The share of the examples of each kind and region that OHEM keeps, [2, M].

    All of the objects', and of the background's three times as many, those of the largest g (at least three).
    """
    background, objects = spectrum.examples[-1].sum(axis=(1, 2))  # [M] each
    keep = OHEM_RATIO * max(objects.sum(), 1)
    harder = background[::-1].cumsum()[::-1] - background
    kept = np.clip(keep - harder, 0, background) / np.maximum(background, 1)
    return np.stack([kept, np.ones(REGIONS)])


def focal_gradient(g: Floats) -> Floats:
    """|∂L/∂x| of focal loss without its α: g^γ (g − γ (1 − g) log(1 − g)), since the probability of the truth is 1 − g.

    >>> focal_gradient(np.array([0.0, 1.0])).tolist()
    [0.0, 1.0]
    """
    right = 1 - g
    return g**FOCAL_GAMMA * (g - FOCAL_GAMMA * right * np.log(np.maximum(right, np.finfo(float).tiny)))


def class_gradients(spectrum: SpectrumCounts) -> dict[str, Floats]:
    """The reformulated gradient norm at the middle of each region of g, [M] by loss: the mean over its examples.

    The losses have the same total gradient. NaN where a region is empty.
    """
    examples = spectrum.examples[-1].sum(axis=2)  # [2, K, M]
    gradient = spectrum.gradient[-1].sum(axis=2)
    kinds, pulls = examples.sum(axis=1), gradient.sum(axis=1)  # [2, M]
    norm = pulls / np.maximum(kinds, 1)
    alpha = np.array([[1 - FOCAL_ALPHA], [FOCAL_ALPHA]])
    focal_total = (kinds * alpha * focal_gradient(norm)).sum()
    kept = ohem_weights(spectrum)
    found = {
        "cross entropy": CENTRES,
        "focal": _mean_over(kinds, alpha) * focal_gradient(CENTRES) * _ratio(pulls.sum(), focal_total),
        "OHEM": _mean_over(kinds, kept) * CENTRES * _ratio(pulls.sum(), (kept * pulls).sum()),
    }
    for form in _FORMS:
        weights = class_weights(spectrum, form)
        found[NAMES[form]] = _mean_over(examples.sum(axis=0), weights) * CENTRES
    occupied = kinds.sum(axis=0) > 0
    return {name: np.where(occupied, values, np.nan) for name, values in found.items()}


def gradient_shares(spectrum: SpectrumCounts) -> dict[str, Floats]:
    """The share of the whole gradient that each kind and region has, [2, M] by loss; the sum is 1."""
    gradient = spectrum.gradient[-1].sum(axis=2)  # [2, K, M]
    found = {"cross entropy": gradient.sum(axis=1)}
    for form in _FORMS:
        found[NAMES[form]] = (gradient * class_weights(spectrum, form)).sum(axis=1)
    return {name: values * _ratio(1.0, values.sum()) for name, values in found.items()}


def box_weights(spectrum: SpectrumCounts) -> Floats:
    """The weight of a coordinate in each of GHM-R's ten regions of gr, [10], at ASL1's total gradient."""
    boxes = spectrum.boxes[-1].sum(axis=(0, 1)).reshape(BOX_REGIONS, -1).sum(axis=1)
    gradient = spectrum.box_gradient[-1].sum(axis=(0, 1)).reshape(BOX_REGIONS, -1).sum(axis=1)
    table = _region_counts(boxes[None], np.zeros(1, np.int64))
    weights = region_weights(table, table.occupied, "occupied", 0.0)[0].numpy()
    return weights * _ratio(gradient.sum(), (weights * gradient).sum())


def box_gradients(spectrum: SpectrumCounts, difference: Floats) -> dict[str, Floats]:
    """The reformulated gradient norm at each |d| of `difference` [n], by loss; NaN where GHM-R's region is empty.

    Smooth L1 (δ = 1/9) and authentic smooth L1 as they are; GHM-R at the total gradient of the latter.
    """
    d = torch.from_numpy(difference).double()
    smooth = smooth_l1_gradient_norm(d).numpy()
    authentic = difference_norm(difference)
    region = np.minimum((authentic * BOX_REGIONS).astype(np.int64), BOX_REGIONS - 1)
    weights = box_weights(spectrum)
    harmonized = authentic * np.where(weights > 0, weights, np.nan)[region]
    return {"smooth L1": smooth, "authentic smooth L1": authentic, "GHM-R": harmonized}


def difference_norm(difference: Floats) -> Floats:
    """gr = |d| / sqrt(d² + μ²) of box offsets that are off by d."""
    return np.abs(difference) / np.sqrt(difference**2 + MU**2)


_FORMS: tuple[Form, ...] = ("published", "guarded")
NAMES: dict[Form, str] = {"published": "GHM-C, published", "guarded": "GHM-C, guarded"}


def _region_counts(regions: Ints, positives: Ints) -> RegionCounts:
    columns = [regions, regions.sum(axis=1, keepdims=True), positives[:, None]]
    return RegionCounts(torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float64)))


def _mean_over(counts: Ints, values: Floats) -> Floats:
    """The mean of `values` over the examples of each region, [M]; counts [n, M]."""
    mean: Floats = (counts * values).sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
    return mean


def _ratio(wanted: float, present: float) -> float:
    """The factor from `present` to `wanted`, 0 where there is nothing."""
    return float(wanted / present) if present > 0 else 0.0
