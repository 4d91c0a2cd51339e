"""Simulated data with known ground truth, on which the paper's mechanism can be checked.

`world` has the rules, `paper` trains every head on them (`kibun bench paper`).
"""
