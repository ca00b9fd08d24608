"""The histogram of gradient norms: as the moving average of a loss's batches, and as the counts of a pass over data."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from ghmdet.errors import GhmdetError
from ghmdet.files import write_atomic
from ghmdet.functional import _arguments
from ghmdet.functional.density import RegionCounts, check_whole, unit_region
from ghmdet.functional.gradient_norm import asl1_gradient_norm

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

REGIONS = 30  # of 0..1, as the class loss has; the box loss's ten are three of these each
MU = 0.02  # of the authentic smooth L1, as the box losses have
BACKGROUND, OBJECTS = 0, 1
BLOCK, DEVICE_BLOCK = 1 << 18, 1 << 22  # elements at a time: what a CPU's cache holds, what keeps a GPU busy


def world_size() -> int:
    """The number of ranks of a distributed run; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the ranks, without gradient; every rank must call it. Alone, the tensor itself."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


class GradientSpectrum(nn.Module):
    """A moving average of `RegionCounts`, kept in buffers (so in the state dict).

    After t optimizer steps with counts c_1 … c_t and momentum m it is Σ_s m^(t−s) c_s / Σ_s m^(t−s): linear in the
    counts, without the pull of a zero start, and decaying in regions that stay empty. With `accumulation_steps` k, the
    average of k calls makes one step.

    - `bins`: M, the number of unit regions. `num_classes`: rows of the table, 1 when the density is joint.
    - `momentum`: in [0, 1]; 0 keeps nothing of earlier batches, 1 all alike.

    The buffers are float32 whatever the model's precision: in half precision counts round from 2048 on and overflow at
    65,504. What was read from a file of such numbers and has overflowed is forgotten, and the average begins anew.

    Raises ValueError for options out of range and for counts of another shape or device.

    >>> spectrum = GradientSpectrum(2, momentum=0.5)
    >>> seen = spectrum.update(RegionCounts(torch.tensor([[8.0, 2.0, 10.0, 1.0]])))
    >>> seen = spectrum.update(RegionCounts(torch.tensor([[2.0, 8.0, 10.0, 1.0]])))
    >>> spectrum.compute().regions
    tensor([[4., 6.]])
    """

    total: Tensor
    mass: Tensor
    pending: Tensor
    calls: Tensor

    def __init__(
        self, bins: int, *, momentum: float = 0.0, num_classes: int = 1, accumulation_steps: int = 1
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise GhmdetError(f"momentum must lie in [0, 1], not {momentum!r}")
        self.bins = check_whole("bins", bins)
        self.momentum = momentum
        self.num_classes = check_whole("num_classes", num_classes)
        self.accumulation_steps = check_whole("accumulation_steps", accumulation_steps)
        table = torch.zeros(self.num_classes, self.bins + 2, dtype=torch.float32)
        self.register_buffer("total", table)
        self.register_buffer("mass", torch.zeros((), dtype=torch.float32))
        self.register_buffer("pending", table.clone())
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @property
    def moves(self) -> bool:
        """Whether `update` keeps what it is given: in training mode with gradients on."""
        return self.training and torch.is_grad_enabled()

    def update(self, counts: RegionCounts) -> RegionCounts:
        """The average including the counts of this call, which is kept only where `moves` says so."""
        self._check(counts)
        moves = self.moves  # before gradients are off
        with torch.no_grad():
            if self.accumulation_steps == 1:  # as below, in a third of the time
                total, mass = self._after_step(counts.table)
                kept = {"total": total, "mass": mass}
            else:
                pending, call = self.pending + counts.table, self.calls % self.accumulation_steps + 1
                total, mass = self._after_step(pending / call)
                over = call == self.accumulation_steps
                kept = {"total": total.where(over, self.total), "mass": mass.where(over, self.mass)}
                kept["pending"] = pending.where(~over, 0.0)
            if moves:
                for name, value in kept.items():
                    getattr(self, name).copy_(value)
                self.calls += 1
            return RegionCounts(total / mass)

    @torch.no_grad()
    def compute(self) -> RegionCounts:
        """The average as kept, with the calls of an unfinished step as a step; zeros before the first."""
        total, mass = self._current()
        return RegionCounts(total / mass.clamp_min(1))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything."""
        for buffer in self.buffers():
            buffer.zero_()

    reset_parameters = reset  # the name by which sharded training asks for first values

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        names = ("bins", "momentum", "num_classes", "accumulation_steps")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _current(self) -> tuple[Tensor, Tensor]:
        self._widen()
        call = self.calls % self.accumulation_steps
        total, mass = self._after_step(self.pending / call.clamp_min(1))
        return total.where(call > 0, self.total), mass.where(call > 0, self.mass)

    def _after_step(self, table: Tensor) -> tuple[Tensor, Tensor]:
        return self.momentum * self.total + table, self.momentum * self.mass + 1

    def _check(self, counts: RegionCounts) -> None:
        self._widen()
        if counts.table.shape != self.total.shape:
            rows, columns = counts.table.shape
            raise GhmdetError(
                f"counts of {rows} classes and {columns - 2} regions do not fit a spectrum of {self.num_classes} "
                f"classes and {self.bins} regions"
            )
        here, there = counts.table.device, self.total.device
        if here != there:
            raise GhmdetError(
                f"counts are on {here}, the spectrum on {there}: move the loss with .to(device)"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GradientSpectrum:
        # Only the device is taken of what half(), to_empty() and the like make of a buffer.
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            device = self.get_buffer(name).device
            self._buffers[name] = (
                torch.zeros_like(buffer, device=device) if buffer.is_meta else buffer.to(device)
            )
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._widen(loaded=True)

    @torch.no_grad()
    def _widen(self, loaded: bool = False) -> None:
        """Float32 again where something has set narrower buffers, by assignment or in place."""
        dtypes = {name: torch.int64 if name == "calls" else torch.float32 for name in self._buffers}
        if not loaded and all(getattr(self, name).dtype == dtype for name, dtype in dtypes.items()):
            return
        finite = self.total.isfinite().all() & self.pending.isfinite().all() & self.mass.isfinite()
        for name, dtype in dtypes.items():
            buffer = getattr(self, name)
            kept = torch.where(finite, buffer.to(dtype), 0)
            self._buffers[name] = kept if buffer.dtype != dtype else buffer.copy_(kept)


class PeerSpectrum(GradientSpectrum):
    """The moving average of the widely used implementation (mmdetection 3.3.0, ``acc_sum``), for ``compat="mmdet"``.

    It starts at zero, moves a region only where the batch has examples there, and moves at every call, in eval too.
    The numbers of examples and positives are the batch's own.
    """

    @torch.no_grad()
    def update(self, counts: RegionCounts) -> RegionCounts:
        """Move the average by the counts of this call and give it."""
        self._check(counts)
        table = counts.table.clone()
        moved = self.momentum * self.total + (1 - self.momentum) * table
        table[:, :-2] = torch.where(table > 0, moved, self.total)[:, :-2]
        self.total.copy_(table)
        self.mass.fill_(1)
        self.calls += 1
        return RegionCounts(table)


@dataclass(frozen=True, eq=False)
class SpectrumCounts:
    """Counts and sums of gradient norms over E epochs, 2 kinds, K classes, L pyramid levels and M = 30 regions.

    An example of the classification is an anchor and a class, its gradient norm g = |p - p*|; it is an object's (kind
    1) where p* is 1, else background (kind 0). An example of the boxes is one coordinate of an anchor that answers for
    an object, its gradient norm gr = |d| / sqrt(d² + μ²) with μ = .02. Passes at several epochs join with `stack`.

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
        cells = (len(self.classes), len(self.strides), REGIONS)
        for name in _ARRAYS[1:]:
            kinds = () if name.startswith("box") else (2,)
            shape = (len(self.pictures), *kinds, *cells)
            if getattr(self, name).shape != shape:
                raise GhmdetError(
                    f"'{name}' of a spectrum is {getattr(self, name).shape}, where {shape} fits its pictures, "
                    "classes and levels"
                )

    @classmethod
    def empty(cls, classes: Sequence[str], strides: Sequence[int]) -> SpectrumCounts:
        """One epoch in which nothing was seen yet."""
        return SpectrumSums(classes, strides, torch.device("cpu")).counts()

    @classmethod
    def stack(cls, parts: Sequence[SpectrumCounts]) -> SpectrumCounts:
        """One spectrum with all epochs, in the order given (at least one part; classes and levels must agree)."""
        return parts[0]._joined(lambda *arrays: np.concatenate(arrays), *parts[1:])

    def __getitem__(self, epochs: slice) -> SpectrumCounts:
        """Some of the epochs."""
        return self._joined(operator.itemgetter(epochs))

    def save(self, path: Path | str) -> Path:
        """Write it as a compressed .npz, whole or not at all; the path. Raises OSError."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {"classes": np.array(self.classes), "strides": np.array(self.strides, np.int64)}
        return write_atomic(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, path: Path | str) -> SpectrumCounts:
        """What `save` wrote. Raises GhmdetError naming the file where it is something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = [
                    file[name].astype(np.float64 if "gradient" in name else np.int64) for name in _ARRAYS
                ]
                return cls(tuple(file["classes"].tolist()), tuple(file["strides"].tolist()), *arrays)
        except Exception as error:  # a damaged file fails wherever its reader happens to trip
            raise GhmdetError(
                f"{path}: not a spectrum, or damaged ({type(error).__name__}): give a spectrum.npz of `ghmdet spectrum`"
            ) from None

    def _joined(self, function: Callable[..., NDArray[Any]], *others: SpectrumCounts) -> SpectrumCounts:
        """The spectrum with what `function` makes of each array of this one and of others alike."""
        for other in others:
            for name in ("classes", "strides"):
                mine, theirs = getattr(self, name), getattr(other, name)
                if mine != theirs:
                    raise GhmdetError(f"spectra with {name} {mine} and {theirs} cannot be put together")
        arrays = (function(*(getattr(one, name) for one in (self, *others))) for name in _ARRAYS)
        return SpectrumCounts(self.classes, self.strides, *arrays)


_ARRAYS = tuple(field.name for field in fields(SpectrumCounts))[2:]


class SpectrumFile:
    """A spectrum to which epochs are added, and its file, the one that `SpectrumCounts.save` writes.

    Epochs are kept compressed and written one by one: of many classes nearly all cells are 0, and a long run's epochs
    would fill the memory.

    path: the file. classes, strides: as of `SpectrumCounts`.
    """

    def __init__(self, path: Path, classes: Sequence[str], strides: Sequence[int]) -> None:
        self.path, self.empty = path, SpectrumCounts.empty(classes, strides)
        self._epochs: list[list[bytes]] = []

    def add(self, counts: SpectrumCounts) -> None:
        """Keep these epochs, too; raises GhmdetError where they are of other classes or levels."""
        self.empty._joined(lambda *arrays: arrays[0], counts)
        for epoch in range(len(counts.pictures)):
            arrays = (getattr(counts, name)[epoch] for name in _ARRAYS)
            self._epochs.append([zlib.compress(array.tobytes(), 1) for array in arrays])

    def write(self) -> None:
        """Write the file, whole or not at all; raises OSError."""
        write_atomic(self.path, self._write)

    def _write(self, file: Any) -> None:
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for place, name in enumerate(_ARRAYS):
                array = getattr(self.empty, name)
                about = {"descr": array.dtype.str, "fortran_order": False}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(
                        entry, about | {"shape": (len(self._epochs), *array.shape[1:])}
                    )
                    for epoch in self._epochs:
                        entry.write(zlib.decompress(epoch[place]))
            for name in ("classes", "strides"):
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, np.array(getattr(self.empty, name)))


class SpectrumSums:
    """The counts of one pass on a device, to which batches are added without the host waiting for it.

    classes, strides: names and strides (see `SpectrumCounts`). Counts are int64, sums float64.
    """

    def __init__(self, classes: Sequence[str], strides: Sequence[int], device: torch.device) -> None:
        self.classes, self.strides = tuple(classes), tuple(strides)
        k, cells = len(classes), (len(strides), REGIONS)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # What must not count (a third kind, the boxes of label K) has a place that is not read.
        self.tables = {
            "pictures": zeros(1),
            "examples": zeros(3, k, *cells),
            "gradient": zeros(3, k, *cells, dtype=torch.float64),
            "boxes": zeros(k + 1, *cells),
            "box_gradient": zeros(k + 1, *cells, dtype=torch.float64),
        }

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, differences: Tensor, level_counts: Sequence[int]) -> None:
        """Count a batch, in float32 whatever the precision.

        - `logits`: [B, A, K], all levels concatenated. `labels`: [B, A], K for background, negative for ignored (such
          anchors are not counted).
        - `differences`: [B, A, 4], predicted less wanted box offsets; only those of objects are looked at.
        - `level_counts`: how many of the A anchors each level has.
        """
        self.tables["pictures"] += len(labels)
        device = labels.device
        level = torch.cat(
            [torch.full((n,), i, dtype=torch.int32, device=device) for i, n in enumerate(level_counts)]
        )
        levels, rows = level.expand(labels.shape).flatten(), labels.flatten()
        self._add_boxes(differences.flatten(0, 1), rows, levels)
        flat = logits.flatten(0, 1)
        for block in self._blocks(flat):
            self._add_examples(flat[block].float(), rows[block], levels[block])

    @torch.no_grad()
    def add_labels(self, logits: Tensor, labels: Tensor) -> None:
        """Count sigmoid logits [n, K] against labels [n], as `add` does, of the first level and without boxes."""
        level = torch.zeros_like(labels, dtype=torch.int32)
        for block in self._blocks(logits):
            self._add_examples(logits[block].float(), labels[block], level[block])

    @torch.no_grad()
    def add_norms(self, norm: Tensor, kind: Tensor, row: Tensor) -> None:
        """Count gradient norms of the first level, each of a kind (2: not counted) and a class; all three [n, c]."""
        for block in self._blocks(norm):
            first = (kind[block] * len(self.classes) + row[block]) * (len(self.strides) * REGIONS)
            level = torch.zeros(len(first), dtype=torch.int32, device=norm.device)
            self._add("examples", "gradient", first.int(), level, norm[block].float())

    def _blocks(self, rows: Tensor) -> list[slice]:
        size = max(1, (BLOCK if rows.is_cpu else DEVICE_BLOCK) // max(rows.shape[1], 1))
        return [slice(start, start + size) for start in range(0, len(rows), size)]

    def _add_examples(self, logits: Tensor, label: Tensor, level: Tensor) -> None:
        k = len(self.classes)
        is_object = ((label >= 0) & (label < k))[:, None]
        own = label.clamp(0, k - 1)[:, None]
        # Objects are few: each row is counted as background, and its own class is put right after.
        norm = torch.sigmoid(logits)
        p = norm.gather(1, own)
        norm.scatter_(1, own, torch.where(is_object, 1 - p, p))
        cells = len(self.strides) * REGIONS
        first = torch.arange(0, k * cells, cells, dtype=torch.int32, device=label.device)
        first = first + (label < 0).int()[:, None] * (2 * k * cells)
        first.scatter_add_(1, own, is_object.int() * (k * cells))
        self._add("examples", "gradient", first, level, norm)

    def _add_boxes(self, difference: Tensor, label: Tensor, level: Tensor) -> None:
        k = len(self.classes)
        label = torch.where(label < 0, k, label)
        if _arguments.values_can_be_read(label):
            objects = (label < k).nonzero()[:, 0]
            difference, label, level = difference[objects], label[objects], level[objects]
        norm = asl1_gradient_norm(difference.float(), MU)  # [n, 4]
        first = label.int()[:, None] * (len(self.strides) * REGIONS)
        self._add("boxes", "box_gradient", first, level, norm)

    def _add(self, counts_name: str, sums_name: str, first: Tensor, level: Tensor, norm: Tensor) -> None:
        """Count norms [n, c] in the rows of a table that begin at cells `first` [n, c] or [n, 1], at level [n]."""
        counts, sums = self.tables[counts_name].view(-1), self.tables[sums_name].view(-1)
        place = unit_region(norm, REGIONS).add_(first + level[:, None] * REGIONS)
        place, values = place.flatten(), norm.flatten().double()
        if _arguments.values_can_be_read(place):
            counts += torch.bincount(place, minlength=len(counts))
            sums += torch.bincount(place, values, minlength=len(sums))
        else:  # where bincount would make the host wait
            counts.index_add_(0, place, counts.new_ones(1).expand(len(place)))
            sums.index_add_(0, place, values)

    def check(self) -> None:
        """Raise GhmdetError where logits, or differences of objects, were no numbers (NaN); waits for the device."""
        for name, what in (("gradient", "class scores"), ("box_gradient", "box offsets")):
            if bool(self.tables[name][:-1].isnan().any()):
                raise GhmdetError(f"{what} are no numbers (NaN)")

    def counts(self) -> SpectrumCounts:
        """What was counted so far, one epoch; waits for the device."""
        pictures, *tables = (table.to("cpu", copy=True).numpy() for table in self.tables.values())
        return SpectrumCounts(self.classes, self.strides, pictures, *(table[None, :-1] for table in tables))
