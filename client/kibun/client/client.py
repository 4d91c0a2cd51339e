"""The asynchronous client."""

import asyncio
import time
import uuid
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack, get_type_hints

from kibun.client.channel import Credentials, read_pem
from kibun.client.checks import check_timeout, check_value
from kibun.client.errors import DeadlineError, ErrorDetails, InvalidRequestError, UnavailableError, WrongTypeError
from kibun.client.events import AnalyzeResult
from kibun.client.options import RetryPolicy, StreamConfig, TurnOptions
from kibun.client.pcm import payload_bytes
from kibun.client.resources import ConversationState, ServiceInfo
from kibun.client.stream import AsyncStream
from kibun.client.transport import Transport, client_closed
from kibun.client.turn import AsyncTurn
from kibun.client.watch import AsyncWatch
from kibun.v1 import speech_analysis_pb2 as pb

if TYPE_CHECKING:
    from kibun.client.audio_file import AudioFile
    from kibun.client.pcm import Pcm

DEFAULT_TIMEOUT_S = 30.0


class ClientOptions(TypedDict, total=False):
    """Keyword options of `AsyncClient` and `Client`, as described there."""

    token: str | None
    tls: bool
    root_certificates: bytes | str | Path | None
    certificate_chain: bytes | str | Path | None
    private_key: bytes | str | Path | None
    allow_plaintext_token: bool
    timeout_s: float | None
    retry: RetryPolicy | None


_OPTION_TYPES = {"target": str, **get_type_hints(ClientOptions)}


class AsyncClient:
    """Client of a kibun server at `target` ("host:port"); may be made anywhere, also at import.

    Plaintext unless `tls` is set or certificates are given (bytes, or the path of a PEM file). `token` is sent as a
    bearer token. `timeout_s` bounds each call, and how long a turn or stream may take to open; by default a call gets
    30 s, and opening what `retry` allows, which also says how turns survive a lost connection. Connects on first use,
    once for each event loop that uses it. Raises InvalidRequestError for a bad address, bad credentials or an option of
    the wrong type.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: bool = False,
        root_certificates: bytes | str | Path | None = None,
        certificate_chain: bytes | str | Path | None = None,
        private_key: bytes | str | Path | None = None,
        allow_plaintext_token: bool = False,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        given = locals()
        for name, kind in _OPTION_TYPES.items():
            check_value(name, given[name], kind)
        check_timeout(timeout_s)
        credentials = Credentials(
            token=token,
            tls=tls,
            root_certificates=read_pem(root_certificates),
            certificate_chain=read_pem(certificate_chain),
            private_key=read_pem(private_key),
            allow_plaintext_token=allow_plaintext_token,
        )
        self.target = target
        self._transport = Transport(target, credentials, timeout_s)
        self._timeout_s = timeout_s or DEFAULT_TIMEOUT_S
        self._retry = retry or RetryPolicy()

    async def __aenter__(self) -> Self:
        if self._transport.closed:
            raise client_closed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; everyone who waits for it or for one of its streams gets MisuseError."""
        await self._transport.close()

    def conversation(self, conversation_id: str | None = None) -> "AsyncConversation":
        """A handle on a conversation, by default one with a new id; nothing is sent yet."""
        check_value("conversation_id", conversation_id, str | None)
        return AsyncConversation(self, conversation_id or uuid.uuid4().hex)

    def stream(self, config: StreamConfig) -> AsyncStream:
        """A stream that may carry several turns of one participant; it does not resume after a lost connection."""
        check_value("config", config, StreamConfig)
        return AsyncStream(self._transport, config)

    def turn(
        self, config: StreamConfig, *, audio: "AudioFile | None" = None, retry: RetryPolicy | None = None
    ) -> AsyncTurn:
        """A single turn as described by `config`; `AsyncConversation.turn` is a shortcut.

        `audio`: a recording that the turn is fed with once it is open; rate and encoding are the recording's, whatever
        `config` has.
        """
        check_value("config", config, StreamConfig)
        check_value("retry", retry, RetryPolicy | None)
        if audio is not None:
            if not hasattr(audio, "chunks"):
                message = f"audio must be a kibun.client.AudioFile, as AudioFile(path), not {type(audio).__name__}"
                raise WrongTypeError(message, ErrorDetails(WrongTypeError.default_reason, fields={"audio": message}))
            config = replace(config, sample_rate_hz=audio.sample_rate_hz, encoding=audio.encoding)
        return AsyncTurn(self._transport, config, retry or self._retry, audio)

    def watch(
        self,
        conversation_id: str,
        *,
        include_past: bool = False,
        require_existing: bool = False,
        retry: RetryPolicy | None = None,
    ) -> AsyncWatch:
        """What others say in a conversation, as they are told it; `AsyncConversation.watch` is a shortcut."""
        check_value("conversation_id", conversation_id, str)
        check_value("include_past", include_past, bool)
        check_value("require_existing", require_existing, bool)
        check_value("retry", retry, RetryPolicy | None)
        return AsyncWatch(
            self._transport,
            conversation_id,
            retry or self._retry,
            include_past=include_past,
            require_existing=require_existing,
        )

    async def analyze(
        self, pcm: "Pcm", config: StreamConfig | None = None, *, timeout_s: float | None = None
    ) -> AnalyzeResult:
        """Analyses one short recording in one request (a stream has no limit of length). Raises KibunError.

        `timeout_s`: in place of the client's.
        """
        check_timeout(timeout_s)
        check_value("config", config, StreamConfig | None)
        config = config or StreamConfig()
        request = pb.AnalyzeRequest(config=config.to_proto(), audio_content=payload_bytes(pcm, config.encoding))
        answer = await self._transport.unary("Analyze", request, timeout_s or self._timeout_s)
        return AnalyzeResult.from_proto(answer)

    async def get_conversation(self, conversation_id: str) -> ConversationState:
        """State of a conversation. Raises NotFoundError when the server does not know it (any more)."""
        return ConversationState.from_proto((await self.get_conversation_proto(conversation_id)).conversation)

    async def get_conversation_proto(self, conversation_id: str) -> pb.GetConversationResponse:
        """The same, as the message that was received."""
        check_value("conversation_id", conversation_id, str)
        request = pb.GetConversationRequest(conversation_id=conversation_id)
        answer: pb.GetConversationResponse = await self._transport.unary("GetConversation", request, self._timeout_s)
        return answer

    async def complete_conversation(self, conversation_id: str) -> ConversationState:
        """Marks a conversation as completed: no further turns. Raises NotFoundError."""
        check_value("conversation_id", conversation_id, str)
        request = pb.CompleteConversationRequest(conversation_id=conversation_id)
        answer = await self._transport.unary("CompleteConversation", request, self._timeout_s)
        return ConversationState.from_proto(answer.conversation)

    async def delete_conversation(self, conversation_id: str, *, allow_missing: bool = False) -> None:
        """Erases all state of a conversation. Raises NotFoundError unless `allow_missing`."""
        check_value("conversation_id", conversation_id, str)
        check_value("allow_missing", allow_missing, bool)
        request = pb.DeleteConversationRequest(conversation_id=conversation_id, allow_missing=allow_missing)
        await self._transport.unary("DeleteConversation", request, self._timeout_s)

    async def service_info(self) -> ServiceInfo:
        """Models, scales and limits of the server."""
        return ServiceInfo.from_proto(await self.service_info_proto())

    async def service_info_proto(self) -> pb.GetServiceInfoResponse:
        """The same, as the message that was received."""
        request = pb.GetServiceInfoRequest()
        answer: pb.GetServiceInfoResponse = await self._transport.unary("GetServiceInfo", request, self._timeout_s)
        return answer

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Waits until the server reports SERVING, i.e. that its model is loaded and warm.

        Raises UnavailableError (reason NOT_READY) after `timeout_s`, with what the last attempt saw.
        """
        check_value("timeout_s", timeout_s, float)
        check_timeout(timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            state = await self._health(max(min(left_s, 5.0), 0.1))
            if state == "SERVING":
                return
            if time.monotonic() + 0.1 >= deadline:
                raise UnavailableError(
                    f"{self.target} was not ready within {timeout_s:g} s: {state}",
                    ErrorDetails(reason="NOT_READY"),
                )
            await asyncio.sleep(0.1)

    async def _health(self, timeout_s: float) -> str:
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # only those who wait for the server need it

        def check() -> Any:
            return health_pb2_grpc.HealthStub(self._transport.channel).Check

        try:
            answer = await self._transport.call(check, health_pb2.HealthCheckRequest(), timeout_s)
        except (UnavailableError, DeadlineError) as error:
            return error.message
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return "SERVING"
        return f"{self.target} answers that it is NOT_SERVING: it is loading its model, or is stopping"


class AsyncConversation:
    """A conversation of one or more participants, made by `AsyncClient.conversation`."""

    def __init__(self, client: AsyncClient, conversation_id: str) -> None:
        self._client = client
        self.conversation_id = conversation_id

    def turn(
        self,
        turn_id: str | None = None,
        participant_id: str = "user",
        *,
        audio: "AudioFile | None" = None,
        retry: RetryPolicy | None = None,
        **options: Unpack[TurnOptions],
    ) -> AsyncTurn:
        """A turn of `participant_id`, to be opened with `async with`; `options` as in `StreamConfig`.

        With `audio`, a recording, the turn is fed with it once it is open, and takes rate and encoding from it. Raises
        InvalidRequestError for an option that cannot be sent, TypeError for one that does not exist.
        """
        if audio is not None and (told := options.keys() & {"sample_rate_hz", "encoding"}):
            name = min(told)
            raise InvalidRequestError(
                f"{name} is the recording's own where a turn has `audio`: leave it out",
                ErrorDetails(reason="INVALID_OPTION", fields={name: "leave it out beside audio"}),
            )
        config = StreamConfig.of_turn(self.conversation_id, participant_id, "" if turn_id is None else turn_id, options)
        return self._client.turn(config, audio=audio, retry=retry)

    def watch(
        self, *, include_past: bool = False, require_existing: bool = False, retry: RetryPolicy | None = None
    ) -> AsyncWatch:
        """What others say in this conversation, to be opened with `async with`.

        `include_past`: first what the server has stored of it. A conversation that nobody has spoken in is waited for;
        `require_existing`: NotFoundError instead.
        """
        return self._client.watch(
            self.conversation_id, include_past=include_past, require_existing=require_existing, retry=retry
        )

    async def get(self) -> ConversationState:
        """State of this conversation. Raises NotFoundError."""
        return await self._client.get_conversation(self.conversation_id)

    async def complete(self) -> ConversationState:
        """Marks this conversation as completed: no further turns. Raises NotFoundError."""
        return await self._client.complete_conversation(self.conversation_id)

    async def delete(self, *, allow_missing: bool = False) -> None:
        """Erases all state of this conversation. Raises NotFoundError unless `allow_missing`."""
        await self._client.delete_conversation(self.conversation_id, allow_missing=allow_missing)
