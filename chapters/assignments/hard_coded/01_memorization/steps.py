steps = pd.DataFrame(
    [[950, 170, 110], [800, 200, 100], [900, 160, 120]],
    index=seeds,
    columns=distances,
)
