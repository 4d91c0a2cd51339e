"""The gRPC service: admits streams, turns messages into domain values and failures into statuses."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from kibun.models.types import EMOTIONS, SAMPLE_RATE_HZ, TRAITS
from kibun.server import __version__
from kibun.server.api import convert
from kibun.server.api.auth import Authenticator
from kibun.server.api.gate import Context, Gate, Handler, current_call
from kibun.server.api.quota import RETRY_AFTER_S, Account, Quotas, TenantLimits
from kibun.server.audio.decoder import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.audio.vad import Vad
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import ConversationStore
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.inference.backend import Analyzer, ModelInfo
from kibun.server.observability.telemetry import Telemetry
from kibun.server.session import capability, events
from kibun.server.session.open_streams import OpenStreams
from kibun.server.session.session import Dependencies, Session
from kibun.server.session.timeout import Timeout
from kibun.v1 import speech_analysis_pb2 as pb

SERVICE = "kibun.v1.SpeechAnalysisService"
MAX_AUDIO_CONTENT_BYTES = 256 * 1024
LAST_RESULTS_S = 0.2
MAX_ANALYZE_BYTES = 4 * 1024 * 1024  # each place may hold a request of this size: what all of them may weigh
GOING_AWAY = events.StreamWarning(
    "GOING_AWAY", "this server is stopping: finish the turn and open the next stream on another connection"
)

M = TypeVar("M", bound=Message)
Method: TypeAlias = Callable[[Any, str], Awaitable[Message]]  # request, tenant


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What the service announces and enforces, beside each stream's own `events.Limits`."""

    max_streams: int = 256
    config_timeout_s: float = 10.0
    slow_reader_timeout_s: float = 10.0
    conversation_ttl_s: float = events.CONVERSATION_TTL_S
    tenant: TenantLimits = field(default_factory=TenantLimits)  # of each tenant without limits of its own
    max_conversation_ttl_s: float = convert.MAX_TTL_S  # that a client may ask for


class SpeechAnalysis:
    """Implements `kibun.v1.SpeechAnalysisService`.

    `models` is empty until `serve` is called, after which streams are admitted; `drain` ends that again.
    """

    def __init__(
        self,
        *,
        analyzer: Analyzer,
        store: ConversationStore,
        make_vad: Callable[[int], Vad],
        endpointing: EndpointingOptions,
        authenticator: Authenticator,
        limits: ServiceLimits,
        stream_limits: events.Limits,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._analyzer = analyzer
        self._store = store
        self._endpointing = endpointing
        self._limits = limits
        self._stream_limits = stream_limits
        self._open_streams = OpenStreams()
        self._session_dependencies = Dependencies(
            analyzer, store, self._open_streams, make_vad, lambda: _new_id("turn"), stream_limits
        )
        self._models: tuple[ModelInfo, ...] = ()
        self._draining = False
        self._quotas = Quotas(limits.max_streams, lambda tenant: authenticator.limits(tenant, limits.tenant))
        self.gate = Gate(SERVICE, authenticator, self._quotas, self._check_admission, telemetry)
        """An interceptor that the gRPC server must be given."""

    @property
    def active_streams(self) -> int:
        return self._quotas.active

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return self._models

    def serve(self, models: tuple[ModelInfo, ...]) -> None:
        """From now on streams are admitted. `models`: the default first."""
        self._models = models

    def drain(self) -> None:
        """No new streams; the open ones are told."""
        self._draining = True
        self._open_streams.warn_all(GOING_AWAY)

    async def end_streams(self) -> None:
        """Ends what is still open, streams that have sent nothing yet too: each client is told to resume elsewhere.

        A result that is being written gets the time to be: otherwise its client has it, and the conversation does not.
        """
        self._open_streams.end_all(_draining())
        await self.gate.end_all(_draining(), within_s=LAST_RESULTS_S)

    def handler(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`, together with `gate`.

        Not protoc's registration: that one answers a malformed message with the parser's text. All methods are of kind
        stream-stream, which a caller cannot tell: so even a large request is read only once its call was let in.
        """
        single: dict[str, tuple[Method, type[Message]]] = {
            "Analyze": (self._analyze, pb.AnalyzeRequest),
            "GetConversation": (self._get, pb.GetConversationRequest),
            "CompleteConversation": (self._complete, pb.CompleteConversationRequest),
            "DeleteConversation": (self._delete, pb.DeleteConversationRequest),
            "GetServiceInfo": (self._info, pb.GetServiceInfoRequest),
        }
        methods = {name: _method(self._single(method), kind) for name, (method, kind) in single.items()}
        methods["StreamingAnalyze"] = _method(self._streaming_analyze, pb.StreamingAnalyzeRequest)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # ---- streams

    async def _streaming_analyze(self, requests: AsyncIterator[Any], context: Context) -> None:
        call = current_call()
        config = await self._first_config(requests)
        self._check_serving()  # that took a while
        options = convert.stream_options(config, tenant=call.tenant, defaults=self._defaults())
        session = self._session(call.request_id, options)

        def started(event: events.StreamStarted) -> pb.StreamStarted:
            model = convert.model_named(options.model, self._models)
            return pb.StreamStarted(
                request_id=call.request_id,
                conversation_id=options.conversation_id,
                participant_id=options.participant_id,
                turn_id=event.turn_id,
                model=options.model,
                conversation_created=event.created,
                prior_utterance_count=event.prior_utterances,
                effective_config=convert.effective_config(config, options, event),
                max_stream_duration=convert.duration_of(self._stream_limits.max_stream_s),
                idle_timeout=convert.duration_of(self._stream_limits.idle_timeout_s),
                max_audio_content_bytes=MAX_AUDIO_CONTENT_BYTES,
                synthetic_model=model.synthetic,
            )

        assert call.account is not None  # a stream takes a place
        heard = _domain_requests(requests, options, call.account)
        number = 0
        async with self._room(call.request_id, options), aclosing(session.run(heard)) as replies:
            async for reply in replies:
                await self._write(context, convert.response(reply, number, started))
                number += 1

    async def _first_config(self, requests: AsyncIterator[Any]) -> pb.StreamingAnalyzeConfig:
        message = await self._first(requests, "streaming_config")
        if message is None:
            raise invalid("EMPTY_STREAM", "streaming_request", "the stream held nothing; send streaming_config first")
        kind = message.WhichOneof("streaming_request")
        if kind is None:
            raise _empty_request()
        if kind != "streaming_config":
            raise invalid("CONFIG_REQUIRED_FIRST", "streaming_request", f"send streaming_config before {kind}")
        config: pb.StreamingAnalyzeConfig = message.streaming_config
        return config

    async def _first(self, requests: AsyncIterator[Any], what: str) -> Any:
        """The first message of a call, None where there is none. Raises Failure where it does not come in time."""
        timeout_s = self._limits.config_timeout_s
        patience = Timeout(timeout_s)
        try:
            message = await patience.wait(anext(requests, None))
        except TimeoutError:
            text = f"{what} did not come within {timeout_s:g} s; send it first"
            raise Failure(Kind.DEADLINE_EXCEEDED, "CONFIG_TIMEOUT", text) from None
        finally:
            patience.close()
        return None if message is None else _checked(message)

    async def _write(self, context: Context, message: Message) -> None:
        timeout_s = self._limits.slow_reader_timeout_s
        patience = Timeout(timeout_s)
        try:
            await patience.wait(context.write(message))
        except grpc.aio.InternalError:
            # Its client is gone, and gRPC about to cancel this call: a write that comes first fails like this.
            raise asyncio.CancelledError from None
        except TimeoutError:
            text = f"results were not read for {timeout_s:g} s; read while sending"
            raise Failure(
                Kind.RESOURCE_EXHAUSTED, "SLOW_CONSUMER", text, retry_after_s=RETRY_AFTER_S, quota="unread results"
            ) from None
        finally:
            patience.close()

    def _check_admission(self, takes_place: bool) -> None:
        """Raises Failure at once where no such call is taken now."""
        self._check_serving()
        if takes_place and not self._analyzer.ready():
            text = "the analysis is being started again; try again soon or elsewhere"
            raise Failure(Kind.UNAVAILABLE, "RESTARTING", text, retry_after_s=RETRY_AFTER_S)
        if takes_place and not self._analyzer.admits(running=True):
            raise _overloaded()

    @asynccontextmanager
    async def _room(self, stream_id: str, options: events.StreamOptions) -> AsyncIterator[None]:
        """Room for what the stream will say. Raises Failure where there is none, or only for running conversations."""
        running = await self._store.knows((options.tenant, options.conversation_id))
        if not self._analyzer.admits(running=running):
            raise _overloaded()
        with self._analyzer.stream(stream_id):
            yield

    def _check_serving(self) -> None:
        if self._draining:
            raise _draining()
        if not self._models:
            text = "the models are still loading; health turns SERVING when they are ready"
            raise Failure(Kind.UNAVAILABLE, "LOADING", text, retry_after_s=RETRY_AFTER_S)

    def _session(self, stream_id: str, options: events.StreamOptions) -> Session:
        model = convert.model_named(options.model, self._models)
        return Session(stream_id, options, model, self._session_dependencies, current_call().telemetry)

    def _defaults(self) -> convert.Defaults:
        limits = self._limits
        return convert.Defaults(
            self._models, self._endpointing, limits.conversation_ttl_s, _new_id, limits.max_conversation_ttl_s
        )

    # ---- single calls

    def _single(self, method: Method) -> Handler:
        """One request, one response."""

        async def handle(requests: AsyncIterator[Any], context: Context) -> None:
            request = await self._first(requests, "the request")
            if request is None:
                raise invalid("EMPTY_REQUEST", "request", "the call held no message; send one request")
            await self._write(context, await method(request, current_call().tenant))

        return handle

    async def _analyze(self, request: pb.AnalyzeRequest, tenant: str) -> pb.AnalyzeResponse:
        """The whole recording as one turn, through the same session as a stream."""
        if not request.HasField("config"):
            raise invalid("CONFIG_REQUIRED_FIRST", "config", "config is required")
        if not 0 < len(request.audio_content) <= MAX_ANALYZE_BYTES:
            text = f"audio_content must hold 1 to {MAX_ANALYZE_BYTES} bytes; stream longer audio"
            raise invalid("AUDIO_CONTENT_SIZE", "audio_content", text)
        if request.config.endpointing_config.HasField("end_of_turn_silence"):
            field = "endpointing_config.end_of_turn_silence"
            raise invalid("INVALID_ENDPOINTING", field, "Analyze takes one turn; stream audio of several")
        call = current_call()
        options = convert.stream_options(request.config, tenant=tenant, defaults=self._defaults())
        options = replace(options, interims=False, voice_activity_events=False)
        assert call.account is not None  # it takes a place
        if failure := call.account.charge(_seconds(request.audio_content, options)):
            raise failure
        response = pb.AnalyzeResponse(request_id=call.request_id)
        session = self._session(call.request_id, options)
        pieces = _pieces(request.audio_content)
        async with self._room(call.request_id, options), aclosing(session.run(pieces)) as replies:
            async for reply in replies:
                match reply.event:
                    case events.UtteranceResult() as event:
                        response.utterances.append(convert.utterance(event))
                    case events.StreamWarning() as event:
                        response.warnings.append(convert.warning(event))
                    case events.TurnResult() as event:
                        response.turn_result.CopyFrom(convert.turn(event))
                    case events.StreamEnded() as event:
                        response.conversation.CopyFrom(convert.conversation(event.conversation, event.model))
        return response

    async def _get(self, request: pb.GetConversationRequest, tenant: str) -> pb.GetConversationResponse:
        conversation = await self._store.get(_key(request, tenant))
        if conversation is None:
            raise _no_conversation()
        return pb.GetConversationResponse(conversation=self._wire(conversation))

    async def _complete(self, request: pb.CompleteConversationRequest, tenant: str) -> pb.CompleteConversationResponse:
        def complete(conversation: Conversation | None) -> Conversation:
            if conversation is None:
                raise _no_conversation()
            return replace(conversation, completed=True)

        conversation = await self._store.update(_key(request, tenant), complete)
        return pb.CompleteConversationResponse(conversation=self._wire(conversation))

    async def _delete(self, request: pb.DeleteConversationRequest, tenant: str) -> pb.DeleteConversationResponse:
        key = _key(request, tenant)
        self._open_streams.end_conversation(
            key, Failure(Kind.ABORTED, "CONVERSATION_DELETED", "the conversation was deleted")
        )
        if not await self._store.delete(key) and not request.allow_missing:
            raise _no_conversation()
        return pb.DeleteConversationResponse()

    async def _info(self, request: pb.GetServiceInfoRequest, tenant: str) -> pb.GetServiceInfoResponse:
        info = pb.GetServiceInfoResponse
        emotion_scales = [info.Scale(dimension=d, min=1, max=5, neutral=3) for d in EMOTIONS]
        trait_scales = [info.Scale(dimension=d, min=1, max=7, neutral=4) for d in TRAITS]
        return info(
            server_version=__version__,
            models=[
                info.Model(
                    name=m.name,
                    version=m.version,
                    is_default=m is self._models[0],
                    supports_emotion=m.supports_emotion,
                    supports_personality=m.supports_personality,
                    supports_conversation_personality=m.supports_conversation_personality,
                    synthetic=m.synthetic,
                    requires_given_personality=m.requires_given_traits,
                    notice=capability.notice(m),
                )
                for m in self._models
            ],
            scales=emotion_scales + trait_scales,
            audio_encodings=list(convert.ENCODINGS),
            min_sample_rate_hertz=MIN_SAMPLE_RATE_HZ,
            max_sample_rate_hertz=MAX_SAMPLE_RATE_HZ,
            model_sample_rate_hertz=SAMPLE_RATE_HZ,
            max_audio_content_bytes=MAX_AUDIO_CONTENT_BYTES,
            max_stream_duration=convert.duration_of(self._stream_limits.max_stream_s),
            idle_timeout=convert.duration_of(self._stream_limits.idle_timeout_s),
            max_concurrent_streams=self._limits.max_streams,
            active_stream_count=self._quotas.active,
            default_endpointing_config=convert.endpointing_config(self._endpointing),
        )

    def _wire(self, conversation: Conversation) -> pb.Conversation:
        models = {m.name: m for m in self._models}
        return convert.conversation(conversation, models.get(conversation.model))


# ---- requests


class _Malformed:
    """Stands for a message that is no protobuf of the expected type."""


def _parser(kind: type[M]) -> Callable[[bytes], M | _Malformed]:
    def parse(data: bytes) -> M | _Malformed:
        try:
            return kind.FromString(data)
        except Exception:  # whatever the parser makes of it: gRPC would answer UNKNOWN, with the exception's text
            return _Malformed()

    return parse


def _checked(message: M | _Malformed) -> M:
    if isinstance(message, _Malformed):
        raise invalid("MALFORMED_MESSAGE", "", "the message is not a protobuf of the expected type")
    return message


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _method(handler: Handler, request: type[Message]) -> grpc.RpcMethodHandler:
    return grpc.stream_stream_rpc_method_handler(
        handler, request_deserializer=_parser(request), response_serializer=_serialize
    )


async def _domain_requests(
    requests: AsyncIterator[Any], options: events.StreamOptions, account: Account
) -> AsyncIterator[events.Request]:
    """What follows the config, as domain values, charged to the tenant's account."""
    async for message in requests:
        kind = _checked(message).WhichOneof("streaming_request")
        payload = message.audio_content
        if failure := account.charge(_seconds(payload, options)):
            yield events.Refused(failure)
            return
        match kind:
            case "audio_content":
                if len(payload) > MAX_AUDIO_CONTENT_BYTES:
                    text = f"audio_content may hold {MAX_AUDIO_CONTENT_BYTES} bytes, not {len(payload)}; split it"
                    raise invalid("AUDIO_CONTENT_TOO_LARGE", "audio_content", text)
                yield events.Audio(payload)
            case "end_of_turn":
                field = "end_of_turn.next_turn_id"
                yield events.EndOfTurn(convert.identifier(message.end_of_turn.next_turn_id, field))
            case "streaming_config":
                text = "streaming_config goes first and once; open another stream for another config"
                raise invalid("CONFIG_REPEATED", "streaming_config", text)
            case _:
                raise _empty_request()


def _seconds(payload: bytes, options: events.StreamOptions) -> float:
    return len(payload) / (options.audio.sample_bytes * options.audio.sample_rate_hz)


async def _pieces(payload: bytes) -> AsyncIterator[events.Request]:
    for begin in range(0, len(payload), MAX_AUDIO_CONTENT_BYTES):
        yield events.Audio(payload[begin : begin + MAX_AUDIO_CONTENT_BYTES])
        await asyncio.sleep(0)  # others get their turn between the pieces of a long recording


def _key(request: Any, tenant: str) -> tuple[str, str]:
    if not request.conversation_id:
        raise invalid("INVALID_ID", "conversation_id", "conversation_id is required")
    return tenant, convert.identifier(request.conversation_id, "conversation_id")


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:16]}"


# ---- failures


def _empty_request() -> Failure:
    text = "set one of streaming_config, audio_content, end_of_turn"
    return invalid("EMPTY_REQUEST", "streaming_request", text)


def _draining() -> Failure:
    text = "this server is stopping; connect again, and resume the turn if one was open"
    return Failure(Kind.UNAVAILABLE, "DRAINING", text, retry_after_s=RETRY_AFTER_S)


def _overloaded() -> Failure:
    text = "this server is busy with the streams it has; try again later or elsewhere"
    return Failure(Kind.RESOURCE_EXHAUSTED, "OVERLOADED", text, retry_after_s=RETRY_AFTER_S, quota="analysis")


def _no_conversation() -> Failure:
    return Failure(Kind.NOT_FOUND, "CONVERSATION_NOT_FOUND", "no such conversation, or it has expired")
