"""The article's formulas as it writes them, one example at a time: the specification that the fast forms are held to.

Read this file beside the article. Plain numbers and loops, O(N²); nothing in the package calls it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def cross_entropy(p: float, target: float) -> float:
    """L_CE: −log(p) for p* = 1, −log(1 − p) for p* = 0; for a soft target the mean of the two, weighed by it."""
    positive = -target * math.log(p) if target > 0 else 0.0
    negative = -(1 - target) * math.log(1 - p) if target < 1 else 0.0
    return positive + negative


def gradient_norm(p: float, target: float) -> float:
    """g = |∂L_CE/∂x| = |p − p*|."""
    return abs(p - target)


def smooth_l1(d: float, delta: float) -> float:
    """SL_1: d²/2δ for |d| ≤ δ, |d| − δ/2 otherwise."""
    return d**2 / (2 * delta) if abs(d) <= delta else abs(d) - delta / 2


def asl1(d: float, mu: float) -> float:
    """ASL_1 = sqrt(d² + μ²) − μ."""
    return math.sqrt(d**2 + mu**2) - mu


def asl1_gradient_norm(d: float, mu: float) -> float:
    """gr = |∂ASL_1/∂d| = |d / sqrt(d² + μ²)|."""
    return abs(d / math.sqrt(d**2 + mu**2))


def inside(x: float, y: float, epsilon: float) -> int:
    """δ_ε(x, y): 1 for y − ε/2 ≤ x < y + ε/2, else 0."""
    return 1 if y - epsilon / 2 <= x < y + epsilon / 2 else 0


def valid_length(g: float, epsilon: float) -> float:
    """l_ε(g) = min(g + ε/2, 1) − max(g − ε/2, 0)."""
    return min(g + epsilon / 2, 1) - max(g - epsilon / 2, 0)


def density(norms: Sequence[float], epsilon: float) -> list[float]:
    """GD(g_i) = 1/l_ε(g_i) Σ_k δ_ε(g_k, g_i)."""
    return [sum(inside(x, g, epsilon) for x in norms) / valid_length(g, epsilon) for g in norms]


def region(g: float, bins: int) -> int:
    """The unit region of g: the m with m/M ≤ g < (m + 1)/M; g = 1 belongs to the last."""
    return min(math.floor(g * bins), bins - 1)


def unit_region_density(norms: Sequence[float], bins: int) -> list[float]:
    """GD(g_i) = R_m · M, with R_m the number of examples in the region of g_i."""
    members = [sum(region(x, bins) == m for x in norms) for m in range(bins)]
    return [members[region(g, bins)] * bins for g in norms]


def harmonizing(densities: Sequence[float]) -> list[float]:
    """β_i = N / GD(g_i)."""
    return [len(densities) / gd for gd in densities]


def ghm(betas: Sequence[float], losses: Sequence[float]) -> float:
    """L_GHM = 1/N Σ β_i L_i, for GHM-C over L_CE and for GHM-R over ASL_1."""
    return sum(b * loss for b, loss in zip(betas, losses, strict=True)) / len(losses)


def guarded(norms: Sequence[float], targets: Sequence[float], losses: Sequence[float], bins: int) -> float:
    """Σ_i L_i / max(R(g_i), P), P the positives (at least 1). Not in the article: README.md says why it is wanted."""
    positives = max(sum(targets), 1)
    regions = [region(g, bins) for g in norms]
    return sum(loss / max(regions.count(m), positives) for loss, m in zip(losses, regions, strict=True))


def softmax(x: Sequence[float]) -> list[float]:
    """p of logits over all labels."""
    powers = [math.exp(v - max(x)) for v in x]
    return [v / sum(powers) for v in powers]


def softmax_ghm(
    rows: Sequence[Sequence[float]],
    labels: Sequence[int],
    *,
    bins: int = 30,
    normalize: str = "occupied",
    min_count: float | str = 0.0,
    per_class: bool = False,
    background: int | None = None,
    class_weight: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> tuple[float, list[list[float]]]:
    """1/W Σ β_i L_i with g = 1 − p_label, and its gradient by the logits. Negative labels are left out."""
    classes = len(rows[0])
    counted = [(softmax(row), label) for row, label in zip(rows, labels, strict=True) if label >= 0]
    scale = list(class_weight) if class_weight else [1.0] * classes
    divisor = sum(scale[label] for _, label in counted)
    total, gradient = 0.0, []
    for row, label in zip(rows, labels, strict=True):
        if label < 0:
            gradient.append([0.0] * classes)
            continue
        p = softmax(row)
        alike = [(q, c) for q, c in counted if c == label or not per_class]
        regions = [region(min(1 - q[c], 1.0), bins) for q, c in alike]
        inside = regions.count(region(1 - p[label], bins))
        others = label == background and per_class  # the background is held to the number of all objects
        positives = sum(c != background for _, c in (counted if others else alike))
        floors = {"positives": max(positives, 1), "mean": len(alike) / bins}
        floor = floors[min_count] if isinstance(min_count, str) else min_count
        share = len(counted) / (classes if per_class else 1)
        parts = {"none": 1, "all": bins, "occupied": len(set(regions))}[normalize]
        beta = share / parts / max(inside, floor)
        wanted = [
            scale[j] * ((1 - label_smoothing) * (j == label) + label_smoothing / classes)
            for j in range(classes)
        ]
        total += beta * sum(-t * math.log(q) for t, q in zip(wanted, p, strict=True))
        gradient.append([beta * (q * sum(wanted) - t) / divisor for t, q in zip(wanted, p, strict=True)])
    return total / divisor, gradient
