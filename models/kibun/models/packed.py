"""The encoder as it is served: the same arithmetic as `hubert`, arranged for speed. For inference only.

How it differs from the modules that are trained, and why:

- *Packed*: the frames of all utterances of a batch lie one after the other, (N, H) with N = T_1 + … + T_B. There is no
  padding, so nothing is computed needlessly and no mask is needed. Linear layers process rows; attention and
  convolutions process one utterance at a time.
- *Tiled*: rows are processed in tiles of a few fixed heights (`HEIGHTS`), the last one padded. oneDNN compiles a kernel
  for every new shape (1.4 ms and 0.8 MB each, measured) and caches a thousand of them; with fixed heights there are
  about sixty. Intermediate values stay in the CPU cache.
- *Prepacked*: weights are stored as oneDNN's kernels read them, query, key and value in one matrix; bias and activation
  are applied while a tile is in registers. These kernels give a row the same bits whatever the other rows are, so an
  utterance gives the same bits alone and in any batch.
- *Folded*: the first convolution's GroupNorm over time is an affine map per utterance and channel that follows from the
  mean and the covariance of the waveform's windows (`_Front`); the weight norm of the positional convolution is applied
  once. The gates of WavLM's attention are two more columns per head of the product that gives query, key and value.

- *Shared*: in a worker, tiles and heads of attention are pieces that idle threads help with (`crew`). What a piece
  computes depends neither on its height nor on its thread, so the bits are the same.

Precision: float32 or bfloat16 matrix products. The residual stream, normalisations and means are float32 in both.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kibun.models.crew import help_now, share
from kibun.models.frames import Frames
from kibun.models.weights import Apply

if TYPE_CHECKING:
    from kibun.models.hubert import Tail, Trunk
    from kibun.models.stored import StoredTail, StoredTrunk

HEIGHTS = (256, 192, 160, 128, 96, 80, 64, 56, 48, 32, 24, 16, 8)
"""Rows of a tile. At least two: for a single row oneDNN uses other kernels, whose last bit may differ. 56 is there for
the 49 frames of one second, after which the first interim result is due."""

TILE_ROWS = 20
"""What a tile costs beside its rows, in rows, as it reads all weights (at base size, with AVX-512: 10 to 38)."""

FRONT_HEIGHTS = HEIGHTS[6:]
"""Frames of a tile of the front, whose first convolution makes 64 rows of each: for 64 frames 8 MB in float32.
The next greater heights gain nothing, and 256 costs 15 % (measured): the values no longer fit into the cache."""

FRONT_TILE_ROWS = 8
"""As `TILE_ROWS`, in frames of the front."""

WASTE = 1 / 8
"""Share of the work of an utterance by which it may grow for each thread that computes some of it."""


@dataclass(frozen=True)
class Packed:
    """Encoder frames of B utterances, one after the other.

    hidden: (T_1 + … + T_B, H) float32. lengths: T_1 … T_B, each at least 1. layer_means: as in `hubert.Frames`.
    """

    hidden: Tensor
    lengths: tuple[int, ...]
    layer_means: Tensor | None = None

    def rows(self, indices: Sequence[int]) -> Packed:
        """The frames of some of the utterances, in the order of `indices`."""
        if list(indices) == list(range(len(self.lengths))):
            return self
        parts = torch.split(self.hidden, list(self.lengths))
        hidden, lengths = torch.cat([parts[index] for index in indices]), (self.lengths[index] for index in indices)
        return Packed(hidden, tuple(lengths), None if self.layer_means is None else self.layer_means[list(indices)])

    def parts(self) -> list[Frames]:
        """The frames as the heads take them: one `Frames` per utterance on a CPU, elsewhere one for all, padded."""
        split = torch.split(self.hidden, list(self.lengths))
        if self.hidden.device.type == "cpu":
            means = [None] * len(split) if self.layer_means is None else torch.split(self.layer_means, 1)
            return [Frames(part[None], (len(part),), mean) for part, mean in zip(split, means, strict=True)]
        return [Frames(nn.utils.rnn.pad_sequence(list(split), batch_first=True), self.lengths, self.layer_means)]

    def mean(self) -> Tensor:
        """Mean over each utterance's frames, (B, H)."""
        return torch.cat([part.mean() for part in self.parts()])


class PackedTrunk(nn.Module):
    """`hubert.Trunk`, packed."""

    def __init__(self, trunk: Trunk | StoredTrunk, dtype: torch.dtype, apply: Apply = map) -> None:
        """apply: packs the layers, one by one or several at once."""
        super().__init__()
        self.front = _Front(trunk, dtype)
        self.layers = _Layers(trunk.layers, dtype, apply)
        self.keeps_means = trunk.keeps_means

    def forward(self, waveforms: Sequence[Tensor]) -> Packed:
        """Frames (N, H) of B normalised waveforms (N_i,), 16 kHz, each at least as long as the receptive field."""
        fronts = [self.front(waveform) for waveform in waveforms]
        frames = Packed(torch.cat(fronts), tuple(len(front) for front in fronts))
        if self.keeps_means:
            frames = replace(frames, layer_means=frames.mean()[:, None])  # (B, 1, H)
        return cast(Packed, self.layers(frames))


class PackedTail(nn.Module):
    """`hubert.Tail`, packed."""

    def __init__(self, tail: Tail | StoredTail, dtype: torch.dtype, apply: Apply = map) -> None:
        """apply: packs the layers, one by one or several at once."""
        super().__init__()
        self.layers = _Layers(tail.layers, dtype, apply)
        self.layer_norm = tail.layer_norm

    def forward(self, frames: Packed) -> Packed:
        """The trunk's frames (N, H) to this task's (N, H)."""
        frames = self.layers(frames)
        return frames if self.layer_norm is None else replace(frames, hidden=self.layer_norm(frames.hidden))


class PackedLinear(nn.Module):
    """One or more Linears with the same input, prepacked: (n, K) to (n, N), in the precision of the weights.

    gelu: whether to apply GELU (the exact one, with the error function) to the result.
    """

    def __init__(self, *linears: nn.Linear | tuple[Tensor, Tensor | None], dtype: torch.dtype, gelu: bool = False):
        super().__init__()
        pairs = [(linear.weight, linear.bias) if isinstance(linear, nn.Linear) else linear for linear in linears]
        weights = [weight.detach() for weight, _ in pairs]
        weight = (torch.cat(weights) if len(weights) > 1 else weights[0]).to(dtype)  # (N, K)
        biases = [bias for _, bias in pairs if bias is not None]
        self.dtype, self.gelu = dtype, gelu
        self.bias = torch.cat([bias.detach() for bias in biases]).to(dtype) if biases else None  # (N,)
        self.prepacked = _prepacks(weight)
        # Not a buffer, as a prepacked tensor can be neither moved nor saved.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.prepacked else weight.clone()
        self.fused = self.prepacked and gelu and not _avx2_alone()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if not self.prepacked:
            y = F.linear(x, self.weight, self.bias)
        else:
            name, how = ("gelu", "none") if self.fused else ("none", "")
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], how)
        return cast(Tensor, torch.ops.aten.gelu_(y) if self.gelu and not self.fused else y)


class HeadLinear(nn.Module):
    """A PackedLinear in place of a head's Linear: (…, K) to (…, N), tiled, in the input's precision."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = PackedLinear(linear, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = _by_tiles(self.packed, x.reshape(-1, x.shape[-1]))
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class _Layers(nn.Module):
    """A part's Transformer layers, and what they share."""

    def __init__(self, layers: nn.ModuleList, dtype: torch.dtype, apply: Apply) -> None:
        super().__init__()
        self.each = nn.ModuleList(apply(partial(_Layer, dtype=dtype), layers))
        first: Any = layers[0].attention if len(layers) else None
        self.positions = _Positions(first) if hasattr(first, "rel_attn_embed") else None

    def forward(self, frames: Packed) -> Packed:
        """(N, H) to (N, H)."""
        bias = None if self.positions is None else self.positions(max(frames.lengths))  # (heads, T, T)
        for layer in self.each:
            frames = replace(frames, hidden=layer(frames.hidden, frames.lengths, bias))  # (N, H)
            if frames.layer_means is not None:
                frames = replace(frames, layer_means=torch.cat([frames.layer_means, frames.mean()[:, None]], dim=1))
        return frames


class _Positions(nn.Module):
    """WavLM's bias of attention by relative position, the same at all distances beyond the greatest."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.farthest = int(attention.max_distance)
        with torch.no_grad():
            before = attention.compute_bias(self.farthest + 1, 1)[:, :, 0].flip(1)  # (heads, D): -D + 1 … 0
            after = attention.compute_bias(1, self.farthest + 1)[:, 0, 1:]  # (heads, D - 1): 1 … D - 1
        self.by_distance = torch.cat([before, after], dim=1).clone()  # (heads, 2 D - 1)

    def forward(self, length: int) -> Tensor:
        """(heads, T, T) float32 for T frames; its corner is that of fewer frames."""
        position = torch.arange(length, device=self.by_distance.device)
        distance = (position - position[:, None]).clamp(-self.farthest, self.farthest)  # (T, T): key minus query
        return self.by_distance[:, distance + self.farthest]


class _Layer(nn.Module):
    """One Transformer layer, with LayerNorm before or after attention and feed-forward."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__()
        attention, feed_forward = layer.attention, layer.feed_forward
        self.norm_first = "Stable" in type(layer).__name__
        self.heads = attention.num_heads
        projections: list[Any] = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.gate_scale: Tensor | None = None
        if hasattr(attention, "gru_rel_pos_linear"):
            projections.append(_gates(attention))
            self.gate_scale = attention.gru_rel_pos_const.detach()[0, :, :, 0].clone()  # (heads, 1)
        self.qkv = PackedLinear(*projections, dtype=dtype)
        self.out = PackedLinear(attention.out_proj, dtype=dtype)
        fused = _is_gelu(feed_forward.intermediate_act_fn)
        self.up = PackedLinear(feed_forward.intermediate_dense, dtype=dtype, gelu=fused)
        self.act: nn.Module = nn.Identity() if fused else feed_forward.intermediate_act_fn
        self.down = PackedLinear(feed_forward.output_dense, dtype=dtype)
        self.attention_norm, self.final_norm = layer.layer_norm, layer.final_layer_norm
        self.adapter = getattr(layer, "adapter_layer", None)

    def forward(self, hidden: Tensor, lengths: Sequence[int], bias: Tensor | None) -> Tensor:
        """(N, H) to (N, H); bias (heads, T, T) of the longest utterance, for a WavLM."""
        qkv = _by_tiles(self._before, hidden)  # (N, 3 H), or (N, 3 H + 2 heads)
        mixed = _attend(qkv, lengths, self.heads, None if bias is None else (bias, self.gate_scale))  # (N, H)
        return _by_tiles(self._after, mixed, hidden)

    def _before(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.qkv(self.attention_norm(hidden) if self.norm_first else hidden))

    def _after(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        """Attention's output (n, H) and the layer's input (n, H) to the layer's output (n, H)."""
        hidden = hidden + self.out(mixed)
        if self.norm_first:
            hidden = hidden + self.down(self.act(self.up(self.final_norm(hidden))))
            return hidden if self.adapter is None else hidden + self.adapter(hidden)
        hidden = self.attention_norm(hidden)
        return cast(Tensor, self.final_norm(hidden + self.down(self.act(self.up(hidden)))))


def _gates(attention: Any) -> tuple[Tensor, Tensor]:
    """Weight (2 heads, H) and bias (2 heads,) of what the two gates of each of WavLM's heads are the sigmoid of.

    Each head has the same linear map of its own part of the frame to eight numbers; either gate takes the sum of four.
    """
    linear, heads = attention.gru_rel_pos_linear, attention.num_heads
    weight, bias = linear.weight.detach().view(2, 4, -1).sum(1), linear.bias.detach().view(2, 4).sum(1)  # (2, d), (2,)
    own = torch.eye(heads, device=weight.device)[None, :, :, None]  # (1, heads, heads, 1): a head sees its own part
    return (own * weight[:, None, None]).reshape(2 * heads, -1), bias.repeat_interleave(heads)


def _attend(
    qkv: Tensor, lengths: Sequence[int], heads: int, position: tuple[Tensor, Tensor | None] | None = None
) -> Tensor:
    """Self-attention within each utterance: (N, 3 H) to (N, H). On a CPU one at a time, elsewhere all at once.

    position: for a WavLM, whose qkv is (N, 3 H + 2 heads): bias (heads, T, T) and scale of its gates (heads, 1).
    """
    parts = torch.split(qkv, list(lengths))
    if qkv.device.type == "cpu":
        gates = 0 if position is None else 2 * heads
        mixed = qkv.new_empty(len(qkv), (qkv.shape[1] - gates) // 3)

        def compute(part: Tensor, out: Tensor, some: slice) -> None:
            size = mixed.shape[1] // heads
            out[:, some.start * size : some.stop * size] = _attention(part[None], None, heads, position, some)[0]

        pairs = zip(parts, torch.split(mixed, list(lengths)), strict=True)
        _share([partial(compute, *pair, some) for pair in pairs for some in _groups(heads)])
        return mixed
    if len(parts) == 1:
        return _attention(qkv[None], None, heads, position)[0]
    padded = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)  # (B, T, 3 H)
    counts = torch.tensor(lengths, device=qkv.device)
    mask = torch.arange(padded.shape[1], device=qkv.device) < counts[:, None]  # (B, T)
    return _attention(padded, mask, heads, position)[mask]


def _groups(heads: int) -> list[slice]:
    """Heads of attention for each thread that would take some."""
    size = -(-heads // help_now())
    return [slice(first, min(first + size, heads)) for first in range(0, heads, size)]


def _attention(
    qkv: Tensor,
    mask: Tensor | None,
    heads: int,
    position: tuple[Tensor, Tensor | None] | None = None,
    some: slice = slice(None),
) -> Tensor:
    """(B, T, 3 H), with the gates (B, T, 3 H + 2 heads), to (B, T, h H / heads) of some h heads.

    mask: (B, T) True where a frame is real.
    """
    allowed = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, T)
    if position is not None:
        qkv, gates = qkv[..., : -2 * heads], qkv[..., -2 * heads :]
        gated = _gated_bias(gates, *position, some)  # (B, h, T, T)
        allowed = (gated if allowed is None else gated.masked_fill(~allowed, float("-inf"))).to(qkv.dtype)
    each = qkv.view(*qkv.shape[:2], 3, heads, -1)[:, :, :, some]  # (B, T, 3, h, H / heads)
    q, k, v = each.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, T, H / heads)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)


def _gated_bias(gates: Tensor, bias: Tensor, scale: Tensor | None, some: slice) -> Tensor:
    """WavLM's bias for each query: gates (B, T, 2 heads) and bias (heads, T' >= T, T') to (B, h, T, T) of some heads.

    Source: Chen et al., "WavLM", IEEE JSTSP 2022, section on gated relative position bias; as transformers computes it.
    """
    assert scale is not None
    length = gates.shape[1]
    first, second = gates.float().sigmoid().transpose(1, 2).unsqueeze(3).chunk(2, dim=1)  # (B, heads, T, 1) each
    gate = first[:, some] * (second[:, some] * scale[some, :, None] - 1.0) + 2.0
    return gate * bias[some, :length, :length]


Tile = tuple[int, int, int]
"""First row, number of rows, height. Only the last tile may have fewer rows than its height."""


@lru_cache(10_000)
def tiles(
    rows: int, heights: tuple[int, ...] = HEIGHTS, threads: int = 1, tile_rows: int = TILE_ROWS
) -> tuple[Tile, ...]:
    """Split rows into tiles so that all of them end soonest.

    Args:
        heights: the heights to choose from, in falling order.
        threads: those that take the tiles, each the next one as soon as it is free. For several, tiles may cost more in
            all, by `WASTE` for each.
        tile_rows: see `TILE_ROWS`.
    """
    choices = [_tiles(rows, heights[highest:], tile_rows) for highest in range(len(heights) if threads > 1 else 1)]
    most = (1 + WASTE * threads) * _ends(choices[0], 1, tile_rows)
    allowed = [choice for choice in choices if _ends(choice, 1, tile_rows) <= most]
    return min(allowed, key=lambda choice: _ends(choice, threads, tile_rows))


def _tiles(rows: int, heights: tuple[int, ...], tile_rows: int) -> tuple[Tile, ...]:
    """Tiles of the greatest height, and the rest in one or more, whichever costs less."""
    greatest, *lower = heights
    start = rows - rows % greatest
    whole = tuple((first, greatest, greatest) for first in range(0, start, greatest))
    if start == rows:
        return whole
    one = ((start, rows - start, greatest),)
    if not lower:
        return whole + one
    rest = _tiles(rows - start, tuple(lower), tile_rows)
    several = tuple((start + first, count, height) for first, count, height in rest)
    return whole + min(one, several, key=lambda choice: _ends(choice, 1, tile_rows))


def _ends(tiles: Sequence[Tile], threads: int, tile_rows: int) -> int:
    """When threads that take these tiles, each the next one as soon as it is free, have all ended; in rows."""
    ends = [0] * threads
    for _, _, height in tiles:
        heapq.heapreplace(ends, ends[0] + height + tile_rows)
    return max(ends)


def _by_tiles(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply a function of tiles (n, …) to tensors (N, …). Elsewhere than on a CPU new shapes cost nothing: no tiles."""
    rows = len(tensors[0])
    if tensors[0].device.type != "cpu":
        return function(*tensors)
    gathered = _Gathered(rows)

    def compute(start: int, count: int, height: int) -> None:
        result = function(*(_filled(tensor[start : start + count], height) for tensor in tensors))
        gathered.put(start, result[:count])

    _share([partial(compute, *tile) for tile in tiles(rows, threads=help_now())])
    return gathered.rows


class _Gathered:
    """The rows (N, …) that tiles (n, …) become, computed in any order by any threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rows: Tensor
        self._made = False
        self._lock = Lock()

    def put(self, start: int, tile: Tensor) -> None:
        if len(tile) == self.count:
            self.rows = tile
            return
        with self._lock:
            if not self._made:
                self.rows, self._made = tile.new_empty(self.count, *tile.shape[1:]), True
        self.rows[start : start + len(tile)] = tile


def _share(pieces: Sequence[Callable[[], None]]) -> None:
    """`crew.share`, in the mode of this thread: whether results are for inference only is each thread's own."""
    if len(pieces) == 1:
        pieces[0]()
        return
    inference = torch.is_inference_mode_enabled()

    def run(piece: Callable[[], None]) -> None:
        with torch.inference_mode(inference):
            piece()

    share([partial(run, piece) for piece in pieces])


def _filled(rows: Tensor, height: int) -> Tensor:
    """(n, H) padded to (height, H)."""
    return rows if len(rows) == height else F.pad(rows, (0, 0, 0, height - len(rows)))


class _Front(nn.Module):
    """Waveform to the first Transformer layer's input: convolutions, projection, positional convolution."""

    def __init__(self, trunk: Trunk | StoredTrunk, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        extractor: Any = trunk.feature_extractor
        first, *others = extractor.conv_layers
        self.first = _FirstConvolution(first, dtype)
        self.convolutions = nn.ModuleList([_Convolution(layer, dtype) for layer in others])
        self.shape = [(layer.conv.kernel_size[0], layer.conv.stride[0]) for layer in extractor.conv_layers]
        projection: Any = trunk.feature_projection
        self.projection_norm = getattr(projection, "layer_norm", None) or nn.Identity()
        self.projection = PackedLinear(projection.projection, dtype=dtype)
        self.position = _PositionalConvolution(trunk.pos_conv_embed, dtype)
        self.layer_norm = trunk.layer_norm or nn.Identity()

    def forward(self, waveform: Tensor) -> Tensor:
        """(N,) to (T, H)."""
        first = self.first.folded(waveform)
        count = self._frames(len(waveform))
        features = _Gathered(count)

        def compute(start: int, real: int, height: int) -> None:
            rows = first(self._piece(waveform, start, height))  # (…, C)
            for convolution in self.convolutions:
                rows = convolution(rows)
            features.put(start, self.projection(self.projection_norm(rows.float()))[:real])  # (n, H)

        _share([partial(compute, *tile) for tile in _front_tiles(count, waveform.device)])
        hidden = features.rows.float()  # (T, H)
        return cast(Tensor, self.layer_norm(hidden + self.position(hidden)))

    def _frames(self, samples: int) -> int:
        count = samples
        for kernel, stride in self.shape:
            count = (count - kernel) // stride + 1
        return count

    def _piece(self, waveform: Tensor, start: int, height: int) -> Tensor:
        """The samples that `height` frames from frame `start` on depend on; zeros beyond the end."""
        samples, hop = height, 1
        for kernel, stride in reversed(self.shape):
            samples = (samples - 1) * stride + kernel
            hop *= stride
        piece = waveform[start * hop : start * hop + samples]
        return F.pad(piece, (0, samples - len(piece)))


def _front_tiles(rows: int, device: torch.device) -> Sequence[Tile]:
    return tiles(rows, FRONT_HEIGHTS, help_now(), FRONT_TILE_ROWS) if device.type == "cpu" else ((0, rows, rows),)


class _Convolution(nn.Module):
    """A convolution over time as a matrix product of windows and weights, channels last."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__()
        conv = layer.conv
        (self.kernel,), (self.stride,) = conv.kernel_size, conv.stride
        weight = conv.weight.permute(0, 2, 1).flatten(1)  # (C_out, C_in, k) -> (C_out, k C_in)
        self.norm = getattr(layer, "layer_norm", None)
        fused = self.norm is None and _is_gelu(layer.activation)
        self.act: nn.Module = nn.Identity() if fused else layer.activation
        self.product: PackedLinear | _Pairs
        if (self.kernel, self.stride, dtype) == (3, 2, torch.float32) and weight.device.type == "cpu" and _avx2_alone():
            self.product = _Pairs(conv.weight, conv.bias, gelu=fused)
        else:
            self.product = PackedLinear((weight, conv.bias), dtype=dtype, gelu=fused)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, C_in) to (m, C_out), m = (n - kernel) // stride + 1."""
        paired = isinstance(self.product, _Pairs)
        y = self.product(rows if paired else _windows(rows, self.kernel, self.stride))
        if self.norm is not None:
            y = self.norm(y.float())
        return cast(Tensor, self.act(y))


class _Pairs(nn.Module):
    """A convolution of kernel 3 and stride 2, float32: two outputs from five products with (C, C) weights, not six.

    The outputs W0 x0 + W1 x1 + W2 x2 and W0 x2 + W1 x3 + W2 x4 are computed as W0 (x0 - x2) + W1 x1 + s and
    W2 (x4 - x2) + W1 x3 + s with s = (W0 + W2) x2. So an output still depends on its own window only. The rounding
    error is 1.3 times as large (measured). Source: Winograd, "Arithmetic Complexity of Computations", SIAM 1980.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool) -> None:
        """weight: (C_out, C_in, 3)."""
        super().__init__()
        first, second, third = weight.detach().unbind(2)
        self.shared = PackedLinear((first + third, bias), dtype=torch.float32)
        self.even = PackedLinear((torch.cat([first, second], dim=1), None), dtype=torch.float32)
        self.odd = PackedLinear((torch.cat([third, second], dim=1), None), dtype=torch.float32)
        self.gelu = gelu

    def forward(self, rows: Tensor) -> Tensor:
        """(n, C_in) to (m, C_out), m = (n - 3) // 2 + 1."""
        count, channels = (len(rows) - 3) // 2 + 1, rows.shape[1]
        evens = (count + 1) // 2
        middle = rows[2::4][:evens].contiguous()  # x2, (evens, C_in)
        shared = self.shared(middle)
        y = shared.new_empty(count, shared.shape[1])
        x = rows.new_empty(evens, 2 * channels)
        for product, end, inner, out in ((self.even, 0, 1, y[0::2]), (self.odd, 4, 3, y[1::2])):
            here = len(out)  # the odd ones may be one fewer: they are padded, as each new height costs a kernel
            torch.sub(rows[end::4][:here], middle[:here], out=x[:here, :channels])
            x[:here, channels:] = rows[inner::4][:here]
            torch.add(product(x)[:here], shared[:here], out=out)
        return torch.ops.aten.gelu_(y) if self.gelu else y  # type: ignore[no-any-return]


class _FirstConvolution(nn.Module):
    """The convolution that reads the waveform: windows of ten samples, a tiny share of the arithmetic.

    In bfloat16 both sides are split into two parts, x = x1 + x2 and w = w1 + w2, and x1 w1 + x2 w1 + x1 w2 is one
    product of three times the depth: it uses sixteen bits of the waveform instead of eight.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__()
        conv = layer.conv
        (self.kernel,), (self.stride,) = conv.kernel_size, conv.stride
        self.dtype = dtype
        self.weight = conv.weight.detach()[:, 0].clone()  # (C, k)
        self.bias = conv.bias  # (C,) or None
        self.norm, self.act = layer.layer_norm, layer.activation

    def folded(self, waveform: Tensor) -> Callable[[Tensor], Tensor]:
        """The layer, as a function of pieces (n,) of this waveform (N,), which it turns into (m, C).

        GroupNorm with a group per channel needs each channel's mean and variance over time. A channel is w · u + b of
        the window u, so these are w · mean(u) + b and w' cov(u) w, without a pass over the channels. Computed in
        float64, since windows of a waveform are nearly collinear.
        """
        weight, bias = self.weight, self.bias
        if isinstance(self.norm, nn.GroupNorm):
            windows = waveform.double().unfold(0, self.kernel, self.stride)  # (T, k)
            mean = windows.mean(dim=0)  # (k,)
            centred = windows - mean
            covariance = centred.T @ centred / len(windows)  # (k, k)
            wide = weight.double()
            variance = ((wide @ covariance) * wide).sum(dim=1)  # (C,)
            scale = self.norm.weight.double() / torch.sqrt(variance + self.norm.eps)
            weight = (wide * scale[:, None]).float()
            bias = (self.norm.bias.double() - (wide @ mean) * scale).float()  # its own bias cancels out with the mean

        normalised_later = isinstance(self.norm, nn.LayerNorm)
        fused = not normalised_later and _is_gelu(self.act)
        split = self.dtype == torch.bfloat16
        if split:
            high, low = _split(weight)
            weight = torch.cat([high, high, low], dim=1)  # (C, 3 k)
        product = PackedLinear((weight, bias), dtype=self.dtype, gelu=fused)

        def convolve(piece: Tensor) -> Tensor:
            windows = piece.unfold(0, self.kernel, self.stride)  # (m, k)
            if split:
                high, low = _split(windows)
                windows = torch.cat([high, low, high], dim=1)  # (m, 3 k)
            y = product(windows.contiguous())  # (m, C)
            if normalised_later:
                y = self.norm(y.float())
            return cast(Tensor, y if fused else self.act(y)).to(self.dtype)

        return convolve


class _PositionalConvolution(nn.Module):
    """The grouped convolution over 128 frames that encodes positions; zeros beyond both ends."""

    def __init__(self, embedding: Any, dtype: torch.dtype) -> None:
        super().__init__()
        conv = embedding.conv
        self.norm, self.act = getattr(embedding, "batch_norm", None), embedding.activation
        (self.kernel,), self.groups = conv.kernel_size, conv.groups
        self.dtype = dtype
        self.bias = conv.bias.detach().to(dtype, copy=True)
        self.weight = conv.weight.detach().to(dtype, copy=True)[:, :, None, :]  # (H, H / groups, 1, k)
        self.prepacked = _prepacks(self.weight)
        if self.prepacked:
            shape = [1, conv.in_channels, 1, FRONT_HEIGHTS[0] + self.kernel - 1]
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, [0, 0], [1, 1], [1, 1], self.groups, shape
            )

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, H) to (T, H)."""
        count = len(hidden)
        if self.norm is not None:
            hidden = self.norm(hidden)
        tall = _front_tiles(count, hidden.device)
        end = tall[-1][0] + tall[-1][2]
        before = self.kernel // 2
        padded = F.pad(hidden.to(self.dtype), (0, 0, before, end - count + self.kernel - 1 - before))
        gathered = _Gathered(count)

        def compute(start: int, real: int, height: int) -> None:
            piece = padded[start : start + height + self.kernel - 1]  # (n + k - 1, H)
            gathered.put(start, self._convolve(piece.T[None, :, None, :])[0, :, 0, :real].T)

        _share([partial(compute, *tile) for tile in tall])
        return cast(Tensor, self.act(gathered.rows.float()))

    def _convolve(self, image: Tensor) -> Tensor:
        """(1, H, 1, n + k - 1), channels last, to (1, H, 1, n)."""
        if not self.prepacked:
            return F.conv2d(image, self.weight, self.bias, groups=self.groups)
        return cast(
            Tensor,
            torch.ops.mkldnn._convolution_pointwise(
                image, self.weight, self.bias, [0, 0], [1, 1], [1, 1], self.groups, "none", [], ""
            ),
        )


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum is x, float32, to sixteen bits."""
    high = x.bfloat16()
    return high, (x - high.float()).bfloat16()


def _windows(rows: Tensor, kernel: int, stride: int) -> Tensor:
    """(n, C) to (m, kernel C): the windows of a convolution. No copy where they do not overlap."""
    count, channels = (len(rows) - kernel) // stride + 1, rows.shape[1]
    if kernel == stride:
        return rows[: count * stride].reshape(count, kernel * channels)
    return rows.as_strided((count, kernel * channels), (stride * channels, 1)).contiguous()


def _prepacks(weight: Tensor) -> bool:
    """Whether oneDNN has kernels for this weight here. They are torch.compile's, not public: hence the check."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _avx2_alone() -> bool:
    """Whether torch's kernels here are those for AVX2 without AVX-512.

    There oneDNN applies GELU to a product more slowly than torch does afterwards, and products leave little time for
    anything else, so that fewer of them are the only gain left. Neither was measured with AVX-512.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _is_gelu(act: nn.Module) -> bool:
    return isinstance(act, nn.GELU) or type(act).__name__ == "GELUActivation"
