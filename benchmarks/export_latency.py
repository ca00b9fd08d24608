"""A picture's cost in PyTorch and in onnxruntime, in one run: processor time on one thread, without reading the file.

python benchmarks/export_latency.py runs/x/best.pt x.onnx PICTURE
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from ghmdet import Detector, runtime

ROUNDS = 20


def measure(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of processor time of each, the median of rounds that take all in turn."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 2):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if round_ >= 2:  # the first ones allocate
                spent[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.median(times)) for name, times in spent.items()}


def main(checkpoint: str, exported: str, file: str) -> None:
    torch.set_num_threads(1)
    eager = Detector.load(checkpoint, device="cpu", precision="fp32")
    onnx = runtime.Detector(exported, device="cpu", threads=1)
    picture = runtime.read(file)
    batch, size = runtime.prepare(picture, onnx.about)
    given, tensor = {"images": batch, "size": np.array(size)}, torch.from_numpy(batch)
    tensor = tensor.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def network() -> object:
        return eager.model.forward_raw(tensor)

    times = measure(
        {
            "PyTorch, the network alone": network,
            "PyTorch, whole": lambda: eager.predict(picture),
            "onnxruntime, network with NMS": lambda: onnx.session.run(None, given),
            "onnxruntime, whole": lambda: onnx.predict(picture),
        }
    )
    print(f"{picture.shape[1]}x{picture.shape[0]} pixels, scaled to {size[1]}x{size[0]}")
    print("| | ms | of PyTorch, whole |\n|---|---|---|")
    for name, spent in times.items():
        print(f"| {name} | {spent:.1f} | {spent / times['PyTorch, whole']:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
