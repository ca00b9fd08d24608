"""What a picture costs in PyTorch, in onnxruntime and in 8 bits, beside other small detectors, in one run.

    ghmdet export best.pt --out x.onnx
    python benchmarks/export_latency.py best.pt x.onnx PICTURE --threads 1 --other yolo11n one.onnx eight.onnx
    python benchmarks/export_latency.py --table

The networks get the pixels that the picture is scaled to, 1 and 8 pictures at a time, and random weights but
for ours. `--other` adds ONNX files made elsewhere, for 1 and for 8 pictures of that size. Everything takes turns, and a
figure is the median in ms a picture: of the processor's time on one thread, of the clock's on several. The row goes to
results/export_latency.jsonl.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from torch import nn
from torchvision.models import detection

from ghmdet import Detector, runtime
from ghmdet.engine.quantize import quantize
from ghmdet.models.exportable import Exportable
from rows import all_rows, append_row, today

NOTHING = {"weights": None, "weights_backbone": None, "num_classes": 4}
PEERS = {
    "SSDlite": lambda: detection.ssdlite320_mobilenet_v3_large(**NOTHING),
    "RetinaNet R50": lambda: detection.retinanet_resnet50_fpn(**NOTHING),
}
Ways = dict[str, Callable[[], object]]


class Network(nn.Module):
    """Backbone and head of a torchvision detector."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.eval().backbone, model.head

    def forward(self, images: torch.Tensor) -> object:
        return self.head(list(self.backbone(images).values()))


def measure(ways: Ways, threads: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each, the median of rounds that take all in turn."""
    clock = time.process_time if threads == 1 else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 2):
        for name, way in ways.items():
            time.sleep(
                0.1
            )  # the threads of the one before wait for more work on the core that this one needs
            start = clock()
            way()
            spent[name].append(1e3 * (clock() - start))
    return {name: statistics.median(times[2:]) for name, times in spent.items()}  # the first ones allocate


def session(content: bytes | str, threads: int, images: np.ndarray) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    opened = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = {opened.get_inputs()[0].name: images}
    return lambda: opened.run(None, given)


def to_onnx(network: nn.Module, images: torch.Tensor) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(network, (images,), input_names=["images"], dynamo=True, verbose=False)
    return made.model_proto.SerializeToString()


def networks(eager: Detector, images: np.ndarray, threads: int, others: list[list[str]]) -> Ways:
    """Everything from normalised pictures to scores and offsets of all anchors."""
    tensor = torch.from_numpy(images).to(memory_format=torch.channels_last)
    content = to_onnx(Exportable(eager.model, detections=False), torch.from_numpy(images))
    small = quantize(content, [{"images": images}])
    compiled = torch.compile(eager.model.forward_raw)
    ways: Ways = {
        "nano, PyTorch": lambda: eager.model.forward_raw(tensor),
        "nano, compiled": lambda: compiled(tensor),
        "nano, onnxruntime": session(content, threads, images),
        "nano, int8": session(small, threads, images),
    }
    for name, make in PEERS.items():
        peer = Network(make())
        ways[f"{name}, PyTorch"] = lambda peer=peer: peer(tensor)
        ways[f"{name}, onnxruntime"] = session(to_onnx(peer, torch.from_numpy(images)), threads, images)
    for name, *files in others:
        ways[f"{name}, onnxruntime"] = session(files[len(images) > 1], threads, images)
    return ways


def table() -> str:
    """The table of docs/export.md, from the last row of each number of threads."""
    rows = {row["threads"]: row for row in all_rows("export_latency")}
    columns = [(row, batch) for _, row in sorted(rows.items()) for batch in ("batch 1", "batch 8")]
    heads = [f"{batch}, {row['threads']} thread{'s' * (row['threads'] > 1)}" for row, batch in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(columns)) + "|"]
    for name in columns[0][0]["batch 1"]:
        cells = [name, *(f"{row[batch][name]:.1f}" for row, batch in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    if sys.argv[1:] == ["--table"]:
        print(table())
        return
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "exported", "picture"):
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--other", nargs=3, action="append", default=[], metavar=("NAME", "ONE", "EIGHT"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    eager = Detector.load(given.checkpoint, device="cpu", precision="fp32")
    onnx = runtime.Detector(given.exported, device="cpu", threads=given.threads)
    picture = runtime.read(given.picture)
    one, _ = runtime.prepare(picture, onnx.about)
    row = {"date": today(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    row |= {"threads": given.threads, "load": round(os.getloadavg()[0], 1), "pixels": list(one.shape[2:])}
    whole: Ways = {
        "PyTorch": lambda: eager.predict(picture),
        "onnxruntime": lambda: onnx.predict(picture),
    }
    times = measure(whole, given.threads, given.rounds)
    row["whole"] = {name: round(spent, 2) for name, spent in times.items()}
    for pictures, rounds in ((1, given.rounds), (8, max(3, given.rounds // 3))):
        ways = networks(eager, one.repeat(pictures, 0), given.threads, given.other)
        times = measure(ways, given.threads, rounds)
        row[f"batch {pictures}"] = {name: round(spent / pictures, 2) for name, spent in times.items()}
    append_row("export_latency", row)


if __name__ == "__main__":
    main()
