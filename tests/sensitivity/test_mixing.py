"""The error on mixtures of two samples of one class."""

import copy
import itertools

import pytest
import torch
from cases import unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from sensitivity_cases import dense, normal
from torch import nn

from genlib.network import Network
from genlib.sensitivity import mixing, mixup_error


@settings(max_examples=30)
@given(labels=st.lists(st.integers(0, 3), min_size=3, max_size=20), seed=st.integers(0, 99))
def test_each_sample_meets_another_one_of_its_class(labels, seed):
    labels = torch.tensor([*labels, labels[0]])
    first, after = mixing._rings(labels, torch.Generator().manual_seed(seed))
    second = first[after]
    everyone = list(range(len(labels)))
    assert sorted(first.tolist()) == sorted(second.tolist()) == everyone
    assert torch.equal(labels[first], labels[second])
    alone = torch.bincount(labels)[labels[first]] == 1
    assert torch.equal(first == second, alone)


def test_over_many_pairings_it_is_the_error_on_all_pairs():
    network, inputs = dense(), normal(30, 3)
    labels = network(normal(30, 3, seed=1)).argmax(1) % 2
    wrong = []
    for i, x in enumerate(inputs):
        for j, other in enumerate(inputs):
            if i != j and labels[i] == labels[j]:
                said = network(((x + other) / 2)[None]).argmax().item()
                wrong.append((labels[i].item(), said != labels[i].item()))
    counts = torch.bincount(labels)
    of_class = [torch.tensor([w for k, w in wrong if k == label]).double().mean() for label in (0, 1)]
    expected = (counts[0] * of_class[0] + counts[1] * of_class[1]) / 30
    found = [mixup_error(network, inputs, labels, generator=torch.Generator().manual_seed(s)) for s in range(300)]
    values = torch.stack([one.value for one in found])
    assert abs(values.mean() - expected) < 4 * values.std() / 300**0.5 and 0.1 < expected < 0.9
    variance = torch.stack([one.standard_error for one in found]).square().mean()
    assert variance.sqrt().item() == pytest.approx(values.std().item(), rel=0.2)


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 6])
def test_the_variance_is_that_over_all_rings(samples):
    """Of any numbers of pairs, beside a class whose pairs are all alike."""
    h = normal(samples, samples, seed=samples)
    h = h + h.T
    after = (torch.arange(samples) + 1) % samples
    rings = torch.tensor(list(itertools.permutations(range(samples))))
    values = torch.stack([h[ring, ring[after]] for ring in rings])
    both = torch.cat([values, torch.full((len(rings), 3), 0.5, dtype=torch.float64)], 1)
    classes = torch.tensor([0] * samples + [1] * 3)
    after = torch.cat([after, samples + torch.tensor([1, 2, 0])])
    expected = values.sum(1).var(correction=0) / (samples + 3) ** 2
    torch.testing.assert_close(mixing._variance(both, classes, after).mean(), expected)


def test_where_classes_alone_decide_no_choice_of_pairs_matters():
    network = nn.Linear(3, 2).double()
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([1.0, 0]))
    for labels in (torch.arange(40) % 2, torch.arange(42) // 21):
        found = mixup_error(network, normal(len(labels), 3), labels)
        assert found.value == 0.5 and found.standard_error == 0


def test_a_stack_shares_the_pairs_and_nothing_is_changed():
    network, inputs = dense(), normal(20, 3)
    labels, other = network(inputs).argmax(1), copy.deepcopy(network)
    other[1].bias.data += 0.5
    with unchanged(network, inputs, labels):
        alone = [mixup_error(one, inputs, labels).value for one in (network, other)]
    stack = mixup_error(Network.stack([network, other]), inputs, labels, chunk_size=6)
    assert stack.value.tolist() == [value.item() for value in alone]
    assert torch.equal(mixup_error(network, inputs.repeat(1, 1), labels.int()).value, alone[0])


def test_a_linear_network_that_is_right_is_right_on_mixtures():
    network, inputs = nn.Linear(3, 4).double(), normal(40, 3)
    assert mixup_error(network, inputs, network(inputs).argmax(1)).value == 0  # what a class takes is convex


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.ones(4, 3).long(), torch.zeros(4).long(), "inputs is of torch.int64"),
        (normal(3, 3), torch.arange(3), "labels have no class of two samples"),
        (normal(4, 3), torch.zeros(3).long(), "labels has the shape"),
        (normal(4, 3), torch.full((4,), 9), "labels has values outside"),
    ],
)
def test_what_can_not_be_mixed_is_refused(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        mixup_error(nn.Linear(3, 4).double(), inputs, labels)
