"""What a device is chosen by, and the bars that a terminal gets."""

from __future__ import annotations

import io

import pytest
import torch

from ghmdet.engine.device import choose_device
from ghmdet.errors import GhmdetError
from ghmdet.progress import counting, progress_bar


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("tpu", "auto"), "unknown device 'tpu'"),
        (("cpu", "bf61"), "unknown precision 'bf61': did you mean 'bf16'"),
        (("cuda", "auto"), "--device cuda: PyTorch sees no CUDA GPU here; use --device cpu"),
        (("cpu", "fp16"), "--precision fp16 needs a GPU: on a CPU use bf16 or fp32"),
    ],
)
def test_what_is_not_there_is_refused_with_the_mend(
    asked: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GhmdetError, match=message):
        choose_device(*asked)


@pytest.mark.parametrize(
    ("gpu", "has_bf16", "chosen"),
    [
        (True, True, ("cuda", "bf16", "made up, bf16 since it has it")),
        (True, False, ("cuda", "fp16", "made up, fp16 since it has no bf16")),
        (False, True, ("cpu", "bf16", "CPU, bf16 since this processor has instructions for it")),
        (False, False, ("cpu", "fp32", "CPU, fp32 since this processor has no instructions for bf16")),
    ],
)
def test_the_precision_is_what_the_device_has(
    gpu: bool, has_bf16: bool, chosen: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "made up")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    device = choose_device()
    assert (device.type, device.precision, device.reason) == chosen
    asked = choose_device(precision="fp32")
    assert (asked.precision, asked.reason) == ("fp32", f"{chosen[0]}, fp32 as asked")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(show=True, say=pytest.fail) as show:
        show(0.25, "epoch 1, step 3")
    with counting("pictures", 8) as advance:
        advance(6)
    assert "epoch 1, step 3" in out.getvalue() and "25%" in out.getvalue()
    assert "pictures" in err.getvalue() and "75%" in err.getvalue()
    seen = out.getvalue()
    with progress_bar(show=False) as show:
        show(0.5, "a rank that is not the first")
    assert out.getvalue() == seen
