"""Predictions files and what is computed from them: metrics, significance, agreement of raters, correlations, tables
and plots. Needs no model."""
