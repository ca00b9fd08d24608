"""`ghmdet val`: the score of a trained detector on a part of a data set."""

from collections.abc import Callable
from pathlib import Path

from ghmdet.data import read_data
from ghmdet.data.fingerprint import scored
from ghmdet.engine.checkpoint import changed_since, trained_on
from ghmdet.engine.detect import Detector, detect
from ghmdet.engine.run_folder import require_own, results_folder, write_json, write_predictions
from ghmdet.evaluation.score import Metrics, score
from ghmdet.files import checkpoint_file, content_digest, hold
from ghmdet.options import BATCH_SIZE, WORKERS
from ghmdet.progress import counting


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
        checkpoint: A training run's folder, which means its `best.pt`, or a `best.pt` or `last.pt`.
        data: Folder of the data set, or its COCO .json or YOLO data.yaml.
        split: Part of the data set to score.
        out: Folder to write; by default beside the checkpoint: `SPLIT/` for the data that the run was trained on,
            `SPLIT-NAME/` for another data set NAME.
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
    BATCH_SIZE.check("batch_size", batch_size)
    WORKERS.check("workers", workers)
    checkpoint = checkpoint_file(checkpoint)
    detector = Detector.load(checkpoint, device=device, precision=precision)
    part = read_data(data, split, classes=detector.classes)
    say(part.describe())
    out = results_folder(checkpoint.parent, data, part.split) if out is None else Path(out)
    require_own(out, "val")
    with hold(out):  # a wrong name is an error before the work
        with counting("pictures", len(part.records)) as advance:
            results = detect(
                detector.model,
                part,
                device=detector.device,
                batch_size=batch_size,
                workers=workers,
                advance=advance,
            )
        truth = part.to_coco()
        metrics = score(truth, results)
        about = {"checkpoint": str(checkpoint), "data": str(data.absolute()), "split": part.split}
        write_json(out / "metrics.json", about)  # a kill leaves no old figures beside new predictions
        write_predictions(out / "predictions.json", results, truth)
        about |= {"checkpoint_digest": content_digest(checkpoint), "digest": scored(part)}
        write_json(out / "metrics.json", about | metrics.to_dict())
    say(metrics.table())
    run = checkpoint.parent
    for warning in filter(None, (trained_on(run, part), changed_since(run, data, part))):
        say(f"Warning: {warning}")
    say(f"written: {out / 'metrics.json'}, {out / 'predictions.json'}")
    return metrics
