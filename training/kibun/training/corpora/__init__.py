"""Corpora and the manifest that everything else reads: IEMOCAP with PA-IEMOCAP's traits, other public corpora of
emotional speech, a user's own table of utterances, and splits by speaker."""
