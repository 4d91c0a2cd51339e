"""The gRPC service: admits streams, turns messages into domain values and failures into statuses."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from kibun.server import __version__, capability, convert, events
from kibun.server.audio import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ, SAMPLE_RATE_HZ
from kibun.server.auth import Authenticator
from kibun.server.backend import Analyzer, BackendError, ModelInfo
from kibun.server.conversation import Conversation
from kibun.server.endpointing import EndpointingOptions
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.live import LiveStreams
from kibun.server.session import Session
from kibun.server.status import status_of
from kibun.server.store import ConversationStore
from kibun.server.vad import Vad
from kibun.v1 import speech_analysis_pb2 as pb

SERVICE = "kibun.v1.SpeechAnalysisService"
MAX_AUDIO_CONTENT_BYTES = 256 * 1024
MAX_ANALYZE_BYTES = 16 * 1024 * 1024
RETRY_AFTER_S = 1.0
GOING_AWAY = events.Warn(
    "GOING_AWAY", "this server is stopping: finish the turn and open the next stream on another connection"
)

log = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext
M = TypeVar("M", bound=Message)
UnaryMethod: TypeAlias = Callable[[Any, str, str], Awaitable[Message]]  # request, tenant, request id


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What the service announces and enforces, beside each stream's own `events.Limits`."""

    max_streams: int = 256
    config_timeout_s: float = 10.0
    slow_reader_timeout_s: float = 10.0
    conversation_ttl_s: float = 1800.0


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
    ) -> None:
        self._analyzer = analyzer
        self._store = store
        self._make_vad = make_vad
        self._endpointing = endpointing
        self._authenticator = authenticator
        self._limits = limits
        self._stream_limits = stream_limits
        self._live = LiveStreams()
        self._models: tuple[ModelInfo, ...] = ()
        self._draining = False
        self._active = 0

    @property
    def active_streams(self) -> int:
        return self._active

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return self._models

    def serve(self, models: tuple[ModelInfo, ...]) -> None:
        """From now on streams are admitted. `models`: the default first."""
        self._models = models

    def drain(self) -> None:
        """No new streams; the open ones are told."""
        self._draining = True
        self._live.warn_all(GOING_AWAY)

    def end_streams(self) -> None:
        """Ends what is still open: each client is told to resume elsewhere."""
        self._live.end_all(_draining())

    def handler(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`. Not protoc's registration: that one answers a malformed message
        with the parser's text.
        """
        unary: dict[str, tuple[UnaryMethod, type[Message]]] = {
            "Analyze": (self._analyze, pb.AnalyzeRequest),
            "GetConversation": (self._get, pb.GetConversationRequest),
            "CompleteConversation": (self._complete, pb.CompleteConversationRequest),
            "DeleteConversation": (self._delete, pb.DeleteConversationRequest),
            "GetServiceInfo": (self._info, pb.GetServiceInfoRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._unary(method), request_deserializer=_parser(kind), response_serializer=_serialize
            )
            for name, (method, kind) in unary.items()
        }
        methods["StreamingAnalyze"] = grpc.stream_stream_rpc_method_handler(
            self._streaming_analyze,
            request_deserializer=_parser(pb.StreamingAnalyzeRequest),
            response_serializer=_serialize,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # ---- streams

    async def _streaming_analyze(self, requests: AsyncIterator[Any], context: Context) -> None:
        request_id = _new_id("request")
        try:
            tenant = self._tenant(context)
            with self._admitted():
                await self._run_stream(requests, context, tenant, request_id)
        except Exception as error:
            await _abort(context, error, request_id)

    async def _run_stream(self, requests: AsyncIterator[Any], context: Context, tenant: str, request_id: str) -> None:
        config = await self._first_config(requests)
        self._check_serving()  # that took a while
        options = convert.stream_options(config, tenant=tenant, defaults=self._defaults())
        session = self._session(request_id, options)

        def started(event: events.Started) -> pb.StreamStarted:
            model = convert.model_named(options.model, self._models)
            return pb.StreamStarted(
                request_id=request_id,
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

        number = 0
        async with self._room(request_id, options), aclosing(session.run(_domain_requests(requests))) as replies:
            async for reply in replies:
                await self._write(context, convert.response(reply, number, started))
                number += 1

    async def _first_config(self, requests: AsyncIterator[Any]) -> pb.StreamingAnalyzeConfig:
        timeout_s = self._limits.config_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                message = await anext(requests, None)
        except TimeoutError:
            text = f"no streaming_config came within {timeout_s:g} s; send it first"
            raise Failure(Kind.DEADLINE_EXCEEDED, "CONFIG_TIMEOUT", text) from None
        if message is None:
            raise invalid("EMPTY_STREAM", "streaming_request", "the stream held nothing; send streaming_config first")
        kind = _checked(message).WhichOneof("streaming_request")
        if kind is None:
            raise _empty_request()
        if kind != "streaming_config":
            raise invalid("CONFIG_REQUIRED_FIRST", "streaming_request", f"send streaming_config before {kind}")
        config: pb.StreamingAnalyzeConfig = message.streaming_config
        return config

    async def _write(self, context: Context, message: pb.StreamingAnalyzeResponse) -> None:
        timeout_s = self._limits.slow_reader_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await context.write(message)
        except TimeoutError:
            text = f"results were not read for {timeout_s:g} s; read while sending"
            raise Failure(
                Kind.RESOURCE_EXHAUSTED, "SLOW_CONSUMER", text, retry_after_s=RETRY_AFTER_S, quota="unread results"
            ) from None

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """One of the server's stream places. Raises Failure at once when there is none."""
        self._check_serving()
        if not self._analyzer.admits(running=True):
            raise _overloaded()
        if self._active >= self._limits.max_streams:
            raise Failure(
                Kind.RESOURCE_EXHAUSTED,
                "TOO_MANY_STREAMS",
                f"this server analyses {self._limits.max_streams} streams at a time; try again later or elsewhere",
                retry_after_s=RETRY_AFTER_S,
                quota="concurrent streams",
            )
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    @asynccontextmanager
    async def _room(self, stream_id: str, options: events.StreamOptions) -> AsyncIterator[None]:
        """Room for what the stream will say. Raises Failure where there is none, or only for running conversations."""
        running = await self._store.get((options.tenant, options.conversation_id)) is not None
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
        return Session(
            stream_id,
            options,
            convert.model_named(options.model, self._models),
            analyzer=self._analyzer,
            store=self._store,
            live=self._live,
            make_vad=self._make_vad,
            new_turn_id=lambda: _new_id("turn"),
            limits=self._stream_limits,
        )

    def _defaults(self) -> convert.Defaults:
        return convert.Defaults(self._models, self._endpointing, self._limits.conversation_ttl_s, _new_id)

    # ---- single calls

    def _unary(self, method: UnaryMethod) -> Callable[[Any, Context], Awaitable[Any]]:
        async def handle(request: Any, context: Context) -> Any:
            request_id = _new_id("request")
            try:
                tenant = self._tenant(context)
                self._check_serving()
                return await method(_checked(request), tenant, request_id)
            except Exception as error:
                return await _abort(context, error, request_id)

        return handle

    async def _analyze(self, request: pb.AnalyzeRequest, tenant: str, request_id: str) -> pb.AnalyzeResponse:
        """The whole recording as one turn, through the same session as a stream."""
        with self._admitted():
            if not request.HasField("config"):
                raise invalid("CONFIG_REQUIRED_FIRST", "config", "config is required")
            if not 0 < len(request.audio_content) <= MAX_ANALYZE_BYTES:
                text = f"audio_content must hold 1 to {MAX_ANALYZE_BYTES} bytes; stream longer audio"
                raise invalid("AUDIO_CONTENT_SIZE", "audio_content", text)
            if request.config.endpointing_config.HasField("end_of_turn_silence"):
                field = "endpointing_config.end_of_turn_silence"
                raise invalid("INVALID_ENDPOINTING", field, "Analyze takes one turn; stream audio of several")
            options = convert.stream_options(request.config, tenant=tenant, defaults=self._defaults())
            options = replace(options, interims=False, voice_activity_events=False)
            response = pb.AnalyzeResponse(request_id=request_id)
            session = self._session(request_id, options)
            pieces = _pieces(request.audio_content)
            async with self._room(request_id, options), aclosing(session.run(pieces)) as replies:
                async for reply in replies:
                    match reply.event:
                        case events.Utterance() as event:
                            response.utterances.append(convert.utterance(event))
                        case events.Warn() as event:
                            response.warnings.append(convert.warning(event))
                        case events.Turn() as event:
                            response.turn_result.CopyFrom(convert.turn(event))
                        case events.Ended() as event:
                            response.conversation.CopyFrom(convert.conversation(event.conversation, event.model))
            return response

    async def _get(self, request: pb.GetConversationRequest, tenant: str, _: str) -> pb.GetConversationResponse:
        conversation = await self._store.get(_key(request, tenant))
        if conversation is None:
            raise _no_conversation()
        return pb.GetConversationResponse(conversation=self._wire(conversation))

    async def _complete(
        self, request: pb.CompleteConversationRequest, tenant: str, _: str
    ) -> pb.CompleteConversationResponse:
        def complete(conversation: Conversation | None) -> Conversation:
            if conversation is None:
                raise _no_conversation()
            return replace(conversation, completed=True)

        conversation = await self._store.update(_key(request, tenant), complete)
        return pb.CompleteConversationResponse(conversation=self._wire(conversation))

    async def _delete(
        self, request: pb.DeleteConversationRequest, tenant: str, _: str
    ) -> pb.DeleteConversationResponse:
        key = _key(request, tenant)
        self._live.end_conversation(key, Failure(Kind.ABORTED, "CONVERSATION_DELETED", "the conversation was deleted"))
        if not await self._store.delete(key) and not request.allow_missing:
            raise _no_conversation()
        return pb.DeleteConversationResponse()

    async def _info(self, request: pb.GetServiceInfoRequest, tenant: str, _: str) -> pb.GetServiceInfoResponse:
        info = pb.GetServiceInfoResponse
        emotion_scales = [info.Scale(dimension=d, min=1, max=5, neutral=3) for d in ("valence", "arousal")]
        trait_scales = [info.Scale(dimension=d, min=1, max=7, neutral=4) for d in convert.TRAIT_NAMES]
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
            active_stream_count=self._active,
            default_endpointing_config=convert.endpointing_config(self._endpointing),
        )

    def _wire(self, conversation: Conversation) -> pb.Conversation:
        models = {m.name: m for m in self._models}
        return convert.conversation(conversation, models.get(conversation.model))

    def _tenant(self, context: Context) -> str:
        metadata = dict(context.invocation_metadata() or ())
        authorization = metadata.get("authorization")
        return self._authenticator.tenant(authorization if isinstance(authorization, str) else None)


# ---- requests


class _Malformed:
    """Stands for a message that is no protobuf of the expected type."""


def _parser(kind: type[M]) -> Callable[[bytes], M | _Malformed]:
    def parse(data: bytes) -> M | _Malformed:
        try:
            return kind.FromString(data)
        except DecodeError:
            return _Malformed()

    return parse


def _checked(message: M | _Malformed) -> M:
    if isinstance(message, _Malformed):
        raise invalid("MALFORMED_MESSAGE", "", "the message is not a protobuf of the expected type")
    return message


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


async def _domain_requests(requests: AsyncIterator[Any]) -> AsyncIterator[events.Request]:
    """What follows the config, as domain values."""
    async for message in requests:
        match _checked(message).WhichOneof("streaming_request"):
            case "audio_content":
                payload = message.audio_content
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


async def _abort(context: Context, error: Exception, request_id: str) -> None:
    """Ends the call with a status; does not return."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    status = rpc_status.to_status(status_of(_failure(error, request_id), request_id))
    await context.abort(status.code, status.details, status.trailing_metadata)


def _failure(error: Exception, request_id: str) -> Failure:
    if isinstance(error, Failure):
        return error
    log.error("%s failed", request_id, exc_info=error)
    reason = error.reason if isinstance(error, BackendError) else "INTERNAL"
    text = f"the server failed; try again, and if that fails too, its log tells more under {request_id}"
    return Failure(Kind.INTERNAL, reason, text)
