"""The two passes of a harmonized loss, and which implementation makes them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ghmdet.errors import unknown_name
from ghmdet.functional._elements import Given, expand_all, is_traced, reduce
from ghmdet.functional._fused import Fused
from ghmdet.functional._kernels import Kernel
from ghmdet.functional.density import RegionCounts, class_count, count_regions, look_up, region_index

IMPLS = ("auto", "reference", "torch", "compile")
_log = logging.getLogger("ghmdet")


class Passes(Protocol):
    """First `count`, then `weighted` with a weight for each region."""

    def count(self) -> RegionCounts:
        """How many examples each region has."""
        ...

    def weighted(self, table: Tensor | None, reduction: str, count: Tensor | None = None) -> Tensor:
        """β L with β from `table` [C, M] (None: all 1), reduced as by `_elements.reduce`."""
        ...


class Composition:
    """The passes as readable steps over all elements (``impl="reference"``): what the others are held to."""

    def __init__(self, given: Given, kernel: Kernel, bins: int = 1, per_class: bool = False) -> None:
        self.elements = expand_all(given)
        self.norm, self.loss = kernel.composed(self.elements)
        self.bins = bins
        self.per_class = per_class
        self.index = region_index(self.norm, self.elements.valid, bins, per_class)

    def count(self) -> RegionCounts:
        """How many examples each region has."""
        classes = class_count(self.norm, self.per_class)
        return count_regions(self.index, self.elements.targets, self.bins, classes, self.norm.dtype)

    def weighted(self, table: Tensor | None, reduction: str, count: Tensor | None = None) -> Tensor:
        """β L, reduced."""
        loss = self.loss if table is None else look_up(table.to(self.loss.dtype), self.index) * self.loss
        return reduce(loss, self.elements, reduction, count)


class Compiled:
    """The composition's passes, each as one graph of torch.compile."""

    def __init__(self, given: Given, kernel: Kernel, bins: int = 1, per_class: bool = False) -> None:
        self.arguments = (given, kernel, bins, per_class)

    def count(self) -> RegionCounts:
        """How many examples each region has."""
        with torch.no_grad():
            return RegionCounts(_compiled(_count)(*self.arguments))

    def weighted(self, table: Tensor | None, reduction: str, count: Tensor | None = None) -> Tensor:
        """β L, reduced."""
        result: Tensor = _compiled(_weighted)(*self.arguments, table, reduction, count)
        return result


def passes(
    impl: str, given: Given, kernel: Kernel, bins: int = 1, per_class: bool = False, why_not: str = ""
) -> Passes:
    """The passes by the implementation called `impl`; `why_not` says why the fused one cannot be had, if so."""
    made: dict[str, Callable[..., Passes]] = {
        "reference": Composition,
        "torch": Fused,
        "compile": Compiled,
    }
    return made[choose(impl, given, why_not)](given, kernel, bins, per_class)


def choose(impl: str, given: Given, why_not: str = "") -> str:
    """ "reference", "torch" or "compile", for a loss asked for as `impl`."""
    check_impl(impl)
    if is_traced():
        return "reference"  # one graph, which the compiler at work fuses
    if impl in ("reference", "compile"):
        return impl
    others = [given.targets] if given.weight is None else [given.targets, given.weight]
    if any(tensor.requires_grad for tensor in others):
        why_not = "targets or weight want a gradient"
    elif any(_has_tangent(tensor) for tensor in (given.inputs, *others)):
        why_not = "forward-mode derivatives"
    chosen, why = ("reference", why_not) if why_not else ("torch", "the fastest measured on a CPU")
    if impl == "auto":
        _say_once(chosen, why, given.inputs.device.type)
    return chosen


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def check_impl(impl: str) -> None:
    """Raise for an implementation that there is not."""
    if impl not in IMPLS:
        raise unknown_name("impl", impl, IMPLS)


@functools.cache
def _say_once(chosen: str, why: str, device: str) -> None:
    _log.debug('losses: impl="auto" takes "%s" on %s: %s', chosen, device, why)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True)
    return compiled


def _count(given: Given, kernel: Kernel, bins: int, per_class: bool) -> Tensor:
    return Composition(given, kernel, bins, per_class).count().table


def _weighted(
    given: Given,
    kernel: Kernel,
    bins: int,
    per_class: bool,
    table: Tensor | None,
    reduction: str,
    count: Tensor | None,
) -> Tensor:
    return Composition(given, kernel, bins, per_class).weighted(table, reduction, count)
