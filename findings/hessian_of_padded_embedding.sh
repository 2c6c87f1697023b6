#!/usr/bin/env bash
# torch 2.14.1, seen through curvlinops-for-pytorch 3.0.1 and hessian-eigenthings 1.0.0a5 too: torch.func.hessian of a
#   network with a padding row is no symmetric matrix.
#
# Expected: for nn.Embedding(..., padding_idx=0), whose row 0 has no gradient, torch.func.hessian gives what two
#   backward passes give: a symmetric matrix with zeros in the rows and the columns of that row.
# Seen: the rows are zero, the columns are not, and |H - H^T| / |H| is 0.81. torch.func.hessian is forward over reverse,
#   and forward mode differentiates the padding row like any other: jacfwd of the loss has a slope there that jacrev and
#   backward() deny. (Of embedding the documentation says that numerical gradients differ there from analytical ones;
#   that torch's own two modes do, it does not.) Traces agree, eigenvalues don't: torch.linalg.eigvalsh reads one
#   triangle, and the largest eigenvalue is 0.444 from the lower, which is the default, and 0.311 from the upper one;
#   the smallest is -0.135 in place of -0.002. The operators of curvlinops are of the same kind: HessianLinearOperator
#   gives this very matrix, and GGNLinearOperator (J by forward mode, J^T by reverse) one whose largest eigenvalue is
#   0.389 in place of 0.273. hessian-eigenthings is right by default, and gives torch.func.hessian's matrix with
#   method="finite_difference".
# Why it matters: a padding row is in most models of text. The weights are at a minimum here (loss 0.004, no direction
#   of weight bends down by more than 0.002), yet the spectrum shows a saddle and a sharpness 1.4 times too large.
#   Lanczos and conjugate gradients presuppose symmetry, and don't look. The check that would show it, u.Hv = v.Hu, is
#   made by nobody who calls torch's own function.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 curvlinops-for-pytorch==3.0.1 hessian-eigenthings==1.0.0a5

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from hessian_eigenthings import HessianOperator, supervised_loss
from torch import nn
from torch.func import functional_call, hessian, jacfwd, jacrev
from torch.nn.functional import cross_entropy

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
lengths = torch.tensor([12, 10, 8, 6, 5, 4, 3, 2] * 4)
words = torch.randint(1, 9, (32, 12)) * (torch.arange(12) < lengths[:, None])
labels = (lengths > 5).long() ^ (torch.rand(32) < 0.2).long()
network = nn.Sequential(nn.Embedding(9, 3, padding_idx=0), nn.Flatten(1), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 2))
optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
for _ in range(200):
    optimizer.zero_grad()
    cross_entropy(network(words), labels).backward()
    optimizer.step()

parameters = list(network.parameters())
weights = {name: w.detach() for name, w in network.named_parameters()}
size = sum(w.numel() for w in parameters)
padding = slice(0, 3)


def loss(weights):
    return cross_entropy(functional_call(network, weights, (words,)), labels)


def dense(blocks):
    rows = [torch.cat([blocks[a][b].reshape(weights[a].numel(), -1) for b in weights], 1) for a in weights]
    return torch.cat(rows).detach()


def gauss_newton():
    jacobian = jacrev(lambda w: functional_call(network, w, (words,)))(weights)
    jacobian = torch.cat([block.flatten(2) for block in jacobian.values()], 2).detach()
    p = network(words).detach().softmax(1)
    of_loss = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nci,ncd,ndj->ij", jacobian, of_loss, jacobian) / len(words)


def by_curvlinops(operator):
    return operator(network, nn.CrossEntropyLoss(), parameters, [(words, labels)]) @ torch.eye(size)


def by_eigenthings(method):
    operator = HessianOperator(network, [(words, labels)], supervised_loss(nn.CrossEntropyLoss()), method=method)
    return torch.stack([operator @ unit for unit in torch.eye(size)], 1)


slopes = [jac(loss)(weights)["0.weight"][0].tolist() for jac in (jacrev, jacfwd)]
print(f"loss {float(loss(weights)):.4f}; its slope along the padding row by jacrev {slopes[0]}, by jacfwd {slopes[1]}")
matrices = {
    "two backward passes": dense(jacrev(jacrev(loss))(weights)),
    "torch.func.hessian": dense(hessian(loss)(weights)),
    "curvlinops, HessianLinearOperator": by_curvlinops(HessianLinearOperator),
    "hessian-eigenthings": by_eigenthings("autograd"),
    "hessian-eigenthings, differences": by_eigenthings("finite_difference"),
    "Gauss-Newton, written out": gauss_newton(),
    "curvlinops, GGNLinearOperator": by_curvlinops(GGNLinearOperator),
}
lower, upper, uneven = {}, {}, {}
print(f"{'':36s} asymmetry    trace   extreme eigenvalues, lower triangle   upper triangle")
for name, matrix in matrices.items():
    uneven[name] = float((matrix - matrix.T).norm() / matrix.norm())
    lower[name], upper[name] = (torch.linalg.eigvalsh(matrix, UPLO=part)[[0, -1]].tolist() for part in "LU")
    ends = "   ".join(f"{a:+.4f} {b:+.4f}" for a, b in (lower[name], upper[name]))
    print(f"{name:36s} {uneven[name]:9.1e} {float(matrix.trace()):8.4f}   {ends}")

twice, forward, by_operator, _, by_steps, exact_ggn, ggn = matrices.values()
assert slopes[0] == [0, 0, 0] and max(map(abs, slopes[1])) > 1e-4
assert (twice[padding] == 0).all() and (twice[:, padding] == 0).all()
assert (forward[padding] == 0).all() and (forward[3:, 3:] - twice[3:, 3:]).abs().max() < 1e-12
assert (forward[3:, padding]).abs().max() > 0.01 and torch.allclose(forward, by_operator)
assert (by_steps - forward).abs().max() < 1e-6 and uneven["torch.func.hessian"] > 0.5
assert uneven["two backward passes"] < 1e-12 and uneven["hessian-eigenthings"] < 1e-12
right, wrong = lower["two backward passes"], lower["torch.func.hessian"]
assert wrong[1] > 1.2 * right[1] and wrong[0] < 10 * right[0] and abs(upper["torch.func.hessian"][1] - right[1]) < 1e-12
assert lower["curvlinops, GGNLinearOperator"][1] > 1.2 * lower["Gauss-Newton, written out"][1]
assert abs(ggn.trace() - exact_ggn.trace()) < 1e-12 and uneven["curvlinops, GGNLinearOperator"] > 0.5
PY
