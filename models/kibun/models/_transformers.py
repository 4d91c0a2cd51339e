"""The one place of this room that imports transformers, so that torchaudio is always dealt with first."""

from kibun.models._torchaudio import ensure_importable

ensure_importable()

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    HubertConfig,
    HubertModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.hubert.modeling_hubert import (  # noqa: E402
    HubertEncoderLayer,
    HubertEncoderLayerStableLayerNorm,
    HubertFeatureEncoder,
    HubertFeatureProjection,
    HubertPositionalConvEmbedding,
)
from transformers.utils.generic import ModelOutput  # noqa: E402
from transformers.utils.hub import cached_file  # noqa: E402

__all__ = [
    "AutoConfig",
    "AutoModel",
    "HubertConfig",
    "HubertEncoderLayer",
    "HubertEncoderLayerStableLayerNorm",
    "HubertFeatureEncoder",
    "HubertFeatureProjection",
    "HubertModel",
    "HubertPositionalConvEmbedding",
    "ModelOutput",
    "PreTrainedConfig",
    "PreTrainedModel",
    "cached_file",
]
