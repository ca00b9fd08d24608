from __future__ import annotations

import copy
import math
import pickle
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ghmdet import GHMC, GHMR, SoftmaxGHMC, functional
from ghmdet.functional.equalized import EqlV2, EqualizedFocal
from ghmdet.losses import Equalized
from measured_data import REPO

MODULES = {
    "GHMC": lambda **k: GHMC(**k),
    "GHMC guarded": lambda **k: GHMC.guarded(3, **k),
    "GHMR": lambda **k: GHMR(**k),
}
every_module = pytest.mark.parametrize("name", MODULES)


def batch(seed: int, n: int = 40):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 3, generator=generator).sub(1).requires_grad_()
    return inputs, (torch.rand(n, 3, generator=generator) < 0.1).float()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("module", "function", "options"),
    [
        (GHMC, functional.ghm_c_loss, {"bins": 10, "min_count": 0.0}),
        (GHMC, functional.ghm_c_loss, {"min_count": 5.0, "normalize": "all"}),
        (GHMC, functional.ghm_c_loss, {"min_count": "positives", "normalize": "none", "per_class": True}),
        (GHMR, functional.ghm_r_loss, {"mu": 0.1, "bins": 7, "min_count": 2.0, "normalize": "none"}),
        (GHMR, functional.ghm_r_loss, {"min_count": "mean", "normalize": "all"}),
    ],
)
def test_without_momentum_the_module_is_the_function(module, function, options, reduction):
    extra = {"num_classes": 3} if options.get("per_class") else {}
    loss = module(momentum=0.0, reduction=reduction, **options, **extra)
    for seed in range(3):
        inputs, targets = batch(seed)
        valid, weight = torch.rand(40) < 0.8, torch.rand(40, 3)
        expected = function(inputs, targets, valid=valid, weight=weight, reduction=reduction, **options)
        torch.testing.assert_close(loss(inputs, targets, valid, weight), expected)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


ONE_POSITIVE = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), torch.tensor([True, True, False])


def test_eql_v2_weighs_by_the_gradients_before_by_hand():
    loss, (targets, valid) = Equalized(2, EqlV2), ONE_POSITIVE
    logits = torch.zeros(3, 2, requires_grad=True)  # p = 1/2: every gradient is 1/2, every cross entropy ln 2
    assert loss(logits, targets, valid).item() == pytest.approx(4 * math.log(2))
    first = sigmoid(12 * (1 - 0.8))  # one half of positives to one half of negatives
    none = sigmoid(12 * -0.8)  # no positives
    assert loss.eval()(logits, targets, valid).item() == pytest.approx(
        (1 + 4 * (1 - first) + first + 2 * none) * math.log(2)
    )
    loss.train()(logits, targets, valid)
    second = sigmoid(12 * ((1 + 1 + 4 * (1 - first)) / (1 + first) - 0.8))  # weighed gradients were added
    assert loss(logits, targets, valid).item() == pytest.approx(
        (1 + 4 * (1 - second) + second + 2 * none) * math.log(2), rel=1e-5
    )


def test_equalized_focal_loss_by_hand():
    loss, (targets, valid) = Equalized(2, EqualizedFocal), ONE_POSITIVE
    logits = torch.zeros(3, 2, requires_grad=True)
    assert loss(logits, targets, valid).item() == pytest.approx((0.25 + 3 * 0.75) / 4 * math.log(2))
    gamma = 2 + 8 * (1 - 0.25 / 0.75)  # the ratio of class 0 is that of the alphas; class 1 has 0
    expected = gamma / 2 * 0.5**gamma + 10 / 2 * 0.5**10 * 2 * 0.75
    assert loss(logits, targets, valid).item() == pytest.approx(expected * math.log(2))


@every_module
def test_equal_batches_give_equal_losses_whatever_the_momentum(name):
    loss, (inputs, targets) = MODULES[name](), batch(0)
    first = loss(inputs, targets)
    for _ in range(5):
        torch.testing.assert_close(loss(inputs, targets), first)


def test_the_weights_come_from_the_average_that_includes_the_present_batch():
    loss = GHMC(bins=2, momentum=0.5, normalize="none", min_count=0.0)
    zeros = torch.zeros(4)
    loss(torch.tensor([-2.0, -2.0, -2.0, 2.0]), zeros)
    value = loss(torch.tensor([-2.0, 2.0, 2.0, 2.0]), zeros)
    # Averages after two steps: (3 + 2 · 1)/3 easy, (1 + 2 · 3)/3 hard, 4 examples in all.
    easy, hard = functional.binary_cross_entropy(torch.tensor([-2.0, 2.0]), torch.zeros(2), reduction="none")
    torch.testing.assert_close(value, (4 / (5 / 3) * easy + 4 / (7 / 3) * 3 * hard) / 4)


def test_the_occupied_regions_are_those_of_the_present_batch():
    loss = GHMC(bins=2, momentum=0.5, min_count=0.0)
    loss(torch.tensor([-2.0, 2.0]), torch.zeros(2))
    value = loss(torch.tensor([-2.0, -2.0]), torch.zeros(2))
    easy = functional.binary_cross_entropy(torch.tensor([-2.0]), torch.zeros(1))
    torch.testing.assert_close(value, 2 / (5 / 3) * easy)  # one region occupied; its average is (1 + 2 · 2)/3


def test_the_floor_is_at_least_one_example_where_the_average_holds_less():
    loss = GHMC(bins=2, momentum=0.5, normalize="none", min_count="positives")
    loss(torch.tensor([-2.0, -2.0]), torch.zeros(2))
    value = loss(torch.tensor([2.0]), torch.zeros(1))
    hard = functional.binary_cross_entropy(torch.tensor([2.0]), torch.zeros(1))
    torch.testing.assert_close(
        value, 4 / 3 * hard
    )  # the average of 0 and 1 examples counts as 1, of 2 and 1 is 4/3


@every_module
@pytest.mark.parametrize("still", ["eval", "no_grad", "inference_mode"])
def test_evaluation_gives_the_training_loss_and_moves_nothing(name, still):
    loss = MODULES[name]()
    loss(*batch(0))
    before = copy.deepcopy(loss.state_dict())
    if still == "eval":
        value = loss.eval()(*batch(1))
    else:
        with getattr(torch, still)():
            value = loss(*batch(1))
    assert all(torch.equal(before[key], now) for key, now in loss.state_dict().items())
    torch.testing.assert_close(value.detach().clone(), loss.train()(*batch(1)).detach())


@every_module
def test_a_non_finite_batch_shows_in_the_loss_and_not_in_the_average(name):
    loss = MODULES[name]()
    inputs, targets = batch(0)
    spoilt = inputs.detach().clone()
    spoilt[3, 1] = torch.nan
    assert loss(spoilt, targets).isnan()
    assert all(buffer.isfinite().all() for buffer in loss.buffers())
    assert loss(inputs, targets).isfinite()


@every_module
def test_an_empty_first_batch_is_zero_and_harmless(name):
    loss, (inputs, targets) = MODULES[name](), batch(0)
    empty = loss(inputs, targets, valid=torch.zeros(40, dtype=torch.bool))
    empty.backward()
    assert empty.item() == 0 and (inputs.grad == 0).all()
    assert loss(inputs, targets).isfinite()


@every_module
def test_a_copy_goes_on_as_the_original(name):
    loss = MODULES[name](accumulation_steps=2)
    for seed in range(3):
        loss(*batch(seed))
    loaded = MODULES[name](accumulation_steps=2)
    loaded.load_state_dict(loss.state_dict())
    for other in (loaded, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(*batch(3)), copy.deepcopy(loss)(*batch(3)))


@every_module
def test_accumulated_calls_move_the_average_once_a_step(name):
    loss = MODULES[name](accumulation_steps=2)
    loss(*batch(0))
    assert (loss.spectrum.total == 0).all()
    loss(*batch(1))
    assert loss.spectrum.mass == 1 and loss.spectrum.compute().examples.sum() == 120


@every_module
@pytest.mark.parametrize("how", ["half", "default dtype", "assign"])
def test_half_precision_models_keep_exact_statistics(name, how):
    inputs, targets = batch(0, 40_000)  # more examples than half precision can count
    plain, loss = MODULES[name](), MODULES[name]()
    if how == "half":
        loss = nn.Sequential(nn.Linear(3, 3), loss).half()[1]
    elif how == "default dtype":
        torch.set_default_dtype(torch.float16)
        try:
            loss = MODULES[name]()
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        loss.load_state_dict({k: v.half() for k, v in loss.state_dict().items()}, assign=True)
    for _ in range(2):
        value = loss(inputs.half(), targets)
        assert value.dtype == torch.float32 and value == plain(inputs.half(), targets)
    for key, buffer in loss.state_dict().items():
        assert buffer.dtype == plain.state_dict()[key].dtype and torch.equal(buffer, plain.state_dict()[key])
    assert loss.spectrum.compute().examples.sum() == 120_000


def largest_weights(loss: GHMC, sizes: list[tuple[int, int]]) -> list[float]:
    """The most that an example weighs in each call: batches of so many examples, of which so many are positives."""
    largest = []
    for examples, positives in sizes:
        inputs = torch.linspace(-6, 6, examples)[:, None].requires_grad_()
        targets = (torch.arange(examples) < positives).float()[:, None]
        loss(inputs, targets).backward()
        largest.append((inputs.grad / (inputs.detach().sigmoid() - targets)).abs().max().item())
    return largest


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=8),
    momentum=st.floats(0, 0.95),
)
def test_no_example_weighs_more_than_its_share_of_the_average_positives(sizes, momentum):
    sizes = [(examples, min(examples, positives)) for examples, positives in sizes]
    weights = largest_weights(GHMC(momentum=momentum), sizes)
    for t, (examples, positives) in enumerate(sizes, start=1):
        ages = [momentum ** (t - s) for s in range(1, t + 1)]
        average_n, average_p = (
            sum(age * size[i] for age, size in zip(ages, sizes, strict=False)) / sum(ages) for i in (0, 1)
        )
        bound = average_n / examples / max(average_p, 1)
        assert weights[t - 1] <= bound * (1 + 1e-4)
        # By the batch's own positives.
        if positives and average_p >= 1:
            assert bound <= average_n / examples / ((1 - momentum) * positives) * (1 + 1e-6)


def test_a_batch_with_more_positives_than_the_average_lets_an_example_weigh_up_to_four_times_one_over_them():
    alike = largest_weights(GHMC(), [(1000, 40)] * 20)
    assert max(alike) == pytest.approx(1 / 40, rel=1e-3)
    more = largest_weights(GHMC(), [(1000, 1)] * 20 + [(1000, 40)])
    assert 3.6 / 40 < more[-1] <= 4 / 40
    smaller = largest_weights(GHMC(), [(1000, 1)] * 20 + [(250, 40)])  # and by N of the average over its own
    assert 11 / 40 < smaller[-1] <= 4 * (0.75 * 4 + 0.25) / 40


@every_module
def test_it_compiles_without_a_graph_break(name):
    eager, compiled = MODULES[name](), MODULES[name]()
    step = torch.compile(compiled, backend="eager", fullgraph=True)
    for seed in range(3):
        torch.testing.assert_close(step(*batch(seed)), eager(*batch(seed)))


def test_published_is_the_authors_form_and_guarded_the_floored_one():
    assert repr(GHMC.published()) == repr(GHMC(min_count=0.0))
    assert "normalize='occupied', min_count=0.0" in repr(GHMC.published())
    assert "normalize='none', min_count='positives'" in repr(GHMC())
    assert GHMC.guarded(4).extra_repr() == (
        "normalize='none', min_count='positives', per_class=True, compat=None, reduction='mean'"
    )
    assert "mu=0.02" in repr(GHMR()) and "bins=10, momentum=0.7" in repr(GHMR())


@pytest.mark.parametrize(
    "make", [GHMC.published, GHMR.published, partial(GHMC.guarded, 4)], ids=["GHMC", "GHMR", "guarded"]
)
def test_the_named_forms_pass_their_options_on(make):
    plain, other = make(), make(accumulation_steps=3, reduction="sum")
    assert (plain.spectrum.accumulation_steps, plain.reduction) == (1, "mean")
    assert (other.spectrum.accumulation_steps, other.reduction) == (3, "sum")


@pytest.mark.parametrize("form", [EqlV2, EqualizedFocal])
def test_equalized_losses_take_any_layout_with_classes_along_dimension_1(form):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=random)
    targets = (torch.rand(2, 3, 4, 5, generator=random) < 0.2).float()
    flat, maps = Equalized(3, form), Equalized(3, form)
    for _ in range(3):
        expected = flat(
            logits.movedim(1, -1).reshape(-1, 3).requires_grad_(), targets.movedim(1, -1).reshape(-1, 3)
        )
        torch.testing.assert_close(maps(logits.clone().requires_grad_(), targets), expected)
    assert flat.spectrum.accumulation_steps == 1
    assert Equalized(3, form, accumulation_steps=2).spectrum.accumulation_steps == 2


def test_the_compatible_mode_moves_in_evaluation_and_only_where_there_are_examples():
    loss = GHMC(bins=2, momentum=0.5, compat="mmdet").eval()
    with torch.no_grad():
        loss(torch.tensor([-2.0, 2.0]), torch.zeros(2))
        loss(torch.tensor([2.0, 2.0]), torch.zeros(2))
    assert loss.spectrum.compute().regions.tolist() == [[0.5, 1.25]]


def test_the_compatible_mode_counts_what_is_valid_and_has_a_weight():
    inputs, targets = batch(0)
    valid, weight = torch.arange(40) % 2 == 0, (torch.arange(120).view(40, 3) % 3 > 0).float()
    loss = GHMC(compat="mmdet")
    value = loss(inputs, targets, valid, weight)
    assert loss.spectrum.compute().regions.sum() == 0.25 * (valid[:, None] & (weight > 0)).sum()
    mask = valid[:, None] & (weight > 0)
    torch.testing.assert_close(value, GHMC(compat="mmdet")(inputs, targets, mask))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: GHMC(per_class=True), "per_class=True with num_classes=None"),
        (lambda: GHMC(num_classes=3), "per_class=False with num_classes=3"),
        (lambda: GHMC(momentum=1.1), "momentum must lie in"),
        (lambda: GHMC(bins=-1), "bins must be"),
        (lambda: GHMC(normalize="al"), "did you mean 'all'"),
        (lambda: GHMC(reduction="men"), "did you mean 'mean'"),
        (lambda: GHMC(compat="mmdetection"), "did you mean 'mmdet'"),
        (lambda: GHMC(compat="mmdet", min_count=1.0), "fixed settings"),
        (lambda: GHMR(min_count="positives"), "no meaning in a regression"),
        (lambda: GHMR(mu=-1), "mu must be positive, not -1"),
        (lambda: GHMC.guarded(4)(*batch(0)), "have 3 classes .*num_classes=4: make it with num_classes=3"),
        (lambda: GHMC()(torch.zeros(4, 3), torch.zeros(4)), "must be integers"),
    ],
)
def test_a_mistake_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_importing_the_package_brings_torch_and_nothing_heavier():
    heavy = ("torchvision", "timm", "matplotlib", "accelerate", "PIL", "hotcoco")
    code = f"import sys, ghmdet; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_examples_of_the_losses_page_run():
    page = (REPO / "docs" / "losses.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


def labelled(seed: int, n: int = 40):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), n, True, generator=generator)
    return torch.randn(n, 3, generator=generator).requires_grad_(), labels


SOFTMAX = [
    ({"background": 0}, {"min_count": "positives", "normalize": "none"}),
    ({"background": -1, "per_class": True}, {"min_count": "positives", "normalize": "none"}),
    ({}, {"min_count": "mean", "normalize": "all"}),
    ({"per_class": True}, {"min_count": "mean", "normalize": "all"}),
    ({"min_count": 0.0, "bins": 10}, {"normalize": "occupied"}),
    ({"class_weight": torch.tensor([1.0, 5.0, 0.1]), "label_smoothing": 0.1, "ignore_index": 1}, None),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("options", "defaults"), SOFTMAX)
def test_softmax_without_momentum_is_the_function(options, defaults, reduction):
    loss = SoftmaxGHMC(3, momentum=0.0, reduction=reduction, **options)
    defaults = defaults or {"min_count": "mean", "normalize": "all"}
    for seed in range(3):
        logits, labels = labelled(seed)
        valid, weight = torch.rand(40) < 0.8, torch.rand(40)
        expected = functional.softmax_ghm_loss(
            logits, labels, valid=valid, weight=weight, reduction=reduction, **defaults | options
        )
        torch.testing.assert_close(loss(logits, labels, valid, weight), expected)
        levels = [list(x.split(7)) for x in (logits, labels, valid, weight)]
        torch.testing.assert_close(loss(*levels), expected)


def test_the_softmax_average_includes_the_present_batch_and_is_read_only_in_eval():
    loss = SoftmaxGHMC(2, background=0, bins=2, momentum=0.5)
    easy, hard = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    background = torch.zeros(4, dtype=torch.long)
    loss(torch.stack([easy, easy, easy, hard]).requires_grad_(), background)
    logits = torch.stack([easy, hard, hard, hard]).requires_grad_()
    value = loss(logits, background)
    losses = nn.functional.cross_entropy(torch.stack([easy, hard]), background[:2], reduction="none")
    # Averages after two steps: (3 + 2 · 1)/3 easy, (1 + 2 · 3)/3 hard, 4 examples in all.
    torch.testing.assert_close(value, losses[0] / (5 / 3) + 3 * losses[1] / (7 / 3))
    kept = loss.spectrum.compute().table.clone()
    assert kept.tolist() == [[pytest.approx(5 / 3), pytest.approx(7 / 3), 4.0, 0.0]]
    with torch.no_grad():
        loss(logits, background)
    loss.eval()(logits, background)
    assert torch.equal(loss.spectrum.compute().table, kept)


def test_softmax_is_copied_and_saved_with_its_state():
    loss = SoftmaxGHMC(3, background=-1, per_class=True, class_weight=torch.tensor([1.0, 2.0, 3.0]))
    loss(*labelled(0))
    fresh = SoftmaxGHMC(3, background=-1, per_class=True, class_weight=torch.ones(3))
    fresh.load_state_dict(loss.state_dict())
    expected = copy.deepcopy(loss)(*labelled(1))
    for other in (pickle.loads(pickle.dumps(loss)), fresh):
        assert torch.equal(other(*labelled(1)), expected)
    assert "class_weight" not in GHMC(momentum=0).state_dict()  # files written before have none


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SoftmaxGHMC(3, background=3), "background=3 is none of 3 labels"),
        (lambda: SoftmaxGHMC(3, min_count="positives"), "softmax without background"),
        (lambda: SoftmaxGHMC(0, per_class=True), "num_classes must be a whole number"),
        (lambda: SoftmaxGHMC(3, label_smoothing=-0.1), "label_smoothing"),
        (
            lambda: SoftmaxGHMC(4)(*labelled(0)),
            r"have 3 classes .* num_classes=4: make it with num_classes=3, or give 4 logits",
        ),
        (
            lambda: GHMC.guarded(3)(torch.zeros(2, 5, 3), torch.zeros(2, 5).long()),
            r"num_classes=3: flatten what comes before the classes: inputs.flatten\(0, 1\), labels.flatten\(\)",
        ),
        (lambda: SoftmaxGHMC(3)([1.0], torch.zeros(1).long()), "must be a tensor"),
    ],
)
def test_a_mistake_with_softmax_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_class_options_of_ghm_c_reach_the_function():
    options = {"class_weight": torch.tensor([1.0, 0.5, 3.0]), "ignore_index": 2, "label_smoothing": 0.1}
    logits, labels = labelled(0)
    loss = GHMC(momentum=0.0, **options)
    expected = functional.ghm_c_loss(logits, labels, min_count="positives", normalize="none", **options)
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(list(logits.split(9)), list(labels.split(9))), expected)
    assert loss.half().state_dict()["class_weight"].tolist() == [1.0, 0.5, 3.0]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (partial(GHMC.guarded, 3), partial(GHMC, per_class=True, num_classes=3)),
        (GHMC.published, partial(GHMC, min_count=0.0)),
    ],
)
def test_the_named_forms_take_the_class_options_too(short, long):
    options = {"class_weight": torch.tensor([1.0, 0.5, 3.0]), "ignore_index": 2, "label_smoothing": 0.1}
    logits, labels = labelled(0)
    torch.testing.assert_close(short(**options)(logits, labels), long(**options)(logits, labels))


@pytest.mark.parametrize("make", [GHMC, GHMC.published, partial(GHMC.guarded, 3), partial(SoftmaxGHMC, 3)])
def test_class_weights_may_be_a_list_of_numbers_and_what_are_none_are_named(make):
    logits, labels = labelled(0)
    expected = make(class_weight=torch.tensor([1.0, 2.0, 3.0]))(logits, labels)
    for weights in ([1, 2, 3.0], (1, 2, 3), torch.tensor([1.0, 2.0, 3.0]).numpy()):
        torch.testing.assert_close(make(class_weight=weights)(logits, labels), expected)
    for weights in (["a", "b", "c"], {"car": 2.0}):
        with pytest.raises(ValueError, match=r"class_weight is .*: give a number for each class"):
            make(class_weight=weights)
    for weights in ([1, 2, -3.0], torch.tensor([1.0, torch.nan, 2.0]), [10**400, 1, 1]):
        with pytest.raises(ValueError, match=r"class_weight is .*: give a number for each class"):
            make(class_weight=weights)


@pytest.mark.parametrize("make", [GHMC, GHMC.published, partial(GHMC.guarded, 3), partial(SoftmaxGHMC, 3)])
def test_a_logit_that_is_no_number_makes_its_loss_none_and_spoils_no_average(make):
    loss, (logits, labels) = make(), labelled(0)
    bad = logits.detach().clone()
    bad[0, 0] = torch.nan
    assert loss(bad.requires_grad_(), labels.clamp(0)).isnan()
    assert loss.spectrum.compute().table.isfinite().all() and loss(logits, labels).isfinite()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda: GHMC(3),
            r"what is 3\? options are given by name, as in bins=30, .* GHMC.guarded\(num_classes\)",
        ),
        (lambda: GHMC(10, 0.75), r"what is 10, 0\.75\? .* bins=30, momentum=0\.75"),
        (lambda: GHMR(0.02, 10), r"what is 0\.02, 10\? .* mu=0\.02, bins=10"),
        (lambda: SoftmaxGHMC(3, 30), r"what is 30\? .* background=0, bins=30"),
    ],
)
def test_a_number_without_a_name_is_not_taken_for_an_option(call, named):
    with pytest.raises(TypeError, match=named):
        call()


def test_another_number_of_classes_than_that_of_the_statistics_is_named_with_the_mend():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    for loss in (GHMC.guarded(3), SoftmaxGHMC(3), Equalized(3, EqlV2), Equalized(3, EqualizedFocal)):
        with pytest.raises(
            ValueError, match=r"shape \(5, 4\) have 4 classes .* num_classes=3: make it with num"
        ):
            loss(logits, labels)
    with pytest.raises(ValueError, match=r"have 4 classes .* num_classes=3"):
        GHMC.guarded(3)([logits, logits], [labels, labels])
    for loss in (GHMC(), GHMC.guarded(4), SoftmaxGHMC(4)):
        with pytest.raises(
            ValueError, match=r"label 9 is outside 0\.\.3.* shape \(5, 4\) have 4 classes: number"
        ):
            loss(logits, torch.tensor([0, 1, 2, 9, 0]))
