"""The SDK's configuration of a stream, made from the contract's message, which is sent on as it is."""

from dataclasses import dataclass, field, replace
from typing import Self

from kibun.client.estimates import seconds
from kibun.client.options import Encoding, Endpointing, StreamConfig
from kibun.client.replay import MAX_HANDED_OVER
from kibun.v1 import speech_analysis_pb2 as pb

_ENCODINGS: dict[int, Encoding] = {
    pb.AUDIO_ENCODING_LINEAR16: "linear16",
    pb.AUDIO_ENCODING_MULAW: "mulaw",
    pb.AUDIO_ENCODING_FLOAT32: "float32",
    pb.AUDIO_ENCODING_ALAW: "alaw",
}


@dataclass(frozen=True)
class MessageConfig(StreamConfig):
    """Every field reaches the server as it came, also one that the SDK does not know or that the server refuses; but
    for those that a resume after a lost connection changes.
    """

    message: pb.StreamingAnalyzeConfig = field(default_factory=pb.StreamingAnalyzeConfig, repr=False)

    @classmethod
    def of(cls, message: pb.StreamingAnalyzeConfig) -> Self:
        """Raises InvalidRequestError for text that cannot be sent."""
        ends_turns = message.endpointing_config.HasField("end_of_turn_silence")
        return cls(
            message=message,
            conversation_id=message.conversation_id,
            turn_id=message.turn_id,
            # What the SDK has to know of the audio; nonsense is the server's to refuse.
            sample_rate_hz=max(message.audio_config.sample_rate_hertz, 1),
            encoding=_ENCODINGS.get(message.audio_config.encoding, "linear16"),
            endpointing=Endpointing(end_of_turn_silence_ms=0 if ends_turns else None),
            audio_start_offset_s=seconds(message.audio_start_offset),
        )

    def to_proto(self) -> pb.StreamingAnalyzeConfig:
        message = pb.StreamingAnalyzeConfig()
        message.CopyFrom(self.message)
        message.conversation_id, message.turn_id = self.conversation_id, self.turn_id
        if self.audio_start_offset_s != seconds(message.audio_start_offset):
            message.audio_start_offset.FromNanoseconds(round(self.audio_start_offset_s * 1e9))
            message.ClearField("resume_after")  # it was of another point
        if self.resume_turn:
            message.resume_turn = True
        if self.resume_after is not None:
            message.resume_after = self.resume_after.to_proto()
        if (finals := self.resume_finals) is not None:  # beside those that who is at the socket already had
            known = [*message.resume_finals, *finals.latest][-MAX_HANDED_OVER:]
            message.ClearField("resume_finals")
            message.resume_finals.extend(known)
            message.resume_final_count += finals.count
        return message

    def of_next_turn(self, turn_id: str, conversation_id: str, offset_s: float) -> "MessageConfig":
        """The same for the turn that follows on this socket, `offset_s` seconds later."""
        message = pb.StreamingAnalyzeConfig()
        message.CopyFrom(self.message)
        for name in ("resume_turn", "resume_after", "resume_finals", "resume_final_count"):
            message.ClearField(name)
        if message.HasField("audio_start_time"):
            message.audio_start_time.FromNanoseconds(message.audio_start_time.ToNanoseconds() + round(offset_s * 1e9))
        return replace(
            self,
            message=message,
            conversation_id=conversation_id,
            turn_id=turn_id,
            audio_start_offset_s=self.audio_start_offset_s + offset_s,
            resume_turn=False,
            resume_after=None,
            resume_finals=None,
        )
