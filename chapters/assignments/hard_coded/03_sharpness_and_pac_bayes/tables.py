risks = pd.DataFrame({"train": [0.01, 0.1], "test": [0.13, 0.9]}, index=["true", "random"])
bounds = pd.DataFrame(
    [[1.0, 0.97, 0.31, 0.05], [1.0, 1.0, 0.93, 0.4]],
    index=["true", "random"],
    columns=copies,
)
