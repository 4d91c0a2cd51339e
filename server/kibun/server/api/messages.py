"""Reading and writing messages of one call: bytes to protobuf and back, within a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from kibun.server.api.contract import MAX_REQUEST_BYTES
from kibun.server.api.gate import Context, Handler
from kibun.server.errors import RETRY_AFTER_S, Failure, Kind, invalid
from kibun.server.session.timeout import Timeout

M = TypeVar("M", bound=Message)


class Malformed:
    """Stands for bytes that are not a protobuf of the expected type."""


class TooLarge:
    """Stands for a message that holds too much beside its audio."""


def method(handler: Handler, request: type[Message]) -> grpc.RpcMethodHandler:
    """Returns a method of kind stream-stream, whose `handler` gets parsed but unchecked messages."""
    return grpc.stream_stream_rpc_method_handler(
        handler, request_deserializer=parser(request), response_serializer=_serialize
    )


def parser(kind: type[M]) -> Callable[[bytes], M | Malformed | TooLarge]:
    """Returns what makes a message of bytes, without the fields that this version does not know."""

    def parse(data: bytes) -> M | Malformed | TooLarge:
        try:
            message = kind.FromString(data)
        except Exception:  # of any type: gRPC would answer UNKNOWN with the parser's text
            return Malformed()
        if len(data) - len(getattr(message, "audio_content", b"")) > MAX_REQUEST_BYTES:
            return TooLarge()
        message.DiscardUnknownFields()
        if message.ByteSize() == len(data):
            return message
        known = kind()  # the memory of a protobuf keeps what was dropped from it
        known.CopyFrom(message)
        return known

    return parse


def checked(message: M | Malformed | TooLarge) -> M:
    """Returns the message. Raises Failure MALFORMED_MESSAGE or MESSAGE_TOO_LARGE."""
    if isinstance(message, Malformed):
        raise invalid("MALFORMED_MESSAGE", "", "the message is not a protobuf of the expected type")
    if isinstance(message, TooLarge):
        text = f"a message may hold {MAX_REQUEST_BYTES} bytes beside its audio_content, fields unknown here included"
        raise invalid("MESSAGE_TOO_LARGE", "", f"{text}; send less")
    return message


async def first(requests: AsyncIterator[Any], what: str, *, timeout_s: float) -> Any:
    """Returns the first message of a call, None if there is none. Raises Failure if it does not come in time."""
    timeout = Timeout(timeout_s)
    try:
        message = await timeout.wait(anext(requests, None))
    except TimeoutError:
        text = f"{what} did not come within {timeout_s:g} s; send it first"
        raise Failure(Kind.DEADLINE_EXCEEDED, "CONFIG_TIMEOUT", text, retry_after_s=RETRY_AFTER_S) from None
    finally:
        timeout.close()
    return None if message is None else checked(message)


async def write(context: Context, message: Message, *, timeout_s: float) -> None:
    """Writes a message. Raises Failure if the client reads too slowly to take it in time."""
    timeout = Timeout(timeout_s)
    try:
        await timeout.wait(context.write(message))
    except grpc.aio.InternalError:
        # The client is gone and gRPC is about to cancel this call; a write before that fails like this.
        raise asyncio.CancelledError from None
    except TimeoutError:
        text = f"results were not read for {timeout_s:g} s; read while sending"
        raise Failure(
            Kind.RESOURCE_EXHAUSTED, "SLOW_CONSUMER", text, retry_after_s=RETRY_AFTER_S, quota="unread results"
        ) from None
    finally:
        timeout.close()


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
