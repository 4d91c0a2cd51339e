"""The small HuBERT of demo-tiny: a config of transformers' HubertModel.

HuBERT-base begins with seven short convolutions behind a GroupNorm over time. Trained from scratch in minutes, a
net does better with three: the first is 25 ms long and starts as an auditory filter bank (cosine and sine Gabor
filters on the mel scale), and LayerNorm over channels keeps the balance between low and high frequencies of each frame,
which is what vocal effort changes; GroupNorm over time would level every channel.
"""

from kibun.models.bundle import KibunConfig


def tiny_config(name: str = "demo-tiny", version: str = "1") -> KibunConfig:
    """About 0.9 M parameters; 50 frames per second like every HuBERT."""
    hubert = {
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
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
    }
    return KibunConfig(
        hubert=hubert,
        trunk_layers=2,
        condition_ff=192,
        conversation_size=64,
        head_dropout=0.0,
        bundle_name=name,
        bundle_version=version,
        synthetic=True,
    )
