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
from kibun.models.conditioning import make_head
from kibun.models.config import READOUT, KibunConfig
from kibun.models.fields import check_bundle, weight_count
from kibun.models.hub import HUB_ID, HUB_OPTIONS, fetch
from kibun.models.hubert import Frames, Tail, Trunk, normalised
from kibun.models.layers import Linear
from kibun.models.personality import ConversationHead, PersonalityHead, round_to_stored
from kibun.models.readout import Pooling, Readout
from kibun.models.types import EMOTIONS, Analysis, Evidence, HeadName, Query, Utterance
from kibun.models.weights import check_header, not_finite

# How weights may fail to be those of the configuration: transformers' name for it, and words.
_MISFITS = {
    "missing_keys": "lacks {} weights that {} describes",
    "unexpected_keys": "has {} weights that {} has no place for",
    "mismatched_keys": "has {} weights of another shape than {} describes",
}


@dataclass
class KibunOutput(ModelOutput):
    """Estimates of one training batch, not limited to their scales; None for tasks that the bundle lacks.

    vectors: (B, H) utterance vectors, not rounded. traits: (B, 5) of setting 1. valence, arousal: (B,).
    """

    vectors: Tensor | None = None
    traits: Tensor | None = None
    valence: Tensor | None = None
    arousal: Tensor | None = None


class KibunModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Emotion and apparent personality from speech; see the module's docstring."""

    config: KibunConfig
    config_class = KibunConfig
    base_model_prefix = "kibun"
    main_input_name = "input_values"
    _supports_sdpa = True

    evidence: tuple[Evidence, ...] | None = None
    """What traits of setting 3 are worth, by rising number of utterances; None: unknown."""
    card: str | None = None
    """Text of MODEL_CARD.md; None: it is generated from the configuration."""
    license_text: str | None = None
    """Text of the licence that `config.license` names; None: the bundle comes without it."""

    def __init__(self, config: KibunConfig) -> None:
        super().__init__(config)
        hubert = config.hubert_config
        self.trunk = Trunk(hubert, cast(int, config.trunk_layers))
        self.tails = nn.ModuleDict()
        for task in config.tasks:
            if config.tail_name(task) in self.tails:
                continue  # shared with an earlier task
            if task == "personality":
                tail = Tail(config.personality_hubert_config, config.personality_tail_layers)
            else:
                tail = Tail(hubert, config.tail_layers)
            self.tails[config.tail_name(task)] = tail
        self.personality_trunk: Trunk | None = None
        if config.personality_hubert is not None:
            layers = cast(int, config.personality_trunk_layers)
            self.personality_trunk = Trunk(config.personality_hubert_config, layers)
        if config.supports_personality:
            trait_centre = sum(config.trait_scale) / 2
            self.personality_head = PersonalityHead(self.vector_size, centre=trait_centre)
            self.conversation_head = ConversationHead(
                self.vector_size,
                inner=cast(int, config.conversation_size),
                heads=config.conversation_heads,
                dropout=config.head_dropout,
                centre=trait_centre,
                familiarity=config.familiarity,
            )
        self.emotion_heads = nn.ModuleDict({name: _emotion_head(config, name) for name in config.emotions})
        self.trunk.keeps_means = config.emotion_head == READOUT and config.readout_pooling == "layers"
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

    def utterance_traits(self, vectors: Tensor) -> Tensor:
        """Setting 1: (..., D) vectors to (..., 5) traits, not limited to the scale."""
        return cast(Tensor, self.personality_head(round_to_stored(vectors)))

    def conversation_traits(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """Setting 3: (B, K, D) vectors, mask (B, K) True where real, to (B, 5) traits, not limited to the scale."""
        return cast(Tensor, self.conversation_head(round_to_stored(vectors), mask))

    def familiarity(self, vectors: Tensor) -> float:
        """How much a speaker's vectors (K, D) are like those of training, 0..1; 1 where the bundle does not know."""
        known = self.conversation_head.familiarity
        return 1.0 if known is None else float(known(round_to_stored(vectors)).detach())

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
    def min_samples(self) -> int:
        """The fewest samples, at 16 kHz, that an utterance may have."""
        return self.config.min_samples

    @property
    def vector_size(self) -> int:
        """D of the utterance vectors; 0 for a model without personality."""
        return self.config.personality_hubert_config.hidden_size if self.config.supports_personality else 0

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
            kwargs["config"] = read_config(folder)
            check_header(weights, weight_count(kwargs["config"].hubert_config.to_dict()))
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, **kwargs, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # safetensors and transformers each raise their own types
            raise files.BundleError(f"{weights}: does not load: {files.one_line(error)}") from error
        model, info = loaded
        for problem, text in _MISFITS.items():
            if names := sorted(key if isinstance(key, str) else key[0] for key in info[problem]):
                raise files.BundleError(f"{weights}: {text.format(len(names), files.CONFIG)}, {names[0]} first")
        if name := not_finite(model.state_dict().items()):
            raise files.BundleError(f"{weights}: {name} holds NaN or infinity: get the bundle again, or train it anew")
        # In the mapped file weights start wherever its header ends, and for what is not aligned a CPU uses other
        # kernels. Copied, they give the same bits as the model that was saved.
        if not mapped:
            own_weights(model)
        if folder.is_dir():
            model.evidence, model.card, model.license_text = files.read_sidecars(folder)
            if misfit := heard_misfit(model):
                raise files.BundleError(f"{folder}: {misfit}: get the bundle again, or build it anew")
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


def _emotion_head(config: KibunConfig, dimension: str) -> nn.Module:
    """A new head of one emotion dimension."""
    hubert, centre = config.hubert_config, sum(config.emotion_scale) / 2
    if config.emotion_head == READOUT:
        points = config.emotion_points
        return Readout(
            hubert.hidden_size,
            pooling=cast(Pooling, config.readout_pooling),
            states=hubert.num_hidden_layers + 1,
            hidden=config.readout_hidden,
            points=None if points is None else [point[EMOTIONS.index(dimension)] for point in points],
            centre=centre,
        )
    return make_head(
        cast(HeadName, config.emotion_head),
        hubert.hidden_size,
        heads=config.condition_heads,
        ff=config.condition_ff,
        query=cast(Query, config.cross_attention_query),
        dropout=config.head_dropout,
        centre=centre,
        traits=config.condition_on,
        condition_centre=cast(Sequence[float], config.condition_centre),
        condition_scale=cast(Sequence[float], config.condition_scale),
    )


def read_config(folder: Path) -> KibunConfig:
    """The configuration of a bundle folder. Raises BundleError, which names file and field.

    What is not a setting of a bundle is left out: transformers would act on some of it.
    """
    file = folder / files.CONFIG
    content = files.read_object(file)
    try:
        return KibunConfig(**check_bundle(content))
    except ValueError as error:
        raise files.BundleError(f"{file}: {error}") from error


def heard_misfit(model: KibunModel) -> str | None:
    """Why heard traits cannot be drawn to the population's mean by what they are worth; None if they can."""
    if not model.config.supports_personality:
        return None
    known = model.conversation_head.familiarity
    if known is not None:
        near, far = known.reach.tolist()
        if not 0 <= near <= far:
            return (
                f"conversation_head.familiarity.reach is {near:g}, {far:g}, allowed are two distances, the nearer first"
            )
    weighted = known is not None or any(weight < 1 for row in model.evidence or () for weight in row.weight)
    low, high = model.config.trait_scale
    centre = cast(Sequence[float], model.config.condition_centre)
    if not (model.config.conditioned and model.config.condition_source == "conversation" and weighted):
        return None
    if all(low <= mean <= high for mean in centre):
        return None
    # Heads from before traits were standardised have a centre of 0, which is no trait of anyone.
    return (
        f"condition_centre is {list(centre)}, allowed are {low:g}..{high:g} where heard traits are drawn to it, as the"
        " weights of expected_error.json or familiarity say"
    )


def own_weights(module: nn.Module) -> None:
    """Copy each weight of a module, so that none is a view of a mapped file."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def _convert(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point():
        return value
    converted = value.to(dtype)
    if not bool(torch.isfinite(converted).all()):
        raise ValueError(f"{name} holds values that {dtype} cannot: save without dtype")
    return converted
