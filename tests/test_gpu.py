"""On a CUDA GPU: every loss against its reference on the CPU, nothing that waits, and a run from training to files."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ghmdet
from engine_cases import TINY
from ghmdet import GHMC, GHMR, SoftmaxGHMC
from ghmdet import functional as ghm
from ghmdet.audit.command import FoldConfig, write_audit
from ghmdet.engine import train as engine
from ghmdet.engine.detect import Detector
from ghmdet.engine.evaluate import validate
from ghmdet.engine.observation import SpectrumLog
from ghmdet.engine.optim import WeightAverage
from ghmdet.engine.predict import predict
from ghmdet.engine.train import train
from ghmdet.functional import _fused
from ghmdet.integrations import harmonize
from ghmdet.models import BOX_LOSSES, CLS_LOSSES, PRESETS, LossConfig, RetinaNet
from ghmdet.report.inspection import write_spectrum
from ghmdet.report.page import write_report

ON_GPU = replace(TINY, device="cuda", workers=0)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

GUARDED = {"min_count": "positives", "normalize": "none"}
LABEL_LOSSES = {
    "focal": ghm.sigmoid_focal_loss,
    "ghm-c": ghm.ghm_c_loss,
    "ghm-c guarded": lambda *a, **k: ghm.ghm_c_loss(*a, **GUARDED, **k),
    "ghm-c per class": lambda *a, **k: ghm.ghm_c_loss(*a, per_class=True, **GUARDED, **k),
    "ghm-c prefix": lambda *a, **k: ghm.ghm_c_loss(*a, method="prefix", per_class=True, **GUARDED, **k),
    "ghm-c exact": lambda *a, **k: ghm.ghm_c_loss(*a, method="exact", **k),
    "softmax": lambda x, labels, **k: ghm.softmax_ghm_loss(x, labels.clamp_max(x.shape[1] - 1), **k),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-5, torch.bfloat16: 1e-2, torch.float16: 3e-3}
SHAPES = [(1, 2), (63, 3), (37, 5, 3), (2, 3, 13, 7), (700, 20), (0, 4)]


def example(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of all kinds of gradient norms, and labels with ignored ones and background."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).mul(4).sub(2).to(dtype)
    short = shape[:1] + shape[2:]
    return logits, torch.randint(-2, 2 * shape[1], short, generator=generator).clamp_max(shape[1])


def outcome(call, inputs, *arguments, **options) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of a call, on the CPU."""
    inputs = inputs.detach().clone().requires_grad_()
    loss = call(inputs, *arguments, **options)
    loss.backward(torch.full_like(loss, 3.0))
    return loss.detach().cpu(), inputs.grad.cpu()


def assert_close(found, expected, rtol: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        # Half precision's smallest numbers are steps of 6e-8.
        atol = (
            max(1e-6 * theirs.abs().max().item(), 1.2e-7 * (theirs.dtype == torch.float16))
            if theirs.numel()
            else 0.0
        )
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, equal_nan=True)


@pytest.fixture
def no_waiting():
    """What must wait for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("block", [200, _fused.DEVICE_BLOCK])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_a_loss_is_the_reference_on_the_cpu(name, shape, dtype, block, monkeypatch):
    monkeypatch.setattr(_fused, "DEVICE_BLOCK", block)
    logits, labels = example(*shape, dtype=dtype)
    forms = {} if name == "softmax" else {"impl": "reference"}
    expected = outcome(LABEL_LOSSES[name], logits, labels, **forms)
    assert_close(outcome(LABEL_LOSSES[name], logits.cuda(), labels.cuda()), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["focal", "ghm-c guarded", "ghm-c per class"])
def test_masks_weights_strides_and_dense_targets_do(name):
    call = LABEL_LOSSES[name]
    logits, labels = example(64, 5, 6, 4)
    generator = torch.Generator().manual_seed(1)
    options = {
        "valid": torch.rand(logits.shape, generator=generator) < 0.7,
        "weight": torch.rand(labels.shape, generator=generator) * 3,
    }
    on_gpu = {key: value.cuda() for key, value in options.items()}
    inputs = logits.cuda().to(memory_format=torch.channels_last)
    expected = outcome(call, logits, labels, impl="reference", **options)
    assert_close(outcome(call, inputs, labels.cuda(), **on_gpu), expected, 3e-5)
    dense = torch.rand(logits.shape, generator=generator).round(decimals=1)
    expected = outcome(call, logits, dense, impl="reference", **options)
    assert_close(outcome(call, inputs, dense.cuda(), **on_gpu), expected, 3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make",
    [GHMC, lambda: GHMC.guarded(5), lambda: SoftmaxGHMC(5), GHMR],
    ids=["joint", "guarded", "softmax", "box"],
)
def test_a_modules_steps_move_its_average_as_on_the_cpu(make, dtype):
    here, there = make(), make().cuda()
    for seed in range(4):
        torch.manual_seed(seed)
        inputs = (torch.randn(500, 5) * 3).to(dtype)
        targets = torch.rand(500, 5) if isinstance(here, GHMR) else torch.randint(0, 5, (500,))
        found = outcome(there, inputs.cuda(), targets.cuda())
        assert_close(found, outcome(here, inputs, targets), TOLERANCE[dtype])
    for name, value in here.state_dict().items():
        # A norm at the edge of two regions may lie on either side: exp is not the same to the last bit.
        torch.testing.assert_close(there.state_dict()[name].cpu(), value, rtol=1e-2, atol=2.0, msg=name)


@pytest.mark.parametrize("name", ["focal", "ghm-c", "ghm-c guarded", "ghm-c per class", "softmax"])
def test_a_loss_waits_for_nothing(name, no_waiting):
    logits = torch.randn(4000, 20, device="cuda", requires_grad=True)
    labels = torch.randint(0, 20, (4000,), device="cuda")
    LABEL_LOSSES[name](logits, labels).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("make", [GHMC, lambda: GHMC.guarded(20)], ids=["joint", "guarded"])
def test_a_loss_is_captured_in_a_cuda_graph(make):
    captured, eager = make().cuda(), make().cuda()
    labels = torch.randint(0, 21, (4000,), device="cuda")
    static = torch.zeros(4000, 20, device="cuda", requires_grad=True)
    state = {name: value.clone() for name, value in captured.state_dict().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            captured(static, labels).backward()
    torch.cuda.current_stream().wait_stream(stream)
    static.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = captured(static, labels)
        loss.backward()
    for name, value in captured.state_dict().items():
        value.copy_(state[name])
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = torch.randn(4000, 20, device="cuda") * 3 - 2
        with torch.no_grad():
            static.copy_(inputs)
        graph.replay()
        assert_close((loss.detach().cpu(), static.grad.cpu()), outcome_once(eager, inputs, labels), 1e-5)


def outcome_once(call, inputs, labels) -> tuple[Tensor, Tensor]:
    inputs = inputs.clone().requires_grad_()
    loss = call(inputs, labels)
    loss.backward()
    return loss.detach().cpu(), inputs.grad.cpu()


@pytest.mark.parametrize(
    "make", [GHMC, lambda: GHMC.guarded(20), lambda: SoftmaxGHMC(20)], ids=["joint", "guarded", "softmax"]
)
def test_a_compiled_loss_is_the_eager_one(make):
    labels = torch.randint(0, 20, (4000,), device="cuda")
    eager, compiled = make().cuda(), make().cuda()
    call = torch.compile(compiled, fullgraph=True)
    for seed in range(2):
        torch.manual_seed(seed)
        inputs = torch.randn(4000, 20, device="cuda") * 3 - 2
        assert_close(outcome_once(call, inputs, labels), outcome_once(eager, inputs, labels), 1e-4)


def small_detector(losses: LossConfig | None = None) -> RetinaNet:
    torch.manual_seed(0)
    preset = replace(PRESETS["nano"], channels=16, norm_groups=4, tower_depth=1, min_size=96, max_size=128)
    return RetinaNet(preset, ["a", "b"], losses or LossConfig())


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(1)
    images = [torch.rand(3, 96, 128), torch.rand(3, 90, 100), torch.rand(3, 128, 96)]
    corner = torch.rand(4, 2) * 50
    boxes = torch.cat([corner, corner + 20 + torch.rand(4, 2) * 20], 1)
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 1, 1, 0])}]
    targets += [{"boxes": boxes[:n], "labels": torch.zeros(n, dtype=torch.int64)} for n in (0, 2)]
    return images, targets


def moved(images, targets):
    return [image.cuda() for image in images], [
        {k: v.cuda() for k, v in target.items()} for target in targets
    ]


LOSSES = [(name, "giou") for name in CLS_LOSSES] + [("ghm-c", name) for name in BOX_LOSSES]


@pytest.mark.parametrize(("cls_loss", "box_loss"), LOSSES)
def test_a_detectors_losses_and_gradients_are_those_of_the_cpu(cls_loss, box_loss):
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    results = []
    for device in ("cpu", "cuda"):
        model = small_detector(LossConfig(cls_loss, box_loss)).to(device).train()
        images, targets = batch() if device == "cpu" else moved(*batch())
        losses = model(images, targets)
        sum(losses.values()).backward()
        norms = [p.grad.norm().cpu() for p in model.parameters() if p.grad is not None]
        results.append(([value.detach().cpu() for value in losses.values()], norms))
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    torch.testing.assert_close(results[1][0], results[0][0], rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls_loss", ["ghm-c", "ce", "ohem-per-class", "vfl"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])  # the targets; the loader's are on the CPU
def test_no_part_of_a_training_step_waits(cls_loss, precision, where, tmp_path):
    model = small_detector(LossConfig(cls_loss)).cuda().train()
    average = WeightAverage(model, 0.9)
    SpectrumLog(model, tmp_path / "spectrum.npz", main=True)  # counts in each step
    images, targets = moved(*batch())
    targets = targets if where == "cuda" else batch()[1]

    def step() -> None:
        with torch.autocast("cuda", dtype=precision, enabled=precision != torch.float32):
            losses = model(images, targets)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        average.update(model)

    step()  # what is made once and kept (anchors, workspaces) may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_trains_resumes_and_its_detector_is_the_same_everywhere(
    precision, squares, tmp_path, monkeypatch
):
    config = replace(ON_GPU, precision=precision, epochs=6, val_every=6)
    said: list[str] = []
    monkeypatch.setattr(engine, "drop_previous", lambda folder: None)
    train(squares, tmp_path / "whole", config, say=said.append)
    log = rows(tmp_path / "whole" / "log.csv")
    assert len(log) == 18 and all(float(row["loss"]) < 100 for row in log)
    assert any(torch.cuda.get_device_name() in line or "cuda" in line for line in said)

    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.copy(tmp_path / "again" / "previous.pt", tmp_path / "again" / "last.pt")
    train(squares, tmp_path / "again", config, resume=True, say=said.append)
    assert [row["step"] for row in rows(tmp_path / "again" / "log.csv")] == [row["step"] for row in log]

    picture = Image.open(next((squares / "images").glob("val_*.png"))).convert("RGB")
    found = [
        Detector.load(tmp_path / "whole" / "best.pt", device=device, precision="fp32").predict(
            picture, threshold=0
        )
        for device in ("cpu", "cuda")
    ]
    here, there = (one[0]["scores"][:20] for one in found)
    assert len(here)
    torch.testing.assert_close(there, here, rtol=0, atol=2e-2)  # TF32 convolutions there


def test_every_command_takes_a_detector_of_the_gpu(run, squares, tmp_path):
    """Report, spectrum, audit and predict, each on the GPU."""
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / "best.pt"
    quiet = {"say": lambda line: None}
    assert write_report([tmp_path / "run"], device="cuda", **quiet).stat().st_size > 10_000
    write_spectrum(checkpoint, squares, out=tmp_path / "spectrum", device="cuda", **quiet)
    options = {"checkpoint": checkpoint, "split": "val", "config": FoldConfig(device="cuda")}
    write_audit(squares, out=tmp_path / "audit", **options, **quiet)
    assert (tmp_path / "audit" / "review.html").exists()
    predict(checkpoint, squares / "images", out=tmp_path / "predictions", device="cuda", **quiet)
    assert len(json.loads((tmp_path / "predictions" / "predictions.json").read_text()))


def test_the_same_seed_gives_the_same_numbers(squares, tmp_path):
    logs = []
    for name in ("one", "two"):
        train(squares, tmp_path / name, replace(ON_GPU, precision="bf16"), say=lambda line: None)
        logs.append([row["loss"] for row in rows(tmp_path / name / "log.csv")])
    assert logs[0] == logs[1]


def test_val_scores_as_on_the_cpu(run, squares, tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        options = {"device": device, "precision": "fp32", "say": lambda line: None}
        found.append(validate(run / "best.pt", squares, out=tmp_path / device, **options).AP50)
    assert found[1] == pytest.approx(found[0], abs=0.02)


@pytest.mark.skipif(version("torchvision") < "0.29", reason="harmonize() knows torchvision from 0.29 on")
def test_a_harmonized_model_trains():
    from torchvision.models.detection import retinanet_resnet50_fpn

    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=128, max_size=128
    )
    harmonize(model)
    model.cuda().train()
    images, targets = moved(*batch())
    for _ in range(2):
        losses = model(images, targets)
        sum(losses.values()).backward()
    assert all(value.isfinite() and value.is_cuda for value in losses.values())


def test_watching_waits_for_nothing(no_waiting):
    logits = torch.randn(500, 4, device="cuda")
    labels = torch.randint(0, 4, (500,), device="cuda")
    ghmdet.watch(classes=["a", "b", "c", "d"])(logits, labels)
    ghmdet.watch(classes=["a", "b", "c"], softmax=True, background=3)(logits, labels)


def test_watch_counts_on_the_gpu_what_it_counts_on_the_cpu(tmp_path):
    logits, labels = torch.randn(500, 3) * 3, torch.randint(0, 4, (500,))
    pages = []
    for device in ("cpu", "cuda"):
        watch = ghmdet.watch(classes=["a", "b", "c"])
        watch(logits.to(device), labels.to(device))
        watch.report(tmp_path / f"{device}.html")
        pages.append((tmp_path / f"{device}.html").stat().st_size)
    assert pages[0] == pytest.approx(pages[1], rel=0.01)


def test_the_run_says_which_gpu_it_used(squares, tmp_path):
    train(squares, tmp_path / "run", replace(ON_GPU, device="auto", precision="auto", epochs=1, val_every=1))
    made = json.loads((tmp_path / "run" / "run.json").read_text())
    assert torch.cuda.get_device_name() in json.dumps(made)
    assert float(rows(tmp_path / "run" / "metrics.csv")[0]["memory"]) > 10
