"""The settings of a bundle as a configuration of transformers: for training, saving and the Auto classes."""

from typing import Any, ClassVar

from kibun.models._transformers import HubertConfig, PreTrainedConfig
from kibun.models.encoders import EncoderConfig, encoder_config
from kibun.models.fields import OLDER
from kibun.models.settings import BundleSettings


class KibunConfig(BundleSettings, PreTrainedConfig):  # type: ignore[no-untyped-call]
    """`BundleSettings`, whose encoders are configurations of transformers."""

    model_type = "kibun"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {"hubert": HubertConfig}

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.hubert, dict):
            self.hubert = encoder_config(self.hubert)
        PreTrainedConfig.__post_init__(self, **kwargs)  # type: ignore[no-untyped-call]
        _attend_by_sdpa(self.hubert_config)
        self._settle()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A stored configuration, which may lack what bundles had no choice of when it was written."""
        return super().from_dict({**OLDER, **config_dict}, **kwargs)

    def _encoder(self, settings: dict[str, Any]) -> EncoderConfig:
        config = encoder_config(settings)
        _attend_by_sdpa(config)
        return config


def _attend_by_sdpa(config: EncoderConfig) -> None:
    """Set what transformers' layers read. KibunModel's masks are for sdpa; flash attention would need others."""
    if config.model_type != "wavlm":  # whose attention is torch's own
        config._attn_implementation = "sdpa"
