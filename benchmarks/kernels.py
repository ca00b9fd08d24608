"""How many GPU kernels torch.compile makes of a loss, forward and backward, told without a GPU.

    python benchmarks/kernels.py

The graphs are traced on the CPU, moved to a GPU that is not there, and lowered by inductor as far as their code, for
sm_80 and sm_90; nothing runs. It reaches into private parts of PyTorch (written for 2.14). The row goes to
results/kernels.jsonl.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from functorch.compile import make_boxed_func
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from triton.backends.compiler import GPUTarget

from ghmdet import functional
from ghmdet.models import DetectionLoss, LossConfig
from rows import append_row, today

PROCESSORS = {"sm_80": 108, "sm_90": 132}
ANCHORS, CLASSES = 20_000, 80


def losses() -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Each loss and its arguments."""
    logits = torch.randn(ANCHORS, CLASSES, requires_grad=True)
    labels = torch.randint(0, CLASSES + 1, (ANCHORS,))
    offsets = torch.randn(ANCHORS, 4, requires_grad=True)
    boxes = torch.rand(ANCHORS, 4) + torch.tensor([0.0, 0.0, 2.0, 2.0])
    detector = DetectionLoss(LossConfig(), CLASSES)

    def detection(logits: Tensor, offsets: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        losses = detector(logits[None], offsets[None], labels[None], boxes[None], boxes)
        return torch.stack(list(losses.values())).sum()

    def guarded(logits: Tensor, labels: Tensor) -> Tensor:
        options: dict[str, Any] = {"min_count": "positives", "normalize": "none", "per_class": True}
        return functional.ghm_c_loss(logits, labels, **options)

    return {
        "focal": (functional.sigmoid_focal_loss, (logits, labels)),
        "ghm-c": (functional.ghm_c_loss, (logits, labels)),
        "ghm-c per class": (guarded, (logits, labels)),
        "ghm-r": (functional.ghm_r_loss, (offsets, boxes)),
        "detector: ghm-c and giou": (detection, (logits, offsets, labels, boxes)),
    }


def trace(
    loss: Callable[..., Tensor], arguments: tuple[Tensor, ...]
) -> list[tuple[fx.GraphModule, list[Any]]]:
    """The graphs of forward and backward with their inputs, as inductor gets them."""
    graphs = []

    def keep(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append((graph, list(inputs)))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=keep,
        bw_compiler=keep,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    torch.compiler.reset()
    torch.compile(loss, backend=backend, fullgraph=True)(*arguments).backward()
    return graphs


def pretend(stack: ExitStack, architecture: str) -> None:
    """Let PyTorch and Triton believe in a GPU of that architecture."""
    capability = int(architecture.removeprefix("sm_"))
    properties = SimpleNamespace(
        name=architecture,
        major=capability // 10,
        minor=capability % 10,
        multi_processor_count=PROCESSORS[architecture],
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block_optin=163 * 1024,
        warp_size=32,
        total_memory=80 << 30,
    )
    answers = {
        "torch.cuda.get_device_properties": properties,
        "torch.cuda.get_device_capability": divmod(capability, 10),
        "torch.cuda.current_device": 0,
        "torch._inductor.scheduler.has_triton": True,
    }
    for name, answer in answers.items():
        stack.enter_context(mock.patch(name, lambda *_, answer=answer, **__: answer))
    of_interface = {"get_device_properties": properties, "get_compute_capability": capability}
    for name, answer in of_interface.items():
        said = staticmethod(lambda *_, answer=answer: answer)
        stack.enter_context(mock.patch.object(CudaInterface, name, said))
    DeviceProperties.create.cache_clear()
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32), get_current_device=lambda: 0
    )
    triton.runtime.driver.set_active(driver)


def code_for_gpu(graph: fx.GraphModule, inputs: list[Any]) -> str:
    """The code that inductor writes for a graph moved to the GPU."""
    gpu = torch.device("cuda", 0)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": gpu}
    graph.recompile()
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with fakes:
        moved = [
            torch.empty_strided(one.size(), one.stride(), dtype=one.dtype, device=gpu)
            if isinstance(one, Tensor)
            else one
            for one in inputs
        ]
    FakeTensorProp(graph, fakes).propagate_dont_convert_inputs(*moved)
    lowering = GraphLowering(graph, example_inputs=moved)
    with V.set_graph_handler(lowering), V.set_fake_mode(fakes), V.set_debug_handler(DebugContext()):
        lowering.run(*moved)
        return str(lowering.codegen()[0].value)


def count(code: str) -> dict[str, int]:
    """Kernel launches, how many of them read every anchor, and calls of ready-made operations."""
    launches = re.findall(r"^ +triton_\w+\.run\((.*), stream=", code, re.MULTILINE)
    sizes = [math.prod(int(size) for size in re.findall(r", (\d+)(?=,|$)", line)) for line in launches]
    return {
        "kernels": len(launches),
        "large": sum(size >= ANCHORS for size in sizes),
        "ready-made": len(
            re.findall(r"^ +(?:\w+ = )?(?:aten\.|torch\.ops\.|extern_kernels\.)", code, re.MULTILINE)
        ),
    }


def main() -> None:
    logging.disable(logging.ERROR)
    row: dict[str, Any] = {"date": today(), "torch": torch.__version__, "triton": triton.__version__}
    for architecture in PROCESSORS:
        for name, (loss, arguments) in losses().items():
            graphs = trace(loss, arguments)
            with ExitStack() as stack:
                pretend(stack, architecture)
                counts = [count(code_for_gpu(*graph)) for graph in graphs]
            row.setdefault(architecture, {})[name] = dict(zip(("forward", "backward"), counts, strict=True))
    append_row("kernels", row)


if __name__ == "__main__":
    main()
