"""The whole model: a trunk, a tail for each task, and heads that turn frames into traits and emotion.

    waveform ─ trunk ─┬─ tail personality ─ mean ─ vector ─┬─ PersonalityHead      settings 1, 2
                      │                    history vectors ─┴─ ConversationHead    setting 3 ─┐ traits, or given ones
                      ├─ tail valence ─ emotion head ──────────────────────────────────────────┤
                      └─ tail arousal ─ emotion head ──────────────────────────────────────────┘

Tasks may share a tail (`tail_of`), as in multi-task training; personality may have its own trunk.

`KibunModel.analyze` is what is served. `encode`, `personality_frames`, `vectors`, `utterance_traits`,
`conversation_traits` and `emotion` are its steps, differentiable, for training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from kibun.models import files
from kibun.models._transformers import ModelOutput, PreTrainedModel
from kibun.models.analysis import analyze
from kibun.models.assembly import Assembly, read_sidecars_of
from kibun.models.config import KibunConfig
from kibun.models.fields import weight_count
from kibun.models.frames import Frames, normalised
from kibun.models.hub import HUB_ID, HUB_OPTIONS, fetch
from kibun.models.hubert import Tail, Trunk
from kibun.models.layers import Linear
from kibun.models.settings import read_as
from kibun.models.types import Analysis, Utterance
from kibun.models.weights import check_finite, check_header, check_names, not_finite, own_weights


@dataclass
class KibunOutput(ModelOutput):
    """Estimates of one training batch, not limited to their scales; None for tasks that the bundle lacks.

    vectors: (B, H) utterance vectors, not rounded. traits: (B, 5) of setting 1. valence, arousal: (B,).
    """

    vectors: Tensor | None = None
    traits: Tensor | None = None
    valence: Tensor | None = None
    arousal: Tensor | None = None


class KibunModel(Assembly, PreTrainedModel):  # type: ignore[no-untyped-call]
    """Emotion and apparent personality from speech; see the module's docstring."""

    config: KibunConfig
    trunk: Trunk
    personality_trunk: Trunk | None
    config_class = KibunConfig
    base_model_prefix = "kibun"
    main_input_name = "input_values"
    _supports_sdpa = True

    def __init__(self, config: KibunConfig) -> None:
        super().__init__(config)
        self._assemble(Trunk, Tail)
        self.post_init()  # type: ignore[no-untyped-call]

    # ---- steps -----------------------------------------------------------------------------------------------------

    def encode(self, waveforms: Sequence[Tensor]) -> Frames:
        """Normalise waveforms as the checkpoint expects and run the trunk: (B, T, H).

        Args:
            waveforms: B float tensors (N_i,) at 16 kHz, each of at least `min_samples`; lengths may differ.
        """
        normalise = self.config.do_normalize
        return cast(Frames, self.trunk([normalised(waveform, normalise) for waveform in waveforms]))

    def personality_frames(self, waveforms: Sequence[Tensor], frames: Frames) -> Frames:
        """The frames (B, T, H) that `vectors` needs of B waveforms (N_i,).

        Those are `frames`, the shared trunk's, unless personality has its own trunk, which is run then.
        """
        if self.personality_trunk is None:
            return frames
        normalise = self.config.personality_do_normalize
        return cast(Frames, self.personality_trunk([normalised(waveform, normalise) for waveform in waveforms]))

    def vectors(self, frames: Frames) -> Tensor:
        """Utterance vectors (B, D) from a trunk's frames: the mean over the personality tail's, not yet rounded."""
        return cast(Frames, self.tail("personality")(frames)).mean()

    def emotion(self, frames: Frames, traits: Tensor | None) -> dict[str, Tensor]:
        """Each emotion dimension (B,) from the trunk's frames and (B, 5) traits, not limited to the scale.

        traits: may be None where `config.conditioned` is False.
        """
        by_tail: dict[str, Frames] = {}  # dimensions that share a tail run it once
        estimates = {}
        for name, head in self.emotion_heads.items():
            tail = self.config.tail_name(name)
            if tail not in by_tail:
                by_tail[tail] = self.tail(name)(frames)
            estimates[name] = head(by_tail[tail], traits)
        return estimates

    def forward(
        self, input_values: Tensor, lengths: Tensor | Sequence[int] | None = None, traits: Tensor | None = None
    ) -> KibunOutput:
        """Estimate one training batch.

        Args:
            input_values: (B, N) waveforms at 16 kHz, padded on the right with any values.
            lengths: (B,) samples of each waveform; None: all N.
            traits: (B, 5) traits to condition emotion on; None: setting 1 of the same utterance, detached, so that the
                emotion loss does not train the personality tail.
        """
        sizes = [input_values.shape[1]] * len(input_values) if lengths is None else [int(n) for n in lengths]
        waveforms = [row[:size] for row, size in zip(input_values, sizes, strict=True)]
        frames = self.encode(waveforms)
        estimates: dict[str, Tensor] = {}
        if self.config.supports_personality:
            estimates["vectors"] = self.vectors(self.personality_frames(waveforms, frames))
            estimates["traits"] = self.utterance_traits(estimates["vectors"])
            if traits is None:
                traits = estimates["traits"].detach().clamp(*self.config.trait_scale)
        if self.config.emotions:
            if traits is None and self.config.conditioned:
                raise ValueError("this model has no personality tail: pass `traits` to condition emotion on")
            estimates.update(self.emotion(frames, traits))
        return KibunOutput(**estimates)

    def freeze_trunk(self) -> None:
        """Exclude the trunk from training and turn its dropout off, so that its frames need computing only once."""
        for trunk in (self.trunk, self.personality_trunk):
            if trunk is not None:
                trunk.requires_grad_(False)
                trunk.eval()

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but a frozen trunk stays in evaluation mode."""
        super().train(mode)
        for trunk in (self.trunk, self.personality_trunk):
            if trunk is not None and not any(parameter.requires_grad for parameter in trunk.parameters()):
                trunk.eval()
        return self

    def tail(self, task: str) -> Tail:
        """The tail of "personality", "valence" or "arousal"; KeyError for a task that the bundle lacks."""
        return cast(Tail, self.tails[self.config.tail_name(task)])

    # ---- the one call ----------------------------------------------------------------------------------------------

    @property
    def batches(self) -> bool:
        """Whether several utterances are encoded together; on a CPU padding costs more than that gains."""
        return self.device.type != "cpu"

    def analyze(self, requests: Sequence[Utterance]) -> list[Analysis]:
        """Estimate traits and emotion of each utterance; see `kibun.models.analysis.analyze`."""
        return analyze(self, requests)

    # ---- files -----------------------------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        """Write the bundle: weights, configuration, model card, expected error, licence, preprocessor, checksums.

        Args:
            save_directory: created if missing; files of an earlier bundle in it are replaced.
            dtype: precision to store the weights in (float16 halves the size); they are loaded as float32.
            kwargs: as `transformers.PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: a weight is NaN or infinite, or does not fit into `dtype`.
        """
        if name := not_finite(self.state_dict().items()):
            raise ValueError(f"{name} holds NaN or infinity: such a model estimates nothing, and is not saved")
        if dtype is not None:
            state = kwargs.pop("state_dict", None) or self.state_dict()
            kwargs["state_dict"] = {name: _convert(name, value, dtype) for name, value in state.items()}
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            sidecars = files.Sidecars(self.evidence, self.card, self.license_text)
            files.write_sidecars(Path(save_directory), self.config, sidecars)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a bundle folder or hub id as transformers does, from safetensors only and by default as float32.

        Of the hub, `revision` (a commit, branch or tag; default: main) says what is loaded. Checksums are not verified
        and untrained models are accepted; `kibun.models.bundle.load_bundle` checks both.

        Args:
            mapped: leave the weights in the mapped file, at the cost of the last bit.

        Raises:
            BundleError: a file is damaged, a setting is impossible, the file of weights lacks some or has some that do
                not belong to the configuration, or one is NaN or infinite; the message names file and field.
        """
        kwargs.setdefault("dtype", torch.float32)
        kwargs.setdefault("ignore_mismatched_sizes", True)  # they are named below
        wants_info, mapped = kwargs.pop("output_loading_info", False), kwargs.pop("mapped", False)
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir() and HUB_ID.fullmatch(str(pretrained_model_name_or_path)):
            options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
            pretrained_model_name_or_path = folder = fetch(str(pretrained_model_name_or_path), **options)
        weights = folder / files.WEIGHTS
        if folder.is_dir() and not args and "config" not in kwargs:
            kwargs["config"] = read_as(KibunConfig, folder)
            check_header(weights, weight_count(kwargs["config"].hubert_config.to_dict()))
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, **kwargs, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # safetensors and transformers each raise their own types
            raise files.BundleError(f"{weights}: does not load: {files.one_line(error)}") from error
        model, info = loaded
        mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
        check_names(weights, info["missing_keys"], info["unexpected_keys"], mismatched)
        check_finite(weights, model.state_dict().items())
        # In the mapped file weights start wherever its header ends, and for what is not aligned a CPU uses other
        # kernels. Copied, they give the same bits as the model that was saved.
        if not mapped:
            own_weights(model)
        if folder.is_dir():
            read_sidecars_of(model, folder)
        return (model, info) if wants_info else model

    # ---- inside ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise HuBERT's parts as transformers does, and the heads as they do themselves."""
        if isinstance(module, Linear):
            module.reset_parameters()
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]


def _convert(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point():
        return value
    converted = value.to(dtype)
    if not bool(torch.isfinite(converted).all()):
        raise ValueError(f"{name} holds values that {dtype} cannot: save without dtype")
    return converted
