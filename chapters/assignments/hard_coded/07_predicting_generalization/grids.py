praising = {"n": [100, 400], "noise": [0.0, 0.4], "width": [32, 128]}
damning = {"n": [100, 200], "noise": [0.0, 0.2], "width": [32, 128]}
verdict = pd.DataFrame(
    [[16, 0.5, 0.9], [16, -0.6, -0.3], [36, -0.2, 0.1], [36, 0.4, 0.3]],
    index=["praising", "damning", "all", "planted"],
    columns=["networks", "tau", "Psi"],
)
