"""Config → run folder → bundle: one training run of `kibun train`, from its settings to its card.

Everything that a run is resumed or reproduced from lies in its folder.
"""
