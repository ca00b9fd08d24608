"""See which examples pull at any model: count the gradient norms of its logits, and write the report's page of them."""

import inspect
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghmdet.errors import GhmdetError
from ghmdet.functional._arguments import (
    IGNORED,
    Levels,
    class_arguments,
    join_levels,
    softmax_arguments,
    wide,
)
from ghmdet.functional.gradient_norm import sigmoid_norm, softmax_norm
from ghmdet.functional.softmax import SoftmaxCrossEntropy
from ghmdet.report.page import write_gradient_page
from ghmdet.spectrum import BACKGROUND, OBJECTS, SpectrumCounts, SpectrumSums, sum_over_ranks, world_size

NOT_COUNTED = 2


class Watch:
    """Counts what a model's class loss is given, epoch by epoch; `ghmdet.watch` makes one.

    Nothing waits for an accelerator until an epoch ends. Each rank counts its own examples; `end_epoch` and `report`
    add them up, so every rank must call them.
    """

    def __init__(
        self, classes: Sequence[str], softmax: bool, background: int | None, ignore_index: int
    ) -> None:
        self.classes, self.softmax, self.ignore_index = tuple(classes), softmax, ignore_index
        if background is not None and not softmax:
            raise GhmdetError("background is a label of a softmax: give softmax=True, or leave it")
        self.logits = len(self.classes) + (background is not None)
        self.background = SoftmaxCrossEntropy(background).background_of(self.logits)
        self.epochs = SpectrumCounts.empty(self.classes, (1,))[:0]
        self.sums: SpectrumSums | None = None
        self.broken: Tensor | int = 0

    @torch.no_grad()
    def __call__(self, logits: Levels, targets: Levels, valid: Levels | None = None) -> None:
        """Count a batch: the arguments of `ghmdet.functional.ghm_c_loss`, or of ``softmax_ghm_loss``.

        Examples with a score that is no number (NaN, or infinite in a softmax), as a step that is left out in fp16 may
        have, are not counted.
        """
        x, wanted, mask, _ = join_levels(logits, targets, valid, None)
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != self.logits:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise GhmdetError(
                f"logits are {shape}, where {self.logits} classes along dimension 1 are watched: {self.classes}"
            )
        if self.sums is None or self.sums.tables["examples"].device != x.device:
            kept = {} if self.sums is None else self.sums.tables
            self.sums = SpectrumSums(self.classes, (1,), x.device)
            for name, table in kept.items():
                self.sums.tables[name] += table.to(x.device)
        self.sums.tables["pictures"] += x.shape[0]
        broken = x.isnan().any(1)
        if self.softmax:  # of which no probabilities can be had
            broken |= (x == torch.inf).any(1) | (x == -torch.inf).all(1)
        told = broken
        if wanted.shape == broken.shape:
            told = told & (wanted >= 0) & (wanted != self.ignore_index)
        if mask is not None and mask.shape == broken.shape:
            told = told & mask.bool()
        self.broken = self.broken + told.sum()
        sound = ~broken if mask is None or mask.dim() < x.dim() else ~broken[:, None]
        x = (
            x.masked_fill(broken.unsqueeze(1), 0.0)
            if self.softmax
            else x.nan_to_num(0.0, torch.inf, -torch.inf)
        )
        mask = sound if mask is None else sound & mask.bool()
        if self.softmax:
            self._add_softmax(self.sums, x, wanted, mask)
            return
        found = class_arguments(
            x, wanted, mask, ignore_index=self.ignore_index if wanted.dim() < x.dim() else IGNORED
        )
        rows = _rows(x)
        if found.labels and (found.valid is None or found.valid.dim() < x.dim()):
            label = found.targets.reshape(-1)
            if found.valid is not None:
                label = label.where(found.valid.reshape(-1), IGNORED)
            self.sums.add_labels(rows, label)
            return
        inputs, dense, counted = (_rows(each) for each in found.elements())
        kind = torch.where(dense >= 0.5, OBJECTS, BACKGROUND).masked_fill(~counted, NOT_COUNTED)
        self.sums.add_norms(
            sigmoid_norm(inputs, dense), kind, torch.arange(x.shape[1], device=x.device).expand_as(kind)
        )

    def _add_softmax(self, sums: SpectrumSums, x: Tensor, labels: Tensor, mask: Tensor | None) -> None:
        found = softmax_arguments(x, labels, mask, ignore_index=self.ignore_index)
        assert found.valid is not None
        counted, rows = found.valid.reshape(-1), _rows(x).to(wide(x))
        label = found.targets.reshape(-1).long().masked_fill(~counted, 0)
        norm, row = softmax_norm(rows, label), label
        kind = torch.full_like(label, OBJECTS)
        if self.background is not None:
            is_background = label == self.background
            kind = kind.masked_fill(is_background, BACKGROUND)
            # Background counts for the class that the model most takes it for.
            rows = rows.index_fill(
                1, torch.arange(self.background, self.background + 1, device=x.device), -torch.inf
            )
            row = torch.where(is_background, rows.argmax(1), label)
            row = row - (row > self.background).long()
        kind = kind.masked_fill(~counted, NOT_COUNTED)
        sums.add_norms(norm.where(counted, 0)[:, None], kind[:, None], row[:, None])

    def follow(self, loss: nn.Module) -> Any:
        """Count whatever a loss module is called with in training mode; the handle, whose `remove()` ends it.

        For modules that are called as ``loss(logits, targets)``: torch's own, GHMC, and those of a harmonized model.
        """
        return loss.register_forward_pre_hook(self._seen, with_kwargs=True)

    def _seen(self, loss: nn.Module, given: tuple[Any, ...], by_name: dict[str, Any]) -> None:
        if loss.training:
            names = list(inspect.signature(loss.forward).parameters)[:3]
            self(*given[:3], *(by_name[name] for name in names[len(given) :] if name in by_name))

    def end_epoch(self) -> SpectrumCounts:
        """End the epoch, which becomes a row of the page, and begin the next; its counts.

        Warns of examples that were left out, since a score was no number. Raises GhmdetError where a target was none,
        with which the epoch cannot be told and is dropped.
        """
        sums, self.sums = self.sums or SpectrumSums(self.classes, (1,), torch.device("cpu")), None
        broken, self.broken = torch.as_tensor(self.broken, device=sums.tables["pictures"].device), 0
        for name, table in sums.tables.items():
            sums.tables[name] = sum_over_ranks(table)
        if count := int(sum_over_ranks(broken)):
            warnings.warn(
                f"{count} examples of the epoch are left out: scores that are no numbers (NaN, or infinite in a"
                " softmax)",
                stacklevel=2,
            )
        sums.check()
        over = sums.counts()
        self.epochs = SpectrumCounts.stack([self.epochs, over])
        return over

    def scalars(self) -> dict[str, float]:
        """The last epoch that ended as a few numbers by name, for any logger; none before the first ends.

        - `pull/background`, `pull/objects`, `class/NAME` of each class: its share of all that pulls (of the sum of g).
          In NAME, `_` stands for signs that MLflow refuses; a name that comes twice has its label behind it.
        - `g/background`, `g/objects`: the mean of g. `hardest/...`: the share of the sum of g at g >= 29/30.
        """
        if not len(self.epochs.pictures):
            return {}
        examples, gradient = (each[-1].sum(axis=2) for each in (self.epochs.examples, self.epochs.gradient))
        whole, found = max(float(gradient.sum()), 1e-30), dict[str, float]()
        for kind, name in ((BACKGROUND, "background"), (OBJECTS, "objects")):
            pull = float(gradient[kind].sum())
            found[f"pull/{name}"] = pull / whole
            found[f"g/{name}"] = pull / max(int(examples[kind].sum()), 1)
            found[f"hardest/{name}"] = float(gradient[kind, :, -1].sum()) / whole
        for k, pull in enumerate(gradient.sum(axis=(0, 2)).tolist()):
            name = "class/" + re.sub(r"[^\w.\- ]|^\.*$", "_", self.classes[k])
            found[f"{name} {k}" if name in found else name] = pull / whole
        return found

    def lightning_callback(self) -> Any:
        """A callback for Lightning's `Trainer`: `end_epoch()` and `log_dict(scalars())` after each training epoch.

        Raises GhmdetError where neither `lightning` nor `pytorch_lightning` is installed.
        """
        try:
            from lightning.pytorch import Callback
        except ImportError:
            try:
                from pytorch_lightning import Callback
            except ImportError:
                raise GhmdetError("this needs Lightning: pip install lightning") from None

        def end(callback: Any, trainer: Any, module: Any) -> None:
            self.end_epoch()
            module.log_dict(self.scalars())

        return type("WatchCallback", (Callback,), {"on_train_epoch_end": end})()

    def trainer_callback(self, trainer: Any) -> Any:
        """A callback for `trainer`, a `Trainer` of transformers: `end_epoch()` and `trainer.log(scalars())` each epoch.

        Give it to `trainer.add_callback`. Raises GhmdetError where transformers is not installed.
        """
        try:
            from transformers import TrainerCallback
        except ImportError:
            raise GhmdetError("this needs transformers: pip install ghmdet[detr]") from None

        def end(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.end_epoch()
            trainer.log(self.scalars())

        return type("WatchCallback", (TrainerCallback,), {"on_epoch_end": end})()

    def report(self, out: Path | str, name: str = "What pulls at this model") -> Path:
        """Write the page, with what was counted since the last epoch as one more; the file.

        Raises GhmdetError where nothing was counted, OSError.
        """
        if self.sums is not None or world_size() > 1:  # another rank may have seen some
            self.end_epoch()
        if not self.epochs.examples.any():
            raise GhmdetError(
                f"{out}: no example was counted yet: call watch(logits, targets) in each training step, or"
                " watch.follow(loss) before training, which counts while the loss is in training mode"
            )
        return write_gradient_page(self.epochs, Path(out), name)


def watch(
    classes: Sequence[str] | int,
    *,
    softmax: bool = False,
    background: int | None = None,
    ignore_index: int = IGNORED,
) -> Watch:
    """A counter of the gradient norms of any model's class scores, ``watch(logits, targets)`` in each training step.

    - `classes`: their names, or how many there are.
    - `softmax`: the scores are a softmax, and g = 1 − p_label; else sigmoids, and g = |p − p*|.
    - `background`: of a softmax, the background's label (-1: the last), which is not among the classes; its examples
      count for the class that the model most takes them for.
    - `ignore_index`: a label that is not counted, as negative ones are not.

    >>> seen = watch(["cat", "dog"])
    >>> seen(torch.tensor([[4.0, -4.0], [-4.0, -4.0]]), torch.tensor([0, 2]))
    >>> seen.end_epoch().examples.sum(axis=(0, 2, 3, 4)).tolist()  # background, objects
    [3, 1]
    """
    names = [f"class {k}" for k in range(classes)] if isinstance(classes, int) else list(classes)
    if not names:
        raise GhmdetError("classes: at least one is needed")
    return Watch(names, softmax, background, ignore_index)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])
