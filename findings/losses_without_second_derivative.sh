#!/usr/bin/env bash
# torch 2.14.1: which of its losses have a second derivative.
#
# Expected: MultiMarginLoss and MultiLabelMarginLoss are piecewise linear in the logits, as HingeEmbeddingLoss and L1Loss
#   are, so that their second derivative there is zero, and the Hessian in the weights of a network is what its own
#   second derivative leaves of it. CTCLoss is smooth. So all have a Hessian, as have the others.
# Seen: HingeEmbeddingLoss, L1Loss, TripletMarginLoss and the hinge written out in five words have it. For the three the
#   first derivative is right and the second raises "derivative for aten::multi_margin_loss_backward is not
#   implemented", and its likes; torch.func.hessian, which goes forward over backward, says the same of its way. The
#   Gauss-Newton matrix needs the second derivative in the logits as well. Training never shows it.
# Why it matters: a network is trained for days with a margin loss, and its sharpness can't be had afterwards from any
#   package of curvature. The loss written out gives the same values and gradients, and the Hessian besides.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from torch import nn

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
signs = torch.where(torch.arange(18).view(6, 3) % 2 == 0, 1.0, -1.0)
some = torch.tensor([[1, -1, 0], [2, 0, -1], [0, -1, 1]] * 2)
other, third = torch.randn(6, 3), torch.randn(6, 3)
first = torch.randn(4, 4)


def written_out(z, labels):
    own = z.gather(1, labels.unsqueeze(1))
    return (1 - own + z).relu().scatter(1, labels.unsqueeze(1), 0).sum(1).mean() / z.shape[1]


losses = {
    "HingeEmbeddingLoss": lambda z: nn.HingeEmbeddingLoss()(z, signs),
    "L1Loss": lambda z: nn.L1Loss()(z, other),
    "TripletMarginLoss": lambda z: nn.TripletMarginLoss()(z, other, third),
    "a hinge, written out": lambda z: written_out(z, y),
    "MultiMarginLoss": lambda z: nn.MultiMarginLoss()(z, y),
    "MultiLabelMarginLoss": lambda z: nn.MultiLabelMarginLoss()(z, some),
    "CTCLoss": lambda z: nn.CTCLoss()(z.log_softmax(1).unsqueeze(1), y[1:3].view(1, 2), (6,), (2,)),
}
start = torch.randn(12)


def of_weights(loss):
    return lambda w: loss((x @ first).tanh() @ w.view(4, 3).tanh())


def said(function, *arguments):
    try:
        return "yes" if function(*arguments).isfinite().all() else "not finite"
    except RuntimeError as error:
        return str(error)


found = {}
for name, loss in losses.items():
    at = of_weights(loss)
    slope = torch.autograd.functional.jacobian(at, start)
    step = 1e-6 * torch.eye(12)
    quotient = torch.stack([(at(start + e) - at(start - e)) / 2e-6 for e in step])
    assert torch.allclose(slope, quotient, atol=1e-7), name
    found[name] = [said(torch.autograd.functional.hessian, at, start), said(torch.func.hessian(at), start)]
    print(f"{name:22s} gradient: right; Hessian: {found[name][0][:70]}")

for name in ("HingeEmbeddingLoss", "L1Loss", "TripletMarginLoss", "a hinge, written out"):
    assert found[name] == ["yes", "yes"]
for name in ("MultiMarginLoss", "MultiLabelMarginLoss", "CTCLoss"):
    assert all("implemented" in words for words in found[name]), found[name]
assert torch.allclose(losses["MultiMarginLoss"](other), losses["a hinge, written out"](other))
PY
