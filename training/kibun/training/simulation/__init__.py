"""Simulated conversations with known ground truth, on which the paper's mechanism can be checked."""
