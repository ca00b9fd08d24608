"""What every loss shares: which elements take part, in which precision, and how they are reduced."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ghmdet.errors import GhmdetError, unknown_name

REDUCTIONS = ("mean", "sum", "none")


class Arguments(NamedTuple):
    """The arguments of a loss, checked: nothing is of the inputs' shape that was not given so.

    `targets` of another shape than the inputs are class labels. `valid` is the mask, ignored labels included, None for
    all; it and `weight` have the inputs' shape or that without dimension 1.
    """

    inputs: Tensor
    targets: Tensor
    valid: Tensor | None
    weight: Tensor | None

    @property
    def labels(self) -> bool:
        """Whether the targets are class labels."""
        return self.targets.shape != self.inputs.shape

    def mask(self) -> Tensor:
        """The valid elements, of the inputs' shape."""
        if self.valid is None:
            return torch.ones((), dtype=torch.bool, device=self.inputs.device).expand(self.inputs.shape)
        return expand("valid", self.valid, self.inputs)

    def elements(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and mask of the inputs' shape, 0 where not valid: a NaN there reaches no value or gradient.

        Inputs and targets are float32 (float64 for float64 inputs) whatever precision came in.
        """
        inputs, targets, valid = self.inputs, self.targets, self.mask()
        if self.labels:
            classes = torch.arange(inputs.shape[1], device=inputs.device)
            targets = targets.unsqueeze(1) == classes.view(1, -1, *[1] * (inputs.dim() - 2))
        dtype = wide(inputs)
        return torch.where(valid, inputs.to(dtype), 0.0), torch.where(valid, targets.to(dtype), 0.0), valid

    def reduce(self, loss: Tensor, reduction: str, count: Tensor | None = None) -> Tensor:
        """The weighted loss reduced over the valid elements; "mean" divides by `count`, else their number or 1."""
        valid = self.mask()
        if self.weight is not None:
            loss = loss * torch.where(valid, expand("weight", self.weight, loss).to(loss.dtype), 0.0)
        loss = torch.where(valid, loss, 0.0)
        if reduction == "none":
            return loss
        if reduction == "sum":
            return loss.sum()
        return loss.sum() / (valid.sum().clamp_min(1) if count is None else count)


def class_arguments(
    inputs: Tensor, targets: Tensor, valid: Tensor | None = None, weight: Tensor | None = None
) -> Arguments:
    """The arguments of a classification: targets of the inputs' shape in 0..1, or integer labels without dim 1."""
    _check(inputs, targets, valid, weight)
    readable = values_can_be_read(inputs) and targets.numel() > 0
    if targets.shape == inputs.shape:
        if readable and not _lies_in(targets, 1):
            counted = targets if valid is None else torch.where(expand("valid", valid, inputs), targets, 0)
            if not _lies_in(counted, 1):
                raise GhmdetError(
                    f"targets must lie in 0..1, found {value_range(counted)}; integer class labels have the "
                    f"inputs' shape {tuple(inputs.shape)} without dimension 1"
                )
        return Arguments(inputs, targets, valid, weight)
    if inputs.dim() < 2 or targets.shape != _without_classes(inputs):
        raise GhmdetError(
            f"targets have shape {tuple(targets.shape)}; inputs of shape {tuple(inputs.shape)} take targets of that "
            "shape, or integer labels of that shape without dimension 1"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise GhmdetError(f"labels (targets without dimension 1) must be integers, not {targets.dtype}")
    if inputs.shape[1] == 1:
        raise GhmdetError(
            "integer labels of one class are ambiguous: a binary head calls its object 1, and here 0 is the class "
            f"and 1 the background. Give targets of the inputs' shape {tuple(inputs.shape)}: labels.unsqueeze(1) "
            "where 1 is the object, or (labels == 0).unsqueeze(1) with valid=labels >= 0 where 0 is"
        )
    if readable and not _lies_in(targets, inputs.shape[1]):
        above = targets > inputs.shape[1]
        if valid is not None:
            above &= valid if valid.shape == targets.shape else valid.any(1)
        if bool(above.any()):
            raise GhmdetError(
                f"label {int(targets.max())} is outside 0..{inputs.shape[1] - 1} (classes), {inputs.shape[1]} "
                "(background) and the negative numbers (ignored)"
            )
    elif readable:
        return Arguments(inputs, targets, valid, weight)  # none is ignored
    counted = targets >= 0
    if valid is not None:
        counted = valid & (counted if valid.shape == targets.shape else counted.unsqueeze(1))
    return Arguments(inputs, targets, counted, weight)


def regression_arguments(
    inputs: Tensor, targets: Tensor, valid: Tensor | None = None, weight: Tensor | None = None
) -> Arguments:
    """The arguments of a regression: targets of the inputs' shape, of any value."""
    _check(inputs, targets, valid, weight)
    if targets.shape != inputs.shape:
        raise GhmdetError(
            f"targets have shape {tuple(targets.shape)}, inputs {tuple(inputs.shape)}: they must be equal"
        )
    return Arguments(inputs, targets, valid, weight)


def check_tensors(**arguments: object) -> None:
    """Raise for an argument that is neither a tensor nor None."""
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            kind = type(value).__name__
            raise GhmdetError(f"{name} must be a tensor, not {kind}: torch.as_tensor({name}) makes one")


def check_reduction(reduction: str) -> None:
    """Raise for a reduction that is not one of "mean", "sum", "none"."""
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)


def values_can_be_read(tensor: Tensor) -> bool:
    """Whether looking at values costs no wait for an accelerator, and there are values."""
    return tensor.device.type == "cpu" and not is_traced()


def is_traced() -> bool:
    """Whether PyTorch records or transforms operations: torch.compile, jit.trace, torch.func, make_fx, fake tensors."""
    keys = torch._C._TorchDispatchModeKey
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE))
    )


def wide(tensor: Tensor) -> torch.dtype:
    """The precision of all that is computed: float32, and float64 of float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def value_range(tensor: Tensor) -> str:
    """The least and the greatest value, for an error's text."""
    return f"{tensor.min().item():g} to {tensor.max().item():g}"


def expand(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, of the shape of `like` or of that shape without dimension 1, as a view of the shape of `like`."""
    if tensor.shape == like.shape:
        return tensor
    if like.dim() >= 2 and tensor.shape == _without_classes(like):
        return tensor.unsqueeze(1).expand(like.shape)
    raise GhmdetError(
        f"{name} has shape {tuple(tensor.shape)}; inputs of shape {tuple(like.shape)} take that shape, "
        "or that shape without dimension 1"
    )


def _without_classes(inputs: Tensor) -> torch.Size:
    return inputs.shape[:1] + inputs.shape[2:]


def _check(inputs: Tensor, targets: Tensor, valid: Tensor | None, weight: Tensor | None) -> None:
    """Raise for an argument of a wrong kind, or a mask or weight of a wrong shape."""
    check_tensors(inputs=inputs, targets=targets, valid=valid, weight=weight)
    if not inputs.is_floating_point():
        raise GhmdetError(f"inputs must be floating point, not {inputs.dtype}")
    if inputs.dim() == 0:
        raise GhmdetError("inputs must have at least one dimension, found shape ()")
    if valid is not None:
        if valid.dtype != torch.bool:
            raise GhmdetError(
                f"valid must be a bool mask, not {valid.dtype}; a weight whose size counts goes to weight="
            )
        expand("valid", valid, inputs)
    if weight is not None:
        if not weight.is_floating_point():
            raise GhmdetError(f"weight must be floating point, not {weight.dtype}; a mask goes to valid=")
        expand("weight", weight, inputs)


def _lies_in(tensor: Tensor, most: int) -> bool:
    """Whether all values lie in 0..`most`."""
    least, greatest = tensor.aminmax()
    return least.item() >= 0 and greatest.item() <= most


def populations(tensor: Tensor, per_class: bool) -> Tensor:
    """The elements of each population as a row: [C, N] with one for each class (dimension 1), or [1, N]."""
    return tensor.movedim(1, 0).reshape(tensor.shape[1], -1) if per_class else tensor.reshape(1, -1)


def from_populations(rows: Tensor, like: Tensor, per_class: bool) -> Tensor:
    """The inverse of `populations`, in the shape of `like`."""
    if per_class:
        return rows.view(like.shape[1], like.shape[0], *like.shape[2:]).movedim(0, 1)
    return rows.view(like.shape)
