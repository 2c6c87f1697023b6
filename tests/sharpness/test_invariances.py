"""What rescaling and reordering units change of a sharpness, and what they don't."""

import torch
from cases import data, dense, permuted, rescaled
from hypothesis import given, settings
from hypothesis import strategies as st

from genlib.sharpness import Objective, expected_sharpness, perturbed_losses, sam_sharpness, worst_case_sharpness

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
