def units(network):
    return network[1].weight.detach()


def match(a, b):
    return torch.arange(len(a[1].bias))


def renumber(b, order):
    return b
