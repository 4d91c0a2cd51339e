"""Predictions → figures: metrics, significance, agreement of raters, tables and plots."""
