"""Memory that a training run on a CPU keeps, and the most that a run has taken."""

from __future__ import annotations

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, for the rest of the process; whether it could be told.

    It gives large blocks back to the system at once, which must then clear every page of the next step's activations
    anew: a fifth of the time of a step of `nano` on one thread, an eighth on two (benchmarks/step.py). Other C
    libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def peak_memory(device: str) -> float | None:
    """The most memory this process has held, in MiB: resident on a CPU, allocated on a GPU; None where it is not told.

    Processes that read pictures are not counted.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return most / (2**20 if sys.platform == "darwin" else 2**10)
