"""Corpora and the manifest that everything else reads: IEMOCAP with PA-IEMOCAP's traits, a user's own table of
utterances, and splits by speaker."""
