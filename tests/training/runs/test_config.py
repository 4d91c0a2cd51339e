"""The configuration of a run."""

from pathlib import Path

import pytest

from kibun.models.types import TRAITS
from kibun.training.runs.config import (
    ConfigError,
    RunConfig,
    as_dict,
    from_dict,
    load_config,
    write_config,
)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = from_dict(
        "ser",
        {
            "manifest": "corpus/m.jsonl",
            "dimension": "arousal",
            "license": 'a "quoted" – licence',
            "model": {"head": "ca", "condition_on": ["openness", "neuroticism"]},
            "traits": {"source": "noisy", "sigma": 1},
            "training": {"seed": 3, "crop_seconds": 4, "loss": "ccc", "micro_batch": 8},
        },
        tmp_path,
    )
    assert config.manifest == tmp_path / "corpus" / "m.jsonl"
    assert config.traits.sigma == 1.0
    write_config(config, tmp_path / "c.toml")
    assert load_config(None, tmp_path / "c.toml") == config
    assert from_dict("ser", as_dict(config), Path("/")) == config
    changed = load_config("ser", tmp_path / "c.toml", ["training.seed=4", "model.head=ticn-ca", 'splits="paper"'])
    assert (changed.training.seed, changed.model.head, changed.splits) == (4, "ticn-ca", "paper")
    with pytest.raises(ConfigError, match="run `kibun train ser` with it"):
        load_config("pr", tmp_path / "c.toml")


def test_the_papers_settings_are_the_defaults() -> None:
    config = RunConfig("ser", Path("/m"), dimension="valence")
    assert (config.training.micro_batch, config.training.batch) == (2, 16)
    assert config.training.ctc_weight == 0.1
    assert config.model.start == "facebook/hubert-base-ls960"
    assert config.model.condition_on == TRAITS
