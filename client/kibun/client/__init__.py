"""Python SDK and command line of kibun.

    from kibun.client import AsyncClient

The names below are loaded on first use, so that `kibun --help` imports neither grpc nor protobuf.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kibun.client.client import AsyncClient, AsyncConversation
    from kibun.client.errors import (
        AbortedError,
        AlreadyExistsError,
        AuthenticationError,
        DeadlineError,
        FailedPreconditionError,
        InternalError,
        InvalidRequestError,
        KibunError,
        NotFoundError,
        ReplayBufferExceededError,
        ResourceExhaustedError,
        ServerTooOldError,
        TurnEndedError,
        UnavailableError,
    )
    from kibun.client.estimates import Emotion, EndReason, PersonalityEstimate, PersonalitySource, Traits
    from kibun.client.events import (
        AnalyzeResult,
        Event,
        PersonalityUpdate,
        SpeechEvent,
        SpeechEventType,
        StreamEnded,
        StreamProgress,
        StreamStarted,
        StreamWarning,
        TurnResult,
        UtteranceResult,
    )
    from kibun.client.options import Endpointing, Features, RetryPolicy, StreamConfig
    from kibun.client.resources import (
        ConversationState,
        ModelDescription,
        ParticipantState,
        Scale,
        ServiceInfo,
    )
    from kibun.client.stream import AsyncStream
    from kibun.client.sync import Client, Conversation, Stream, Turn
    from kibun.client.turn import AsyncTurn

_MODULE_OF = {
    "client": ("AsyncClient", "AsyncConversation"),
    "errors": (
        "AbortedError",
        "AlreadyExistsError",
        "AuthenticationError",
        "DeadlineError",
        "FailedPreconditionError",
        "InternalError",
        "InvalidRequestError",
        "KibunError",
        "NotFoundError",
        "ReplayBufferExceededError",
        "ResourceExhaustedError",
        "ServerTooOldError",
        "TurnEndedError",
        "UnavailableError",
    ),
    "estimates": ("Emotion", "EndReason", "PersonalityEstimate", "PersonalitySource", "Traits"),
    "events": (
        "AnalyzeResult",
        "Event",
        "PersonalityUpdate",
        "SpeechEvent",
        "SpeechEventType",
        "StreamEnded",
        "StreamProgress",
        "StreamStarted",
        "StreamWarning",
        "TurnResult",
        "UtteranceResult",
    ),
    "options": ("Endpointing", "Features", "RetryPolicy", "StreamConfig"),
    "resources": (
        "ConversationState",
        "ModelDescription",
        "ParticipantState",
        "Scale",
        "ServiceInfo",
    ),
    "stream": ("AsyncStream",),
    "sync": ("Client", "Conversation", "Stream", "Turn"),
    "turn": ("AsyncTurn",),
}
_EXPORTS = {name: module for module, names in _MODULE_OF.items() for name in names}

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AnalyzeResult",
    "AsyncClient",
    "AsyncConversation",
    "AsyncStream",
    "AsyncTurn",
    "AuthenticationError",
    "Client",
    "Conversation",
    "ConversationState",
    "DeadlineError",
    "Emotion",
    "EndReason",
    "Endpointing",
    "Event",
    "FailedPreconditionError",
    "Features",
    "InternalError",
    "InvalidRequestError",
    "KibunError",
    "ModelDescription",
    "NotFoundError",
    "ParticipantState",
    "PersonalityEstimate",
    "PersonalitySource",
    "PersonalityUpdate",
    "ReplayBufferExceededError",
    "ResourceExhaustedError",
    "RetryPolicy",
    "Scale",
    "ServerTooOldError",
    "ServiceInfo",
    "SpeechEvent",
    "SpeechEventType",
    "Stream",
    "StreamConfig",
    "StreamEnded",
    "StreamProgress",
    "StreamStarted",
    "StreamWarning",
    "Traits",
    "Turn",
    "TurnEndedError",
    "TurnResult",
    "UnavailableError",
    "UtteranceResult",
]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'kibun.client' has no attribute {name!r}")
    return getattr(import_module(f"kibun.client.{module}"), name)
