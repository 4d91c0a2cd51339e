"""Corpora → one manifest: IEMOCAP with PA-IEMOCAP's traits, folders of one's own, splits by speaker."""
