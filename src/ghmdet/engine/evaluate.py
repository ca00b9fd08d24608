"""Detections over a data set as COCO results, and their score."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghmdet.data import DetectionData, DetectionDataset, eval_transforms, make_loader, read_data
from ghmdet.engine.checkpoint import load_checkpoint
from ghmdet.engine.device import Device, choose_device
from ghmdet.engine.progress import counting
from ghmdet.engine.run_folder import write_json
from ghmdet.engine.settings import check_numbers
from ghmdet.evaluation.score import Metrics, score
from ghmdet.models import RetinaNet, model_from_state


def coco_results(
    detections: dict[str, Tensor], image_id: int, category_ids: tuple[int, ...]
) -> list[dict[str, Any]]:
    """One picture's detections (boxes [n, 4] xyxy pixels, scores [n], labels [n]) as COCO results (xywh boxes)."""
    boxes = detections["boxes"].float().cpu()
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 3) for value in box],
            "score": round(certainty, 6),
        }
        for box, label, certainty in zip(
            xywh.tolist(), detections["labels"].tolist(), detections["scores"].tolist(), strict=True
        )
    ]


def original_results(
    detections: dict[str, Tensor], image: Tensor, target: dict[str, Any], category_ids: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The detections on an image [3, H, W] of a `DetectionDataset`, as COCO results in the file's own pixels."""
    to_original = target["original_size"] / torch.tensor(image.shape[-2:])  # height, width
    boxes = detections["boxes"].float().cpu() * to_original.flip(0).repeat(2)
    return coco_results(detections | {"boxes": boxes}, target["image_id"], category_ids)


@torch.inference_mode()
def detect(
    model: RetinaNet,
    data: DetectionData,
    *,
    device: Device,
    batch_size: int = 16,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    advance: Callable[[int], None] = lambda pictures: None,
    batches: int | None = None,
) -> list[dict[str, Any]]:
    """Detect on this rank's share of the pictures of `data`, in original pixels, as COCO results.

    Args:
        model: a detector on `device`; its mode is restored.
        data: the pictures; their boxes are not looked at.
        device: device and precision to run with.
        batch_size: pictures at a time.
        workers: processes that read pictures.
        rank: which share, of `world_size` equal ones.
        world_size: how many processes share the pictures.
        advance: called with the number of pictures just finished.
        batches: stop after so many batches; by default after all.
    """
    was_training = model.training
    model.eval()
    dataset = DetectionDataset(
        data, eval_transforms(model.config.min_size, model.config.max_size), cache=False
    )
    loader = make_loader(
        dataset, batch_size=batch_size, shuffle=False, workers=workers, rank=rank, world_size=world_size
    )
    results = []
    for images, targets in islice(loader, batches):
        if not images:  # the last batch had no picture for this rank
            continue
        with device.autocast():
            batch = model([image.to(device.type, non_blocking=True) for image in images])
        for image, target, detections in zip(images, targets, batch, strict=True):
            results += original_results(detections, image, target, data.category_ids)
        advance(len(images))
    model.train(was_training)
    return results


def validate(
    checkpoint: Path,
    data: Path,
    /,
    *,
    split: str = "val",
    out: Path | None = None,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> Metrics:
    """Score a checkpoint on a part of a data set; writes `metrics.json` and `predictions.json` (COCO results).

    Args:
        checkpoint: A `best.pt` or `last.pt` of a training run.
        data: Folder of the data set, or a COCO annotations file.
        split: Part of the data set to score.
        out: Folder to write; by default `SPLIT/` beside the checkpoint.
        batch_size: Pictures at a time.
        workers: Processes that read pictures.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        say: Takes each line meant for the user.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: the data cannot be read.
        GhmdetError: the device is not there.
    """
    check_numbers(batch_size=batch_size, workers=workers)
    chosen = choose_device(device, precision)
    model = (
        model_from_state(load_checkpoint(checkpoint)).to(chosen.type).to(memory_format=torch.channels_last)
    )
    part = read_data(data, split, classes=model.classes)
    say(part.describe())
    out = Path(checkpoint).parent / part.split if out is None else Path(out)
    with counting("pictures", len(part.records)) as advance:
        results = detect(model, part, device=chosen, batch_size=batch_size, workers=workers, advance=advance)
    metrics = score(part.to_coco(), results)
    about = {"checkpoint": str(checkpoint), "data": str(data), "split": part.split}
    write_json(out / "predictions.json", results)
    write_json(out / "metrics.json", about | metrics.to_dict())
    say(metrics.table())
    say(f"written: {out / 'metrics.json'}, {out / 'predictions.json'}")
    return metrics
