"""The losses that remember batches, as modules: settings and statistics over `ghmdet.functional`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn

from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.functional._arguments import (
    IGNORED,
    Arguments,
    ClassWeight,
    Levels,
    check_classes,
    check_reduction,
    check_smoothing,
    check_tensors,
    class_arguments,
    class_weights,
    expand,
    join_levels,
    populations,
    regression_arguments,
)
from ghmdet.functional._fused import check_impl, harmonized
from ghmdet.functional.density import MinCount, RegionCounts, Weighting, check_whole
from ghmdet.functional.equalized import EqlV2, EqualizedFocal
from ghmdet.functional.gradient_norm import check_positive
from ghmdet.functional.naive import Asl1, CrossEntropy, Loss
from ghmdet.functional.softmax import SoftmaxCrossEntropy
from ghmdet.spectrum import GradientSpectrum, PeerSpectrum, sum_over_ranks, world_size


def _check_unnamed(unnamed: tuple[object, ...], named: str) -> None:
    """Raise TypeError for options without a name: a lone number could be meant as regions or as classes."""
    if unnamed:
        given = ", ".join(map(repr, unnamed))
        raise TypeError(f"what is {given}? options are given by name, as in {named}")


class _Weighing(nn.Module):
    """What the losses share: weights from a spectrum. `guard` is the floor of the default, the guarded form."""

    def __init__(
        self,
        guard: MinCount,
        bins: int,
        momentum: float,
        normalize: str | None,
        min_count: MinCount | None,
        num_classes: int | None,
        accumulation_steps: int,
        reduction: str,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if compat not in (None, "mmdet"):
            raise unknown_name("compat", str(compat), ["mmdet"])
        self.min_count: MinCount = (0.0 if compat else guard) if min_count is None else min_count
        if normalize is None:
            guarded = "none" if guard == "positives" else "all"
            normalize = "occupied" if self.min_count == 0.0 else guarded
        self.normalize = normalize
        self.per_class = num_classes is not None
        self.options = Weighting(bins, "unit-region", normalize, self.min_count, self.per_class).checked(
            positives=guard == "positives"
        )
        plain = normalize == "occupied" and self.min_count == 0.0
        if compat and not (plain and num_classes is None and accumulation_steps == 1):
            raise GhmdetError(
                'compat="mmdet" has fixed settings: leave normalize, min_count, per_class and accumulation_steps'
            )
        self.compat = compat
        self.reduction = reduction
        self.spectrum: GradientSpectrum = (PeerSpectrum if compat else GradientSpectrum)(
            bins,
            momentum=momentum,
            num_classes=1 if num_classes is None else num_classes,
            accumulation_steps=accumulation_steps,
        )

    def _weigh(self, batch: RegionCounts) -> tuple[Tensor, Tensor]:
        """β of each region by the average that includes the batch, and the elements that a mean divides by."""
        batch = RegionCounts(batch.table.float())
        ranks = 1
        # As in SyncBatchNorm, ranks agree in training only: in evaluation they may not all be here.
        if self.spectrum.moves and not self.compat:
            batch, ranks = RegionCounts(sum_over_ranks(batch.table)), world_size()
        counts = self.spectrum.update(batch)
        table = self.options.table(counts, batch)
        # The mean over all ranks' elements, as an average of the ranks gives it.
        elements = batch.examples.sum().clamp_min(1)
        return table, elements / ranks if ranks > 1 else elements

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        names = ("normalize", "min_count", "per_class", "compat", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class _Harmonized(_Weighing):
    """What GHMC and GHMR are: the weights, over elements, their gradient norms and their plain losses."""

    loss: Loss
    impl: str
    _arguments: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Arguments]

    def forward(
        self, inputs: Levels, targets: Levels, valid: Levels | None = None, weight: Levels | None = None
    ) -> Tensor:
        """The loss of logits against targets, or of predicted offsets against target offsets."""
        x, wanted, mask, factor = join_levels(inputs, targets, valid, weight)
        if self.per_class:
            check_tensors(inputs=x)
            check_classes(x, self.spectrum.num_classes)
        if self.compat and factor is not None:  # there a weight says only whether an element counts
            counted = expand("weight", factor, x) > 0
            mask = counted if mask is None else counted & expand("valid", mask, x)
            factor = None
        return harmonized(
            self.loss,
            self._arguments(x, wanted, mask, factor),
            self.options,
            self._weigh,
            reduction=self.reduction,
            impl=self.impl,
        )


class GHMC(_Harmonized):
    """GHM-C: binary cross entropy harmonized by the gradient density of the batches seen.

    Called as ``loss(inputs, targets, valid=None, weight=None)`` with the arguments of
    `ghmdet.functional.ghm_c_loss`, once a step over everything: concatenate images and pyramid levels, since a
    density for each is another loss. The density is a moving average that includes the present batch. It moves in
    training mode with gradients on, once per optimizer step; elsewhere it is only read. Under torch.distributed the
    counts are summed over the ranks in training: with "sum" the ranks add up to one process on the joined batch,
    with "mean" they average to it.

    In the guarded form an example weighs at most 1/P̄ with P̄ the *average* number of positives, where batches have as
    many examples: at most 1 / (1 − momentum) times 1/P of its own batch.

    - `bins`: M, the number of unit regions. `momentum`: of the moving average, in [0, 1].
    - `min_count`: the examples that a region counts as at least: "positives" (the guarded form
      Σ L_CE / max(R(g), P), the default, since the published form fails on small data: docs/small-data.md), a number,
      or 0 for the published form, which `GHMC.published()` gives. `normalize`: "occupied" (the authors' code), "all"
      (the article's formula) or "none", by default "none" with a floor and "occupied" without. Both as in
      `ghmdet.functional.harmonizing_weights`.
    - `per_class`: a density, a number of examples and of positives for each of `num_classes` classes; the mean over
      elements is then the mean over classes.
    - `accumulation_steps`: the number of calls that make one optimizer step.
    - `class_weight`, `ignore_index`, `label_smoothing`: as in the function; the weights may be a list of numbers.
    - `compat`: "mmdet" gives the numbers of mmdetection 3.3.0, with all that is wrong with them (docs/mmdetection.md).
    - `reduction`: "mean" over the valid elements, "sum" or "none". `impl`: as in the function.

    Raises ValueError for options that are out of range or do not go together.

    >>> import torch
    >>> loss = GHMC()
    >>> logits = torch.tensor([[-3.0, -2.0], [0.5, -1.0]], requires_grad=True)
    >>> loss(logits, torch.tensor([2, 0])).detach()
    tensor(0.9629)
    """

    class_weight: Tensor | None

    def __init__(
        self,
        *unnamed: NoReturn,
        bins: int = 30,
        momentum: float = 0.75,
        normalize: str | None = None,
        min_count: MinCount | None = None,
        per_class: bool = False,
        num_classes: int | None = None,
        class_weight: ClassWeight = None,
        ignore_index: int = IGNORED,
        label_smoothing: float = 0.0,
        accumulation_steps: int = 1,
        compat: str | None = None,
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        _check_unnamed(
            unnamed,
            "bins=30, momentum=0.75; for a density of each class, GHMC.guarded(num_classes) makes the loss",
        )
        if per_class != (num_classes is not None):
            raise GhmdetError(
                f"per_class={per_class} with num_classes={num_classes}: a density for each class needs their number, "
                "a joint one takes none"
            )
        check_impl(impl)
        steps = accumulation_steps
        super().__init__(
            "positives", bins, momentum, normalize, min_count, num_classes, steps, reduction, compat
        )
        self.loss, self.impl = CrossEntropy(), impl
        self.register_buffer("class_weight", class_weights(class_weight))
        self.ignore_index = ignore_index
        self.label_smoothing = check_smoothing(label_smoothing)

    def _arguments(
        self, inputs: Tensor, targets: Tensor, valid: Tensor | None, weight: Tensor | None
    ) -> Arguments:
        return class_arguments(
            inputs,
            targets,
            valid,
            weight,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    @classmethod
    def published(
        cls,
        *,
        class_weight: ClassWeight = None,
        ignore_index: int = IGNORED,
        label_smoothing: float = 0.0,
        accumulation_steps: int = 1,
        reduction: str = "mean",
    ) -> GHMC:
        """The form of the authors' code, as published: one density, no floor, 30 regions, momentum 0.75."""
        return cls(
            min_count=0.0,
            class_weight=class_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            accumulation_steps=accumulation_steps,
            reduction=reduction,
        )

    @classmethod
    def guarded(
        cls,
        num_classes: int,
        *,
        class_weight: ClassWeight = None,
        ignore_index: int = IGNORED,
        label_smoothing: float = 0.0,
        accumulation_steps: int = 1,
        reduction: str = "mean",
    ) -> GHMC:
        """The form for small and imbalanced data: Σ L_CE / max(R(g), P) for each class, averaged over the classes."""
        return cls(
            per_class=True,
            num_classes=num_classes,
            class_weight=class_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            accumulation_steps=accumulation_steps,
            reduction=reduction,
        )


class SoftmaxGHMC(_Weighing):
    """Softmax cross entropy harmonized by the density of g = 1 − p_label in the batches seen.

    Called as ``loss(inputs, labels, valid=None, weight=None)`` with the arguments of
    `ghmdet.functional.softmax_ghm_loss`, once a step over everything. The moving average and the ranks are as in
    `GHMC`.

    - `num_classes`: C, the number of logits, the background's included. `background`: its label, -1 for the last,
      None where every label is an object's.
    - `min_count`: by default the guarded form: with a background "positives", Σ L / max(R(g), P); without one "mean",
      Σ L / (M max(R(g), N / M)), in which no example weighs more than in cross entropy. 0 is the published form.
      `normalize`: by default "none", "all" and "occupied" for these.
    - `per_class`: a density for the examples of each label; the mean over examples is then the mean over labels.

    The other options are as in the function and in `GHMC`. Raises ValueError for options that are out of range
    or do not go together, and for logits of another number of classes.

    >>> import torch
    >>> loss = SoftmaxGHMC(3, background=0)
    >>> loss(torch.tensor([[3.0, 0.0, 0.0], [0.5, 1.0, 0.0]], requires_grad=True), torch.tensor([0, 1])).detach()
    tensor(0.7752)
    """

    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *unnamed: NoReturn,
        background: int | None = None,
        bins: int = 30,
        momentum: float = 0.75,
        normalize: str | None = None,
        min_count: MinCount | None = None,
        per_class: bool = False,
        class_weight: ClassWeight = None,
        ignore_index: int = IGNORED,
        label_smoothing: float = 0.0,
        accumulation_steps: int = 1,
        reduction: str = "mean",
    ) -> None:
        _check_unnamed(unnamed, "background=0, bins=30, momentum=0.75")
        guard: MinCount = "mean" if background is None else "positives"
        rows = check_whole("num_classes", num_classes) if per_class else None
        super().__init__(guard, bins, momentum, normalize, min_count, rows, accumulation_steps, reduction)
        self.num_classes = num_classes
        self.background = SoftmaxCrossEntropy(background).background_of(num_classes)
        self.register_buffer("class_weight", class_weights(class_weight))
        self.ignore_index = ignore_index
        self.label_smoothing = check_smoothing(label_smoothing)

    def forward(
        self, inputs: Levels, labels: Levels, valid: Levels | None = None, weight: Levels | None = None
    ) -> Tensor:
        """The loss of logits against labels."""
        logits, label, mask, factor = join_levels(inputs, labels, valid, weight)
        check_tensors(inputs=logits)
        check_classes(logits, self.num_classes)
        softmax = SoftmaxCrossEntropy(
            self.background, self.class_weight, self.ignore_index, self.label_smoothing
        )
        return softmax.harmonized(
            logits, label, mask, factor, self.options, self.reduction, self._weigh, self._agree
        )

    def _agree(self, total: Tensor) -> Tensor:
        """A rank's share of a sum over the ranks, where they are all here."""
        return sum_over_ranks(total) / world_size() if self.spectrum.moves else total

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"num_classes={self.num_classes}, background={self.background}, {super().extra_repr()}"


class Equalized(nn.Module):
    """EQL v2 or equalized focal loss, by the gradients of each class in the training so far: the sum over the elements.

    Called as ``loss(inputs, targets, valid=None)`` with the arguments of `ghmdet.functional.ghm_c_loss`, once a
    step over everything. The batches before weigh this one; the first is plain cross entropy or focal loss. Its own
    gradients, as weighed and of all ranks, then join them, in training mode with gradients on.

    `form`: the loss of a ratio. `accumulation_steps`: as in `GHMC`.
    """

    def __init__(
        self, num_classes: int, form: type[EqlV2] | type[EqualizedFocal], *, accumulation_steps: int = 1
    ) -> None:
        super().__init__()
        self.form = form
        # One region: the negatives' gradients in place of a count.
        self.spectrum = GradientSpectrum(
            1, momentum=1.0, num_classes=num_classes, accumulation_steps=accumulation_steps
        )

    def forward(self, inputs: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits against targets."""
        arguments, before = class_arguments(inputs, targets, valid), self.spectrum.compute()
        check_classes(inputs, self.spectrum.num_classes)
        logits, dense, mask = arguments.elements()
        negative, positive = before.regions[:, 0], before.positives
        ratio = torch.where(negative > 0, positive / negative, 100.0)  # as EQL v2's authors begin
        loss = self.form(ratio.view(1, -1, *[1] * (inputs.dim() - 2)))
        if self.spectrum.moves:
            norm = torch.where(mask, loss.norm(logits.detach(), dense), 0.0)
            negative, positive = (populations(norm * t, True).sum(1).float() for t in (1 - dense, dense))
            sums = torch.stack((negative, negative + positive, positive), dim=1)
            self.spectrum.update(RegionCounts(sum_over_ranks(sums)))
        return arguments.reduce(loss(logits, dense), "sum")


class GHMR(_Harmonized):
    """GHM-R: authentic smooth L1 harmonized by the gradient density of the batches seen.

    Called as ``loss(inputs, targets, valid=None, weight=None)`` with the arguments of
    `ghmdet.functional.ghm_r_loss`, once a step over everything. `mu` is μ of ASL_1. `min_count` is "mean" (the
    guarded form Σ ASL_1 / (M max(R(gr), N / M)), in which no coordinate weighs more than in ASL1; the default), a
    number of examples, or 0 for the published form, which `GHMR.published()` gives. `normalize` is by default "all"
    with a floor and "occupied" without. The other options, the moving average and the ranks are as in `GHMC`.

    Raises ValueError for options that are out of range or do not go together.

    >>> import torch
    >>> loss = GHMR()
    >>> loss(torch.tensor([[0.0, 0.1]], requires_grad=True), torch.zeros(1, 2)).detach()
    tensor(0.0082)
    """

    _arguments = staticmethod(regression_arguments)

    def __init__(
        self,
        *unnamed: NoReturn,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0.7,
        normalize: str | None = None,
        min_count: MinCount | None = None,
        accumulation_steps: int = 1,
        compat: str | None = None,
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        _check_unnamed(unnamed, "mu=0.02, bins=10, momentum=0.7")
        check_positive("mu", mu)
        check_impl(impl)
        super().__init__(
            "mean", bins, momentum, normalize, min_count, None, accumulation_steps, reduction, compat
        )
        self.loss, self.impl, self.mu = Asl1(mu), impl, mu

    @classmethod
    def published(cls, *, accumulation_steps: int = 1, reduction: str = "mean") -> GHMR:
        """The form of the authors' code, as published: no floor, μ = 0.02, 10 regions, momentum 0.7."""
        return cls(min_count=0.0, accumulation_steps=accumulation_steps, reduction=reduction)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"mu={self.mu}, {super().extra_repr()}"
