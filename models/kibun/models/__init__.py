"""The models: audio → frames → traits and emotion, and the bundles that they are loaded from.

What lies here serves; `building` makes bundles. `types` needs numpy only, and other rooms may import it freely.
"""
