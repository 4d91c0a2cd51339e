"""The gRPC service: admits calls, runs a session for each stream or recording, and answers the other methods."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from kibun.server.api import messages, requests, responses, watch_responses
from kibun.server.api.auth import Authenticator
from kibun.server.api.contract import MAX_TTL_S
from kibun.server.api.gate import Call, Context, Gate, Handler, current_call
from kibun.server.api.quota import Quotas, TenantLimits
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.audio.vad import Vad
from kibun.server.conversation.audience import Notice
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import ConversationStore
from kibun.server.errors import RETRY_AFTER_S, Failure, Kind, invalid
from kibun.server.inference.backend import Analyzer, ModelInfo
from kibun.server.observability.telemetry import SERVICE, Telemetry
from kibun.server.session import events
from kibun.server.session.open_streams import OpenStreams
from kibun.server.session.session import Dependencies, Session
from kibun.server.session.watch import Watch
from kibun.v1 import speech_analysis_pb2 as pb

LAST_RESULTS_S = 0.2
# An event loop that is this late has more live streams than it can follow, however idle the model is: all of them would
# be late. The next turns of running conversations come in for longer.
MAX_LATE_S, MAX_LATE_RUNNING_S = 0.25, 0.75
GOING_AWAY = events.StreamWarning(
    "GOING_AWAY", "this server is stopping: finish the turn and open the next stream on another connection"
)

Method: TypeAlias = Callable[[Any, str], Awaitable[Message]]  # request, tenant


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Limits of the service, beside those of each stream (`events.Limits`)."""

    max_streams: int = 256
    config_timeout_s: float = 10.0
    slow_reader_timeout_s: float = 10.0
    conversation_ttl_s: float = events.CONVERSATION_TTL_S
    max_conversation_ttl_s: float = MAX_TTL_S  # that a client may ask for
    tenant: TenantLimits = field(default_factory=TenantLimits)  # for tenants without their own in the token file


class SpeechAnalysis:
    """Implements `kibun.v1.SpeechAnalysisService`. Calls are admitted from `serve` until `drain`.

    vad: the name of what `make_vad` makes.
    """

    def __init__(
        self,
        *,
        analyzer: Analyzer,
        store: ConversationStore,
        make_vad: Callable[[int], Vad],
        vad: str = "",
        endpointing: EndpointingOptions,
        authenticator: Authenticator,
        limits: ServiceLimits,
        stream_limits: events.Limits,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._analyzer = analyzer
        self._telemetry = telemetry or Telemetry()
        self._store = store
        self._endpointing = endpointing
        self._vad = vad
        self._limits = limits
        self._stream_limits = stream_limits
        self._open_streams = OpenStreams()
        self._session_dependencies = Dependencies(
            analyzer, store, self._open_streams, make_vad, lambda: _new_id("turn"), stream_limits
        )
        self._models: tuple[ModelInfo, ...] = ()
        self._draining = False
        self._quotas = Quotas(limits.max_streams, lambda tenant: authenticator.limits(tenant, limits.tenant))
        self.gate = Gate(SERVICE, authenticator, self._quotas, self._check_admission, self._telemetry)
        """The interceptor that the gRPC server needs."""

    @property
    def active_streams(self) -> int:
        return self._quotas.active

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return self._models

    def serve(self, models: tuple[ModelInfo, ...]) -> None:
        """Starts admitting calls. `models`: the default first."""
        self._models = models

    def drain(self) -> None:
        """Stops admitting calls and warns the clients of open streams."""
        self._draining = True
        self._open_streams.warn_all(GOING_AWAY)

    async def end_streams(self) -> None:
        """Ends every open call with a status that asks its client to resume elsewhere.

        Results that are being written get LAST_RESULTS_S to be stored too: a client must not have what the
        conversation lacks.
        """
        self._open_streams.end_all(_draining())
        await self.gate.end_all(_draining(), within_s=LAST_RESULTS_S)

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns what `server.add_generic_rpc_handlers` needs, together with `gate`.

        protoc's registration would answer a malformed message with the parser's text. All methods are of kind
        stream-stream, which is the same to callers, so that no request is read before its call was admitted.
        """
        single: dict[str, tuple[Method, type[Message]]] = {
            "Analyze": (self._analyze, pb.AnalyzeRequest),
            "GetConversation": (self._get, pb.GetConversationRequest),
            "CompleteConversation": (self._complete, pb.CompleteConversationRequest),
            "DeleteConversation": (self._delete, pb.DeleteConversationRequest),
            "GetServiceInfo": (self._info, pb.GetServiceInfoRequest),
        }
        methods = {name: messages.method(self._single(call), request) for name, (call, request) in single.items()}
        methods["StreamingAnalyze"] = messages.method(self._streaming_analyze, pb.StreamingAnalyzeRequest)
        methods["WatchConversation"] = messages.method(self._watch, pb.WatchConversationRequest)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # ---- streams

    async def _streaming_analyze(self, incoming: AsyncIterator[Any], context: Context) -> None:
        call = current_call()
        config = requests.config_of(await self._first(incoming, "streaming_config"))
        self._check_serving()  # again: the config may have taken a while
        options = requests.stream_options(config, tenant=call.tenant, defaults=self._defaults())
        config = requests.to_keep(config)
        model = requests.model_named(options.model, self._models)
        stream = responses.StreamFacts(call.request_id, config, options, model, self._stream_limits)
        session = self._session(call, stream)
        assert call.account is not None  # as it counts as a stream
        incoming = requests.session_requests(incoming, options, call.account)
        async with self._admitted(call.request_id, options), aclosing(session.run(incoming)) as replies:
            async for reply in replies:
                await self._write(context, responses.response(reply, stream))

    def _session(self, call: Call, stream: responses.StreamFacts) -> Session:
        """Makes the session of a stream, which tells those who watch the conversation what it sends."""
        audience, key = self._store.audience, stream.options.key

        def tell(reply: events.Reply) -> None:
            if audience.watches(key):
                audience.tell(key, watch_responses.notice(reply, stream))

        return Session(call.request_id, stream.options, stream.model, self._session_dependencies, call.telemetry, tell)

    async def _watch(self, incoming: AsyncIterator[Any], context: Context) -> None:
        request = await self._request(incoming)
        call = current_call()
        watch = Watch(
            requests.conversation_key(request, call.tenant),
            self._store,
            self._model_of,
            include_past=request.include_past,
            require_existing=request.require_existing_conversation,
        )
        async with aclosing(watch.run()) as all_watched:
            async for watched in all_watched:
                await self._write(context, watch_responses.response(watched, call.request_id, self._message))

    async def _first(self, incoming: AsyncIterator[Any], what: str) -> Any:
        return await messages.first(incoming, what, timeout_s=self._limits.config_timeout_s)

    async def _write(self, context: Context, message: Message) -> None:
        await messages.write(context, message, timeout_s=self._limits.slow_reader_timeout_s)

    def _check_admission(self, stream: bool) -> None:
        """Raises Failure if no such call is admitted now."""
        self._check_serving()
        if stream and not self._analyzer.ready():
            text = "the analysis is restarting; try again soon or elsewhere"
            raise Failure(Kind.UNAVAILABLE, "RESTARTING", text, retry_after_s=RETRY_AFTER_S)
        if stream and not self._admits(running=True):
            raise _overloaded()

    @asynccontextmanager
    async def _admitted(self, stream_id: str, options: events.StreamOptions) -> AsyncIterator[None]:
        """Reserves analysis for the stream. Raises Failure if none is free, or only for conversations in progress."""
        running = await self._store.knows((options.tenant, options.conversation_id))
        if not self._admits(running=running):
            raise _overloaded()
        with self._analyzer.stream(stream_id, running=running):
            yield

    def _admits(self, *, running: bool) -> bool:
        late_s = self._telemetry.loop_late_s if len(self._open_streams) else 0.0  # else it is not their doing
        on_time = late_s <= (MAX_LATE_RUNNING_S if running else MAX_LATE_S)
        return on_time and self._analyzer.admits(running=running)

    def _check_serving(self) -> None:
        if self._draining:
            raise _draining()
        if not self._models:
            text = "the models are still loading; health turns SERVING when they are ready"
            raise Failure(Kind.UNAVAILABLE, "LOADING", text, retry_after_s=RETRY_AFTER_S)

    def _defaults(self) -> requests.Defaults:
        limits = self._limits
        return requests.Defaults(
            self._models, self._endpointing, limits.conversation_ttl_s, _new_id, limits.max_conversation_ttl_s
        )

    # ---- single calls

    def _single(self, method: Method) -> Handler:
        """Returns a handler for one request and one response."""

        async def handle(incoming: AsyncIterator[Any], context: Context) -> None:
            request = await self._request(incoming)
            await self._write(context, await method(request, current_call().tenant))

        return handle

    async def _request(self, incoming: AsyncIterator[Any]) -> Any:
        request = await self._first(incoming, "the request")
        if request is None:
            raise invalid("EMPTY_REQUEST", "request", "the call had no message; send one request")
        return request

    async def _analyze(self, request: pb.AnalyzeRequest, tenant: str) -> pb.AnalyzeResponse:
        """Analyses a whole recording as one turn, through the same session as a stream."""
        requests.check_recording(request)
        call = current_call()
        options = requests.stream_options(request.config, tenant=tenant, defaults=self._defaults())
        options = replace(options, interims=False, voice_activity_events=False, eager=False)  # all audio is there
        assert call.account is not None  # as it counts as a stream
        if failure := call.account.charge(requests.audio_seconds(request.audio_content, options)):
            raise failure
        model = requests.model_named(options.model, self._models)
        response = pb.AnalyzeResponse(request_id=call.request_id, synthetic_model=model.synthetic)
        config = requests.to_keep(request.config)
        session = self._session(
            call, responses.StreamFacts(call.request_id, config, options, model, self._stream_limits)
        )
        pieces = requests.recording_requests(request.audio_content)
        async with self._admitted(call.request_id, options), aclosing(session.run(pieces)) as replies:
            async for reply in replies:
                match reply.event:
                    case events.UtteranceResult() as event:
                        response.utterances.append(responses.utterance(event))
                    case events.StreamWarning() as event:
                        response.warnings.append(responses.warning(event))
                    case events.TurnResult() as event:
                        response.turn_result.CopyFrom(responses.turn(event))
                    case events.StreamEnded() as event:
                        response.conversation.CopyFrom(responses.conversation(event.conversation, event.model))
        return response

    async def _get(self, request: pb.GetConversationRequest, tenant: str) -> pb.GetConversationResponse:
        conversation = await self._store.get(requests.conversation_key(request, tenant))
        if conversation is None:
            raise _no_conversation()
        return pb.GetConversationResponse(conversation=self._message(conversation))

    async def _complete(self, request: pb.CompleteConversationRequest, tenant: str) -> pb.CompleteConversationResponse:
        def complete(conversation: Conversation | None) -> Conversation:
            if conversation is None:
                raise _no_conversation()
            return replace(conversation, completed=True)

        key = requests.conversation_key(request, tenant)
        conversation = await self._store.update(key, complete)
        self._store.audience.tell(key, Notice("completed"))
        return pb.CompleteConversationResponse(conversation=self._message(conversation))

    async def _delete(self, request: pb.DeleteConversationRequest, tenant: str) -> pb.DeleteConversationResponse:
        key = requests.conversation_key(request, tenant)
        self._open_streams.end_conversation(
            key, Failure(Kind.ABORTED, "CONVERSATION_DELETED", "the conversation was deleted")
        )
        deleted = await self._store.delete(key)
        self._store.audience.tell(key, Notice("deleted"))
        if not deleted and not request.allow_missing:
            raise _no_conversation()
        return pb.DeleteConversationResponse()

    async def _info(self, request: pb.GetServiceInfoRequest, tenant: str) -> pb.GetServiceInfoResponse:
        return responses.service_info(
            self._models,
            self._endpointing,
            self._stream_limits,
            vad=self._vad,
            max_streams=self._limits.max_streams,
            active_streams=self._quotas.active,
            now=time.time(),
        )

    def _message(self, conversation: Conversation) -> pb.Conversation:
        return responses.conversation(conversation, self._model_of(conversation.model))

    def _model_of(self, name: str) -> ModelInfo | None:
        """The model of that name, None if it is not served (any more)."""
        return next((model for model in self._models if model.name == name), None)


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:16]}"


# ---- failures


def _draining() -> Failure:
    text = "this server is stopping; connect again, and resume the turn if one was open"
    return Failure(Kind.UNAVAILABLE, "DRAINING", text, retry_after_s=RETRY_AFTER_S)


def _overloaded() -> Failure:
    text = "this server is busy with its open streams; try again later or elsewhere"
    return Failure(Kind.RESOURCE_EXHAUSTED, "OVERLOADED", text, retry_after_s=RETRY_AFTER_S, quota="analysis")


def _no_conversation() -> Failure:
    return Failure(Kind.NOT_FOUND, "CONVERSATION_NOT_FOUND", "no such conversation, or it has expired")
