"""Matches what a request asks for with what its model can estimate. Pure.

A request that asks for more than the model can do gets the rest and a warning; one that leaves nothing to estimate is
refused, with the field at fault and the fix.
"""

from __future__ import annotations

from collections.abc import Sequence

from kibun.models.types import Traits
from kibun.server.errors import Failure, invalid
from kibun.server.inference.backend import ModelInfo
from kibun.server.session.events import StreamWarning


def resolve_features(
    model: ModelInfo, models: Sequence[ModelInfo], *, emotion: bool, personality: bool, given: Traits | None
) -> tuple[bool, bool, tuple[StreamWarning, ...]]:
    """Decides whether emotion and personality are estimated; returns both, and the warnings for the client.

    Args:
        model, models: the requested one, and all of this server.
        emotion, personality: what the request leaves enabled.
        given: traits in the request.

    Raises:
        Failure: INVALID_ARGUMENT NOTHING_TO_ANALYZE.
    """
    if not emotion and not personality:
        raise invalid("NOTHING_TO_ANALYZE", "features", "emotion and personality are both disabled; enable one")
    warnings = []
    if not model.trained:
        text = f"model {model.name!r} is not trained: its estimates mean nothing"
        warnings.append(StreamWarning("MODEL_UNTRAINED", text, {"model": model.name}))
    if personality and not model.supports_personality:
        if not emotion:
            raise _nothing(model, models, "personality", "emotion")
        text = f"{no_personality(model)}; results carry none"
        warnings.append(StreamWarning("PERSONALITY_UNSUPPORTED", text, {"model": model.name}))
    if emotion and not model.supports_emotion:
        if not personality:
            raise _nothing(model, models, "emotion", "personality")
        text = f"{no_emotion(model)}; results carry none"
        warnings.append(StreamWarning("EMOTION_UNSUPPORTED", text, {"model": model.name}))
    if given is not None and not (model.supports_emotion and model.conditioned):
        text = f"model {model.name!r} conditions no emotion on traits: given_personality changes no estimate"
        warnings.append(StreamWarning("GIVEN_PERSONALITY_UNUSED", text, {"model": model.name}))
    return emotion and model.supports_emotion, personality and model.supports_personality, tuple(warnings)


def check_traits(model: ModelInfo, *, emotion: bool, given: Traits | None) -> None:
    """Raises Failure INVALID_ARGUMENT GIVEN_PERSONALITY_REQUIRED if emotion needs traits that were not given.

    `given`: those of the request, or known of the participant.
    """
    if emotion and model.requires_given_traits and given is None:
        text = (
            f"model {model.name!r} conditions emotion on the speaker's traits and estimates none itself: set "
            "given_personality, 1 to 7 each (once per participant and conversation), or ask for another model"
        )
        raise invalid("GIVEN_PERSONALITY_REQUIRED", "given_personality", text)


def notice(model: ModelInfo) -> str:
    """The limits of the model's estimates in words for its users; "" if there are none."""
    parts = []
    if not model.trained:
        parts.append("not trained: its estimates mean nothing")
    if model.provenance:
        parts.append(model.provenance)
    if not model.supports_personality:
        parts.append("estimates no personality")
    if not model.supports_emotion:
        parts.append("estimates no emotion" + (f" ({model.emotions[0]} alone)" if model.emotions else ""))
    if model.requires_given_traits:
        parts.append("emotion needs given_personality")
    if model.emotion_rescaled_from is not None:
        low, high = model.emotion_rescaled_from
        parts.append(f"valence and arousal are rescaled linearly from {low:g}..{high:g} to 1..5")
    return "; ".join(parts)


def no_personality(model: ModelInfo) -> str:
    return f"model {model.name!r} estimates no personality"


def no_emotion(model: ModelInfo) -> str:
    """Also for a model of a single dimension: an emotion estimate has both."""
    if model.emotions:
        return f"model {model.name!r} estimates {model.emotions[0]} alone, and an emotion is valence and arousal"
    return f"model {model.name!r} estimates no emotion"


def _nothing(model: ModelInfo, models: Sequence[ModelInfo], lacking: str, disabled: str) -> Failure:
    able = [m.name for m in models if (m.supports_emotion if lacking == "emotion" else m.supports_personality)]
    other = f"ask for a model that estimates {lacking} ({', '.join(able)})" if able else "serve another model"
    why = no_emotion(model) if lacking == "emotion" else no_personality(model)
    text = f"{why}, and {disabled} is disabled: leave features.disable_{disabled} unset, or {other}"
    return invalid("NOTHING_TO_ANALYZE", f"features.disable_{disabled}", text)
