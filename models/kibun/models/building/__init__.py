"""Weights → bundles: checkpoints, assembling, model cards, checksums, and the command `kibun models`.

Nothing that serves imports this.
"""
