"""New small HuBERTs, to be trained from nothing in minutes: the first convolution is an auditory filter bank at first.

HuBERT-base begins with seven short convolutions behind a GroupNorm over time. Trained from scratch in minutes, a
net does better with three: the first is 25 ms long and starts as an auditory filter bank (cosine and sine Gabor
filters on the mel scale), and LayerNorm over channels keeps the balance between low and high frequencies of each frame,
which is what vocal effort changes; GroupNorm over time would level every channel.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from kibun.models.bundle import KibunConfig, KibunModel
from kibun.models.types import SAMPLE_RATE_HZ


def small_hubert(dropout: float = 0.0) -> dict[str, Any]:
    """Settings of transformers' HubertModel: three layers of 96, 50 frames per second like every HuBERT."""
    return {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "conv_dim": [96, 96, 96],
        "conv_kernel": [400, 3, 3],
        "conv_stride": [80, 2, 2],
        "num_feat_extract_layers": 3,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "num_conv_pos_embeddings": 31,
        "num_conv_pos_embedding_groups": 16,
        "hidden_dropout": dropout,
        "attention_dropout": 0.0,  # costs a tenth of a training step
        "activation_dropout": 0.0,
        "feat_proj_dropout": dropout,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
    }


def new_model(seed: int, config: KibunConfig) -> KibunModel:
    """An untrained model, the same for the same seed."""
    torch.manual_seed(seed)
    model = KibunModel(config)
    _start_as_filter_bank(cast(nn.Conv1d, model.trunk.feature_extractor.conv_layers[0].conv))
    return model


@torch.no_grad()
def _start_as_filter_bank(convolution: nn.Conv1d) -> None:
    """Gabor filters at mel-spaced centres from 70 Hz to 7.5 kHz, two phases each, unit energy times 0.3."""
    channels, _one, taps = convolution.weight.shape
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (70.0, 7500.0))
    centres_hz = 700 * (10 ** (np.linspace(low, high, channels // 2) / 2595) - 1)
    time_s = (np.arange(taps) - taps / 2) / SAMPLE_RATE_HZ
    for index, centre_hz in enumerate(centres_hz):
        bandwidth_hz = max(60.0, 0.12 * centre_hz + 30)
        window = np.exp(-0.5 * (2 * bandwidth_hz * time_s) ** 2) * np.hanning(taps)
        for phase in (0, 1):
            taps_of_filter = np.cos(2 * np.pi * centre_hz * time_s + phase * np.pi / 2) * window
            taps_of_filter -= taps_of_filter.mean()
            taps_of_filter *= 0.3 / np.sqrt((taps_of_filter**2).sum())
            convolution.weight[2 * index + phase, 0] = torch.from_numpy(taps_of_filter)
