"""HuBERT trunk and tails, personality recognition, trait-conditioned emotion recognition, bundles."""
