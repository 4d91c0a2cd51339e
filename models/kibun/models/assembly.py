"""What a model consists of, and what its bundle says beside the weights: the same in training and in serving."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from kibun.models import files
from kibun.models.conditioning import make_head
from kibun.models.personality import ConversationHead, PersonalityHead, round_to_stored
from kibun.models.readout import Readout
from kibun.models.settings import READOUT, BundleSettings
from kibun.models.types import EMOTIONS, Evidence, HeadName, Pooling, Query


class Assembly(nn.Module):
    """Trunk, tails and heads. Whoever inherits it sets `config` and calls `_assemble`."""

    config: BundleSettings

    evidence: tuple[Evidence, ...] | None = None
    """What traits of setting 3 are worth, by rising number of utterances; None: unknown."""
    card: str | None = None
    """Text of MODEL_CARD.md; None: it is generated from the configuration."""
    license_text: str | None = None
    """Text of the licence that `config.license` names; None: the bundle comes without it."""

    def _assemble(self, trunk: Callable[[Any, int], Any], tail: Callable[[Any, int], Any]) -> None:
        """Make all parts, with random weights.

        trunk, tail: make those of an encoder's settings with so many Transformer layers.
        """
        config = self.config
        self.trunk = trunk(config.hubert_config, cast(int, config.trunk_layers))
        self.tails = nn.ModuleDict()
        for task in config.tasks:
            if config.tail_name(task) in self.tails:
                continue  # shared with an earlier task
            if task == "personality":
                made = tail(config.personality_hubert_config, config.personality_tail_layers)
            else:
                made = tail(config.hubert_config, config.tail_layers)
            self.tails[config.tail_name(task)] = made
        self.personality_trunk: Any = None
        if config.personality_hubert is not None:
            layers = cast(int, config.personality_trunk_layers)
            self.personality_trunk = trunk(config.personality_hubert_config, layers)
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

    @property
    def min_samples(self) -> int:
        """The fewest samples, at 16 kHz, that an utterance may have."""
        return self.config.min_samples

    @property
    def vector_size(self) -> int:
        """D of the utterance vectors; 0 for a model without personality."""
        return self.config.personality_hubert_config.hidden_size if self.config.supports_personality else 0


def read_sidecars_of(model: Assembly, folder: Path) -> None:
    """Read what lies beside the weights into the model. Raises BundleError."""
    model.evidence, model.card, model.license_text = files.read_sidecars(folder)
    if misfit := heard_misfit(model):
        raise files.BundleError(f"{folder}: {misfit}: get the bundle again, or build it anew")


def heard_misfit(model: Assembly) -> str | None:
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
    # Assembly from before traits were standardised have a centre of 0, which is no trait of anyone.
    return (
        f"condition_centre is {list(centre)}, allowed are {low:g}..{high:g} where heard traits are drawn to it, as the"
        " weights of expected_error.json or familiarity say"
    )


def _emotion_head(config: BundleSettings, dimension: str) -> nn.Module:
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
