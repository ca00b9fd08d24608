"""A detector's forward pass with and without batch norm folded, alternately on one thread: OMP_NUM_THREADS=1 python
benchmarks/folding.py best.pt"""

import os
import sys
import time

import numpy as np
import torch

from ghmdet.engine.checkpoint import load_detector
from ghmdet.models.folding import fold_batch_norm


@torch.inference_mode()
def main(checkpoint: str) -> None:
    models = [load_detector(checkpoint)[0], fold_batch_norm(load_detector(checkpoint)[0])]
    models = [model.to(memory_format=torch.channels_last) for model in models]
    picture = torch.randn(1, 3, 288, 384).to(memory_format=torch.channels_last)
    scores = [model.forward_raw(picture)[0].sigmoid() for model in models]
    spent: list[list[float]] = [[], []]
    for _ in range(60):
        for model, times in zip(models, spent, strict=True):
            start = time.process_time()
            model.forward_raw(picture)
            times.append(1e3 * (time.process_time() - start))
    before, after = (float(np.median(times)) for times in spent)
    print(
        f"288x384, median of 60: {before:.1f} ms with batch norm, {after:.1f} folded ({after / before:.2f})"
    )
    print(f"scores differ by {float((scores[0] - scores[1]).abs().max()):.1g}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
