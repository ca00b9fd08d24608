"""Which model is harmonized how: one adapter for each type of model, found when a model of that type is given."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.losses import GHMC, GHMR, SoftmaxGHMC

Model = TypeVar("Model", bound=nn.Module)
CLASS_LOSSES = ("ghm-c", "ghm-c-joint", "ghm-c-published")
BOX_LOSSES = ("ghm-r", "ghm-r-published")
BY_HAND = "docs/integrations.md, 'By hand', has what to write instead"
# Each library's adapters are imported with the first model of it.
LIBRARIES = {
    "torchvision": "ghmdet.integrations.torchvision",
    "transformers": "ghmdet.integrations.transformers",
}


class Choice(NamedTuple):
    """The losses that a user chose, by the names of the detector's own (see `harmonize`)."""

    cls: str = "ghm-c"
    box: str | None = None
    cls_weight: float = 1.0
    box_weight: float = 1.0

    def sigmoid_loss(self, classes: int) -> GHMC:
        """The class loss of so many logits that each say yes or no."""
        if self.cls == "ghm-c":
            return GHMC.guarded(classes)
        return GHMC() if self.cls == "ghm-c-joint" else GHMC.published()

    def softmax_loss(self, classes: int, background: int) -> SoftmaxGHMC:
        """The class loss of a softmax over so many labels, that of the background among them."""
        floor = 0.0 if self.cls == "ghm-c-published" else None
        return SoftmaxGHMC(classes, background=background, min_count=floor, per_class=self.cls == "ghm-c")

    def box_loss(self) -> GHMR | None:
        """The box loss, None where the model keeps its own."""
        return None if self.box is None else GHMR() if self.box == "ghm-r" else GHMR.published()


class Adapter(NamedTuple):
    """How models of one type are harmonized, and made as they were.

    `apply(model, choice)` puts the chosen losses into the model, as submodules, so that state dict, device and training
    mode follow; `undo(model)` takes them out. `tested`: the versions of the model's library that it was tested with, by
    their first two numbers; none where that does not matter.
    """

    apply: Callable[[Any, Choice], None]
    undo: Callable[[Any], None]
    tested: tuple[str, ...] = ()


_ADAPTERS: dict[type[nn.Module], Adapter] = {}


def register_adapter(model_type: type[nn.Module], adapter: Adapter) -> None:
    """Have `harmonize` treat models of a type, and of types derived from it, by the adapter given last."""
    _ADAPTERS[model_type] = adapter


def harmonize(
    model: Model,
    cls: str = "ghm-c",
    box: str | None = None,
    *,
    cls_weight: float = 1.0,
    box_weight: float = 1.0,
    any_version: bool = False,
) -> Model:
    """Put harmonized losses in the place of a model's own, and return the model; nothing else of it changes.

    The density is one over the whole batch and all levels; DETR's decoder layers have one each. The losses are
    submodules of the model. Known are torchvision's RetinaNet, FCOS, SSD and Faster R-CNN (its RPN), and those DETRs of
    transformers whose scores are sigmoids.

    - `cls`: "ghm-c" (guarded, a density for each class), "ghm-c-joint" (guarded, one density) or "ghm-c-published".
    - `box`: "ghm-r", "ghm-r-published", or None, which keeps the model's own box loss.
    - `cls_weight`, `box_weight`: numbers that the losses are multiplied by; they are of another size than the model's
      own (docs/integrations.md).
    - `any_version`: do so also with a version of the library that the adapter was not tested with.

    Raises GhmdetError for a model of an unknown type, or one that is harmonized already; for a library of an untested
    version; for a name that is unknown or a box loss that the model cannot have.
    """
    if cls not in CLASS_LOSSES:
        raise unknown_name("class loss", cls, CLASS_LOSSES)
    if box is not None and box not in BOX_LOSSES:
        raise unknown_name("box loss", box, BOX_LOSSES)
    adapter, library = _find(model)
    if adapter.tested and not any_version:
        present = version(library)
        if ".".join(present.split(".")[:2]) not in adapter.tested:
            raise GhmdetError(
                f"{library} {present} was not tested with, only {', '.join(adapter.tested)}: give any_version=True and "
                f"compare a step's loss with one computed by hand; {BY_HAND}"
            )
    adapter.apply(model, Choice(cls, box, cls_weight, box_weight))
    return model


def unharmonize(model: Model) -> Model:
    """Give a harmonized model its own losses back, and return it. Raises GhmdetError for one that is not harmonized."""
    _find(model)[0].undo(model)
    return model


def refuse(model: nn.Module, reason: str, mend: str = BY_HAND) -> GhmdetError:
    """The error for a model that cannot be harmonized."""
    return GhmdetError(f"{type(model).__name__} {reason}: {mend}")


def install(owner: nn.Module, losses: dict[str, nn.Module]) -> None:
    """Make losses submodules of a part of a model, on its device and in its mode."""
    device = next((tensor.device for tensor in owner.parameters()), torch.device("cpu"))
    for name, loss in losses.items():
        owner.add_module(name, loss.to(device).train(owner.training))


def class_loss(loss: Any, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """A sigmoid loss of logits [N, K] against labels [N], K for background, negative for ignored, K = 1 too.

    `weight`, [N] or [N, K], multiplies the loss; what it gives 0 does not count.
    """
    valid = None if weight is None else weight > 0
    if logits.shape[1] > 1:
        return loss(logits, labels, valid, weight)  # type: ignore[no-any-return]
    counted = labels >= 0
    if valid is not None:
        counted &= valid.view_as(labels)
    return loss(logits, (labels == 0).unsqueeze(1), counted, weight)  # type: ignore[no-any-return]


def _find(model: nn.Module) -> tuple[Adapter, str]:
    types: Sequence[type] = type(model).__mro__
    for library, module in LIBRARIES.items():
        if any(one.__module__.split(".")[0] == library for one in types):
            for known, adapter in import_module(module).adapters().items():
                _ADAPTERS.setdefault(known, adapter)  # a user's own stays
    for one in types:
        if one in _ADAPTERS:
            return _ADAPTERS[one], one.__module__.split(".")[0]
    raise refuse(model, "is no model that is known here: register_adapter teaches another")
