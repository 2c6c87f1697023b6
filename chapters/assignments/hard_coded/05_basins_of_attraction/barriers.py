barriers = pd.DataFrame(
    [[0.18, 0.012], [0.19, 0.008]],
    index=["good–good", "good–poor"],
    columns=["as trained", "matched"],
)
