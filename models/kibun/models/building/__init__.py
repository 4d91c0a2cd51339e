"""Weights → bundles: checkpoints, assembling, model cards, checks, and the command `kibun models`.

Nothing that serves imports this.
"""
