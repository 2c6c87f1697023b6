"""What evaluate is told besides network and data: the loss, what moves, how many eigenvalues, how much at a time."""

import pytest
import torch
from cases import WHOLE
from measures_cases import DRAWN, WIDE, dense, inputs_of, own_labels
from torch import nn

from genlib import curvature, sharpness
from genlib.measures import CATALOGUE, evaluate, layers
from genlib.network import Network

OF_THE_LOSS = (
    *("hessian_trace", "top_eigenvalue", "hessian_norm", "log_volume", "gradient_variance", "first_gradient_variance"),
    *("soft_rank", "tic", "log_evidence", "batch_sharpness"),
    *("fisher_rao", "keskar_sharpness", "worst_case_sharpness", "sam_sharpness", "pac_bayes_scaled"),
)
OF_CLASSES = (
    *("cross_entropy", "negative_entropy", "jacobian_norm", "confidence", "function_distance", "class_separation"),
    *("mixup_response", "rescaled_kl", "relative_flatness", "loss_curvature"),
    *(name for name, measure in CATALOGUE.items() if "margin" in measure.needs),
    *("flatness", "flatness_magnitude", "pac_bayes_origin", "pac_bayes_start", "pac_bayes_magnitude_origin"),
    *("pac_bayes_magnitude_start", "sharpness_flatness", "sharpness_flatness_magnitude", "sharpness_origin"),
    *("sharpness_start", "sharpness_magnitude_origin", "sharpness_magnitude_start"),
)
OF_THE_RUN = [name for name, measure in CATALOGUE.items() if "run" in measure.needs]


def regression():
    network = dense((4, 8, 3))
    inputs = inputs_of(network)
    return network, inputs, network(inputs).detach() + 0.3 * inputs[:, :3]


def given(network):
    return {"initial": dense((4, 8, 3), 5), "first_epoch": dense((4, 8, 3), 6)}


def test_of_regression_all_rows_are_there_but_those_of_classes():
    network, inputs, targets = regression()
    table = evaluate(network, (inputs, targets), loss="mse", names=WHOLE, **given(network))
    missing = set(table.index[table["value"].isna()])
    assert missing == {*OF_CLASSES, *OF_THE_RUN, *WIDE}
    for name in OF_CLASSES:
        assert table.loc[name, "reason"].startswith("labels are no classes")


@pytest.mark.parametrize("name", ["mse", "weights", "own"])
def test_the_loss_is_that_of_the_kernels(name):
    network, inputs, targets = regression()
    loss, labels = {
        "mse": ("mse", targets),
        "weights": (nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 0.5])), own_labels(network, inputs)),
        "own": (lambda z, y: (z - y).square().mean(), targets),
    }[name]
    rows = evaluate(network, (inputs, labels), loss=loss, names=OF_THE_LOSS, **given(network))["value"]
    data = (inputs, labels)
    generator = {"loss": loss}
    assert rows["gradient_variance"] == curvature.gradient_variance(network, *data, **generator)
    early = given(network)["first_epoch"]
    assert rows["first_gradient_variance"] == curvature.gradient_variance(early, *data, **generator)
    assert rows["sam_sharpness"] == sharpness.sam_sharpness(network, *data, radius=0.05, **generator)
    exact = torch.linalg.eigvalsh(_hessian(network, *data, loss))
    scale = exact.abs().max().item()
    assert abs(rows["top_eigenvalue"] - exact[-1]) < 1e-3 * scale
    assert abs(rows["log_volume"] - exact[-10:].log().sum()) < 1e-2 or exact[-10] < 1e-3 * scale
    plain = evaluate(network, (inputs, own_labels(network, inputs)), names=OF_THE_LOSS, **given(network))["value"]
    assert (rows.dropna() != plain.reindex(rows.dropna().index)).all()


def _hessian(network, inputs, labels, loss):
    objective = sharpness.Objective.of(network, inputs, labels, loss)
    params = objective.network.params
    flat, sizes = torch.cat([w.flatten() for w in params.values()]), [w.numel() for w in params.values()]

    def at(v):
        parts = zip(params, v.split(sizes), strict=True)
        return objective({name: part.view_as(params[name]) for name, part in parts})

    return torch.autograd.functional.hessian(at, flat)


def test_of_classes_with_weights_rows_of_classes_stay_what_they_are():
    network = dense((4, 8, 3))
    inputs = inputs_of(network)
    data = (inputs, own_labels(network, inputs))
    weighted = evaluate(network, data, loss=nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 0.5])), names=OF_CLASSES)
    # The ascent within a box climbs the loss that is given, so the radius at which the error has risen may differ.
    same = [name for name in OF_CLASSES if not name.startswith("sharpness")]
    torch.testing.assert_close(
        weighted.loc[same, "value"].tolist(),
        evaluate(network, data, names=same)["value"].tolist(),
        rtol=1e-12,
        atol=0,
        equal_nan=True,
    )


def test_where_a_sample_has_no_class_the_rows_of_classes_say_so():
    network = dense((4, 8, 3))
    inputs = inputs_of(network)
    labels = own_labels(network, inputs)
    labels[::5] = -100
    table = evaluate(network, (inputs, labels), loss=nn.CrossEntropyLoss(), names=["hessian_trace", "inverse_margin"])
    kept = labels >= 0
    expected = _hessian(network, inputs[kept], labels[kept], "cross_entropy").trace()
    assert abs(table.loc["hessian_trace", "value"] - expected) < 4 * table.loc["hessian_trace", "standard_error"] + 1e-6
    assert table.loc["inverse_margin", "reason"].startswith("labels has values outside 0 … 2")


def test_a_chunk_size_changes_no_value():
    network = dense((4, 8, 3))
    inputs = inputs_of(network)
    data = (inputs, own_labels(network, inputs))
    names = [name for name in CATALOGUE if name not in OF_THE_RUN and name not in WIDE]
    whole, chunks = (evaluate(network, data, names=names, chunk_size=size, **given(network)) for size in (None, 7))
    assert (whole["reason"] == chunks["reason"]).all()
    loose = {*DRAWN, "hessian_norm"}  # what draws for each chunk
    for name in names:
        a, b = whole.loc[name, "value"], chunks.loc[name, "value"]
        assert abs(a - b) <= (0.3 if name in loose else 1e-6) * abs(a), name


def test_k_eigenvalues_make_the_volume():
    network = dense((4, 8, 3))
    inputs = inputs_of(network)
    data = (inputs, own_labels(network, inputs))
    exact = torch.linalg.eigvalsh(_hessian(network, *data, "cross_entropy"))
    for k in (1, 3):
        found = evaluate(network, data, names="log_volume", k=k).loc["log_volume", "value"]
        assert abs(found - exact[-k:].log().sum()) < 1e-3


@pytest.mark.parametrize("frozen", [("0.weight", "0.bias"), ("0.weight", "2.bias")])
def test_of_the_trainable_parameters_alone(frozen):
    """The rows of w are those of the same function of the other weights: blocks of the gradient and of the Hessian."""
    network, start = dense((4, 8, 3)), dense((4, 8, 3), 5)
    inputs = inputs_of(network)
    data = (inputs, own_labels(network, inputs))
    plain = evaluate(network, data, initial=start, names=WHOLE)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    table = evaluate(network, data, initial=start, names=WHOLE, trainable_only=True)["value"]
    moved = [name for name, _ in network.named_parameters() if name not in frozen]
    weights, first = dict(network.named_parameters()), dict(start.named_parameters())
    assert table["parameters"] == sum(weights[name].numel() for name in moved)
    norm = sum(weights[name].square().sum() for name in moved).sqrt().item()
    assert table["l2"] == pytest.approx(norm, rel=1e-12)
    distance = sum((weights[name] - first[name]).square().sum() for name in moved).sqrt().item()
    assert table["l2_distance"] == pytest.approx(distance, rel=1e-12)
    whole = _hessian(network, *data, "cross_entropy")
    place = torch.cat([torch.full((p.numel(),), name in moved) for name, p in network.named_parameters()])
    block = whole[place][:, place]
    assert table["hessian_trace"] == pytest.approx(block.trace().item(), rel=1e-6)
    assert table["top_eigenvalue"] == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), rel=1e-3)
    each = [torch.autograd.grad(one, [weights[n] for n in moved], retain_graph=True) for one in _losses(network, *data)]
    rows = torch.stack([torch.cat([g.flatten() for g in one]) for one in each])
    assert table["gradient_variance"] == pytest.approx((rows - rows.mean(0)).square().sum(1).mean().item(), rel=1e-6)
    vector = torch.cat([weights[name].flatten() for name in moved])
    assert table["fisher_rao"] == pytest.approx((rows @ vector).square().mean().item(), rel=1e-6)
    of_layers = [name for name, one in CATALOGUE.items() if "layers" in one.needs and name not in ("vc_dimension",)]
    torch.testing.assert_close(
        table[of_layers].tolist(), plain.loc[of_layers, "value"].tolist(), rtol=1e-12, atol=0, equal_nan=True
    )


def _losses(network, inputs, labels):
    return nn.functional.cross_entropy(network(inputs), labels, reduction="none")


def test_layers_take_the_loss_of_regression():
    network, inputs, targets = regression()
    table = layers(network, (inputs, targets), loss="mse")
    expected = _hessian(network, inputs, targets, "mse").trace()
    assert table["hessian_trace"].sum() == pytest.approx(expected.item(), rel=1e-6)


def test_a_stack_takes_the_options_of_its_networks():
    networks = [dense((4, 8, 3), seed) for seed in range(2)]
    inputs = inputs_of(networks[0])
    options = {"loss": "huber", "names": OF_THE_LOSS, "k": 3, "chunk_size": 16}
    together = evaluate(Network.stack(networks), (inputs, inputs[:, :3]), **options)
    for i, network in enumerate(networks):
        alone = evaluate(network, (inputs, inputs[:, :3]), **options)
        torch.testing.assert_close(
            together.loc[i, "value"].tolist(), alone["value"].tolist(), rtol=1e-6, atol=0, equal_nan=True
        )


REFUSED = {
    "targets without a loss": ({}, "loss one that compares them"),
    "no chunk": ({"loss": "mse", "chunk_size": 0}, "^chunk_size is 0"),
    "no eigenvalue": ({"loss": "mse", "k": 0}, "^k is 0"),
    "the error": ({"loss": "error"}, "no gradient"),
    "nothing moves": ({"loss": "mse", "trainable_only": True}, "none of its parameters requires a gradient"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_make_no_sense_are_refused(name):
    network, inputs, targets = regression()
    network.requires_grad_(False)
    options, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        evaluate(network, (inputs, targets), **options)


def test_whole_numbers_that_are_no_classes_have_no_rows_of_classes():
    network = dense((4, 8, 1))
    inputs = inputs_of(network)
    table = evaluate(network, (inputs, torch.arange(40) % 7), loss=nn.PoissonNLLLoss(), names=WHOLE)
    rows = ["negative_entropy", "jacobian_norm", "cross_entropy", "flatness", "inverse_margin"]
    assert table.loc[rows, "reason"].str.startswith("labels has values other than 0 and 1").all()
    assert table.loc[["hessian_trace", "sam_sharpness", "input_gradient"], "value"].notna().all()


def test_a_stack_of_unlike_frozen_parts_is_refused_by_name():
    networks = [dense((4, 8, 3), seed) for seed in range(2)]
    networks[1][0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^modules\[1\] differs .* whether 0.weight requires a gradient"):
        Network.stack(networks)


def test_the_trainable_parameters_of_a_stack_are_those_of_its_networks():
    networks = [dense((4, 8, 3), seed) for seed in range(2)]
    for network in networks:
        network[0].requires_grad_(False)
    inputs = inputs_of(networks[0])
    labels = own_labels(networks[0], inputs)
    options = {
        "trainable_only": True,
        "names": ["parameters", "l2", "hessian_trace", "sam_sharpness", "keskar_sharpness"],
    }
    together = evaluate(Network.stack(networks), (inputs, labels), **options)["value"]
    for i, network in enumerate(networks):
        alone = evaluate(network, (inputs, labels), **options)["value"]
        torch.testing.assert_close(together[i].tolist(), alone.tolist(), rtol=1e-5, atol=1e-12)
