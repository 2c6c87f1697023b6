"""A step of SAM counts running statistics once, those of a plain step, whatever runs the network."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from trained import distance

from genlib import data
from genlib.optimizers import SAM
from genlib.train import Stop, fit, fit_many

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).double(), torch.arange(24) % 3
DATASET = data.Dataset(X, Y, X, Y, ("a", "b", "c"))


class ByHand(nn.Module):
    """Batch normalization as people write it: the statistics are replaced, not changed in place."""

    def __init__(self, *, plain=False):
        super().__init__()
        if plain:
            self.running_mean = torch.zeros(5)
        else:
            self.register_buffer("running_mean", torch.zeros(5))
        self.num_batches_tracked = 0

    def forward(self, x):
        if not self.training:
            return x - self.running_mean
        self.num_batches_tracked += 1
        self.running_mean = 0.9 * self.running_mean + 0.1 * x.detach().mean(0)
        return x - x.mean(0)


class Instances(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm1d(5, track_running_stats=True)

    def forward(self, x):
        return self.norm(torch.stack([x, x.square()], -1)).sum(-1) + x


NORMS = {
    "batch": lambda: nn.BatchNorm1d(5),
    "cumulative": lambda: nn.BatchNorm1d(5, momentum=None),
    "instance": Instances,
    "by hand": ByHand,
    "attribute": lambda: ByHand(plain=True),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5)),
}


def network(norm="batch"):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), NORMS[norm](), nn.ReLU(), nn.Linear(5, 3)).double()


def mean_loss(module, x=X):
    return nn.functional.cross_entropy(module(x), Y)


def statistics(module):
    """All tensors and counters that are no parameters."""
    attributes = [
        torch.as_tensor(value)
        for part in module.modules()
        for name, value in vars(part).items()
        if name in ("running_mean", "num_batches_tracked")
    ]
    return [buffer.clone() for buffer in module.buffers()] + attributes


def sam_step(module, run, *, rho=0.3):
    optimizer = SAM(rho)([p for p in module.parameters() if p.requires_grad], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = run()
        loss.backward()
        return loss

    optimizer.step(closure)


def compiled(module):
    torch.compiler.reset()
    wrapped = torch.compile(module, backend="aot_eager")
    return lambda: mean_loss(wrapped)


def compiled_in_place(module):
    torch.compiler.reset()
    module.compile(backend="aot_eager")
    return lambda: mean_loss(module)


def compiled_part(module):
    torch.compiler.reset()
    module[1] = torch.compile(module[1], backend="aot_eager")
    return lambda: mean_loss(module)


def compiled_loss(module):
    torch.compiler.reset()
    return torch.compile(lambda: mean_loss(module), backend="aot_eager")


WAYS = {
    "eager": lambda module: lambda: mean_loss(module),
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "compiled part": compiled_part,
    "compiled loss": compiled_loss,
    "DataParallel": lambda module: lambda: mean_loss(nn.DataParallel(module)),
    "functional": lambda module: (
        lambda: (
            functional_call(nn.ModuleList([module])[0], dict(module.named_parameters()), X)
            .log_softmax(1)[torch.arange(24), Y]
            .mean()
            .neg()
        )
    ),
}


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
@pytest.mark.parametrize("way", WAYS)
def test_a_step_in_a_loop_of_ones_own_counts_once(way):
    plain, module = network(), network()
    mean_loss(plain)
    run = WAYS[way](module)
    sam_step(module, run)
    for found, expected in zip(statistics(module), statistics(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    eager = network()
    sam_step(eager, lambda: mean_loss(eager))
    assert distance(eager, network()) > 1e-3
    for p, q in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_every_kind_of_statistics_is_that_of_one_plain_step(norm):
    plain, module = network(norm), network(norm)
    mean_loss(plain)
    sam_step(module, lambda: mean_loss(module))
    own = fit(network(norm), DATASET, lr=0.1, optimizer=lambda params: SAM(0.3)(params, lr=0.1), stop=Stop(steps=1))
    alone = fit(network(norm), DATASET, lr=0.1, momentum=0.0, optimizer=SAM(0.3), stop=Stop(steps=1))
    many = fit_many([network(norm)] * 2, DATASET, lr=0.1, momentum=0.0, optimizer=SAM(0.3), stop=Stop(steps=1))
    for trained in (module, own.module, alone.module, many[1].module):
        for found, expected in zip(statistics(trained), statistics(plain), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(trained[0].weight, module[0].weight, rtol=1e-9, atol=1e-12)


def test_statistics_are_kept_where_the_closure_fails():
    module = network()
    before, calls = copy.deepcopy(module), []

    def run():
        calls.append(mean_loss(module))
        if len(calls) == 2:
            raise RuntimeError("no more")
        return calls[-1]

    with pytest.raises(RuntimeError, match="no more"):
        sam_step(module, run)
    mean_loss(before)
    assert distance(module, before) == 0


def test_small_gradients_in_half_precision_perturb_by_rho():
    module = nn.Linear(4, 2).half()
    seen, before = [], module.weight.detach().clone()

    def run():
        seen.append(module.weight.detach().clone())
        return (module(torch.ones(1, 4).half()) * 2e-5).sum()

    sam_step(module, run, rho=0.5)
    moved = (seen[1].double() - before.double()).norm().item()
    assert moved == pytest.approx(0.5 * (8 / 10) ** 0.5, rel=0.01)  # 8 of 10 equal gradients are the weight's


def test_gradients_that_are_sparse_perturb_as_dense_ones():
    index = torch.randint(20, (24, 2), generator=torch.Generator().manual_seed(0))
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Embedding(20, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3)).double()
        sam_step(module, lambda module=module: nn.functional.cross_entropy(module(index), Y))
        found.append(module)
    assert distance(*found) < 1e-12


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (None, "closure is None; SAM takes two gradients"),
        (lambda: torch.ones(()), "closure leaves no gradient"),
        (lambda: None, "closure gives no loss"),
    ],
)
def test_closures_that_give_no_gradient_are_named(closure, message):
    with pytest.raises(ValueError, match=message):
        SAM(0.1)(network().parameters(), lr=0.1).step(closure)
