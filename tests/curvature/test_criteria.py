"""Soft rank, Takeuchi's criterion and the Laplace evidence, against the matrices themselves."""

import copy

import pytest
import torch
from curvature_cases import MEANS, PIECEWISE_LINEAR, SMOOTH, gauss_newton, made
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genlib import models
from genlib.curvature import gauss_newton_eigenvalues, information_criteria
from genlib.network import Network

NAMES = ("soft_rank", "tic", "log_evidence", "prior_precision")


def second_moment(module, inputs, labels, loss):
    params = list(module.parameters())
    each = [
        torch.autograd.grad(MEANS[loss](module(x), y), params)
        for x, y in zip(inputs.split(1), labels.split(1), strict=True)
    ]
    g = torch.stack([torch.cat([part.flatten() for part in one]) for one in each])
    return g.T @ g / len(g)


def evidence(module, inputs, labels, loss, alpha):
    """−N L + ln N(w; 0, 1/α) + ½ ln det 2π(NG + α)⁻¹: the integral of a Gaussian around the weights."""
    matrix, n = gauss_newton(module, inputs, labels, loss), len(inputs)
    weights = nn.utils.parameters_to_vector(module.parameters()).detach()
    prior = torch.distributions.Normal(0.0, torch.as_tensor(alpha).double() ** -0.5).log_prob(weights).sum()
    determinant = torch.logdet((n * matrix + alpha * torch.eye(len(matrix), dtype=torch.float64)) / (2 * torch.pi))
    return -n * MEANS[loss](module(inputs), labels).detach() + prior - determinant / 2


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", [*PIECEWISE_LINEAR, "tanh"])
def test_criteria_are_those_of_the_full_matrices(name, loss):
    case = {**PIECEWISE_LINEAR, **SMOOTH}[name]()
    matrix, moment = gauss_newton(*case, loss), second_moment(*case, loss)
    for damping in (1e-3, 0.1):
        found = information_criteria(*case, loss=loss, damping=damping)
        damped = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
        torch.testing.assert_close(found.soft_rank, torch.linalg.solve(damped, matrix).trace())
        torch.testing.assert_close(found.tic, torch.linalg.solve(damped, moment).trace())
        best = found.prior_precision
        torch.testing.assert_close(found.log_evidence, evidence(*case, loss, best))
        assert all(evidence(*case, loss, factor * best) < found.log_evidence for factor in (0.97, 1.03))
    torch.testing.assert_close(vars(information_criteria(*case, loss=loss, damping=0.1, chunk_size=3)), vars(found))


@given(
    seed=st.integers(0, 2**16),
    widths=st.lists(st.integers(1, 6), max_size=3),
    classes=st.integers(1, 4),
    damping=st.floats(1e-4, 1.0),
)
@settings(max_examples=25)
def test_criteria_of_random_networks(seed, widths, classes, damping):
    def build():
        layers, a = [], 4
        for b in widths:
            layers += [nn.Linear(a, b), nn.ReLU()]
            a = b
        return nn.Sequential(*layers, nn.Linear(a, classes))

    case = made(build, (4,), seed=seed, classes=max(2, classes))
    matrix, moment = gauss_newton(*case), second_moment(*case, "cross_entropy")
    damped = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
    found, n = information_criteria(*case, damping=damping), len(case[1])
    torch.testing.assert_close(found.soft_rank, torch.linalg.solve(damped, matrix).trace())
    torch.testing.assert_close(found.tic, torch.linalg.solve(damped, moment).trace())
    torch.testing.assert_close(found.log_evidence, evidence(*case, "cross_entropy", found.prior_precision))
    # MacKay's fixed point: what the prior holds is what the data have fixed.
    gamma = information_criteria(*case, damping=found.prior_precision.item() / n).soft_rank
    square = sum(p.square().sum() for p in case[0].parameters()).detach()
    torch.testing.assert_close(found.prior_precision * square, gamma)


def test_undamped_criteria_of_many_parameters_say_nothing_but_the_loss():
    module, inputs, labels = made(lambda: models.mlp(64, 10, width=32), (64,), samples=20, classes=10)
    p = module(inputs).softmax(1)[torch.arange(20), labels].detach()
    for damping, close in ((1e-4, 0.01), (1e-6, 1e-4), (1e-8, 1e-6)):
        found = information_criteria(module, inputs, labels, damping=damping)
        assert 0 < 1 - found.tic / (1 / p - 1).sum() < close
        assert 0 < 1 - found.soft_rank / (20 * 9) < close


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_a_sample_of_hardly_any_probability_counts_with_its_gradient(scale):
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    with torch.no_grad():
        module[-1].weight.mul_(scale)
        p = module(inputs).softmax(1)[torch.arange(len(labels)), labels]
    assert scale < 1000 or p.min() < 1e-30
    matrix, moment = gauss_newton(module, inputs, labels), second_moment(module, inputs, labels, "cross_entropy")
    damped = matrix + 1e-3 * torch.eye(len(matrix), dtype=torch.float64)
    found = information_criteria(module, inputs, labels)
    torch.testing.assert_close(found.tic, torch.linalg.solve(damped, moment).trace(), rtol=1e-8, atol=0)


def test_targets_in_floats():
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    one_hot = nn.functional.one_hot(labels, 4).double()
    of_classes, of_floats = (vars(information_criteria(module, inputs, y, loss="mse")) for y in (labels, one_hot))
    torch.testing.assert_close(of_floats, of_classes)


def test_criteria_of_a_stack_and_in_single_precision():
    built = [PIECEWISE_LINEAR["max pool"](seed) for seed in range(2)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    stack = information_criteria(Network.stack(modules), inputs, labels)
    singles = [copy.deepcopy(module).float() for module in modules]
    single = information_criteria(Network.stack(singles), inputs.float(), labels)
    for i, module in enumerate(modules):
        one = information_criteria(module, inputs, labels)
        for name in NAMES:
            torch.testing.assert_close(getattr(stack, name)[i], getattr(one, name))
            assert getattr(single, name).dtype == torch.float32
            torch.testing.assert_close(getattr(single, name)[i].double(), getattr(one, name), rtol=1e-4, atol=0)


def test_the_soft_rank_is_that_of_the_eigenvalues():
    case = PIECEWISE_LINEAR["odd"]()
    values = gauss_newton_eigenvalues(*case)
    found = information_criteria(*case)
    torch.testing.assert_close(found.soft_rank, (values / (values + 1e-3)).sum())
    assert found.passes == 2 + 3


def test_without_curvature_there_is_nothing_but_the_loss():
    module, inputs, labels = made(lambda: nn.Sequential(nn.Linear(4, 3)), (4,))
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.copy_(torch.tensor([800.0, 0, 0]))
    found = information_criteria(module, inputs, torch.zeros_like(labels))
    assert found.soft_rank == found.tic == 0 and abs(found.log_evidence) < 1e-300
    with torch.no_grad():
        module[0].bias.zero_()
    found = information_criteria(module, inputs, labels)  # of no weights the best prior is a point
    torch.testing.assert_close(found.log_evidence, -7 * torch.tensor(3.0).double().log())


@pytest.mark.parametrize("name", ["shared weight", "runs twice", "outside of a layer", "layer norm"])
def test_criteria_of_unknown_layers_are_refused(name):
    with pytest.raises(ValueError, match=r"^network: .*; top_eigenvalues"):
        information_criteria(*SMOOTH[name]())


@pytest.mark.parametrize("name", ["dense", "max pool", "positions"])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_does_not_move_of_a_layer_is_left_out(name, frozen):
    """As where biases alone are trained, or weights alone."""
    module, inputs, labels = PIECEWISE_LINEAR[name]()
    for part, parameter in module.named_parameters():
        parameter.requires_grad_(not part.endswith(frozen))
    moving = {part: p for part, p in module.named_parameters() if p.requires_grad}

    def logits(weights, x):
        return torch.func.functional_call(module, weights, (x.unsqueeze(0),)).squeeze(0)

    jacobians = torch.func.vmap(torch.func.jacrev(logits), (None, 0))(moving, inputs)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], 2).detach()
    p = module(inputs).softmax(1).detach()
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    matrix = (j.mT @ curvature @ j).mean(0)
    found = information_criteria(Network.of(module).trainable, inputs, labels)
    damped = matrix + 1e-3 * torch.eye(len(matrix), dtype=torch.float64)
    torch.testing.assert_close(found.soft_rank, torch.linalg.solve(damped, matrix).trace())
    slopes = (p - nn.functional.one_hot(labels, p.shape[1])).unsqueeze(1) @ j
    moment = (slopes.mT @ slopes).mean(0)
    torch.testing.assert_close(found.tic, torch.linalg.solve(damped, moment).trace())
    values = torch.linalg.eigvalsh(matrix).flip(0)
    known = gauss_newton_eigenvalues(Network.of(module).trainable, inputs, labels)
    torch.testing.assert_close(known, values[: len(known)], rtol=1e-7, atol=1e-12)


class Casting(nn.Module):
    """Takes images as they are in files, as many do, or casts its outputs."""

    def __init__(self, first=lambda x: x, last=lambda z: z):
        super().__init__()
        self.hidden, self.head, self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3), first, last

    def forward(self, x):
        return self.last(self.head(torch.relu(self.hidden(self.first(x)))))


@pytest.mark.parametrize("kernel", [information_criteria, gauss_newton_eigenvalues])
def test_a_forward_pass_of_fixed_precision_is_refused(kernel):
    images, labels = torch.arange(28, dtype=torch.uint8).view(7, 4), torch.arange(7) % 3
    kernel(Casting(), images / 255, labels)  # as the refusal says
    for network, inputs in (
        (Casting(lambda x: x.float() / 255), images),
        (Casting(last=lambda z: z.float()), images / 255),
    ):
        with pytest.raises(ValueError, match=r"^network: its forward pass fixes"):
            kernel(network, inputs, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0}, "^damping is 0; give a positive number"),
        ({"damping": float("nan")}, "^damping is nan"),
        ({"damping": 1e-30}, "^damping is 1e-30, lost beside an eigenvalue of"),
        ({"loss": nn.CrossEntropyLoss()}, r"^loss is CrossEntropyLoss\(\), whose Hessian"),
        ({"loss": "error"}, "^loss is 'error'"),
    ],
)
def test_bad_requests_for_criteria_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        information_criteria(*PIECEWISE_LINEAR["dense"](), **options)
