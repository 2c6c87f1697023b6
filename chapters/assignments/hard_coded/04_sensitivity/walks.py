walks = pd.DataFrame(
    [[14.0, 55.0], [30.0, 350.0], [50.0, 45.0], [95.0, 250.0]],
    index=list(networks),
    columns=["kinks", "bend"],
)
