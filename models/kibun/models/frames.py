"""What an encoder takes and gives: normalised waveforms, and frames of a batch of utterances."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NORMALISATION_EPSILON = 1e-7  # as in transformers' Wav2Vec2FeatureExtractor


@dataclass(frozen=True)
class Frames:
    """Encoder frames of B utterances, padded to the longest.

    hidden: (B, T, H) float. Values beyond an utterance's length are arbitrary.
    lengths: B valid frame counts, each 1..T (50 frames per second for the usual strides).
    layer_means: (B, L, H), means over time of what the first layer was given and of each layer's output so far, before
        any norm of the encoder's end, as transformers counts hidden states; None unless the trunk keeps them.
    """

    hidden: Tensor
    lengths: tuple[int, ...]
    layer_means: Tensor | None = None

    @property
    def mask(self) -> Tensor | None:
        """(B, T) bool, True where a frame is real; None when nothing is padded."""
        if min(self.lengths) == self.hidden.shape[1]:
            return None
        positions = torch.arange(self.hidden.shape[1], device=self.hidden.device)  # (T,)
        lengths = torch.tensor(self.lengths, device=self.hidden.device)  # (B,)
        return positions < lengths[:, None]  # (B, T)

    def rows(self, indices: Sequence[int]) -> "Frames":
        """The frames of some of the utterances, in the order of `indices`."""
        if list(indices) == list(range(len(self.lengths))):
            return self
        means = None if self.layer_means is None else self.layer_means[list(indices)]
        return Frames(self.hidden[list(indices)], tuple(self.lengths[index] for index in indices), means)

    def mean(self) -> Tensor:
        """Mean over each utterance's real frames, (B, H)."""
        if (mask := self.mask) is None:
            return self.hidden.mean(dim=1)
        total = self.hidden.masked_fill(~mask[:, :, None], 0.0).sum(dim=1)  # (B, H)
        return total / mask.sum(dim=1, keepdim=True)  # (B, H)


def normalised(waveform: Tensor, normalise: bool) -> Tensor:
    """Scale a waveform (N,) to zero mean and unit variance if `normalise` is set, as the checkpoint was trained."""
    if not normalise:
        return waveform
    wide = waveform.double()  # squares of large samples do not fit into float32
    variance, mean = torch.var_mean(wide, correction=0)
    return ((wide - mean) / torch.sqrt(variance + NORMALISATION_EPSILON)).to(waveform.dtype)
