"""What every sharpness keeps to: stacks, chunks, host reads, types, refusals."""

import copy

import pytest
import torch
from cases import CASES, HostReads, data, dense, residual, unchanged
from torch import nn

from genlib.network import Network
from genlib.sharpness import expected_sharpness, keskar_sharpness, sam_sharpness, worst_case_sharpness


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
        measure(dense(), inputs, labels, loss=lambda logits, labels: logits, **asked)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        measure(dense(), inputs, labels, chunk_size=0, **asked)
