"""What a server loads: a bundle's weights, in modules that hold them for `packed` and compute nothing.

`load_bundle` gives the model of `hubert`, in transformers' modules, which takes seconds to import; a server runs none
of them. The modules here have the same weights under the same names, so a file is refused for the same reasons
(tests/models/test_stored.py). What computes is `packed`, and the heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kibun.models.assembly import Assembly, read_sidecars_of
from kibun.models.encoder_settings import EncoderSettings
from kibun.models.fields import weight_count
from kibun.models.files import WEIGHTS, resolve_bundle, verify
from kibun.models.settings import BundleSettings, check_trained, read_settings
from kibun.models.weights import check_finite, check_header, check_names, read_tensors

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
# What torch called them before its parametrizations; transformers reads both.
_FORMER_NAMES = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}


def load_stored(path_or_name: str | Path, *, allow_untrained: bool = False, verified: bool = False) -> StoredModel:
    """Load a bundle on the CPU in float32, for `packed_model.pack`; the weights stay in the mapped file.

    Arguments and errors are those of `bundle.load_bundle`.
    """
    folder = resolve_bundle(path_or_name)
    if not verified:
        verify(folder)
    settings = read_settings(folder)
    file = folder / WEIGHTS
    check_header(file, weight_count(asdict(settings.hubert_config)))
    # No memory, and no random numbers that would be overwritten. Parts must need nothing that torch computes in Python
    # for meta tensors, such as norms, `eye` and normal numbers: it then imports its compiler, which takes two seconds.
    with torch.device("meta"):
        model = StoredModel(settings)
    _fill(model, file)
    read_sidecars_of(model, folder)
    if not allow_untrained:
        check_trained(folder, settings)
    return model


class StoredModel(Assembly):
    """A bundle's weights; `packed_model.pack` makes a model of it that computes."""

    def __init__(self, config: BundleSettings) -> None:
        super().__init__()
        self.config = config
        self._assemble(StoredTrunk, StoredTail)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


class StoredTrunk(nn.Module):
    """The weights of a `hubert.Trunk`."""

    def __init__(self, config: EncoderSettings, layers: int) -> None:
        super().__init__()
        self.feature_extractor = _Features(config)
        self.feature_projection = _Projection(config)
        self.pos_conv_embed = _Positions(config)
        self.layer_norm = None if config.do_stable_layer_norm else _layer_norm(config)
        self.layers = _layers(config, layers)
        self.keeps_means = False


class StoredTail(nn.Module):
    """The weights of a `hubert.Tail`."""

    def __init__(self, config: EncoderSettings, layers: int) -> None:
        super().__init__()
        self.layers = _layers(config, layers)
        self.layer_norm = _layer_norm(config) if config.do_stable_layer_norm else None


def _fill(model: StoredModel, file: Path) -> None:
    """Give the model the weights of a file, as float32. Raises BundleError."""
    wanted = model.state_dict()
    state: dict[str, Tensor] = {}
    unexpected, mismatched = [], []
    for stored_name, value in read_tensors(file).items():
        name = _present_name(stored_name)
        if name not in wanted:
            unexpected.append(stored_name)
            continue
        if value.shape != wanted[name].shape:
            mismatched.append(name)
        state[name] = value.to(wanted[name].dtype)
    check_names(file, wanted.keys() - state.keys(), unexpected, mismatched)
    check_finite(file, ((name, state[name]) for name in wanted))
    model.load_state_dict(state, assign=True)


def _present_name(name: str) -> str:
    for former, present in _FORMER_NAMES.items():
        name = name.replace(former, present)
    return name


class _Features(nn.Module):
    def __init__(self, config: EncoderSettings) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList([_Convolution(config, index) for index in range(len(config.conv_dim))])


class _Convolution(nn.Module):
    def __init__(self, config: EncoderSettings, index: int) -> None:
        super().__init__()
        inputs, outputs = (1, *config.conv_dim)[index], config.conv_dim[index]
        kernel, stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride=stride, bias=config.conv_bias)
        self.activation = _activation(config.feat_extract_activation)
        if config.feat_extract_norm == "layer":
            self.layer_norm: nn.Module = nn.LayerNorm(outputs)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(outputs, outputs)


class _Projection(nn.Module):
    def __init__(self, config: EncoderSettings) -> None:
        super().__init__()
        if config.feat_proj_layer_norm:
            self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)


class _Positions(nn.Module):
    def __init__(self, config: EncoderSettings) -> None:
        super().__init__()
        size, kernel, groups = config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        self.batch_norm: nn.Module | None = None
        if config.conv_pos_batch_norm:
            self.conv: nn.Module = nn.Conv1d(size, size, kernel, groups=groups)
            self.batch_norm = nn.BatchNorm1d(size)
        else:
            self.conv = _NormedConvolution(size, kernel, groups)
        self.activation = _activation(config.feat_extract_activation)


class _NormedConvolution(nn.Module):
    """A convolution with torch's weight norm, whose own constructor would compute a norm."""

    def __init__(self, size: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.in_channels, self.kernel_size, self.groups = size, (kernel,), groups
        self.bias = nn.Parameter(torch.empty(size))
        parts = {"original0": torch.empty(1, 1, kernel), "original1": torch.empty(size, size // groups, kernel)}
        self.parametrizations = nn.ModuleDict({"weight": nn.ParameterDict(parts)})

    @property
    def weight(self) -> Tensor:
        """(H, H / groups, k): directions, each of the k with a length of its own."""
        parts = cast(nn.ParameterDict, self.parametrizations["weight"])
        return torch._weight_norm(parts["original1"], parts["original0"], 2)


class _Layer(nn.Module):
    """Normalises after attention and feed-forward."""

    def __init__(self, config: EncoderSettings, *, has_table: bool) -> None:
        super().__init__()
        self.attention = _WavLMAttention(config, has_table) if config.model_type == "wavlm" else _Attention(config)
        self.layer_norm = _layer_norm(config)
        self.feed_forward = _FeedForward(config)
        self.final_layer_norm = _layer_norm(config)


class _StableLayer(_Layer):
    """Normalises before them: `packed` tells the two apart by their names, as they are in transformers."""


class _Attention(nn.Module):
    def __init__(self, config: EncoderSettings) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.k_proj, self.v_proj = nn.Linear(size, size), nn.Linear(size, size)
        self.q_proj, self.out_proj = nn.Linear(size, size), nn.Linear(size, size)


class _WavLMAttention(_Attention):
    def __init__(self, config: EncoderSettings, has_table: bool) -> None:
        super().__init__(config)
        heads = config.num_attention_heads
        self.num_buckets, self.max_distance = config.num_buckets, config.max_bucket_distance
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(config.hidden_size // heads, 8)
        if has_table:
            self.rel_attn_embed = nn.Embedding(
                config.num_buckets, heads, _weight=torch.empty(config.num_buckets, heads)
            )

    def compute_bias(self, queries: int, keys: int) -> Tensor:
        """The table's bias for each key by its position relative to the query, (heads, queries, keys).

        Half of the buckets are for keys after the query. Of either half, the first half is for a distance each, the
        others for distances that grow by a factor, up to the greatest.

        Source: Raffel et al., JMLR 2020 (T5), as transformers computes it for WavLM.
        """
        device = self.rel_attn_embed.weight.device
        position = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None]
        half = self.num_buckets // 2
        exact = half // 2
        distance = position.abs()
        share = torch.log(distance.float() / exact) / math.log(self.max_distance / exact)
        far = (exact + share * (half - exact)).long().clamp(max=half - 1)
        bucket = (position > 0).long() * half + torch.where(distance < exact, distance, far)
        bias: Tensor = self.rel_attn_embed(bucket)  # (queries, keys, heads)
        return bias.permute(2, 0, 1)


class _FeedForward(nn.Module):
    def __init__(self, config: EncoderSettings) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = _activation(config.hidden_act)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)


def _layers(config: EncoderSettings, count: int) -> nn.ModuleList:
    kind = _StableLayer if config.do_stable_layer_norm else _Layer
    return nn.ModuleList([kind(config, has_table=index == 0) for index in range(count)])


def _layer_norm(config: EncoderSettings) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def _activation(name: str) -> nn.Module:
    """torch's own, or transformers' for those that torch has in another form or not at all."""
    if (own := _ACTIVATIONS.get(name)) is not None:
        return own()
    from kibun.models._transformers import ACT2FN

    made: Any = ACT2FN[name]
    return made  # type: ignore[no-any-return]
