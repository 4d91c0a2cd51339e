"""Makes a bundle for valence and arousal from recordings of people: manifests in, a bundle and its figures out.

`recipe` is the way through; everything else is a step of it.
"""
