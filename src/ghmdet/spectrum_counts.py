"""How many examples lie at each gradient norm, split by what they are: counts of whole passes, to look at."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.files import write_atomic
from ghmdet.functional.density import region_index
from ghmdet.functional.gradient_norm import asl1_gradient_norm, sigmoid_norm

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

REGIONS = 30  # of 0..1, as the class loss has; the box loss's ten are three of these each
MU = 0.02  # of the authentic smooth L1, as the box losses have
BACKGROUND, OBJECTS = 0, 1


@dataclass(frozen=True, eq=False)
class SpectrumCounts:
    """Counts and sums of gradient norms over E epochs, 2 kinds, K classes, L pyramid levels and M = 30 regions.

    An example of the classification is an anchor and a class, its gradient norm g = |p - p*|; it is an object's (kind
    1) where p* is 1, else background (kind 0). An example of the boxes is one coordinate of an anchor that answers for
    an object, its gradient norm gr = |d| / sqrt(d² + μ²) with μ = .02. Passes over the parts of a data set, or over the
    ranks of a run, add up with `+`; passes at several epochs join with :meth:`stack`.

    Raises GhmdetError where the arrays' shapes do not fit together.
    """

    classes: tuple[str, ...]
    """K names."""
    strides: tuple[int, ...]
    """The distance of neighbouring cells of each level in pixels, L numbers."""
    pictures: Ints
    """[E], how many were looked at."""
    examples: Ints
    """[E, 2, K, L, M], the examples of the classification in each region of g."""
    gradient: Floats
    """[E, 2, K, L, M], the sum of their g: what they have of cross entropy's gradient."""
    boxes: Ints
    """[E, K, L, M], the coordinates in each region of gr."""
    box_gradient: Floats
    """[E, K, L, M], the sum of their gr: what they have of authentic smooth L1's gradient."""

    def __post_init__(self) -> None:
        epochs = len(self.pictures)
        cells = (len(self.classes), len(self.strides), REGIONS)
        for name, shape in (
            ("examples", (epochs, 2, *cells)),
            ("gradient", (epochs, 2, *cells)),
            ("boxes", (epochs, *cells)),
            ("box_gradient", (epochs, *cells)),
        ):
            if getattr(self, name).shape != shape:
                raise GhmdetError(
                    f"'{name}' of a spectrum is {getattr(self, name).shape}, where {shape} fits its pictures, "
                    "classes and levels"
                )

    @classmethod
    def empty(cls, classes: Sequence[str], strides: Sequence[int]) -> SpectrumCounts:
        """One epoch in which nothing was seen yet."""
        cells = (len(classes), len(strides), REGIONS)
        return cls(
            tuple(classes),
            tuple(strides),
            np.zeros(1, np.int64),
            np.zeros((1, 2, *cells), np.int64),
            np.zeros((1, 2, *cells)),
            np.zeros((1, *cells), np.int64),
            np.zeros((1, *cells)),
        )

    def __add__(self, other: SpectrumCounts) -> SpectrumCounts:
        """The counts of both, epoch by epoch. Raises GhmdetError unless classes, levels and epochs are the same."""
        self._check_alike(other)
        if len(self.pictures) != len(other.pictures):
            raise GhmdetError(
                f"spectra of {len(self.pictures)} and {len(other.pictures)} epochs do not add up"
            )
        return SpectrumCounts(
            self.classes, self.strides, *(a + b for a, b in zip(self._arrays(), other._arrays(), strict=True))
        )

    @classmethod
    def stack(cls, parts: Sequence[SpectrumCounts]) -> SpectrumCounts:
        """One spectrum with all epochs, in the order given (at least one part; classes and levels must agree)."""
        for part in parts[1:]:
            parts[0]._check_alike(part)
        arrays = zip(*(part._arrays() for part in parts), strict=True)
        return cls(parts[0].classes, parts[0].strides, *(np.concatenate(each) for each in arrays))

    def save(self, path: Path | str) -> Path:
        """Write it as a compressed .npz, whole or not at all; the path. Raises OSError."""
        buffer = io.BytesIO()
        named: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(
            buffer, classes=np.array(self.classes), strides=np.array(self.strides, np.int64), **named
        )
        return write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path | str) -> SpectrumCounts:
        """What :meth:`save` wrote. Raises GhmdetError naming the file where it is something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = [file[name] for name in _ARRAYS]
                return cls(tuple(file["classes"].tolist()), tuple(file["strides"].tolist()), *arrays)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise GhmdetError(
                f"{path}: not a spectrum ({error}): give a spectrum.npz of `ghmdet spectrum`"
            ) from None

    def _arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, name) for name in _ARRAYS]

    def _check_alike(self, other: SpectrumCounts) -> None:
        for name in ("classes", "strides"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise GhmdetError(f"spectra with {name} {mine} and {theirs} cannot be put together")


_ARRAYS = tuple(field.name for field in fields(SpectrumCounts))[2:]


@torch.no_grad()
def count_batch(
    logits: Tensor,
    labels: Tensor,
    differences: Tensor,
    level_counts: Sequence[int],
    classes: Sequence[str],
    strides: Sequence[int],
) -> SpectrumCounts:
    """The spectrum of one batch: counts exact, sums in float64.

    - `logits`: [B, A, K], all levels concatenated. `labels`: [B, A], K for background, negative for ignored (such
      anchors are not counted).
    - `differences`: [B, A, 4], predicted less wanted box offsets; only those of objects are looked at.
    - `level_counts`: how many of the A anchors each level has. `classes`, `strides`: names and strides (see
      :class:`SpectrumCounts`).

    Raises GhmdetError for logits or differences of objects that are no numbers (NaN).
    """
    num_classes, levels = logits.shape[-1], len(level_counts)
    of_level = [torch.full((count,), i, dtype=torch.int32) for i, count in enumerate(level_counts)]
    level = torch.cat(of_level).to(labels.device).expand(labels.shape)  # [B, A]
    kept = labels >= 0
    rows, label, row_level = logits[kept].float(), labels[kept], level[kept]  # [n, K], [n], [n]
    objects = (label < num_classes).nonzero()[:, 0]
    place = objects, label[objects]

    # Objects are few: each row is counted as background, and they are put right after.
    targets = torch.zeros_like(rows)
    targets[place] = 1
    cell = torch.arange(num_classes, dtype=torch.int32, device=rows.device) * levels + row_level[:, None]
    cell[place] += num_classes * levels
    norm = sigmoid_norm(rows, targets)
    examples, gradient = _sums(norm, cell, (2, num_classes, levels), "class scores")

    box_norm = asl1_gradient_norm(differences[kept][objects].float(), MU)  # [p, 4]
    cell = (label[objects] * levels + row_level[objects]).int()[:, None].expand_as(box_norm)
    boxes, box_gradient = _sums(box_norm, cell, (num_classes, levels), "box offsets")
    pictures = np.array([len(labels)], np.int64)
    return SpectrumCounts(tuple(classes), tuple(strides), pictures, examples, gradient, boxes, box_gradient)


def _sums(norm: Tensor, cell: Tensor, shape: tuple[int, ...], what: str) -> tuple[Ints, Floats]:
    """The number of norms in each cell and region, and their sum: two arrays [1, *shape, M]."""
    if norm.sum().isnan():
        raise GhmdetError(f"{what} are no numbers (NaN)")
    region = region_index(norm, torch.ones_like(norm, dtype=torch.bool), REGIONS, per_class=False)
    place = (cell * REGIONS + region).flatten()
    size = REGIONS * int(np.prod(shape))
    counts = torch.bincount(place, minlength=size)
    sums = torch.bincount(place, norm.flatten().double(), minlength=size)
    return (
        counts.cpu().numpy().reshape(1, *shape, REGIONS),
        sums.double().cpu().numpy().reshape(1, *shape, REGIONS),
    )
