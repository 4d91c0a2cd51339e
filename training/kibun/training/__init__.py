"""Corpora, recipes and evaluation for the models of `kibun.models`."""
