"""Losses of torch and of one's own: their mean is that of all data at once; what they can't compare is refused."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genlib import curvature, sharpness
from genlib.network import Network
from genlib.optimizers import one_sam_gradient
from genlib.sharpness import Objective

SAMPLES = 11
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])
CLASSES = torch.tensor([0, 1, 2, 3, 1, 2, 2, 0, 3, 1, 1])
IGNORED = torch.where(torch.arange(SAMPLES) % 4 == 0, -100, CLASSES)
SHARES = torch.rand(SAMPLES, 4, generator=torch.Generator().manual_seed(3)).softmax(1)
ROWS = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(4))
YES = (torch.arange(SAMPLES) % 3 == 0).long()


def network(outputs, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def inputs():
    return torch.randn(SAMPLES, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def own(outputs, labels):
    """Ordinal: how far the mean class is from the label."""
    places = torch.arange(outputs.shape[1], dtype=outputs.dtype)
    return ((outputs.softmax(1) * places).sum(1) - labels).square()


# The loss, its labels, how many outputs, and what it is for all samples at once.
# fmt: off
LOSSES = {
    "class weights": (nn.CrossEntropyLoss(WEIGHTS), CLASSES, 4),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), CLASSES, 4),
    "ignored": (nn.CrossEntropyLoss(), IGNORED, 4),
    "all three": (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.2), IGNORED, 4),
    "another index": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=2), CLASSES, 4),
    "shares of classes": (nn.CrossEntropyLoss(WEIGHTS), SHARES, 4),
    "likelihood": (nn.NLLLoss(WEIGHTS), CLASSES, 4),
    "margins": (nn.MultiMarginLoss(weight=WEIGHTS), CLASSES, 4),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), YES, 1),
    "weights in a row": (nn.BCEWithLogitsLoss(WEIGHTS[None]), F.one_hot(CLASSES, 4).float(), 4),
    "many labels": (nn.BCEWithLogitsLoss(WEIGHTS), F.one_hot(CLASSES, 4), 4),
    "lists of labels": (nn.MultiLabelMarginLoss(), torch.stack([CLASSES, *[torch.full_like(CLASSES, -1)] * 3], 1), 4),
    "regression": (nn.MSELoss(), ROWS, 4),
    "huber of one": (nn.HuberLoss(delta=0.5), ROWS[:, 0], 1),
    "counts": (nn.PoissonNLLLoss(), CLASSES.float(), 1),
    "smooth l1": (nn.SmoothL1Loss(), ROWS[:, :1], 1),
    "mse": ("mse", ROWS, 4),
    "l1": ("l1", ROWS[:, 0], 1),
    "huber": ("huber", ROWS, 4),
    "a mean": (lambda z, y: F.mse_loss(z, y), ROWS, 4),
    "a mean of one": (lambda z, y: ((z - y) ** 2).mean(), ROWS[:, 0], 1),
    "one a sample": (lambda z, y: (z - y).abs().pow(1.5).sum(1), ROWS, 4),
    "a part": (functools.partial(F.cross_entropy, label_smoothing=0.1), CLASSES, 4),
    "whole numbers": (own, 3 * CLASSES, 4),
    "a mean that looks at values": (
        lambda z, y: F.gaussian_nll_loss(z[:, 0], y, z[:, 1].exp()), ROWS[:, 0].double(), 2
    ),
    "classes in 32 bits": (nn.CrossEntropyLoss(WEIGHTS), CLASSES.int(), 4),
}
# fmt: on
UNBENT = ["margins", "lists of labels"]  # for which torch has no second derivative
NAMED = {"mse": nn.MSELoss(), "l1": nn.L1Loss(), "huber": nn.HuberLoss()}


def at_once(name, module, x):
    """The loss of all samples, as torch has it."""
    loss, labels, _ = LOSSES[name]
    outputs, loss = module(x), NAMED.get(loss, loss)
    if isinstance(loss, nn.Module):
        loss = type(loss)(
            **{k: v for k, v in vars(loss).items() if not k.startswith("_") and k != "training"},
            **{k: v.double() for k, v in loss.named_buffers()},
        )
    if labels.is_floating_point() or name in ("binary", "many labels"):
        labels = labels.double()
        outputs = outputs.view_as(labels) if outputs.numel() == labels.numel() else outputs
    return loss(outputs, labels if labels.is_floating_point() else labels.long()).mean()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_mean_loss_and_its_gradient_are_those_of_all_samples_at_once(name, chunk_size):
    loss, labels, outputs = LOSSES[name]
    module, x = network(outputs), inputs()
    objective = Objective.of(module, x, labels, loss, chunk_size)
    value, gradient = objective.gradient(objective.network.params)
    expected = at_once(name, module, x)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0)
    for own, right in zip(gradient.values(), torch.autograd.grad(expected, list(module.parameters())), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in UNBENT])
def test_curvature_and_sharpness_are_those_of_the_loss(name):
    loss, labels, outputs = LOSSES[name]
    module, x = network(outputs), inputs()
    flat = nn.utils.parameters_to_vector(module.parameters()).detach()

    def at(w):
        sizes = [p.numel() for p in module.parameters()]
        parts = (p.view_as(q) for p, q in zip(w.split(sizes), module.parameters(), strict=True))
        params = dict(zip(dict(module.named_parameters()), parts, strict=True))
        return at_once(name, lambda z: torch.func.functional_call(module, params, (z,)), x)

    hessian = torch.autograd.functional.hessian(at, flat)
    found = curvature.top_eigenvalues(module, x, labels, 1, loss=loss)
    scale = torch.linalg.eigvalsh(hessian).abs().max().item()
    torch.testing.assert_close(found.values[0], torch.linalg.eigvalsh(hessian)[-1], rtol=0, atol=2e-4 * scale + 1e-9)
    trace = curvature.trace(module, x, labels, loss=loss)
    assert (trace.value - hessian.trace()).abs() <= 4 * trace.standard_error + 1e-6 * len(flat) * scale
    gradient = torch.autograd.functional.jacobian(at, flat)
    rise = at(flat + 0.05 * gradient / gradient.norm()) - at(flat)
    torch.testing.assert_close(
        sharpness.sam_sharpness(module, x, labels, loss=loss, radius=0.05), rise, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("ignored", "all three", "another index")])
def test_the_variance_is_that_of_the_samples_own_gradients(name):
    loss, labels, outputs = LOSSES[name]
    module, x = network(outputs), inputs()
    params = list(module.parameters())
    objective = Objective.of(module, x, labels, loss)
    each = torch.stack(
        [
            nn.utils.parameters_to_vector(torch.autograd.grad(one, params, retain_graph=True))
            for one in objective.losses(module(x), objective.labels)
        ]
    )
    expected = (each - each.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(curvature.gradient_variance(module, x, labels, loss=loss), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["class weights", "regression", "a mean of one", "huber of one"])
@pytest.mark.parametrize("of_each", [False, True])
def test_a_stack_is_its_networks_one_by_one(name, of_each):
    loss, labels, outputs = LOSSES[name]
    modules, x = [network(outputs, seed) for seed in range(3)], inputs()
    if of_each:
        x, labels = torch.stack([x, -x, 2 * x]), torch.stack([labels, labels.flip(0), labels.roll(1, 0)])
    together = sharpness.sam_sharpness(Network.stack(modules), x, labels, loss=loss, radius=0.05)
    alone = [
        sharpness.sam_sharpness(one, *((x[i], labels[i]) if of_each else (x, labels)), loss=loss, radius=0.05)
        for i, one in enumerate(modules)
    ]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=0)


def test_each_network_of_a_stack_weights_its_own_data():
    modules, x = [network(4, seed) for seed in range(3)], torch.stack([inputs(), -inputs(), 2 * inputs()])
    labels = torch.stack([CLASSES, IGNORED, torch.ones_like(CLASSES)])
    found = Objective.of(Network.stack(modules), x, labels, nn.CrossEntropyLoss(WEIGHTS)).at_rest()
    right = [F.cross_entropy(m(z), y, WEIGHTS.double()) for m, z, y in zip(modules, x, labels, strict=True)]
    torch.testing.assert_close(found, torch.stack(right).detach(), rtol=1e-6, atol=0)


def test_a_weight_of_a_rare_class_is_seen():
    x = torch.randn(1000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels = torch.zeros(1000, dtype=torch.long)
    labels[7::150] = 3  # which are none of those at which a loss is first looked at
    weighted = functools.partial(F.cross_entropy, weight=torch.tensor([1.0, 1.0, 1.0, 100.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="class weights"):
        Objective.of(network(4), x, labels, weighted)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy])
def test_of_inputs_that_are_not_finite_the_loss_is_not_blamed(loss):
    x = inputs()
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="network: its loss on these data is not finite"):
        sharpness.sam_sharpness(network(4), x, CLASSES, loss=loss, radius=0.05)
    with pytest.raises(ValueError, match="network: its output on these data is not finite"):
        sharpness.sam_sharpness(network(4), torch.nan * x, CLASSES, loss=loss, radius=0.05)


@pytest.mark.parametrize("name", ["class weights", "regression", "a mean of one"])
def test_the_mean_of_1_sam_is_that_of_the_loss(name):
    loss, labels, outputs = LOSSES[name]
    module, x = network(outputs), inputs()
    value, found = one_sam_gradient(module, x, labels, 0.1, loss=loss)
    objective = Objective.of(module, x, labels, loss)
    torch.testing.assert_close(value, objective.at_rest())
    weights, mean = [*module.parameters()], 0.0
    for i in range(SAMPLES):
        one = objective.losses(module(x[i : i + 1]), objective.labels[i : i + 1]).sum()
        gradient = nn.utils.parameters_to_vector(torch.autograd.grad(one, weights))
        flat = nn.utils.parameters_to_vector(weights).detach()
        other = copy.deepcopy(module)
        nn.utils.vector_to_parameters(flat + 0.1 * gradient / gradient.norm(), other.parameters())
        there = objective.losses(other(x[i : i + 1]), objective.labels[i : i + 1]).sum()
        mean = mean + nn.utils.parameters_to_vector(torch.autograd.grad(there, [*other.parameters()])) / SAMPLES
    torch.testing.assert_close(nn.utils.parameters_to_vector(found.values()), mean, rtol=1e-6, atol=1e-10)


def _of_batch(z, y):
    return (z - z.mean(0) - y).square().sum(1)


def _by_its_mean_weight(z, y):
    weight = z.new_tensor([1.0, 1.0, 1.0, 100.0])[y]
    return F.cross_entropy(z, y, reduction="none") * weight / weight.mean()


def test_what_differs_from_piece_to_piece_is_refused_though_the_class_is_rare():
    x = torch.randn(2000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(2000) % 200 == 7, 3, torch.arange(2000) % 3)
    with pytest.raises(ValueError, match=r"^loss of several samples is not the mean"):
        Objective.of(network(4), x, labels, _by_its_mean_weight)


def test_a_mean_over_the_batch_sums_over_the_numbers_of_a_sample():
    module, x = network(4), inputs()
    found = Objective.of(nn.Sequential(module, nn.LogSoftmax(1)), x, SHARES, nn.KLDivLoss(reduction="batchmean"))
    expected = F.kl_div(module(x).log_softmax(1), SHARES.double(), reduction="batchmean")
    torch.testing.assert_close(found.at_rest(), expected.detach(), rtol=1e-12, atol=0)


REFUSED = {
    "a class in the place of a loss": (nn.MSELoss, ROWS, 4, r"give an instance of it, MSELoss\(\)"),
    "what raises": (lambda z, y: {}[0], ROWS, 4, "loss fails"),
    "targets of another width": (nn.MSELoss(), ROWS[:, :3], 4, "a target for each output"),
    "one target for four outputs": ("mse", ROWS[:, 0], 4, "a target for each output"),
    "a sum": (nn.MSELoss(reduction="sum"), ROWS, 4, "reduction='sum'"),
    "a sum of one's own": (lambda z, y: (z - y).square().sum(), ROWS, 4, "not the mean of theirs"),
    "weights in a mean of one's own": (
        functools.partial(F.cross_entropy, weight=WEIGHTS.double()), CLASSES, 4, "class weights"
    ),
    "the samples beside it": (_of_batch, ROWS, 4, "those beside it"),
    "all against all": (lambda z, y: (z - y.flatten()).square().mean(1), ROWS[:, :1], 1, "beside it"),
    "whole numbers for l1": ("l1", CLASSES, 4, r"labels\.float\(\)"),
    "classes beyond the outputs": (nn.CrossEntropyLoss(), CLASSES, 3, "an output a class"),
    "classes of one output": (nn.CrossEntropyLoss(), YES, 1, "an output a class"),
    "a share of the only class": (nn.CrossEntropyLoss(), ROWS[:, :1], 1, "zero whatever"),
    "another number of samples": (nn.MSELoss(), ROWS[:7], 4, "a row a sample"),
    "all ignored": (nn.CrossEntropyLoss(), torch.full((SAMPLES,), -100), 4, "at least one class"),
    "a class below zero": (nn.CrossEntropyLoss(), CLASSES - 1, 4, "ignore_index"),
    "no number": (lambda z, y: "low", ROWS, 4, "gives a str"),
    "no such name": ("hinge", CLASSES, 4, "mse, l1 or huber"),
    "cross-entropy of targets": ("cross_entropy", ROWS, 4, "loss one that compares them"),
    "a target that is not finite": (nn.MSELoss(), ROWS / ROWS.sign().relu(), 4, "labels has values that are not"),
    "weights of samples": (nn.BCEWithLogitsLoss(torch.ones(SAMPLES, 1)), SHARES, 4, "a number for each output"),
    "two outputs that are compared": (nn.CosineEmbeddingLoss(), YES, 4, "other than outputs and labels"),
    "triplets": (nn.TripletMarginLoss(), ROWS, 4, "other than outputs and labels"),
    "a variance beside them": (nn.GaussianNLLLoss(), ROWS, 4, "other than outputs and labels"),
    "labels to be ignored": ("cross_entropy", IGNORED, 4, "a loss that ignores some"),
    "what fails": (lambda z, y: z @ y, ROWS, 4, "loss fails"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_loss_cannot_compare_is_refused(name):
    loss, labels, outputs, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as refusal:
        sharpness.sam_sharpness(network(outputs), inputs(), labels, loss=loss, radius=0.05)
    assert str(refusal.value).startswith(("loss", "labels"))


@pytest.mark.parametrize("name", UNBENT)
def test_a_loss_without_second_derivatives_has_no_curvature(name):
    loss, labels, outputs = LOSSES[name]
    with pytest.raises(ValueError, match="no second derivative"):
        curvature.top_eigenvalues(network(outputs), inputs(), labels, 1, loss=loss)


def test_outputs_that_are_probabilities_bring_a_warning():
    module = nn.Sequential(network(4), nn.Softmax(1))
    with pytest.warns(UserWarning, match="return what enters its softmax"):
        Objective.of(module, inputs(), CLASSES)
