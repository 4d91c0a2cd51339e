"""Makes the bundle `demo-tiny` and the demo's dialogue from synthetic voices (espeak-ng).

`recipe` is the way through; everything else is a step of it.
"""
