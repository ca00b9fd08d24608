"""What every loss shares: which elements take part, in which precision, and how they are reduced."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ghmdet.errors import GhmdetError, unknown_name

REDUCTIONS = ("mean", "sum", "none")
IGNORED = -100  # as in torch.nn.functional
Levels = Tensor | Sequence[Tensor]
"""A tensor, or one for each pyramid level: their examples are one population."""
ClassWeight = Tensor | Sequence[float] | None
"""A weight for each class, K of them; None for 1 each."""
Joined = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class Arguments(NamedTuple):
    """The arguments of a loss, checked: nothing is of the inputs' shape that was not given so.

    `targets` of another shape than the inputs are class labels. `valid` is the mask, ignored labels included, None for
    all; it and `weight` have the inputs' shape or that without dimension 1. `smoothing` draws targets towards 1/2.
    """

    inputs: Tensor
    targets: Tensor
    valid: Tensor | None
    weight: Tensor | None
    smoothing: float = 0.0

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

    def smoothed(self, targets: Tensor) -> Tensor:
        """What the loss compares with: the targets, drawn towards 1/2, the mean of the two answers."""
        return targets + self.smoothing * (0.5 - targets) if self.smoothing else targets

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
    inputs: Levels,
    targets: Levels,
    valid: Levels | None = None,
    weight: Levels | None = None,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
) -> Arguments:
    """The arguments of a classification: targets of the inputs' shape in 0..1, or integer labels without dim 1."""
    logits, wanted, mask, factor = join_levels(inputs, targets, valid, weight)
    _check(logits, wanted, mask, factor)
    if class_weight is not None:
        factor = _by_class(class_weight, logits, factor)
    if ignore_index >= 0:
        if wanted.shape == logits.shape:
            raise GhmdetError(
                f"ignore_index={ignore_index} leaves out integer labels, and the targets have the inputs' shape "
                f"{tuple(wanted.shape)}: say with valid= what takes part"
            )
        wanted = wanted.masked_fill(wanted == ignore_index, IGNORED)
    found = _class_arguments(logits, wanted, mask, factor)
    return found._replace(smoothing=check_smoothing(label_smoothing))


def _class_arguments(
    inputs: Tensor, targets: Tensor, valid: Tensor | None, weight: Tensor | None
) -> Arguments:
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
                f"(background) and the negative numbers (ignored): {_too_few(inputs)}"
            )
    elif readable:
        return Arguments(inputs, targets, valid, weight)  # none is ignored
    counted = targets >= 0
    if valid is not None:
        counted = valid & (counted if valid.shape == targets.shape else counted.unsqueeze(1))
    return Arguments(inputs, targets, counted, weight)


def softmax_arguments(
    inputs: Levels,
    labels: Levels,
    valid: Levels | None = None,
    weight: Levels | None = None,
    *,
    ignore_index: int = IGNORED,
) -> Arguments:
    """The arguments of a softmax: labels 0..C-1 without dimension 1, and a mask and a weight of their shape."""
    logits, own, mask, factor = join_levels(inputs, labels, valid, weight)
    check_tensors(inputs=logits, labels=own, valid=mask, weight=factor)
    for name, tensor in (("valid", mask), ("weight", factor)):
        if tensor is not None and tensor.shape != own.shape:
            raise GhmdetError(
                f"{name} has shape {tuple(tensor.shape)}, labels {tuple(own.shape)}: give the same"
            )
    _check(logits, own, mask, factor)
    if ignore_index >= 0:
        own = own.masked_fill(own == ignore_index, IGNORED)
    check_labels(logits, own, mask)
    counted = own >= 0
    return Arguments(logits, own, counted if mask is None else counted & mask, factor)


def regression_arguments(
    inputs: Levels, targets: Levels, valid: Levels | None = None, weight: Levels | None = None
) -> Arguments:
    """The arguments of a regression: targets of the inputs' shape, of any value."""
    offsets, wanted, mask, factor = join_levels(inputs, targets, valid, weight)
    _check(offsets, wanted, mask, factor)
    if wanted.shape != offsets.shape:
        raise GhmdetError(
            f"targets have shape {tuple(wanted.shape)}, inputs {tuple(offsets.shape)}: they must be equal"
        )
    return Arguments(offsets, wanted, mask, factor)


def join_levels(inputs: Any, targets: Any, valid: Any, weight: Any) -> Joined:
    """Lists with a tensor for each level as one tensor of rows each, [R, C] or [R]; anything else as it is."""
    arguments = {"inputs": inputs, "targets": targets, "valid": valid, "weight": weight}
    if not _are_tensors(inputs):
        return inputs, targets, valid, weight
    for name, given in arguments.items():
        if given is None:
            continue
        if not _are_tensors(given) or len(given) != len(inputs):
            raise GhmdetError(f"inputs are a list of {len(inputs)} tensors: {name} must be a list of as many")
        rows = []
        for tensor, like in zip(given, inputs, strict=True):
            expand(name, tensor, like)  # which raises where it does not fit
            flat = tensor.dim() < 2 or tensor.dim() < like.dim()
            rows.append(tensor.reshape(-1) if flat else tensor.movedim(1, -1).reshape(-1, tensor.shape[1]))
        if len({row.shape[1:] for row in rows}) > 1:
            raise GhmdetError(
                f"{name} of the levels differ in more than size: {[tuple(tensor.shape) for tensor in given]}"
            )
        arguments[name] = torch.cat(rows)
    return tuple(arguments.values())


def _are_tensors(given: object) -> bool:
    return isinstance(given, (list, tuple)) and bool(given) and all(isinstance(one, Tensor) for one in given)


def check_labels(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> None:
    """Raise for labels of a softmax that are not integers below C, or not of the logits' shape without dimension 1."""
    if logits.dim() < 2 or labels.shape != _without_classes(logits):
        raise GhmdetError(
            f"labels have shape {tuple(labels.shape)}; logits of shape {tuple(logits.shape)} take labels of that shape "
            "without dimension 1"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise GhmdetError(f"labels must be integers, not {labels.dtype}")
    if values_can_be_read(labels) and labels.numel() and int(labels.max()) >= logits.shape[1]:
        counted = labels if valid is None else labels.where(valid, 0)
        if int(counted.max()) >= logits.shape[1]:
            raise GhmdetError(
                f"label {int(counted.max())} is outside 0..{logits.shape[1] - 1}; what is to be left out is negative, "
                f"or ignore_index: {_too_few(logits)}"
            )


def check_classes(inputs: Tensor, num_classes: int) -> None:
    """Raise for logits of another number of classes, along dimension 1, than a loss keeps statistics of."""
    if inputs.dim() > 1 and inputs.shape[1] != num_classes:
        last = inputs.dim() - 1 if inputs.shape[-1] == num_classes else 0
        flat = f"flatten what comes before the classes: inputs.flatten(0, {last - 1}), labels.flatten()"
        raise GhmdetError(
            f"inputs of shape {tuple(inputs.shape)} have {inputs.shape[1]} classes along dimension 1, and the loss was "
            f"made for num_classes={num_classes}: "
            + (
                flat
                if last > 1
                else f"make it with num_classes={inputs.shape[1]}, or give {num_classes} logits"
            )
        )


def _too_few(inputs: Tensor) -> str:
    """What to do where a label is above the number of classes."""
    many = inputs.shape[1]
    return f"inputs of shape {tuple(inputs.shape)} have {many} classes: number labels from 0, or give a logit for each"


def check_smoothing(smoothing: float) -> float:
    """The share of label smoothing; raises unless it lies in [0, 1)."""
    if not 0 <= smoothing < 1:
        raise GhmdetError(f"label_smoothing must lie in [0, 1), not {smoothing!r}")
    return smoothing


def class_weights(given: ClassWeight) -> Tensor | None:
    """The weights of the classes as a tensor; raises for what are no numbers of 0 or more."""
    if given is None:
        return None
    told = f"class_weight is {given!r:.60}: give a number for each class"
    try:
        weights = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.get_default_dtype())
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise GhmdetError(told) from error
    if not weights.is_meta and not (weights >= 0).all():
        raise GhmdetError(f"{told}, 0 or more")
    return weights


def check_class_weight(class_weight: Tensor, inputs: Tensor) -> Tensor:
    """A weight for each class along dimension 1 of the inputs, in the loss's precision; raises for another shape."""
    check_tensors(class_weight=class_weight)
    if inputs.dim() < 2 or class_weight.shape != inputs.shape[1:2]:
        raise GhmdetError(
            f"class_weight has shape {tuple(class_weight.shape)}; inputs of shape {tuple(inputs.shape)} take one "
            "weight for each class along dimension 1"
        )
    return class_weight.to(wide(inputs))


def _by_class(class_weight: Tensor, inputs: Tensor, weight: Tensor | None) -> Tensor:
    """The weight of each element, times that of its class."""
    rows = check_class_weight(class_weight, inputs).view(1, -1, *[1] * (inputs.dim() - 2))
    return rows.expand(inputs.shape) if weight is None else rows * expand("weight", weight, inputs)


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
