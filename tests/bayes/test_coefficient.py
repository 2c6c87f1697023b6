"""The learning coefficient: models whose own is known, stacks, and what is refused, on both sides of each line."""

import copy
import math

import numpy as np
import pytest
import torch
from bayes_cases import aoyagi_watanabe, of_two_by_two, of_two_weights, product, regression
from cases import data, dense, flat, permuted, rescaled, residual, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genlib import bayes
from genlib import data as datasets
from genlib.bayes import learning_coefficient
from genlib.bayes.coefficient import _disagreement
from genlib.measures import cost, evaluate
from genlib.network import Network
from genlib.train import Stop, fit


def z_score(found, expected):
    return abs(found.value.item() - expected) / found.standard_error.item()


# Known


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**20), gamma=st.floats(0.1, 100), nbeta=st.floats(1, 300))
def test_of_a_normal_distribution_it_is_half_the_soft_rank(seed, gamma, nbeta):
    network, inputs, targets, kappa = regression(seed)
    found = learning_coefficient(
        network, inputs, targets, loss="mse", localization=gamma, inverse_temperature=nbeta, chains=100
    )
    assert z_score(found, (nbeta * kappa / (nbeta * kappa + gamma)).sum().item() / 2) < 4.5
    assert found.standard_error < 0.15


def test_of_a_regular_model_it_is_half_the_number_of_weights():
    network, inputs, targets, _ = regression(samples=500, d=6)
    found = learning_coefficient(network, inputs, targets, loss="mse", localization=0.3, chains=50)
    assert z_score(found, 3) < 4 and found.standard_error < 0.06
    assert found.inverse_temperature == 500 / math.log(500)


def test_quadratures_tend_to_what_the_theorem_says():
    # E nβ(L − L*) = λ − (m − 1)/ln nβ + …, whose constants are unknown: 1/(λ − E) grows by ln nβ where m = 2
    assert aoyagi_watanabe(1, 1, 1, 0) == (0.5, 2)
    low, high = (1 / (0.5 - of_two_weights(t, 1.0)) for t in (1e8, 1e14))
    assert high - low == pytest.approx(math.log(1e6), rel=1e-3)
    assert aoyagi_watanabe(1, 1, 1, 1) == (0.5, 1)
    assert of_two_weights(1e5, 1.0, 1.0, 1.0) == pytest.approx(0.5, abs=1e-3)
    assert aoyagi_watanabe(2, 2, 2, 0) == (1.5, 1)
    assert of_two_by_two(1e7, 1.0) == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize(("t", "gamma"), [(30.0, 1.0), (1000.0, 10.0)])
def test_of_a_product_of_two_weights(t, gamma):
    network, inputs = product(torch.zeros(1, 1), torch.zeros(1, 1))
    found = learning_coefficient(
        network, inputs, torch.zeros(3, 1).double(), loss="mse", inverse_temperature=t, localization=gamma, chains=400,
        draws=2000,
    )  # fmt: skip
    expected = of_two_weights(t, gamma)
    assert z_score(found, expected) < 4 and found.standard_error < 0.012 * expected and expected < 0.45


def test_of_reduced_rank_regression_on_its_ridge():
    network, inputs = product(torch.ones(1, 1), torch.ones(1, 1))
    found = learning_coefficient(
        network, inputs, torch.ones(3, 1).double(), loss="mse", inverse_temperature=50.0, localization=2.0, chains=400
    )
    assert z_score(found, of_two_weights(50.0, 2.0, 1.0, 1.0)) < 4 and found.standard_error < 0.01


@pytest.mark.parametrize(("t", "gamma"), [(30.0, 1.0), (300.0, 10.0)])
def test_of_reduced_rank_regression_where_its_ranks_meet(t, gamma):
    network, inputs = product(torch.zeros(2, 2), torch.zeros(2, 2))
    found = learning_coefficient(
        network, inputs, torch.zeros(6, 2).double(), loss="mse", inverse_temperature=2 * t, localization=gamma,
        chains=400, draws=1000,
    )  # fmt: skip
    assert z_score(found, of_two_by_two(t, gamma)) < 4 and found.standard_error < 0.01


# Of networks


@pytest.fixture(scope="module")
def trained():
    dataset = datasets.load("mnist1d", train=100)
    network = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 10))
    network = fit(network, dataset, lr=0.1, batch_size=25, stop=Stop(loss=0.02, epochs=2000)).module
    return network, dataset.inputs, dataset.labels


def test_steps_of_half_the_size_find_the_same(trained, monkeypatch):
    found = learning_coefficient(*trained, chains=16)
    monkeypatch.setattr(bayes.coefficient, "_STEP", 0.25)
    finer = learning_coefficient(*trained, chains=16, draws=1000)
    assert finer.step < found.step
    apart = abs(found.value - finer.value) / torch.hypot(found.standard_error, finer.standard_error)
    assert apart < 4 and found.standard_error < 0.02 * found.value
    assert found.converged and found.disagreement < 1.05


def test_it_is_blind_to_the_order_of_neurons_alone(trained):
    network, inputs, labels = trained
    found = learning_coefficient(*trained, chains=16)

    def apart(other):
        then = learning_coefficient(other, inputs, labels, chains=16)
        return abs(found.value - then.value) / torch.hypot(found.standard_error, then.standard_error)

    assert apart(permuted(network, torch.arange(16).flip(0))) < 4
    assert apart(rescaled(network, [torch.full((16,), 3.0)])) > 10  # Dinh's, and of each neuron
    with torch.no_grad():
        scaled = copy.deepcopy(network)
        for i, layer in enumerate(scaled[::2], 1):
            layer.weight.mul_(0.6)
            layer.bias.mul_(0.6**i)
    assert apart(scaled) > 10


def test_the_error_is_the_spread_of_the_chains(trained):
    found = learning_coefficient(*trained, chains=5)
    torch.testing.assert_close(found.value, found.chains.mean())
    torch.testing.assert_close(found.standard_error, found.chains.std() / 5**0.5)


def test_a_stack_is_as_its_networks_are(trained):
    network, inputs, labels = trained
    other = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 10)).train(network.training)
    other.load_state_dict({name: 1.05 * w for name, w in network.state_dict().items()})
    stack = Network.stack([network, other])
    for data_of_each in (False, True):
        x, y = (t.expand(2, *t.shape) if data_of_each else t for t in (inputs, labels))
        found = learning_coefficient(stack, x, y, draws=20)
        each = [learning_coefficient(one, inputs, labels, draws=20) for one in (network, other)]
        for name in ("value", "standard_error", "chains", "disagreement", "converged", "localization", "step"):
            torch.testing.assert_close(getattr(found, name), torch.stack([getattr(one, name) for one in each]))
        assert found.passes == max(one.passes for one in each)


def test_a_generator_makes_it_again_and_another_makes_it_anew(trained):
    values = [
        learning_coefficient(*trained, draws=20, generator=seed and torch.Generator().manual_seed(seed)).value.item()
        for seed in (None, None, 1, 1, 2)
    ]
    assert values[0] == values[1] and values[2] == values[3] and len(set(values)) == 3


def test_the_localization_is_a_share_of_the_weights(trained):
    network, *_ = trained
    found = learning_coefficient(*trained, draws=20)
    w = flat(network)
    assert found.localization.item() == pytest.approx(10 * len(w) / w.square().sum().item(), rel=1e-5)


def test_a_draw_costs_three_passes_a_chain(trained):
    network, inputs, labels = trained
    counted = []
    for draws in (10, 25):
        calls = []
        handle = network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        counted.append((learning_coefficient(network, inputs, labels, draws=draws, chains=3).passes, len(calls)))
        handle.remove()
    (few, few_calls), (many, many_calls) = counted
    assert many - few == 3 * 3 * 15 and many_calls - few_calls == 3 * 15


def test_all_is_left_as_it_was(trained):
    with unchanged(*trained):
        learning_coefficient(*trained, draws=10)


def test_the_row_is_what_the_kernel_finds(trained):
    network, inputs, labels = trained
    row = evaluate(network, (inputs, labels), names=["learning_coefficient"]).loc["learning_coefficient"]
    found = learning_coefficient(network, inputs, labels)
    assert row["value"] == pytest.approx(found.value.item(), rel=1e-6) and row["passes"] == found.passes
    assert row["standard_error"] == pytest.approx(found.standard_error.item(), rel=1e-5) and row["reason"] == ""


def test_the_row_costs_about_what_is_said_beforehand(trained):
    network, inputs, labels = trained
    bill, table = (f(network, (inputs, labels), names=["learning_coefficient"]) for f in (cost, evaluate))
    assert (
        bill["passes"].item() == pytest.approx(table["passes"].item(), rel=0.1) and bill["at_most"].item() == math.inf
    )


def test_the_disagreement_is_that_of_halves():
    values = torch.randn(21, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 1] += 1
    halves = np.array([values[part, i].numpy() for i in range(3) for part in (slice(10), slice(10, 20))])
    within, between = halves.var(1, ddof=1).mean(), halves.mean(1).var(ddof=1)
    assert _disagreement(values).item() == pytest.approx(math.sqrt(9 / 10 + between / within))
    assert _disagreement(torch.ones(20, 2)) <= 1


def test_chains_that_hang_together_have_not_converged():
    # Draws hang together for √(nβκ/γ) = 300 steps or so.
    network, inputs, targets, _ = regression()
    found = learning_coefficient(
        network, inputs, targets, loss="mse", localization=1e-3, inverse_temperature=100.0, draws=50
    )
    assert found.disagreement > 1.1 and not found.converged


# Refused


def one_weight(at):
    network = nn.Sequential(nn.Linear(1, 1, bias=False).double())
    nn.init.constant_(network[0].weight, at)
    return network, torch.ones(4, 1).double(), torch.zeros(4, 1).double()


def plateau(outputs, targets):
    return (1 - (-outputs.square()).exp()).mean(-1)


def test_a_chain_that_leaves_its_basin_is_refused():
    # 1 − exp(−w²): at γ = 1 the plateau's share of the prior outweighs the basin, at γ = 30 the chains stay within it.
    network, inputs, targets = one_weight(0.0)
    options = {"loss": plateau, "inverse_temperature": 2.0, "chains": 20}
    with pytest.raises(ValueError, match=r"chains left its basin.*give a larger localization"):
        learning_coefficient(network, inputs, targets, localization=0.01, **options)
    found = learning_coefficient(network, inputs, targets, localization=30.0, **options)
    w = np.linspace(-3, 3, 10_001)
    density = np.exp(-2 * (1 - np.exp(-(w**2))) - 15 * w**2)
    assert z_score(found, (density * 2 * (1 - np.exp(-(w**2)))).sum() / density.sum()) < 4


def test_a_lower_loss_beside_it_is_refused():
    # A maximum: its gradient is zero, and the loss falls on both sides.
    network, inputs, targets = one_weight(0.0)
    with pytest.raises(ValueError, match="it is no minimum of its loss, which is lower around it"):
        learning_coefficient(
            network, inputs, targets, loss=lambda z, y: (z.square() - 1).square().mean(-1), inverse_temperature=5.0,
            localization=1.0,
        )  # fmt: skip


def test_a_gradient_that_is_worth_a_direction_is_refused():
    # nβw² + γ/2 (w − w*)²: one step along the gradient 2w* lowers nβL by (2nβw*)²/2(2nβ + γ)
    nbeta, gamma = 20.0, 3.0
    largest = math.sqrt(2 * nbeta + gamma) / (2 * nbeta)
    options = {"loss": "mse", "inverse_temperature": nbeta, "localization": gamma, "chains": 50}
    with pytest.raises(ValueError, match=r"near no minimum of its loss: nβL falls by 0\.51"):
        learning_coefficient(*one_weight(1.01 * largest), **options)
    at = 0.9 * largest
    found = learning_coefficient(*one_weight(at), **options)
    variance, mean = 1 / (2 * nbeta + gamma), gamma * at / (2 * nbeta + gamma)
    assert z_score(found, nbeta * (variance + mean**2 - at**2)) < 4


def test_a_loss_that_is_not_finite_away_from_the_weights_is_refused():
    network, inputs, targets = one_weight(0.0)

    def walled(outputs, targets):
        squares = outputs.square().mean(-1)
        return squares - 1e-6 * torch.log(0.5 - squares)

    options = {"loss": walled, "localization": 1.0}
    with pytest.raises(ValueError, match="a chain left its basin, its loss is not finite there"):
        learning_coefficient(network, inputs, targets, inverse_temperature=1.0, **options)
    assert learning_coefficient(network, inputs, targets, inverse_temperature=300.0, **options).value > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 9}, "draws is 9; give at least 10"),
        ({"chains": 1}, "chains is 1; give at least 2"),
        ({"inverse_temperature": 0.0}, "inverse_temperature is 0.0; it must be positive"),
        ({"inverse_temperature": math.nan}, "inverse_temperature is nan"),
        ({"localization": -1.0}, "localization is -1.0; it must be positive"),
        ({"localization": math.inf}, "localization is inf"),
        ({"loss": "error"}, "loss is 'error', which has no gradient"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({}, "near no minimum of its loss"),
    ],
)
def test_what_can_not_be_measured_is_refused(options, message):
    network, (inputs, labels) = dense(), data(samples=500)
    with pytest.raises(ValueError, match=message):
        learning_coefficient(network, inputs, labels, **options)


def test_data_and_networks_that_do_not_do_are_refused():
    inputs, labels = data()
    with pytest.raises(ValueError, match="inputs has 2 samples, too few for n / ln n"):
        learning_coefficient(dense(), inputs[:2], labels[:2])
    with pytest.raises(ValueError, match=r"localization is not given.*all zero"):
        network, inputs = product(torch.zeros(1, 1), torch.zeros(1, 1))
        learning_coefficient(network, inputs, torch.zeros(3, 1).double(), loss="mse")
    with pytest.raises(ValueError, match=r"norm is BatchNorm in training mode; call module.eval\(\)"):
        learning_coefficient(residual().train(), *data(shape=(3, 4, 4)))
    inputs, labels = data()
    inputs[0, 0] = torch.nan
    with pytest.raises(ValueError, match="loss on these data is not finite; check inputs"):
        learning_coefficient(dense(), inputs, labels)
