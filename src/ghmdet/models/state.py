"""Weights in a file, and whether they fit a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghmdet.errors import CheckpointError


def read_state(path: Path) -> Mapping[str, Any]:
    """The dict in a file that torch.save wrote: tensors and plain values only, no code is run.

    Raises CheckpointError naming the file where it is absent or something else.
    """
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        raise CheckpointError(f"{path}: {what}; give the path of a checkpoint, 'auto' or 'none'")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the reader happened to trip over
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain values ({reason[0]})"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a dict of weights")
    return state


def fitting(own: Mapping[str, Tensor], given: Mapping[str, Any], *, exact: bool = False) -> dict[str, Tensor]:
    """Those of the given weights that a network has as its `own`: for `load_state_dict(.., strict=False)`.

    A missing `num_batches_tracked` is no fault: frozen and old batch norms have none, and inference needs none.
    Raises CheckpointError naming the first weight that is missing, of another shape, or, if `exact`, unknown.
    """
    for name, value in own.items():
        if name not in given:
            if not name.endswith("num_batches_tracked"):
                raise CheckpointError(f"'{name}' is missing")
        elif given[name].shape != value.shape:
            raise CheckpointError(
                f"'{name}' is {list(given[name].shape)} where {list(value.shape)} is needed"
            )
    unknown = next((name for name in given if name not in own), None)
    if exact and unknown is not None:
        raise CheckpointError(f"'{unknown}' is unknown")
    return {name: given[name] for name in own if name in given}
