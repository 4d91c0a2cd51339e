"""How the bundle `demo-tiny` and the demo's dialogue are made, from synthetic voices."""
