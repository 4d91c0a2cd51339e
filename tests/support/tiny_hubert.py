"""The smallest encoders with all of their parts: seven convolutions, 50 frames per second, four layers of 32."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kibun.models.config import KibunConfig
from kibun.models.encoders import EncoderConfig, EncoderModel, encoder_config, encoder_of
from kibun.models.hubert import Tail, Trunk
from kibun.models.model import KibunModel

HUBERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
# Few buckets and a short distance, so that utterances of a second use all of them and go beyond.
WAVLM: dict[str, Any] = {"model_type": "wavlm", "num_buckets": 12, "max_bucket_distance": 20}
VARIANTS = [
    pytest.param({"feat_extract_norm": "group"}, id="base"),
    pytest.param({"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}, id="large"),
    pytest.param({"feat_extract_norm": "group", "do_stable_layer_norm": True}, id="group-stable"),
    pytest.param({"feat_extract_norm": "layer", "feat_proj_layer_norm": False}, id="layer-unstable"),
    pytest.param({"conv_pos_batch_norm": True}, id="batch-norm"),
    *(
        pytest.param(
            {**kind, "feat_extract_norm": norm, "do_stable_layer_norm": stable},
            id=f"{kind['model_type']}-{norm}-{'stable' if stable else 'post'}",
        )
        for kind in ({"model_type": "wav2vec2"}, WAVLM)
        for norm in ("group", "layer")
        for stable in (False, True)
    ),
]


def hubert_config(**changes: Any) -> Any:
    """HUBERT with some settings changed, for the attention that the models use; of the class of its kind."""
    config = encoder_config({**HUBERT, **changes})
    if config.model_type != "wavlm":
        config._attn_implementation = "sdpa"
    return config


def full_model(config: EncoderConfig) -> EncoderModel:
    """A random model, with layer norms and biases off their starting values so that a forgotten one shows."""
    torch.manual_seed(0)
    model: EncoderModel = encoder_of(config).model(config).train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # At the size of other weights WavLM's gates and positions would make no difference to speak of.
            size = 1.0 if "rel_pos" in name or "rel_attn" in name else 0.05
            parameter.add_(size * torch.randn_like(parameter))
    return model


def tiny_model(**settings: Any) -> KibunModel:
    """An untrained model of this HuBERT with seeded weights, in evaluation mode."""
    torch.manual_seed(0)
    model: KibunModel = KibunModel(KibunConfig(**{"hubert": HUBERT, "condition_ff": 32, **settings})).train(False)
    return model


def split(full: EncoderModel, layers: int) -> tuple[Trunk, Tail]:
    """Copy a model into a trunk of `layers` Transformer layers and a tail of the rest."""
    count = full.config.num_hidden_layers
    trunk, tail = Trunk(full.config, layers).eval(), Tail(full.config, count - layers).eval()
    trunk.load_from(full)
    tail.load_from(full)
    return trunk, tail


def waveforms(*lengths: int) -> list[Tensor]:
    """White noise, (N_i,) each; the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) for length in lengths]


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """(samples,) float32 of white noise at 0.1."""
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1
