"""Networks and data that others bring are trained as by hand, in a stack too, or refused by name."""

import contextlib
import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from training_cases import FOUR_STEPS, KINDS, SAMPLES, Written, X, Y, apart, build, by_hand, dataset, mlp, torchs_own

from genlib import data
from genlib.optimizers import SAM, LabelNoise, OneSAM
from genlib.train import Stop, fit, fit_many, loss_and_accuracy


@torchs_own
@pytest.mark.parametrize("rho", [None, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_trained_as_by_hand_and_so_in_a_stack_or_refused_there(kind, rho):
    kept, shared = X.clone(), FOUR_STEPS | {"optimizer": "sgd" if rho is None else SAM(rho)}
    for batch_size in (None, 16):
        shared["batch_size"] = batch_size
        expected = by_hand(build(kind, 1), steps=4, batch_size=batch_size, seed=5, rho=rho)
        expected = expected.module if isinstance(expected, nn.DataParallel) else expected
        runs = [fit(build(kind, 1), dataset(), seed=5, **shared)]
        pair = [build(kind, 0), build(kind, 1)]
        runs.append(fit_many(pair, dataset(), seed=[4, 5], **shared)[1])
        try:
            runs.append(fit_many(pair, dataset(), seed=[4, 5], stacked=True, **shared)[1])
        except ValueError as refused:
            assert str(refused).startswith("stacked is True, but ")
        assert torch.equal(X, kept)
        loss = nn.functional.cross_entropy(expected(X.clone()), Y).item()
        for run in runs:
            assert run.history.loss.iloc[-1] == pytest.approx(loss, rel=1e-9)
            assert loss_and_accuracy(run.module, X, Y)[0] == pytest.approx(loss, rel=1e-9)
            if hasattr(expected, "__getitem__") and hasattr(expected[0], "weight"):  # before any pass: that of the end
                torch.testing.assert_close(run.module[0].weight, expected[0].weight, rtol=1e-9, atol=1e-9)
            assert apart(run.module, expected) < 1e-9
            copy.deepcopy(run.module)
        assert torch.equal(X, kept)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
@pytest.mark.parametrize("how", ["wrapper", "in place", "part"])
def test_compiled_networks_are_trained_as_others(how):
    torch.compiler.reset()
    expected = by_hand(build("BatchNorm", 1), steps=4, batch_size=16, seed=5, rho=0.1)
    net = build("BatchNorm", 1)
    if how == "in place":
        net.compile(backend="aot_eager")
    if how == "part":
        net[1] = torch.compile(net[1], backend="aot_eager")
    net = torch.compile(net, backend="aot_eager") if how == "wrapper" else net
    run = fit(net, dataset(), batch_size=16, optimizer=SAM(0.1), seed=5, **FOUR_STEPS)
    many = fit_many([net, net], dataset(), batch_size=16, optimizer=SAM(0.1), seed=[4, 5], **FOUR_STEPS)
    assert apart(run.module, expected) < 1e-9
    assert apart(many[1].module, expected) < 1e-9
    assert type(run.module) is nn.Sequential


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_what_stands_around_a_call_changes_nothing(around, batch_size):
    shared = FOUR_STEPS | {"batch_size": batch_size}
    expected = fit(build("BatchNorm", 1), dataset(), seed=1, **shared)
    with around():
        net, inside = build("BatchNorm", 1), dataset(X.clone(), Y.clone())
        runs = [fit(net, inside, seed=1, **shared), fit_many([net, net], inside, stacked=True, **shared)[1]]
        measured = loss_and_accuracy(expected.module, X, Y)
    for run in runs:
        assert apart(run.module, expected.module) < 1e-12
    assert measured == pytest.approx(loss_and_accuracy(expected.module, X, Y), rel=1e-12)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_data_are_cast_to_the_precision_of_the_weights(precision):
    net, inputs = build("plain", 1).float(), X.to(precision)
    expected = fit(net, dataset(inputs.float()), **FOUR_STEPS)
    for run in (fit(net, dataset(inputs), **FOUR_STEPS), fit_many([net], dataset(inputs), **FOUR_STEPS)[0]):
        assert apart(run.module.double(), expected.module.double()) < 1e-6
    measured = loss_and_accuracy(net, inputs, Y)
    assert measured == pytest.approx(loss_and_accuracy(net, inputs.float(), Y), rel=1e-6)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_whole_labels_of_any_size_count_alike(kind, outputs, loss):
    net, labels = nn.Linear(6, outputs).double(), Y % (outputs + 1)
    logits = net(X).detach()
    if outputs == 1:
        sides = torch.where(labels == 1, 1.0, -1.0)
        expected = torch.log1p(torch.exp(-sides * logits[:, 0])) if loss == "cross_entropy" else logits[:, 0] - sides
        right = (sides * logits[:, 0] > 0).double().mean().item()
    else:
        apart = logits - nn.functional.one_hot(labels, outputs)
        chosen = -logits.log_softmax(1)[torch.arange(SAMPLES), labels]
        expected = chosen if loss == "cross_entropy" else apart.square().mean(1).sqrt()
        right = (logits.argmax(1) == labels).double().mean().item()
    expected = expected if loss == "cross_entropy" else expected.square()
    measured = loss_and_accuracy(net, X, labels.to(kind), loss=loss)
    assert measured == pytest.approx((expected.mean().item(), right), rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y > 0, "labels have the shape .* and torch.bool; give one whole number a sample"),
        (Y.double(), "and torch.float64"),
        (nn.functional.one_hot(Y, 3), r"shape \(40, 3\)"),
        (Y[:, None], r"shape \(40, 1\)"),
        (Y[0], r"shape \(\)"),
        (Y + 1, "labels has values outside 0 … 2"),
        (torch.where(Y == 0, -100, Y), "labels has values outside 0 … 2"),
        (Y[:-1], "inputs and labels hold 40 and 39 samples"),
        (Y.tolist(), "labels is a list; give a tensor"),
    ],
)
def test_labels_of_other_forms_are_refused(labels, message, unchecked):
    with pytest.raises(ValueError, match=message):
        loss_and_accuracy(build("plain", 0), X, labels)


HOLED = torch.where(torch.arange(SAMPLES)[:, None] == 30, torch.nan, X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (HOLED, "its loss on these data is not finite, and inputs aren't either"),
        (X.to(torch.uint8), "forward pass fails on inputs of shape .* and torch.uint8"),
        (X[:, :5], r"forward pass fails on inputs of shape \(8, 5\)"),
        (X[:0], "hold 0 and"),
        (X.numpy(), "inputs is a ndarray"),
    ],
)
def test_inputs_of_other_forms_are_refused_and_the_mode_is_put_back(inputs, message, unchecked):
    net = build("plain", 0).train()
    with pytest.raises(ValueError, match=message):
        loss_and_accuracy(net, inputs, Y[: len(inputs)])
    assert net.training


def test_data_that_are_not_finite_are_named():
    net, good, bad = build("plain", 0), dataset(), dataset(HOLED)
    half = data.Dataset(X, Y, HOLED, Y, good.classes)
    for batch_size in (None, 8):
        with pytest.raises(ValueError, match="dataset: inputs hold values that aren't finite"):
            fit(net, bad, batch_size=batch_size, **FOUR_STEPS)
    with pytest.raises(ValueError, match="dataset: inputs hold"):
        fit_many([net, net], [good, bad], **FOUR_STEPS)
    with pytest.raises(ValueError, match="dataset: test_inputs hold"):
        fit(net, half, track_test=True, **FOUR_STEPS)
    fills = Written(lambda self, x: x.nan_to_num())
    assert fit(fills.double(), bad, **FOUR_STEPS).steps == 4


class Output(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.a, self.of = nn.Linear(6, 3), of

    def forward(self, x):
        return self.of(self.a(x))


def closed():
    net = mlp()
    net.forward = lambda x: net[2](torch.tanh(net[0](x)))
    return net


def late():
    net = mlp()
    net[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    return net


class Locked(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Output(lambda z: (z, z)), "its output is a tuple"),
        (lambda: Output(lambda z: {"logits": z}), "its output is a dict"),
        (lambda: Output(lambda z: z[:, 0]), r"has the shape \(8,\)"),
        (lambda: Output(lambda z: z[:, :, None]), r"has the shape \(8, 3, 1\)"),
        (lambda: Output(lambda z: z.mean(0, keepdim=True)), r"has the shape \(1, 3\)"),
        (lambda: Output(lambda z: 1j * z), "of real numbers"),
        (lambda: Output(lambda z: z.detach()), "no gradient in its parameters"),
        (lambda: Output(lambda z: z[:, :2]), "labels has values outside 0 … 1"),
        (lambda: Output(lambda z: z[:, :1]), "labels has values other than 0 and 1"),
        (lambda: nn.Linear(5, 3), r"forward pass fails on inputs of shape \(8, 6\)"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Sigmoid(), nn.ReLU(inplace=True)), "backward pass fails"),
        (lambda: mlp().requires_grad_(False), "none of its parameters is trained"),
        (closed, "takes 0.weight, 0.bias, 2.weight, 2.bias of this very module"),
        (late, "0.weight has a hook after its gradient is accumulated"),
        (Locked, "it can't be copied"),
        (lambda: nn.LazyLinear(3), "weight, bias has no shape yet"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused_by_name(make, message):
    net = make() if isinstance(make(), nn.LazyLinear) else make().double()
    for train in (fit, lambda net, *args, **rest: fit_many([net, net], *args, **rest)):
        with pytest.raises(ValueError, match=message):
            train(net, dataset(), **FOUR_STEPS)


def test_what_is_no_network_and_no_dataset_is_refused(unchecked):
    with pytest.raises(ValueError, match="module is a function; give a torch"):
        fit(lambda x: x, dataset(), **FOUR_STEPS)
    with pytest.raises(ValueError, match=r"modules\[1\] is a int"):
        fit_many([mlp(), 3], dataset(), **FOUR_STEPS)
    with pytest.raises(ValueError, match="dataset is a tuple"):
        fit(mlp(), (X, Y), **FOUR_STEPS)


def test_a_batch_that_the_network_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"forward pass fails on inputs of shape \(1, 6\).*batch_size"):
        fit(build("BatchNorm", 0), dataset(), batch_size=39, **FOUR_STEPS)


def test_noise_may_draw_any_class_of_the_data():
    few = data.Dataset(X, Y % 2, X, Y % 2, ("a", "b", "c"))
    with pytest.raises(ValueError, match="labels has values outside 0 … 1"):
        fit(nn.Linear(6, 2).double(), few, optimizer=LabelNoise(0.5), **FOUR_STEPS)


def test_what_cannot_be_sent_to_other_processes_is_refused_for_them():
    nets = [mlp(parametrizations.weight_norm) for _ in range(2)]
    with pytest.raises(ValueError, match="workers is above 1, but the networks can't be sent"):
        fit_many(nets, dataset(), stacked=False, workers=2, **FOUR_STEPS)
    with pytest.raises(ValueError, match="workers is 0"):
        fit_many(nets, dataset(), workers=0, **FOUR_STEPS)


@pytest.mark.parametrize("stacked", [False, True])
def test_an_augmentation_in_place_leaves_the_data_as_they_were(stacked):
    kept, nets = X.clone(), [build("plain", seed) for seed in range(2)]
    run = fit_many(nets, dataset(), stacked=stacked, augment=lambda x: x.mul_(2), **FOUR_STEPS)[1]
    assert torch.equal(X, kept)
    expected = fit_many(nets, dataset(), stacked=stacked, augment=lambda x: 2 * x, **FOUR_STEPS)[1]
    assert apart(run.module, expected.module) == 0


def test_every_closure_of_lbfgs_sees_the_same_data():
    shared = FOUR_STEPS | {"lr": 1.0, "optimizer": "lbfgs"}
    torch.manual_seed(0)
    layer = nn.Linear(6, 3).double()
    found = [fit(nn.Sequential(nn.ReLU(inplace), layer), dataset(X - 0.5), **shared) for inplace in (False, True)]
    assert apart(found[0].module, found[1].module) == 0
    assert found[0].history.loss.iloc[-1] < 1


class Functional(Written):
    def __init__(self, *, always):
        dropout = nn.functional.dropout
        super().__init__(after=lambda self, h: dropout(h, 0.2, self.training or always))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)),
        lambda: Functional(always=False),
        lambda: Functional(always=True),
    ],
)
def test_chance_in_training_stays_and_comes_of_the_seed(make):
    torch.manual_seed(0)
    nets = [make().double() for _ in range(2)]
    one, again = (fit_many(nets, dataset(), seed=[7, 8], **FOUR_STEPS) for _ in range(2))
    for a, b in zip(one, again, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True))
    other = fit(nets[0], dataset(), seed=9, **FOUR_STEPS)
    assert apart(other.module.eval(), one[0].module) > 1e-6
    with contextlib.suppress(ValueError):  # where chance decides in evaluation mode, too
        fit_many(nets, dataset(), stacked=True, **FOUR_STEPS)


def one_sam_step(module, rho):
    """θ - 0.1 (1/n) Σ ∇ℓ_i(θ + ρ g_i/‖g_i‖), a sample at a time."""
    params = [p for p in module.train().parameters() if p.requires_grad]
    old, total = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]

    def gradient(x, y):
        loss = nn.functional.cross_entropy(module(x.clone()), y)
        return torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)

    for x, y in zip(X.split(1), Y.split(1), strict=True):
        g = gradient(x, y)
        norm = torch.stack([part.abs().square().sum() for part in g]).sum().sqrt()
        with torch.no_grad():
            for p, part in zip(params, g, strict=True):
                p.add_(rho * part / norm)
        for t, part in zip(total, gradient(x, y), strict=True):
            t += part / SAMPLES
        with torch.no_grad():
            for p, value in zip(params, old, strict=True):
                p.copy_(value)
    with torch.no_grad():
        for p, t in zip(params, total, strict=True):
            p -= 0.1 * t
    return module.eval()


@torchs_own
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "replaced" not in kind])
def test_one_sam_is_its_definition_or_refused(kind):
    shared = {"lr": 0.1, "momentum": 0.0, "stop": Stop(steps=1), "optimizer": OneSAM(0.1)}
    try:
        run = fit(build(kind, 1), dataset(), **shared)
    except ValueError as refused:
        assert str(refused).startswith("network: ")
        assert kind not in ("plain", "input in place", "tied", "frozen", "subclass", "forward hook", "pruned")
        return
    expected = one_sam_step(build(kind, 1), 0.1)
    expected = expected.module if isinstance(expected, nn.DataParallel) else expected
    assert (
        max(
            abs(p - q).max().item()
            for p, q in zip(run.module.parameters(), expected.parameters(), strict=True)
            if p.numel()
        )
        < 1e-9
    )


def test_one_sam_refuses_a_network_that_mixes_samples():
    mixes = Written(after=lambda self, h: h - h.mean(0)).double()
    with pytest.raises(ValueError, match="its forward pass mixes samples"):
        fit(mixes, dataset(), optimizer=OneSAM(0.1), **FOUR_STEPS)
