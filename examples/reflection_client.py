"""Streams a WAV file to kibun with nothing of kibun's: what a message is, the server says by gRPC reflection.

python examples/reflection_client.py speech.wav --server 127.0.0.1:50051

Needs `pip install grpcio grpcio-reflection grpcio-status`, and a server with `kibun serve --reflection`. For tools and
experiments: a program that lasts generates its classes from the .proto, so that a typo is found before it runs.
"""

import argparse
import os
import sys
import time
import wave
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

SERVICE = "kibun.v1.SpeechAnalysisService"


class Service:
    """The service's methods by name, and what they take, as the server describes them."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self._methods = pool.FindServiceByName(SERVICE).methods_by_name

    def request(self, method: str) -> Any:
        """The class of its requests."""
        return GetMessageClass(self._methods[method].input_type)

    def call(self, method: str) -> Any:
        """The method as a function; of a request, or of an iterator of them."""
        of = self._methods[method]
        kind = f"{'stream' if of.client_streaming else 'unary'}_{'stream' if of.server_streaming else 'unary'}"
        return getattr(self._channel, kind)(
            f"/{SERVICE}/{method}",
            request_serializer=self.request(method).SerializeToString,
            response_deserializer=GetMessageClass(of.output_type).FromString,
        )


def read_wav(path: str) -> tuple[int, bytes]:
    """Rate and samples: kibun takes samples without a header, of one channel."""
    try:
        with wave.open(path) as recording:
            channels, bits = recording.getnchannels(), 8 * recording.getsampwidth()
            rate_hz, samples = recording.getframerate(), recording.readframes(recording.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is not a WAV file of PCM: {error or 'it ends early'}") from error
    if bits != 16:
        raise ValueError(f"{path} has to hold 16-bit PCM; this has {bits} bits")
    if channels != 1:
        raise ValueError(f"{path} has to be mono, not {channels} channels: mix down, or a stream for each")
    return rate_hz, samples


def explain(error: grpc.RpcError) -> str:
    """Reason, field and message; what no kibun server made (a lost connection) has neither reason nor field."""
    reason, field = error.code().name, ""
    status = rpc_status.from_call(error)  # of the trailer grpc-status-details-bin
    for detail in status.details if status else ():
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        if detail.Unpack(request) and request.field_violations:
            field = f" ({request.field_violations[0].field})"
    return f"{reason}{field}: {error.details()}"


def show(answer: Any) -> None:
    kind = answer.WhichOneof("streaming_response")
    event: Any = getattr(answer, kind) if kind else None
    if kind == "utterance_result":
        start, end = (offset.ToTimedelta().total_seconds() for offset in (event.start_offset, event.end_offset))
        emotion = f"valence {event.emotion.valence:.2f} arousal {event.emotion.arousal:.2f}"
        known = event.HasField("emotion")  # ask first: unset reads as 0
        print(
            "final" if event.is_final else "interim",
            f"{start:.2f} {end:.2f}",
            emotion if known else "no emotion",
            flush=True,
        )
    elif kind == "stream_warning":
        print(f"warning {event.reason}: {event.message}")
    elif kind == "turn_result":
        print("turn", event.utterance_count, "utterances")
    elif kind == "stream_started" and event.synthetic_model:
        print("synthetic model: tells you nothing about real people")


def main() -> None:
    parser = argparse.ArgumentParser(description="Streams a WAV file, knowing nothing but reflection.")
    parser.add_argument("file", nargs="?", default="speech.wav")
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--model")
    parser.add_argument("--token", default=os.environ.get("KIBUN_TOKEN"))
    parser.add_argument("--live", action="store_true", help="as fast as it was spoken: only then are there interims")
    options = parser.parse_args()
    metadata = [("authorization", f"Bearer {options.token}")] if options.token else []
    rate_hz, samples = read_wav(options.file)
    with grpc.insecure_channel(options.server) as channel:  # TLS: grpc.secure_channel
        service = Service(channel)
        info = service.call("GetServiceInfo")(service.request("GetServiceInfo")(), metadata=metadata, timeout=10)
        block = min(2 * (rate_hz // 10), info.max_audio_content_bytes)  # 100 ms
        request = service.request("StreamingAnalyze")

        def requests() -> Iterator[Any]:
            audio = {"encoding": "AUDIO_ENCODING_LINEAR16", "sample_rate_hertz": rate_hz}
            features = {"interim_results": True}
            yield request(streaming_config={"audio_config": audio, "model": options.model, "features": features})
            for at in range(0, len(samples), block):
                yield request(audio_content=samples[at : at + block])
                if options.live:
                    time.sleep(0.1)

        # grpc asks for the next request when the last one has gone, and closes our side after the last.
        for answer in service.call("StreamingAnalyze")(requests(), metadata=metadata):
            show(answer)


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        off = error.code() is grpc.StatusCode.UNIMPLEMENTED  # a server says so of a service that it does not offer
        sys.exit("this server does not describe itself: kibun serve --reflection" if off else explain(error))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
