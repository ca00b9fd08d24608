"""The DETRs of transformers whose scores are sigmoids: Deformable, Conditional, DAB, RT-DETR, D-FINE.

Their models call a loss function, which makes a criterion in each step. The model gets a loss function of its own, a
module: it runs the library's function with another criterion, whose class losses are the module's, one for each output.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ghmdet.integrations.adapters import Adapter, Choice, class_loss, install, refuse

TESTED = ("5.24",)
# The class loss in the criterion, and what it is called among the losses.
CLASS_LOSSES = {"labels": "loss_ce", "vfl": "loss_vfl"}


class HarmonizedDetrLoss(nn.Module):
    """A model's loss function, its class loss harmonized: a loss for the last decoder layer, then each other output.

    loss_type: the name of the library's function. losses: as many as a step has outputs with class scores.
    """

    def __init__(self, loss_type: str, losses: Iterable[nn.Module], cls_weight: float) -> None:
        super().__init__()
        self.loss_type, self.cls_weight = loss_type, cls_weight
        self.ghm_c = nn.ModuleList(losses)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the library's function gives."""
        from transformers.loss.loss_utils import LOSS_MAPPING

        function = LOSS_MAPPING[self.loss_type]
        name = criterion_name(function)
        plain, losses = function.__globals__[name], iter(self.ghm_c)

        def criterion(*given: Any, **named: Any) -> Any:
            made = _harmonized(plain)(*given, **named)
            made.ghm_c, made.cls_weight = losses, self.cls_weight
            return made

        # The same code, for which one name means ours.
        again = FunctionType(
            function.__code__, function.__globals__ | {name: criterion}, argdefs=function.__defaults__
        )
        return again(*arguments, **options)


def criterion_name(function: Any) -> str:
    """What a loss function calls the class of its criterion, empty where it has none that is known."""
    names = ("DeformableDetrImageLoss", "RTDetrLoss", "DFineLoss")
    return next((name for name in names if name in function.__code__.co_names), "")


@cache
def _harmonized(plain: type[Any]) -> type[Any]:
    class Harmonized(plain):  # type: ignore[misc]
        ghm_c: Iterator[nn.Module]
        cls_weight: float

        def get_loss(
            self, loss: str, outputs: dict[str, Tensor], targets: Any, indices: Any, num_boxes: float
        ) -> Any:
            if loss not in CLASS_LOSSES:
                return super().get_loss(loss, outputs, targets, indices, num_boxes)
            logits = outputs["logits"]
            labels = torch.full(logits.shape[:2], logits.shape[-1], device=logits.device)
            labels[self._get_source_permutation_idx(indices)] = torch.cat(
                [one["class_labels"][j] for one, (_, j) in zip(targets, indices, strict=True)]
            )
            value = class_loss(next(self.ghm_c), logits.flatten(0, 1), labels.flatten())
            return {CLASS_LOSSES[loss]: self.cls_weight * value}

    return Harmonized


def _apply(model: Any, choice: Choice) -> None:
    if hasattr(model, "_loss_function"):
        raise refuse(
            model, "has a loss function of its own, or is harmonized already: unharmonize(model) first"
        )
    if choice.box is not None:
        raise refuse(model, "has no harmonized box loss", "leave box=None")
    config = model.config
    outputs = config.decoder_layers if config.auxiliary_loss else 1
    if config.auxiliary_loss and hasattr(
        config, "num_denoising"
    ):  # the encoder's too, and those that denoise
        outputs += 1 + (config.decoder_layers if config.num_denoising else 0)
    losses = [choice.sigmoid_loss(config.num_labels) for _ in range(outputs)]
    install(model, {"_loss_function": HarmonizedDetrLoss(model.loss_type, losses, choice.cls_weight)})


def _undo(model: Any) -> None:
    if not isinstance(getattr(model, "_loss_function", None), HarmonizedDetrLoss):
        raise refuse(model, "is not harmonized", "harmonize(model) does that")
    del model._loss_function


def adapters() -> dict[type[nn.Module], Adapter]:
    """The adapters of this library; imports it."""
    import transformers

    names = ("DeformableDetr", "ConditionalDetr", "DabDetr", "RTDetr", "RTDetrV2", "DFine")
    adapter = Adapter(_apply, _undo, TESTED)
    return {getattr(transformers, f"{name}ForObjectDetection"): adapter for name in names}
