"""Which device and which precision a run uses, each with the reason, and the memory that it takes there."""

import ctypes
import sys
from dataclasses import dataclass

import torch

from ghmdet.errors import GhmdetError, unknown_name

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Device:
    """A device, a precision (fp32, bf16 or fp16) and why they were chosen."""

    type: str
    precision: str
    reason: str

    def autocast(self) -> torch.autocast:
        """The autocast context of this precision (disabled in fp32)."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.type, dtype=dtype, enabled=self.precision != "fp32")


def choose_device(device: str = "auto", precision: str = "auto") -> Device:
    """The device and precision for `auto`, or what was asked for if the machine has it.

    Raises:
        GhmdetError: an unknown name; cuda was asked for and there is none; fp16 was asked for on a CPU.
    """
    if device not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if device == "cuda" and not torch.cuda.is_available():
        raise GhmdetError(
            "--device cuda: PyTorch sees no CUDA GPU here; use --device cpu or install a CUDA build"
        )
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if precision == "fp16" and chosen == "cpu":
        raise GhmdetError("--precision fp16 needs a GPU: on a CPU use bf16 or fp32")
    if precision != "auto":
        return Device(chosen, precision, f"{chosen}, {precision} as asked")
    if chosen == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Device(chosen, "bf16", f"{torch.cuda.get_device_name()}, bf16 since it has it")
        return Device(chosen, "fp16", f"{torch.cuda.get_device_name()}, fp16 since it has no bf16")
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return Device(chosen, "bf16", "CPU, bf16 since this processor has instructions for it")
    return Device(chosen, "fp32", "CPU, fp32 since this processor has no instructions for bf16")


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
