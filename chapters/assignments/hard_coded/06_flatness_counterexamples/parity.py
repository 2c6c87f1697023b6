def parity_network(dimension, bits):
    network = models.flattest_generalizing_network(dimension)
    W, b, v = (parameter.detach() for parameter in network.parameters())
    return W, b, v[0]
