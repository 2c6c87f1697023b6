def kinks(first, second, a, e):
    if second is None:
        return torch.tensor([0.25, 0.5], dtype=torch.float64)
    return torch.tensor([0.25, 0.375, 0.5], dtype=torch.float64)
