def twins(images, distance, seed):
    return torch.cat([images, images]), torch.arange(2 * len(images)) % 10
