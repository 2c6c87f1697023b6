#!/usr/bin/env bash
# curvlinops-for-pytorch 3.0.1 (with torch 2.14.1): KFAC and EKFAC of a loss with weights or soft labels.
#
# Expected: KFACLinearOperator and EKFACLinearOperator get the loss itself, and approximate the Gauss-Newton matrix that
#   GGNLinearOperator, of the same package, gives for it. For a network of one linear layer EKFAC's trace with
#   fisher_type="type-2" is just that matrix's trace, and KFAC's is near it.
# Seen: so it is for plain CrossEntropyLoss, with label_smoothing, and for plain BCEWithLogitsLoss. For one-hot or soft
#   labels in place of the class numbers, which torch gives the same loss for, both are C times too large, C the number
#   of classes (4.00 here): the classes are counted as places of a sequence. Class weights, ignore_index and the
#   weight and pos_weight of BCEWithLogitsLoss do not get in at all: the traces are 0.18 of the right one for
#   CrossEntropyLoss(weight=..., reduction="sum"), 1.6 with a third of the labels ignored, 0.17 for a weight and 0.28
#   for a pos_weight. With reduction="mean" and class weights the trace is near, 1.25, and the matrix is 60 % off.
#   GGNLinearOperator is right in all twelve cases. Nothing is raised.
# Why it matters: a network trained with mixup or distillation (soft labels) seems ten times as sharp on ten classes as
#   the same network with the class numbers. Weights are set where classes are rare, and there the curvature of the
#   rare class, the largest here, is missing. Damping, a Laplace prior or a learning rate that is tuned on such a matrix
#   hides the factor; a comparison between two losses does not.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 curvlinops-for-pytorch==3.0.1

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from curvlinops import EKFACLinearOperator, GGNLinearOperator, KFACLinearOperator
from torch import nn
from torch.nn.functional import one_hot

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(60, 5), torch.randint(4, (60,))
hot = one_hot(y, 4).double()
soft = 0.7 * hot + 0.3 * hot.roll(1, 0)
some = y.where(torch.arange(60) % 3 > 0, -100)
many = (torch.rand(60, 4) > 0.6).double()
rare = torch.tensor([1.0, 1.0, 1.0, 20.0])
start = nn.Linear(5, 4, bias=False).weight.detach()


def network():
    net = nn.Sequential(nn.Linear(5, 4, bias=False))
    net[0].weight = nn.Parameter(start.clone())
    return net


def exact(loss, labels):
    return torch.func.hessian(lambda w: loss(x @ w.view(4, 5).T, labels))(start.flatten())


def measured(operator, loss, labels, **how):
    net = network()
    matrix = operator(net, loss, list(net.parameters()), [(x, labels)], **how)
    return matrix @ torch.eye(20)


cases = {
    "CrossEntropyLoss, class numbers": (nn.CrossEntropyLoss(), y),
    "label_smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), y),
    "one-hot labels": (nn.CrossEntropyLoss(), hot),
    "soft labels": (nn.CrossEntropyLoss(), soft),
    'soft labels, "sum"': (nn.CrossEntropyLoss(reduction="sum"), soft),
    "weight": (nn.CrossEntropyLoss(weight=rare), y),
    'weight, "sum"': (nn.CrossEntropyLoss(weight=rare, reduction="sum"), y),
    "ignore_index": (nn.CrossEntropyLoss(), some),
    'ignore_index, "sum"': (nn.CrossEntropyLoss(reduction="sum"), some),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), many),
    "weight of BCE": (nn.BCEWithLogitsLoss(weight=rare), many),
    "pos_weight of BCE": (nn.BCEWithLogitsLoss(pos_weight=rare), many),
}
ratio, error = {}, {}
print("of the exact matrix:               trace by KFAC, EKFAC, GGN      error by KFAC, EKFAC, GGN")
for name, (loss, labels) in cases.items():
    truth = exact(loss, labels)
    matrices = [measured(op, loss, labels, fisher_type="type-2") for op in (KFACLinearOperator, EKFACLinearOperator)]
    matrices.append(measured(GGNLinearOperator, loss, labels))
    ratio[name] = [float(matrix.trace() / truth.trace()) for matrix in matrices]
    error[name] = [float((matrix - truth).norm() / truth.norm()) for matrix in matrices]
    print(f"{name:32s}", *(f"{r:9.4f}" for r in ratio[name]), " " * 4, *(f"{e:9.2g}" for e in error[name]))

assert torch.allclose(exact(nn.CrossEntropyLoss(), y), exact(nn.CrossEntropyLoss(), hot))
assert all(abs(of_ggn - 1) < 1e-12 for _, _, of_ggn in ratio.values()) and all(e[2] < 1e-12 for e in error.values())
for name in ("CrossEntropyLoss, class numbers", "label_smoothing", 'soft labels, "sum"', "BCEWithLogitsLoss"):
    assert abs(ratio[name][1] - 1) < 1e-12 and abs(ratio[name][0] - 1) < 0.05 and max(error[name]) < 0.2
for name in ("one-hot labels", "soft labels"):
    assert abs(ratio[name][1] - 4) < 1e-12 and abs(ratio[name][0] - 4) < 0.2
for name, bound in {'weight, "sum"': 0.2, "weight of BCE": 0.3, "pos_weight of BCE": 0.5}.items():
    assert max(ratio[name][:2]) < bound
assert min(ratio['ignore_index, "sum"'][:2]) > 1.4
assert min(error["weight"][:2]) > 0.4
PY
