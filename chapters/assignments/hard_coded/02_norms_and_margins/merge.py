def merge(network):
    return trained
