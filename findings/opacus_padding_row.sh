#!/usr/bin/env bash
# opacus 1.6.0 (with torch 2.14.1): the per-sample gradients of an embedding have the padding row's in them.
#
# Expected: in nn.Embedding(..., padding_idx=0) the row 0 has no gradient and "is not updated during training", as
#   torch documents it. GradSampleModule gives the gradients of single samples: their mean is .grad, row for row.
# Seen: .grad of row 0 is zero, grad_sample of row 0 is not, on the same parameter after the same backward pass. A
#   sentence that fills its 16 places has the right gradient; one of two words and 14 of padding has a norm of 1.60 in
#   place of 1.31. Nothing is raised. With force_functorch=True all is right. The norms of
#   GradSampleModuleFastGradientClipping ("ghost clipping") are as wrong as those of the hooks.
# Why it matters: clipping divides by these norms, so that short sentences lose weight for the padding of their batch.
#   DPOptimizer takes its step from grad_sample: after 20 steps, without noise and with a clipping norm that nothing
#   reaches, the padding row that torch leaves at zero is 2 long, and the same two words get 0.66 for the first class
#   alone and 0.30 beside a long sentence; plain SGD gives 0.99 both times. Per-sample norms as a measure (gradient
#   noise, sensitivity, memorization) rank samples by their length. The private and the plain run differ in more than
#   in privacy.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 opacus==1.6.0

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn.functional import cross_entropy

torch.set_default_dtype(torch.float64)
torch.manual_seed(1)
lengths = torch.tensor([16, 16, 8, 8, 4, 4, 2, 2])
words = torch.randint(1, 20, (8, 16)) * (torch.arange(16) < lengths[:, None])
labels = torch.arange(8) % 2


class BagOfWords(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 4, padding_idx=0)
        self.head = nn.Linear(4, 2)

    def forward(self, words):
        length = (words != 0).sum(1, keepdim=True)
        return self.head(torch.tanh(self.embedding(words).sum(1) / length**0.5))


def flat(tensors, start=0):
    return torch.cat([t.flatten(start) for t in tensors], start)


def by_opacus(**how):
    wrapped = GradSampleModule(BagOfWords(), **how)
    cross_entropy(wrapped(words), labels).backward()
    weights = list(wrapped.parameters())
    return flat([w.grad_sample for w in weights], 1), flat([w.grad for w in weights])


def shown(values):
    return ", ".join(f"{value:.3f}" for value in values)


net = BagOfWords()
losses = [cross_entropy(net(words[i : i + 1]), labels[i : i + 1]) for i in range(8)]
exact = torch.stack([flat(torch.autograd.grad(loss, list(net.parameters()))) for loss in losses])
hooks, grad = by_opacus()
functorch, _ = by_opacus(force_functorch=True)
ghost = GradSampleModuleFastGradientClipping(BagOfWords(), max_grad_norm=1.0, use_ghost_clipping=True)
cross_entropy(ghost(words), labels).backward()
norms = [gradients.norm(dim=1) for gradients in (exact, hooks, functorch)] + [ghost.get_norm_sample()]
print(f"lengths of the sentences:                {lengths.tolist()}")
print(f"norms of their gradients:                {shown(norms[0])}")
print(f"GradSampleModule:                        {shown(norms[1])}")
print(f"GradSampleModule with force_functorch:   {shown(norms[2])}")
print(f"GradSampleModuleFastGradientClipping:    {shown(norms[3])}")
print(f"of the padding row, .grad is {grad[:4].tolist()}, the mean of grad_sample {hooks.mean(0)[:4].tolist()}")


def trained(wrap):
    net = BagOfWords()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    run = net
    if wrap:
        run = GradSampleModule(net)
        optimizer = DPOptimizer(optimizer, noise_multiplier=0.0, max_grad_norm=1e6, expected_batch_size=8)
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(run(words), labels).backward()
        optimizer.step()
    short = words[6:7]
    alone, padded = (float(net(w).softmax(1)[0, 0].detach()) for w in (short[:, :2], short))
    return float(net.embedding.weight[0].detach().norm()), alone, padded


plain, private = trained(False), trained(True)
for name, (row, alone, padded) in {"SGD": plain, "DPOptimizer without noise": private}.items():
    print(f"{name}: the padding row is {row:.3f} long; two words give {alone:.3f} alone, {padded:.3f} padded to 16")

full = lengths == 16
assert torch.allclose(grad, exact.mean(0)) and torch.allclose(functorch, exact)
assert torch.allclose(norms[1], norms[3]) and torch.allclose(norms[1][full], norms[0][full])
assert (norms[1] > 1.02 * norms[0])[~full].all() and norms[1][7] > 1.2 * norms[0][7]
assert torch.allclose(hooks[:, 4:], exact[:, 4:]) and (exact[:, :4] == 0).all()
assert plain[0] == 0 and plain[1] == plain[2] and private[0] > 1 and private[1] - private[2] > 0.3
PY
