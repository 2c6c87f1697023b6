import copy

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, HostReads, data, dense, linear, permuted, rescaled, residual, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from genlib import models
from genlib.network import Network
from genlib.network.objective import seeded_generator
from genlib.sharpness import (
    Objective,
    deviations,
    expected_sharpness,
    keskar_sharpness,
    largest_radius,
    perturbed_losses,
    sam_sharpness,
    worst_case_sharpness,
)


def loss_at(module, params, inputs, labels):
    return F.cross_entropy(functional_call(module, params, (inputs,)), labels).detach()


def first_logit(logits, labels):
    """A loss that is linear in the weights of a linear network."""
    return logits[:, 0] - logits[:, 1] + 0 * labels


# ------------------------------------------------------------------------------------------------ expected sharpness


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", ["isotropic", "scaled", "magnitude"])
def test_each_draw_is_the_loss_of_a_perturbed_copy(name, noise):
    module, inputs, labels = CASES[name]()
    found = perturbed_losses(
        Objective.of(module, inputs, labels),
        scale=0.1,
        noise=noise,
        draws=6,
        sampling="weights",
        generator=torch.Generator().manual_seed(3),
    )
    generator, naive = torch.Generator().manual_seed(3), []
    for _ in range(3):
        moved, mirrored = copy.deepcopy(module), copy.deepcopy(module)
        for w, plus, minus in zip(module.parameters(), moved.parameters(), mirrored.parameters(), strict=True):
            std = {
                "isotropic": torch.full_like(w, 0.1),
                "scaled": 0.1 * (10 * w.abs() + 1),
                "magnitude": (0.01 * w**2 + 1e-6).sqrt(),
            }[noise]
            step = std * torch.randn(w.shape, generator=generator, dtype=w.dtype)
            plus.data += step
            minus.data -= step
        naive += [F.cross_entropy(m(inputs), labels).detach() for m in (moved, mirrored)]
    torch.testing.assert_close(found, torch.stack(naive))


def test_the_estimate_is_the_mean_over_pairs_with_their_error():
    module, inputs, labels = CASES["residual"]()
    found = expected_sharpness(module, inputs, labels, scale=0.2, draws=8)
    losses = perturbed_losses(Objective.of(module, inputs, labels), scale=0.2, draws=8)
    pairs = (losses - F.cross_entropy(module(inputs), labels).detach()).view(4, 2).mean(1)
    torch.testing.assert_close(found.value, pairs.mean())
    torch.testing.assert_close(found.standard_error, pairs.std() / 2)
    assert found.passes == 9
    assert found.not_finite == 0


@pytest.mark.parametrize("sampling", ["weights", "preactivations"])
@pytest.mark.parametrize("noise", ["isotropic", "scaled", "magnitude"])
def test_the_scale_is_a_standard_deviation(noise, sampling):
    # The 2020 reference code hands the variance to torch.normal as the deviation: the rise would be σ⁴, not σ².
    module, (inputs, labels) = linear(), data()
    found = expected_sharpness(
        module, inputs, labels, scale=0.1, noise=noise, draws=1000, loss="mse", sampling=sampling
    )
    variance = {
        "isotropic": lambda w: torch.full_like(w, 0.01),
        "scaled": lambda w: 0.01 * (10 * w.abs() + 1) ** 2,
        "magnitude": lambda w: 0.01 * w**2 + 1e-6,
    }[noise]
    with torch.no_grad():
        exact = (inputs**2 @ variance(module[0].weight).T + variance(module[0].bias)).mean()
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.1 * exact


@pytest.mark.parametrize("noise", ["isotropic", "scaled", "magnitude"])
def test_preactivation_sampling_has_the_same_mean_and_less_spread(noise):
    module, (inputs, labels) = dense(), data(samples=40)
    scale = {"isotropic": 0.3, "scaled": 0.05, "magnitude": 0.5}[noise]
    by_weights, by_units = (
        expected_sharpness(module, inputs, labels, scale=scale, noise=noise, draws=1000, sampling=sampling)
        for sampling in ("weights", "preactivations")
    )
    error = torch.hypot(by_weights.standard_error, by_units.standard_error)
    assert abs(by_weights.value - by_units.value) < 4 * error
    assert by_units.standard_error < 0.7 * by_weights.standard_error


def test_preactivation_sampling_of_the_error_of_a_deep_network():
    shared = nn.ReLU()  # one instance used twice, which named_children lists once
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), shared, nn.Linear(6, 6, bias=False), shared, nn.Linear(6, 4)).double()
    inputs, labels = data(samples=60)
    by_weights, by_units = (
        expected_sharpness(module, inputs, labels, scale=0.3, draws=1500, loss="error", sampling=sampling)
        for sampling in ("weights", "preactivations")
    )
    error = torch.hypot(by_weights.standard_error, by_units.standard_error)
    assert abs(by_weights.value - by_units.value) < 4 * error


def test_auto_takes_preactivations_where_they_are_exact():
    inputs, labels = data()
    for module, same in ((dense(), True), (nn.Sequential(dense()), False)):
        objective = Objective.of(module, inputs, labels)
        auto, units = (
            perturbed_losses(objective, scale=0.1, draws=2, sampling=how)
            for how in ("auto", "preactivations" if same else "weights")
        )
        assert torch.equal(auto, units)


def test_preactivations_refuse_a_layer_used_twice():
    layer = nn.Linear(5, 5).double()
    module = nn.Sequential(layer, nn.ReLU(), layer)
    inputs, labels = data()
    with pytest.raises(ValueError, match="sampling='weights'"):
        expected_sharpness(module, inputs, labels, scale=0.1, draws=4, sampling="preactivations")


def test_antithetic_draws_cancel_what_is_linear():
    module, (inputs, labels) = linear(), data()
    for sampling in ("weights", "preactivations"):
        found = expected_sharpness(module, inputs, labels, scale=1.0, draws=4, loss=first_logit, sampling=sampling)
        assert abs(found.value) < 1e-12


def test_no_noise_no_rise():
    for name in CASES:
        found = expected_sharpness(*CASES[name](), scale=0.0, draws=4)
        torch.testing.assert_close(found.value, torch.zeros_like(found.value))


@pytest.mark.parametrize("name", CASES)
def test_chunks_change_nothing(name):
    module, inputs, labels = CASES[name]()
    whole, parts = (
        expected_sharpness(module, inputs, labels, scale=0.1, draws=4, sampling="weights", chunk_size=size).value
        for size in (None, 5)
    )
    torch.testing.assert_close(whole, parts)
    whole, parts = (
        worst_case_sharpness(module, inputs, labels, radius=0.05, steps=3, chunk_size=size).value for size in (None, 5)
    )
    torch.testing.assert_close(whole, parts)


def test_chunks_of_preactivations_have_the_same_mean():
    module, (inputs, labels) = dense(), data()
    whole, parts = (
        expected_sharpness(module, inputs, labels, scale=0.2, draws=1000, chunk_size=size) for size in (None, 5)
    )
    assert abs(whole.value - parts.value) < 4 * torch.hypot(whole.standard_error, parts.standard_error)


@pytest.mark.parametrize("name", CASES)
def test_draws_side_by_side_are_those_one_after_the_other(name):
    module, inputs, labels = CASES[name]()
    found = perturbed_losses(
        Objective.of(module, inputs, labels, chunk_size=3 * len(labels)),
        scale=0.1,
        draws=8,
        sampling="weights",
        generator=torch.Generator().manual_seed(3),
    )
    generator, naive = torch.Generator().manual_seed(3), []
    params = {name: w.detach() for name, w in module.named_parameters()}
    for block in (3, 1):
        noises = {
            name: torch.randn((block, *w.shape), generator=generator, dtype=w.dtype) for name, w in params.items()
        }
        for i in range(block):
            naive += [
                loss_at(module, {name: w + sign * noises[name][i] for name, w in params.items()}, inputs, labels)
                for sign in (0.1, -0.1)
            ]
    torch.testing.assert_close(found, torch.stack(naive))


def test_a_loss_that_is_not_finite_is_counted_and_not_averaged_away():
    module, (inputs, labels) = linear(), data()

    def fragile(logits, labels):
        return torch.where(logits.abs().amax(-1) > 4, torch.nan, logits.abs().amax(-1))

    objective = Objective.of(module, inputs, labels, fragile)
    losses = perturbed_losses(objective, scale=0.5, draws=20)
    found = expected_sharpness(module, inputs, labels, scale=0.5, draws=20, loss=fragile)
    assert 0 < found.not_finite == (~losses.isfinite()).sum() < 20
    assert found.value == found.standard_error == torch.inf


def test_a_mapping_gives_every_weight_its_own_deviation():
    module, (inputs, labels) = dense(), data()
    objective = Objective.of(module, inputs, labels)
    own = deviations(objective.network.params, 1.0, "scaled")
    for sampling in ("weights", "preactivations"):
        named, given_ = (
            perturbed_losses(objective, scale=0.03, noise=noise, draws=4, sampling=sampling)
            for noise in ("scaled", own)
        )
        torch.testing.assert_close(named, given_)


# ---------------------------------------------------------------------------------------------- worst-case sharpness


def gradient_of(module, inputs, labels):
    value = first_logit(module(inputs), labels).mean()
    return torch.autograd.grad(value, list(module.parameters()))


@pytest.mark.parametrize("seed", range(3))
def test_the_maximum_of_a_linear_loss(seed):
    module, (inputs, labels) = linear(seed), data(seed)
    gradients, weights = gradient_of(module, inputs, labels), [p.detach() for p in module.parameters()]
    pairs = list(zip(gradients, weights, strict=True))
    exact = {
        "box": sum((g.abs() * (w.abs() + 1)).sum() for g, w in pairs),
        "l2": sum(g.square().sum() for g, _ in pairs).sqrt(),
        "adaptive": sum((g * w).square().sum() for g, w in pairs).sqrt(),
    }
    for ball, most in exact.items():
        found = worst_case_sharpness(module, inputs, labels, radius=0.1, ball=ball, steps=40, loss=first_logit)
        assert 0.999 * 0.1 * most < found.value <= 0.1 * most * (1 + 1e-9)


def test_noise_is_never_the_start_of_the_network():
    """From the network's own seed its second draw would be: the constructor draws once, the initialization next."""
    network = models.mlp(64, 10, width=64, depth=3, bias=False, initialization="he", seed=0)
    start = [p.detach().flatten() for p in network.parameters()]

    def likeness(generator):
        draws = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(4)]
        pairs = [torch.stack(pair) for draw in draws for pair in zip(draw, start, strict=True)]
        return max(torch.corrcoef(pair)[0, 1].abs() for pair in pairs)

    assert likeness(torch.Generator().manual_seed(0)) > 0.9
    assert likeness(seeded_generator(None, torch.device("cpu"))) < 0.2


def test_magnitude_noise_may_follow_another_size():
    params = {"w": torch.tensor([3.0, 0.0, -1.0])}
    moved = {"w": torch.tensor([0.0, 2.0, -1.0])}
    found = deviations(params, 0.1, ("magnitude", moved))["w"]
    torch.testing.assert_close(found, (moved["w"].square() * 0.01 + 1e-6).sqrt())
    for noise, message in (
        (("given", moved), "noise is 'given'"),
        ("given", "noise is 'given'"),
        (("magnitude", {}), "lacks"),
    ):
        with pytest.raises(ValueError, match=message):
            deviations(params, 0.1, noise)


def test_the_maximum_of_a_small_network_by_a_grid():
    module = nn.Sequential(nn.Linear(1, 2, bias=False)).double()
    inputs, labels = torch.tensor([[1.0], [-2.0]]).double(), torch.tensor([0, 1])
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.5], [-0.5]]))
        at_rest = F.cross_entropy(module(inputs), labels)
    axis = torch.linspace(-0.3, 0.3, 61).double()
    grid = torch.cartesian_prod(axis * 2.5, axis * 1.5)
    losses = [F.cross_entropy(inputs @ (module[0].weight.detach() + step[:, None]).T, labels) for step in grid]
    found = worst_case_sharpness(module, inputs, labels, radius=0.3, steps=20)
    torch.testing.assert_close(found.value, torch.stack(losses).max() - at_rest)


@pytest.mark.parametrize("ball", ["box", "l2", "adaptive"])
@pytest.mark.parametrize("name", CASES)
def test_every_point_that_is_tried_lies_in_the_ball(name, ball, monkeypatch):
    module, inputs, labels = CASES[name]()
    weights, tried = dict(module.named_parameters()), []
    apply = Network.apply
    monkeypatch.setattr(
        Network, "apply", lambda self, params, x, **k: tried.append(params) or apply(self, params, x, **k)
    )
    worst_case_sharpness(module, inputs, labels, radius=0.1, ball=ball, steps=9, restarts=2)
    assert len(tried) == 1 + 2 * (9 + 1)  # a look at one sample; then 9 gradients and one forward, twice
    for params in tried:
        steps = [((params[n] - w).detach(), w.detach()) for n, w in weights.items()]
        size = {
            "box": max((s.abs() / (w.abs() + 1)).max() for s, w in steps),
            "l2": sum(s.square().sum() for s, _ in steps).sqrt(),
            "adaptive": sum((s[w != 0] / w[w != 0]).square().sum() for s, w in steps).sqrt(),
        }[ball]
        assert size <= 0.1 * (1 + 1e-9)
        if ball == "adaptive":
            assert all((s[w == 0] == 0).all() for s, w in steps)


def test_the_history_rises_to_the_value_and_restarts_add_to_it():
    module, inputs, labels = CASES["dense"]()
    once, thrice = (worst_case_sharpness(module, inputs, labels, radius=0.1, steps=6, restarts=n) for n in (1, 3))
    assert once.history.shape == (6,)
    assert (once.history.diff() >= 0).all()
    assert once.value == once.history[-1]
    assert thrice.value >= once.value
    assert (once.passes, thrice.passes) == (19, 57)


def test_the_ascent_beats_random_places_in_the_ball():
    module, inputs, labels = CASES["dense"]()
    weights, generator = dict(module.named_parameters()), torch.Generator().manual_seed(0)
    found = worst_case_sharpness(module, inputs, labels, radius=0.05, steps=20).value
    for _ in range(50):
        moved = {
            name: w + 0.05 * (w.abs() + 1) * torch.randn(w.shape, generator=generator).sign()
            for name, w in weights.items()
        }
        assert loss_at(module, moved, inputs, labels) - loss_at(module, weights, inputs, labels) < found


def test_a_loss_that_is_not_finite_is_an_infinite_rise():
    module, (inputs, labels) = linear(), data()
    height = module(inputs).detach().amax()
    found = worst_case_sharpness(
        module,
        inputs,
        labels,
        radius=0.5,
        steps=10,
        loss=lambda logits, _: torch.where(logits > height + 1, torch.inf, logits).amax(-1),
    )
    assert found.history[0].isfinite()
    assert found.value == torch.inf
    assert not found.history.isnan().any()


def test_keskar_is_a_percentage_of_one_plus_the_loss():
    module, inputs, labels = CASES["residual"]()
    rise = worst_case_sharpness(module, inputs, labels, radius=0.01, steps=5)
    found = keskar_sharpness(module, inputs, labels, radius=0.01, steps=5)
    loss = F.cross_entropy(module(inputs), labels).detach()
    torch.testing.assert_close(found.value, 100 * rise.value / (1 + loss))
    torch.testing.assert_close(found.history, 100 * rise.history / (1 + loss))
    assert found.passes == rise.passes


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ball", ["box", "l2", "adaptive"])
def test_sam_is_one_step_along_the_gradient(name, ball):
    module, inputs, labels = CASES[name]()
    before = F.cross_entropy(module(inputs), labels)
    gradients = torch.autograd.grad(before, list(module.parameters()))
    moved = copy.deepcopy(module)
    scales = [p.detach().abs() if ball == "adaptive" else torch.ones_like(p) for p in module.parameters()]
    norm = sum((g * c).square().sum() for g, c in zip(gradients, scales, strict=True)).sqrt()
    for p, w, g, c in zip(moved.parameters(), module.parameters(), gradients, scales, strict=True):
        p.data += 0.1 * ((w.detach().abs() + 1) * g.sign() if ball == "box" else c * c * g / norm)
    after = F.cross_entropy(moved(inputs), labels)
    found = sam_sharpness(module, inputs, labels, radius=0.1, ball=ball)
    torch.testing.assert_close(found, (after - before).detach())


def test_no_gradient_no_step():
    module, (inputs, labels) = linear(), data()
    found = sam_sharpness(module, inputs, labels, radius=0.1, loss=lambda logits, _: 0 * logits[:, 0])
    assert found == 0


# ------------------------------------------------------------------------------------------------------- invariances


FACTORS = st.one_of(
    st.floats(0.1, 10).map(lambda c: [c] * 6),  # by layer (Dinh et al. 2017)
    st.lists(st.floats(0.1, 10), min_size=6, max_size=6),  # by neuron
)


@settings(max_examples=12)
@given(FACTORS, st.integers(0, 5))
def test_the_adaptive_ball_does_not_see_a_rescaling(factors, seed):
    module, (inputs, labels) = dense(seed), data(seed)
    other = rescaled(module, [torch.tensor(factors).double()])
    torch.testing.assert_close(other(inputs), module(inputs))
    for measure in (
        lambda m: sam_sharpness(m, inputs, labels, radius=0.1, ball="adaptive"),
        lambda m: worst_case_sharpness(m, inputs, labels, radius=0.1, ball="adaptive", steps=3).history,
        lambda m: perturbed_losses(
            Objective.of(m, inputs, labels),
            scale=0.1,
            noise={name: w.detach().abs() for name, w in m.named_parameters()},
            draws=4,
            sampling="weights",
        ),
    ):
        torch.testing.assert_close(measure(other), measure(module), rtol=1e-6, atol=1e-9)


def test_every_other_sharpness_sees_a_rescaling():
    module, (inputs, labels) = dense(), data()
    other = rescaled(module, [torch.full((6,), 10.0).double()])
    for measure in (
        lambda m: sam_sharpness(m, inputs, labels, radius=0.05),
        lambda m: worst_case_sharpness(m, inputs, labels, radius=0.01, steps=5).value,
        lambda m: worst_case_sharpness(m, inputs, labels, radius=0.05, ball="l2", steps=5).value,
        lambda m: expected_sharpness(m, inputs, labels, scale=0.1, draws=20).value,
    ):
        assert measure(other) > 1.5 * measure(module)


@settings(max_examples=20)
@given(st.permutations(range(6)), st.sampled_from(["box", "l2", "adaptive"]))
def test_the_order_of_hidden_units_does_not_matter(order, ball):
    module, (inputs, labels) = dense(), data()
    other = permuted(module, order)
    torch.testing.assert_close(
        sam_sharpness(other, inputs, labels, radius=0.1, ball=ball),
        sam_sharpness(module, inputs, labels, radius=0.1, ball=ball),
    )


# ----------------------------------------------------------------------------------------------- stacks, and contract


MEASURES = {
    "isotropic": lambda m, x, y, **k: expected_sharpness(m, x, y, scale=0.1, draws=6, **k).value,
    "scaled": lambda m, x, y, **k: expected_sharpness(m, x, y, scale=0.02, noise="scaled", draws=6, **k).value,
    "magnitude": lambda m, x, y, **k: expected_sharpness(m, x, y, scale=0.2, noise="magnitude", draws=6, **k).value,
    "by weights": lambda m, x, y, **k: expected_sharpness(m, x, y, scale=0.1, draws=6, sampling="weights", **k).value,
    "box": lambda m, x, y, **k: worst_case_sharpness(m, x, y, radius=0.02, steps=4, restarts=2, **k).history,
    "l2": lambda m, x, y, **k: worst_case_sharpness(m, x, y, radius=0.1, ball="l2", steps=4, **k).history,
    "adaptive": lambda m, x, y, **k: worst_case_sharpness(m, x, y, radius=0.1, ball="adaptive", steps=4, **k).history,
    "keskar": lambda m, x, y, **k: keskar_sharpness(m, x, y, radius=0.02, steps=4, **k).value,
    "sam": lambda m, x, y, **k: sam_sharpness(m, x, y, radius=0.1),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", CASES)
def test_a_stack_is_its_networks_side_by_side(name, measure):
    modules, inputs, labels = zip(*(CASES[name](seed) for seed in range(3)), strict=True)
    stack = Network.stack(modules)
    of_each = MEASURES[measure](stack, torch.stack(inputs), torch.stack(labels))
    shared = MEASURES[measure](stack, inputs[0], labels[0])
    for i, module in enumerate(modules):
        torch.testing.assert_close(of_each[..., i], MEASURES[measure](module, inputs[i], labels[i]))
        torch.testing.assert_close(shared[..., i], MEASURES[measure](module, inputs[0], labels[0]))


def test_a_stack_may_have_a_scale_for_each():
    modules, (inputs, labels) = [dense(seed) for seed in range(3)], data()
    scales = torch.tensor([0.1, 0.0, 0.3]).double()
    for sampling in ("weights", "preactivations"):
        found = expected_sharpness(
            Network.stack(modules), inputs, labels, scale=scales, draws=4, sampling=sampling
        ).value
        for value, module, scale in zip(found, modules, scales.tolist(), strict=True):
            alone = expected_sharpness(module, inputs, labels, scale=scale, draws=4, sampling=sampling).value
            torch.testing.assert_close(value, alone)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", CASES)
def test_all_is_left_as_it_was(name, measure):
    module, inputs, labels = CASES[name]()
    with unchanged(module, inputs):
        first = MEASURES[measure](module, inputs, labels)
    assert not first.requires_grad
    assert torch.equal(MEASURES[measure](module, inputs, labels), first)
    if measure != "sam":
        one, same, other = (
            MEASURES[measure](module, inputs, labels, generator=torch.Generator().manual_seed(seed))
            for seed in (1, 1, 2)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_host_reads_do_not_grow_with_draws_or_steps():
    module, inputs, labels = CASES["residual"]()
    for few, many in (
        (lambda: expected_sharpness(module, inputs, labels, scale=0.1, draws=4),
         lambda: expected_sharpness(module, inputs, labels, scale=0.1, draws=40)),
        (lambda: worst_case_sharpness(module, inputs, labels, radius=0.1, steps=2),
         lambda: worst_case_sharpness(module, inputs, labels, radius=0.1, steps=20, restarts=3)),
    ):  # fmt: skip
        counts = []
        for work in (few, many):
            with HostReads() as reads:
                work()
            counts.append(reads.count)
        assert counts[0] == counts[1]


def test_labels_may_be_of_any_whole_type():
    module, inputs, labels = CASES["dense"]()
    for measure in MEASURES.values():
        assert torch.equal(measure(module, inputs, labels.to(torch.int32)), measure(module, inputs, labels))


def test_half_precision_is_measured_in_single():
    module, (inputs, labels) = dense().to(torch.bfloat16), data()
    inputs = inputs.to(torch.bfloat16)
    single = copy.deepcopy(module).float()
    for measure in MEASURES.values():
        found = measure(module, inputs, labels)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, measure(single, inputs.float(), labels))


@pytest.mark.parametrize("measure", [expected_sharpness, worst_case_sharpness, keskar_sharpness, sam_sharpness])
def test_bad_data_is_refused(measure):
    inputs, labels = data()
    asked = {"scale": 0.1, "draws": 4} if measure is expected_sharpness else {"radius": 0.1, "steps": 2}
    if measure is sam_sharpness:
        del asked["steps"]
    images = data(shape=(3, 4, 4))[0]
    for message, module, x, y in (
        ("BatchNorm in training mode", residual().train(), images, labels),
        ("dropout in training mode", dense(dropout=0.5).train(), inputs, labels),
        ("inputs is empty", dense(), inputs[:0], labels[:0]),
        ("one label a sample", dense(), inputs, labels[:-1]),
        ("outside 0 … 3", dense(), inputs, labels + 4),
        ("outside 0 … 3", dense(), inputs, labels - 4),
        ("for a stack", dense(), inputs.expand(2, -1, -1), labels.expand(2, -1)),
        ("its loss on these data is not finite", dense(), inputs * torch.inf, labels),
        ("no parameters", nn.Sequential(nn.ReLU()), inputs, labels),
    ):
        with pytest.raises(ValueError, match=message):
            measure(module, x, y, **asked)
    with pytest.raises(ValueError, match="loss is 'hinge'"):
        measure(dense(), inputs, labels, loss="hinge", **asked)
    with pytest.raises(ValueError, match="one number a sample"):
        measure(dense(), inputs, labels, loss=lambda logits, labels: logits.mean(), **asked)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        measure(dense(), inputs, labels, chunk_size=0, **asked)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("draws is 2", {"draws": 2}),
        ("draws is 5", {"draws": 5}),
        ("scale is -1", {"scale": -1.0}),
        ("scale is -1", {"scale": torch.tensor(-1.0)}),
        ("scale is nan", {"scale": float("nan")}),
        ("noise is 'white'", {"noise": "white"}),
        ("noise lacks or adds", {"noise": {}}),
        ("sampling is 'fast'", {"sampling": "fast"}),
    ],
)
def test_a_bad_noise_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        expected_sharpness(dense(), *data(), **{"scale": 0.1, "draws": 4, **options})


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("radius is 0", {"radius": 0.0}),
        ("radius is nan", {"radius": float("nan")}),
        ("ball is 'l1'", {"ball": "l1"}),
        ("steps is 0", {"steps": 0}),
        ("restarts 0", {"restarts": 0}),
        ("no gradient", {"loss": "error"}),
    ],
)
def test_a_bad_search_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        worst_case_sharpness(dense(), *data(), **{"radius": 0.1, "steps": 2, **options})


# ----------------------------------------------------------------------------------------------------- largest radius


def climbed(module, inputs, labels, room, of, steps):
    """The rise at the end of an ascent by the gradient's sign, half the box a step, by hand."""
    w = nn.utils.parameters_to_vector(module.parameters()).detach()

    def loss(vector):
        split = vector.split([p.numel() for p in module.parameters()])
        names = [name for name, _ in module.named_parameters()]
        params = {n: part.view_as(p) for n, part, p in zip(names, split, module.parameters(), strict=True)}
        return functional_call(module, params, (inputs,))

    point = w
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(loss(leaf), labels), leaf)
        point = (point + 0.5 * room * gradient.sign()).clamp(w - room, w + room)
    if of == "error":
        risk = [(loss(v).argmax(1) != labels).double().mean() for v in (w, point)]
    else:
        risk = [F.cross_entropy(loss(v), labels) for v in (w, point)]
    return (risk[1] - risk[0]).item()


def fitted(name):
    """A case with the labels that its network gives."""
    module, _, _ = CASES[name]()
    inputs, _ = data(samples=60, shape=CASES[name]()[1].shape[1:])
    return module, inputs, module(inputs).argmax(1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", ["isotropic", "magnitude"])
@pytest.mark.parametrize("of", ["error", "loss"])
def test_the_largest_radius_is_where_the_ascent_has_risen_so_far(of, noise, name):
    module, inputs, labels = fitted(name)
    w = nn.utils.parameters_to_vector(module.parameters()).detach()
    found = largest_radius(module, inputs, labels, of=of, noise=noise, increase=0.1, tolerance=1e-3)
    lower, upper = (
        climbed(module, inputs, labels, r if noise == "isotropic" else torch.hypot(r * w, torch.tensor(1e-3)), of, 5)
        for r in (found.lower, found.upper)
    )
    assert found.converged and found.standard_error == 0
    assert lower < 0.1 <= upper
    assert found.lower <= found.value <= found.upper <= 1.05 * found.lower or min(upper - 0.1, 0.1 - lower) < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_radius_of_a_linear_loss_meets_the_corner(seed):
    # One sample's cross-entropy of two classes hangs on f₁ − f₀ alone, linear in the weights: the corner of the box
    # where it is least moves it by α (2|x|₁ + 2).
    torch.manual_seed(seed)
    module, x = nn.Sequential(nn.Linear(5, 2)).double(), torch.randn(1, 5, dtype=torch.float64)
    y = module(x).argmax(1)
    gap = (module(x)[0, y] - module(x)[0, 1 - y]).detach()
    rise = F.softplus(0.3 - gap) - F.softplus(-gap)  # at a gap that is less by 0.3
    found = largest_radius(module, x, y, of="loss", increase=rise.item(), tolerance=1e-9)
    torch.testing.assert_close(found.value, 0.3 / (2 * x.abs().sum() + 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_more_steps_find_no_larger_radius(name):
    # No search certifies a maximum, so each radius is an upper bound; a longer ascent comes closer.
    few, many = (largest_radius(*fitted(name), steps=steps, of="loss").value for steps in (2, 30))
    assert 0.5 * few < many <= 1.02 * few


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", ["isotropic", "magnitude"])
def test_a_stack_has_each_networks_largest_radius(noise, name):
    modules, inputs, labels = zip(*(CASES[name](seed) for seed in range(3)), strict=True)
    stack = Network.stack(modules)
    found = largest_radius(stack, torch.stack(inputs), torch.stack(labels), of="loss", noise=noise)
    alone = [
        largest_radius(*case, of="loss", noise=noise, start=0.01) for case in zip(modules, inputs, labels, strict=True)
    ]
    torch.testing.assert_close(found.value, torch.stack([one.value for one in alone]))
    assert found.passes == max(one.passes for one in alone)


def test_the_largest_radius_does_not_see_the_order_of_hidden_units():
    module, inputs, labels = fitted("dense")
    there, here = (largest_radius(m, inputs, labels) for m in (permuted(module, [5, 0, 3, 1, 2, 4]), module))
    torch.testing.assert_close(there.value, here.value)


def test_a_box_of_each_weights_own_size():
    module, inputs, labels = fitted("dense")
    sizes = {name: torch.full_like(w, 0.01) for name, w in module.named_parameters()}
    found, expected = (largest_radius(module, inputs, labels, noise=noise) for noise in (sizes, "isotropic"))
    torch.testing.assert_close(0.01 * found.value, expected.value, rtol=0.05, atol=0)


def test_a_rise_out_of_reach_does_not_converge():
    found = largest_radius(*fitted("dense"), of="loss", increase=1e9, limits=(1e-3, 1.0))
    assert not found.converged and found.value == found.lower == 1 and found.upper.isinf()
    nowhere = largest_radius(*fitted("dense"), increase=1e-9, limits=(0.5, 1.0))
    assert not nowhere.converged and nowhere.value == nowhere.upper == 0.5 and nowhere.lower == 0


def test_the_largest_radius_costs_what_it_says(monkeypatch):
    calls = []
    original = Network.apply
    monkeypatch.setattr(Network, "apply", lambda *a, **k: calls.append(torch.is_grad_enabled()) or original(*a, **k))
    found = largest_radius(*fitted("dense"), steps=3)
    # The first looks at one sample; a gradient is three passes.
    assert found.passes == sum(3 if gradient else 1 for gradient in calls[1:])


def test_all_is_left_as_it_was_by_the_largest_radius():
    module, inputs, labels = fitted("residual")
    with unchanged(module, inputs):
        first = largest_radius(module, inputs, labels)
    assert torch.equal(largest_radius(module, inputs, labels).value, first.value)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("of is 'accuracy'; choose error or loss", {"of": "accuracy"}),
        ("increase is 0", {"increase": 0.0}),
        ("tolerance -1", {"tolerance": -1.0}),
        ("start nan", {"start": float("nan")}),
        ("the limits in order", {"limits": (1.0, 0.1)}),
        ("steps is 0; take at least 1", {"steps": 0}),
        ("noise is 'white'", {"noise": "white"}),
    ],
)
def test_a_bad_search_for_a_radius_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        largest_radius(*fitted("dense"), **options)
