flat = pd.DataFrame(
    [[0.0, 1.01, 0.85, 5.1], [0.0, 1.01, 0.52, 6.3], [0.0, 1.01, 0.5, 6.9]],
    index=["two bits", "three bits", "coin"],
    columns=["loss", "trace", "test", "path norm"],
)
