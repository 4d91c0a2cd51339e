"""The small HuBERT of demo-tiny and its heads."""

from kibun.models.bundle import KibunConfig
from kibun.training.filter_bank import small_hubert


def tiny_config(name: str = "demo-tiny", version: str = "1") -> KibunConfig:
    """About 0.9 M parameters: two layers are shared, and each of three tails has one of its own."""
    return KibunConfig(
        hubert=small_hubert(),
        trunk_layers=2,
        condition_ff=192,
        conversation_size=64,
        head_dropout=0.0,
        bundle_name=name,
        bundle_version=version,
        synthetic=True,
    )
