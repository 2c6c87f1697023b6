names = ["Frobenius", "spectral", "l1-path", "l2-path"]
grown = pd.DataFrame(
    [[0.1, 0.1, 0.1, 0.1], [2.0, 2.0, 0.5, 1.0], [6.0, 7.0, 2.0, 5.0]],
    index=sizes,
    columns=names,
)
