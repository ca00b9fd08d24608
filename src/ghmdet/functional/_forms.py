"""Which form computes a loss: the readable one or the fused one."""

from __future__ import annotations

import functools
import logging

from torch import Tensor
from torch.autograd import forward_ad

from ghmdet.errors import unknown_name
from ghmdet.functional import _fused, naive
from ghmdet.functional._arguments import Arguments, is_traced
from ghmdet.functional.density import Weigh, Weighting, class_count

IMPLS = ("auto", "reference", "torch")
_log = logging.getLogger("ghmdet")


def harmonized(
    loss: naive.Loss,
    arguments: Arguments,
    options: Weighting | None,
    weigh: Weigh | None = None,
    *,
    reduction: str,
    impl: str,
) -> Tensor:
    """1/N Σ β_i L_i as by `naive.harmonized`, by the form called `impl` where it has what is asked for."""
    check_impl(impl)
    class_count(arguments.inputs, options is not None and options.per_class)
    why_not = _needs_reference(loss, arguments, options)
    if impl == "auto" and not is_traced():
        _say_once(why_not, arguments.inputs.device.type)
    if impl == "reference" or why_not:
        return naive.harmonized(loss, arguments, options, weigh, reduction)
    return _fused.harmonized(loss, arguments, options, weigh, reduction)


def check_impl(impl: str) -> None:
    """Raise for an implementation that there is not."""
    if impl not in IMPLS:
        raise unknown_name("impl", impl, IMPLS)


def _needs_reference(loss: naive.Loss, arguments: Arguments, options: Weighting | None) -> str:
    """Why the fused form cannot be had; "" where it can."""
    tensors = [x for x in (arguments.inputs, arguments.targets, arguments.weight) if x is not None]
    if is_traced():
        return "one graph, which whoever traces it may fuse"
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):  # type: ignore[no-untyped-call]
        return "forward-mode derivatives"
    if any(x.requires_grad for x in tensors[1:]):
        return "targets or weight want a gradient"
    if isinstance(loss, naive.Focal) and not arguments.labels:
        return "targets may be soft"
    return 'method="exact"' if options is not None and options.method == "exact" else ""


@functools.cache
def _say_once(why_not: str, device: str) -> None:
    chosen = (
        f'"reference" on {device}: {why_not}'
        if why_not
        else f'"torch" on {device}: the fastest measured on a CPU'
    )
    _log.debug('losses: impl="auto" takes %s', chosen)
