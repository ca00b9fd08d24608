"""What each loss makes of a spectrum: weights and gradients by region, the numbers behind the figures.

Each function takes the last epoch of a `SpectrumCounts` and treats its pictures as one batch, where training
averages over many batches. All class losses are scaled to the total gradient of cross entropy, and GHM-R to that of
authentic smooth L1: how large a loss is as a whole is set by its weight and says nothing of how it treats examples.
"""

import numpy as np
import torch

from ghmdet.functional import smooth_l1_gradient_norm
from ghmdet.functional.density import RegionCounts, Weighting, unit_region
from ghmdet.functional.gradient_norm import asl1_gradient_norm
from ghmdet.spectrum import MU, OBJECTS, REGIONS, Floats, Ints, SpectrumCounts

PLAIN, PUBLISHED, GUARDED = "cross entropy", "GHM-C, published", "GHM-C, guarded"
CENTRES: Floats = (np.arange(REGIONS) + 0.5) / REGIONS
BOX_REGIONS = 10  # of GHM-R
OHEM_RATIO = 3  # background examples for each object's, as functional.ohem_loss keeps
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


def class_weights(spectrum: SpectrumCounts, form: str) -> Floats:
    """The weight β that GHM-C gives an example of each class and region, [K, M]; 0 in an empty region.

    :data:`PUBLISHED` has one density for all classes, normalised by the occupied regions. :data:`GUARDED` is
    Σ L / max(R(g), P) with the density R and the number of objects' examples P of each class.
    """
    examples = spectrum.examples[-1].sum(axis=2)  # [2, K, M]
    counts = _region_counts(examples.sum(axis=0), examples[OBJECTS].sum(axis=1))
    if form == GUARDED:
        weights = Weighting(normalize="none", min_count="positives").table(counts)
    else:
        joint = RegionCounts(counts.table.sum(0, keepdim=True))
        weights = Weighting().table(joint).expand_as(counts.regions)
    gradient = spectrum.gradient[-1].sum(axis=(0, 2))  # [K, M]
    return weights.numpy() * _ratio(gradient.sum(), (weights.numpy() * gradient).sum())


def reweighted(spectrum: SpectrumCounts, loss: str) -> Floats:
    """The gradient of each kind, class and region, [2, K, M], under PLAIN, PUBLISHED or GUARDED."""
    gradient = spectrum.gradient[-1].sum(axis=2)
    weights = 1.0 if loss == PLAIN else class_weights(spectrum, loss)
    reweighted: Floats = gradient * weights
    return reweighted


def gradient_shares(spectrum: SpectrumCounts) -> dict[str, Floats]:
    """The share of the whole gradient that each kind and region has, [2, M] by loss; the shares add up to 1."""
    found = {loss: reweighted(spectrum, loss).sum(axis=1) for loss in (PLAIN, PUBLISHED, GUARDED)}
    return {loss: values * _ratio(1.0, values.sum()) for loss, values in found.items()}


def class_gradients(spectrum: SpectrumCounts) -> dict[str, Floats]:
    """The reformulated gradient norm in the middle of each region of g, [M] by loss: the mean over its examples.

    NaN where a region is empty. OHEM keeps all examples of objects and three times as many of background (at least
    three), those of the largest g.
    """
    # [2, M] each.
    counts, gradient = (each[-1].sum(axis=(1, 2)) for each in (spectrum.examples, spectrum.gradient))
    norm = gradient / np.maximum(counts, 1)
    alpha = np.array([[1 - FOCAL_ALPHA], [FOCAL_ALPHA]])
    focal = (counts * alpha * focal_gradient(norm)).sum()
    background, objects = counts
    harder = background[::-1].cumsum()[::-1] - background
    kept = np.clip(OHEM_RATIO * max(objects.sum(), 1) - harder, 0, background) / np.maximum(background, 1)
    ohem = np.stack([kept, np.ones(REGIONS)])
    found = {
        PLAIN: CENTRES,
        "focal": _mean_over(counts, alpha) * focal_gradient(CENTRES) * _ratio(gradient.sum(), focal),
        "OHEM": _mean_over(counts, ohem) * CENTRES * _ratio(gradient.sum(), (ohem * gradient).sum()),
    }
    for form in (PUBLISHED, GUARDED):
        of_class = spectrum.examples[-1].sum(axis=(0, 2))  # [K, M]
        found[form] = _mean_over(of_class, class_weights(spectrum, form)) * CENTRES
    return {loss: np.where(counts.sum(axis=0) > 0, values, np.nan) for loss, values in found.items()}


def focal_gradient(g: Floats) -> Floats:
    """|∂L/∂x| of focal loss without its α: g^γ (g − γ (1 − g) log(1 − g)); the probability of the truth is 1 − g.

    >>> focal_gradient(np.array([0.0, 1.0])).tolist()
    [0.0, 1.0]
    """
    right = 1 - g
    return g**FOCAL_GAMMA * (g - FOCAL_GAMMA * right * np.log(np.maximum(right, np.finfo(float).tiny)))


def box_gradients(spectrum: SpectrumCounts, difference: Floats) -> dict[str, Floats]:
    """The reformulated gradient norm at each |d| of `difference` [n], by box loss.

    Smooth L1 (δ = 1/9) and authentic smooth L1 do not depend on the counts. GHM-R has ten regions of gr; it is NaN
    where one is empty.
    """
    d = torch.from_numpy(difference).double()
    authentic = asl1_gradient_norm(d, MU)
    boxes, gradient = (
        each[-1].sum(axis=(0, 1)).reshape(BOX_REGIONS, -1).sum(axis=1)
        for each in (spectrum.boxes, spectrum.box_gradient)
    )
    counts = _region_counts(boxes[None], np.zeros(1, np.int64))
    weights = Weighting(BOX_REGIONS).table(counts)[0].numpy()
    weights = weights * _ratio(gradient.sum(), (weights * gradient).sum())
    region = unit_region(authentic, BOX_REGIONS).numpy()
    return {
        "smooth L1": smooth_l1_gradient_norm(d).numpy(),
        "authentic smooth L1": authentic.numpy(),
        "GHM-R": authentic.numpy() * np.where(weights > 0, weights, np.nan)[region],
    }


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
