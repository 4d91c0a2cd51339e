"""Audio on its way: what is still to be sent, what may have to be sent again after a lost connection, and the finals
that came back for it.

Positions are bytes since the first sample that was pushed, whatever connection carried them.
"""

from collections import deque
from dataclasses import dataclass

from kibun.client.errors import ReplayBufferExceededError
from kibun.v1 import speech_analysis_pb2 as pb

# Finals that a resumed turn hands over to a server that may have lost them; the contract takes no more.
MAX_HANDED_OVER = 1024


class FinalsReceived:
    """The finals of a turn that have arrived: the latest, reduced to what a server reads of them, and how many."""

    def __init__(self) -> None:
        self.count = 0
        self.latest: deque[pb.UtteranceResult] = deque(maxlen=MAX_HANDED_OVER)

    def add(self, final: pb.UtteranceResult) -> None:
        self.count += 1
        self.latest.append(
            pb.UtteranceResult(
                start_offset=final.start_offset,
                end_offset=final.end_offset,
                analyzed_duration=final.analyzed_duration,
                emotion=final.emotion if final.HasField("emotion") else None,
                end_reason=final.end_reason,
            )
        )


@dataclass(frozen=True)
class EndOfTurn:
    """Marker between the audio of two turns of one stream."""

    next_turn_id: str


class ReplayBuffer:
    """Keeps audio from the last `release` on. At most `limit_bytes` of what was sent is kept (0: nothing)."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._sent: deque[bytes] = deque()
        self._unsent: deque[bytes | EndOfTurn] = deque()
        # The kept bytes are [start, middle) sent and [middle, …) unsent; all before `released` has its final.
        self.start = 0
        self._middle = 0
        self._released = 0
        self._droppable = 0  # a replay may begin here where space runs out: see `mark_droppable`
        self.unsent_bytes = 0

    def append(self, item: bytes | EndOfTurn) -> None:
        """Adds audio, or a marker, to what is still to be sent."""
        self._unsent.append(item)
        if isinstance(item, bytes):
            self.unsent_bytes += len(item)

    def next_item(self) -> bytes | EndOfTurn | None:
        """What to send next, which from now on counts as sent; None when all was sent."""
        if not self._unsent:
            return None
        item = self._unsent.popleft()
        if isinstance(item, bytes):
            self.unsent_bytes -= len(item)
            self._sent.append(item)
            self._middle += len(item)
            while self._sent and self._middle - self.start > self._limit_bytes:
                self.start += len(self._sent.popleft())
        return item

    def release(self, position: int) -> None:
        """Drops the audio before `position` bytes, which has its final. Audio not yet sent stays."""
        self._released = max(self._released, min(position, self._middle))
        while self._sent and self.start < self._released:
            first = self._sent.popleft()
            surplus = self.start + len(first) - self._released
            if surplus > 0:
                self._sent.appendleft(first[-surplus:])
                self.start = self._released
            else:
                self.start += len(first)

    def mark_droppable(self, position: int) -> None:
        """Allows audio before `position` bytes to be dropped where space runs out: a replay may begin exactly there.

        It is kept as long as there is space: after the end of an utterance the server counts its timeouts on, too.
        """
        self._droppable = max(self._droppable, min(position, self._middle))

    def rewind(self) -> None:
        """Marks everything kept as unsent. Raises ReplayBufferExceededError if audio that is needed was dropped."""
        if self.start > self._released:
            if self.start > self._droppable:
                raise ReplayBufferExceededError(
                    "the connection was lost while more audio was without a final than is kept for replay: raise "
                    "RetryPolicy.replay_limit_s, or shorten utterances with Endpointing.max_utterance_ms"
                )
            self.release(self._droppable)
        while self._sent:
            piece = self._sent.pop()
            self._unsent.appendleft(piece)
            self.unsent_bytes += len(piece)
        self._middle = self.start

    def clear(self) -> None:
        """Drops everything: nothing more is to be sent."""
        self._sent.clear()
        self._unsent.clear()
        self.unsent_bytes = 0
        self.start = self._released = self._middle
