"""Python SDK and command line of kibun.

    from kibun.client import AsyncClient

The names below are loaded on first use, so that `kibun --help` imports neither grpc nor protobuf.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kibun.client.audio_file import AudioFile as AudioFile
    from kibun.client.baseline import RelativeEmotion as RelativeEmotion
    from kibun.client.baseline import SpeakerBaseline as SpeakerBaseline
    from kibun.client.client import AsyncClient as AsyncClient
    from kibun.client.client import AsyncConversation as AsyncConversation
    from kibun.client.errors import AbortedError as AbortedError
    from kibun.client.errors import AlreadyExistsError as AlreadyExistsError
    from kibun.client.errors import AudioFileError as AudioFileError
    from kibun.client.errors import AuthenticationError as AuthenticationError
    from kibun.client.errors import DeadlineError as DeadlineError
    from kibun.client.errors import ErrorDetails as ErrorDetails
    from kibun.client.errors import FailedPreconditionError as FailedPreconditionError
    from kibun.client.errors import InputError as InputError
    from kibun.client.errors import InternalError as InternalError
    from kibun.client.errors import InvalidRequestError as InvalidRequestError
    from kibun.client.errors import KibunError as KibunError
    from kibun.client.errors import MisuseError as MisuseError
    from kibun.client.errors import NotFoundError as NotFoundError
    from kibun.client.errors import ReplayBufferExceededError as ReplayBufferExceededError
    from kibun.client.errors import ResourceExhaustedError as ResourceExhaustedError
    from kibun.client.errors import ServerTooOldError as ServerTooOldError
    from kibun.client.errors import SourceError as SourceError
    from kibun.client.errors import TurnEndedError as TurnEndedError
    from kibun.client.errors import UnavailableError as UnavailableError
    from kibun.client.errors import WrongTypeError as WrongTypeError
    from kibun.client.estimates import Emotion as Emotion
    from kibun.client.estimates import EndReason as EndReason
    from kibun.client.estimates import PersonalityEstimate as PersonalityEstimate
    from kibun.client.estimates import PersonalitySource as PersonalitySource
    from kibun.client.estimates import Traits as Traits
    from kibun.client.events import AnalyzeResult as AnalyzeResult
    from kibun.client.events import Event as Event
    from kibun.client.events import PersonalityUpdate as PersonalityUpdate
    from kibun.client.events import SpeechEvent as SpeechEvent
    from kibun.client.events import SpeechEventType as SpeechEventType
    from kibun.client.events import StreamEnded as StreamEnded
    from kibun.client.events import StreamProgress as StreamProgress
    from kibun.client.events import StreamStarted as StreamStarted
    from kibun.client.events import StreamWarning as StreamWarning
    from kibun.client.events import TurnResult as TurnResult
    from kibun.client.events import UtteranceResult as UtteranceResult
    from kibun.client.events import WatchEnded as WatchEnded
    from kibun.client.events import WatchGap as WatchGap
    from kibun.client.events import WatchStarted as WatchStarted
    from kibun.client.options import Encoding as Encoding
    from kibun.client.options import Endpointing as Endpointing
    from kibun.client.options import Features as Features
    from kibun.client.options import RetryPolicy as RetryPolicy
    from kibun.client.options import StreamConfig as StreamConfig
    from kibun.client.options import TurnOptions as TurnOptions
    from kibun.client.resources import ConversationState as ConversationState
    from kibun.client.resources import ModelDescription as ModelDescription
    from kibun.client.resources import ParticipantState as ParticipantState
    from kibun.client.resources import Scale as Scale
    from kibun.client.resources import ServiceInfo as ServiceInfo
    from kibun.client.resources import State as State
    from kibun.client.stream import AsyncStream as AsyncStream
    from kibun.client.sync import Client as Client
    from kibun.client.sync import Conversation as Conversation
    from kibun.client.sync import Stream as Stream
    from kibun.client.sync import Turn as Turn
    from kibun.client.sync import Watch as Watch
    from kibun.client.tap import AffectTap as AffectTap
    from kibun.client.tap import TapCounts as TapCounts
    from kibun.client.tap import TapEstimate as TapEstimate
    from kibun.client.turn import AsyncTurn as AsyncTurn
    from kibun.client.watch import AsyncWatch as AsyncWatch
    from kibun.client.watch import Watched as Watched

_MODULE_OF = {
    "audio_file": ("AudioFile",),
    "baseline": ("SpeakerBaseline", "RelativeEmotion"),
    "client": ("AsyncClient", "AsyncConversation"),
    "errors": (
        "AbortedError",
        "AlreadyExistsError",
        "AudioFileError",
        "AuthenticationError",
        "DeadlineError",
        "ErrorDetails",
        "FailedPreconditionError",
        "InputError",
        "InternalError",
        "InvalidRequestError",
        "KibunError",
        "MisuseError",
        "NotFoundError",
        "ReplayBufferExceededError",
        "ResourceExhaustedError",
        "ServerTooOldError",
        "SourceError",
        "TurnEndedError",
        "UnavailableError",
        "WrongTypeError",
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
        "WatchEnded",
        "WatchGap",
        "WatchStarted",
    ),
    "options": ("Encoding", "Endpointing", "Features", "RetryPolicy", "StreamConfig", "TurnOptions"),
    "resources": (
        "ConversationState",
        "ModelDescription",
        "ParticipantState",
        "Scale",
        "ServiceInfo",
        "State",
    ),
    "stream": ("AsyncStream",),
    "sync": ("Client", "Conversation", "Stream", "Turn", "Watch"),
    "tap": ("AffectTap", "TapCounts", "TapEstimate"),
    "turn": ("AsyncTurn",),
    "watch": ("AsyncWatch", "Watched"),
}
_EXPORTS = {name: module for module, names in _MODULE_OF.items() for name in names}

__all__ = tuple(_EXPORTS)


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'kibun.client' has no attribute {name!r}")
    return getattr(import_module(f"kibun.client.{module}"), name)
