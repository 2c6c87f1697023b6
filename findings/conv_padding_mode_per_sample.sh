#!/usr/bin/env bash
# opacus 1.6.0, backpack-for-pytorch 1.7.1, nngeometry 0.4 and curvlinops-for-pytorch 3.0.1 (with torch 2.14.1): what
#   they measure of a convolution with padding_mode="circular", "reflect" or "replicate" is of another network.
#
# Expected: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular") and nn.Conv2d(2, 3, 3) on images that were padded
#   beforehand are one function with one gradient, so that per-sample gradients, the diagonal of the Gauss-Newton
#   matrix, the Fisher matrix and its Kronecker factors agree.
# Seen: they agree for padding_mode="zeros" alone. All four read the weight's inputs off the layer's own input, pad it
#   with zeros, and say nothing. For the other modes the per-sample gradients of opacus and of BackPACK's BatchGrad are
#   14 to 17 % off in norm (their mean is not the .grad that torch puts beside them), the diagonal of DiagGGNExact is 9
#   to 11 % off, nngeometry's FIM 21 % and curvlinops' KFAC 2 to 3 %. With the padding done beforehand all of them are
#   right to rounding; so is opacus with force_functorch=True.
# Why it matters: circular convolutions are what one takes for images on a torus, for panoramas and for bounds on a
#   convolution's spectrum. The loss and .grad are right, so that plain training shows nothing; the error sits in what
#   is measured, and is as large as many a difference between networks. Private training takes its steps from such
#   gradients.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 \
    opacus==1.6.0 backpack-for-pytorch==1.7.1 nngeometry==0.4 curvlinops-for-pytorch==3.0.1

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, DiagGGNExact
from curvlinops import KFACLinearOperator
from nngeometry.metrics import FIM
from nngeometry.object import PMatDense
from opacus import GradSampleModule
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, TensorDataset

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(8, 2, 7, 7), torch.randint(3, (8,))


def network(**padding):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 3, 3, **padding), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 7 * 7, 3))


def flat(tensors, start=0):
    return torch.cat([t.flatten(start) for t in tensors], start)


def per_sample(net, x):
    losses = [cross_entropy(net(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    return torch.stack([flat(torch.autograd.grad(loss, list(net.parameters()))) for loss in losses])


def gauss_newton(net, x):
    weights = {name: w.detach() for name, w in net.named_parameters()}
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(net, w, (x,)))(weights)
    jacobian = torch.cat([jacobian[name].flatten(2) for name in weights], 2)
    p = net(x).detach().softmax(1)
    of_loss = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nci,ncd,ndj->ij", jacobian, of_loss, jacobian) / len(x)


def by_opacus(net, x, **how):
    wrapped = GradSampleModule(net, **how)
    cross_entropy(wrapped(x), y).backward()
    return flat([w.grad_sample for w in net.parameters()], 1)


def by_functorch(net, x):
    return by_opacus(net, x, force_functorch=True)


def by_backpack(net, x, extension, name):
    net, loss = extend(net), extend(nn.CrossEntropyLoss())
    with backpack(extension):
        loss(net(x), y).backward()
    return [getattr(w, name) for w in net.parameters()]


def by_batch_grad(net, x):
    slopes = len(x) * flat(by_backpack(net, x, BatchGrad(), "grad_batch"), 1)
    mean_is_grad[net[0].padding_mode] = torch.allclose(slopes.mean(0), flat([w.grad for w in net.parameters()]))
    return slopes


def by_diag_ggn(net, x):
    return flat(by_backpack(net, x, DiagGGNExact(), "diag_ggn_exact"))


def by_fim(net, x):
    return FIM(net, DataLoader(TensorDataset(x, y), batch_size=len(x)), PMatDense).to_torch()


def by_kfac(net, x):
    batches, weights = [(x, y)], list(net.parameters())
    kfac = KFACLinearOperator(net, nn.CrossEntropyLoss(), weights, batches, fisher_type="type-2")
    return kfac @ torch.eye(kfac.shape[1])


def off(seen, exact):
    return float((seen - exact).norm() / exact.norm())


measures = {
    "opacus, per-sample gradients": by_opacus,
    "opacus with force_functorch": by_functorch,
    "BackPACK, BatchGrad": by_batch_grad,
    "BackPACK, DiagGGNExact": by_diag_ggn,
    "nngeometry, FIM": by_fim,
    "curvlinops, KFAC": by_kfac,
}
errors, mean_is_grad = {}, {}
for mode in ("zeros", "circular", "reflect", "replicate"):
    padded = pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    slopes, matrix = per_sample(network(), padded), gauss_newton(network(), padded)
    within = network(padding=1, padding_mode=mode)
    assert torch.allclose(within(x), network()(padded))
    assert off(per_sample(within, x), slopes) < 1e-13 and off(gauss_newton(within, x), matrix) < 1e-13
    exact = [slopes, slopes, slopes, matrix.diagonal(), matrix, by_kfac(network(), padded)]
    print(f'padding_mode="{mode}", relative errors (and with the padding done beforehand):')
    for (name, measure), truth in zip(measures.items(), exact, strict=True):
        before = off(measure(network(), padded), truth)
        errors[name, mode] = off(measure(network(padding=1, padding_mode=mode), x), truth)
        print(f"   {name:30s} {errors[name, mode]:.1e} ({before:.0e})")
        assert before < 1e-13
print(f"the mean of BatchGrad is .grad: {mean_is_grad}")

for (name, mode), error in errors.items():
    if mode == "zeros" or name == "opacus with force_functorch":
        assert error < 1e-13
    else:
        assert error > (0.01 if "KFAC" in name else 0.05)
assert mean_is_grad == {mode: mode == "zeros" for mode in mean_is_grad}
PY
