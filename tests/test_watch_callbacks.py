"""The scalars of `ghmdet.watch` in the logs of Lightning, of transformers' Trainer and of accelerate's trackers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import ghmdet
from ghmdet.errors import GhmdetError

torch.manual_seed(0)
INPUTS, LABELS = torch.randn(12, 5), torch.randint(0, 3, (12,))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.criterion = nn.Linear(5, 3), nn.CrossEntropyLoss()

    def forward(self, inputs, labels):
        logits = self.layer(inputs)
        return {"loss": self.criterion(logits, labels), "logits": logits}


def watched(model: Classifier):
    watch = ghmdet.watch(3, softmax=True)
    watch.follow(model.criterion)
    return watch


def first_epoch() -> dict[str, float]:
    """What one pass over the data without learning shows."""
    watch = ghmdet.watch(3, softmax=True)
    watch(Classifier()(INPUTS, LABELS)["logits"], LABELS)
    watch.end_epoch()
    return watch.scalars()


def test_lightning_logs_them_after_each_epoch(tmp_path: Path) -> None:
    lightning = pytest.importorskip(
        "lightning.pytorch", reason="lightning is not installed: pip install lightning"
    )

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.seen = Classifier(), []

        def training_step(self, batch, number):
            return self.model(*batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def on_train_epoch_end(self):
            self.seen.append(dict(self.trainer.callback_metrics))

    module = Module()
    watch = watched(module.model)
    trainer = lightning.Trainer(
        max_epochs=2,
        callbacks=[watch.lightning_callback()],
        default_root_dir=tmp_path,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    loader = torch.utils.data.DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4)
    trainer.fit(module, loader)
    assert len(watch.epochs.pictures) == 2
    for name, value in first_epoch().items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(value)


def test_the_trainer_of_transformers_logs_them_after_each_epoch(tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install ghmdet[detr]"
    )
    model = Classifier()
    watch = watched(model)
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    rows = [{"inputs": x, "labels": y} for x, y in zip(INPUTS, LABELS, strict=True)]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.add_callback(watch.trainer_callback(trainer))
    trainer.train()
    logged = [row for row in trainer.state.log_history if "pull/objects" in row]
    assert [row["epoch"] for row in logged] == [1, 2]
    for name, value in first_epoch().items():
        assert logged[0][name] == pytest.approx(value)


def test_the_trackers_of_accelerate_take_them(tmp_path: Path) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: pip install ghmdet[tensorboard]",
    )
    from accelerate import Accelerator

    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path, cpu=True)
    accelerator.init_trackers("run")
    accelerator.log(first_epoch(), step=3)
    accelerator.end_training()
    found = events.EventAccumulator(str(tmp_path / "run")).Reload()
    for name, value in first_epoch().items():
        (event,) = found.Scalars(name)
        assert (event.step, event.value) == (3, pytest.approx(value))


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GhmdetError, match="pip install lightning"):
        ghmdet.watch(3).lightning_callback()
    with pytest.raises(GhmdetError, match=r"pip install ghmdet\[detr\]"):
        ghmdet.watch(3).trainer_callback(None)
