"""Recordings through a server: each file a conversation of one speaker, of its channels, or of given turns."""

import asyncio
import enum
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from kibun.client.audio_file import AudioFile
from kibun.client.client import AsyncClient
from kibun.client.errors import AudioFileError, ErrorDetails, InputError, KibunError
from kibun.client.estimates import Traits
from kibun.client.events import PersonalityUpdate, StreamEnded, StreamStarted, StreamWarning, UtteranceResult
from kibun.client.mono import ChannelComparison, Samples
from kibun.client.options import Encoding, Features, TurnOptions
from kibun.client.pcm import CHUNK_MS
from kibun.client.recordings.kept import KeptResults
from kibun.client.recordings.rows import FileResult, FileStatus, Row, number, row_of, row_without
from kibun.client.recordings.turns_file import TurnSpan, within
from kibun.client.resources import ServiceInfo
from kibun.client.turn import AsyncTurn

# Warnings that are true of a model, and so the same in every stream.
MODEL_WARNINGS = ("MODEL_UNTRAINED", "EMOTION_UNSUPPORTED", "PERSONALITY_UNSUPPORTED", "GIVEN_PERSONALITY_UNUSED")
# The participant of a recording of which nothing else is known.
SPEAKER = "speaker"
_MOST_CHANNELS = 32


class Speakers(enum.StrEnum):
    """Who speaks in a recording without turns."""

    ONE = "one"
    CHANNELS = "channels"  # one in each


class RecordedAudio(Protocol):
    """What a file or a pipe holds, as `AudioFile` describes it."""

    path: Path
    channels: int
    channel: int | None
    sample_rate_hz: int
    encoding: Encoding
    incomplete: str
    comparison: ChannelComparison

    def chunks(self, chunk_ms: int = ..., start_s: float = ..., end_s: float | None = ...) -> Iterator[Samples]: ...


def open_file(path: Path, channel: int | None) -> RecordedAudio:
    """A file; of one that was cut off or damaged, what is there. Raises AudioFileError."""
    return AudioFile(path, channel=channel, allow_incomplete=True)


@dataclass(frozen=True)
class AnalysisOptions:
    """How recordings are analysed."""

    # "": the server's default.
    model: str = ""
    # From 1; None: the mean of all.
    channel: int | None = None
    speakers: Speakers = Speakers.ONE
    # Who speaks when, by recording; None: nobody said so.
    turns: Mapping[Path, Sequence[TurnSpan]] | None = None
    # Known traits by recording, of its only speaker, and by participant.
    traits: Mapping[Path, Traits] = field(default_factory=dict)
    traits_of_participant: Mapping[str, Traits] = field(default_factory=dict)
    jobs: int = 4
    open: Callable[[Path, int | None], RecordedAudio] = open_file

    def traits_for(self, path: Path, participant: str) -> Traits | None:
        """Known traits of a participant of the recording."""
        alone = self.turns is None and self.speakers is Speakers.ONE
        return self.traits_of_participant.get(participant) or (self.traits.get(path) if alone else None)

    def described(self, path: Path) -> str:
        """All of it on which the rows of `path` depend."""
        turns = None if self.turns is None else [asdict(turn) for turn in self.turns.get(path, ())]
        of_it = self.traits.get(path)
        known = {who: asdict(traits) for who, traits in sorted(self.traits_of_participant.items())}
        return json.dumps([self.channel, self.speakers, turns, of_it and asdict(of_it), known])


def identity(info: ServiceInfo, model: str) -> str:
    """What estimates depend on besides recording and options: the model, and the server's version and settings."""
    chosen = [m for m in info.models if (m.name == model if model else m.is_default)]
    return json.dumps([info.server_version, [(m.name, m.version, m.fingerprint) for m in chosen]])


async def analyze(
    client: AsyncClient,
    files: Sequence[Path],
    options: AnalysisOptions,
    kept: KeptResults | None,
    on_result: Callable[[FileResult], None],
) -> None:
    """Calls `on_result` with each file's result, in the order of the files, `jobs` of them at work at a time.

    Files that cannot be analysed have a result too. Cancelled, it still hands out those that are done.
    """
    gate = asyncio.Semaphore(options.jobs)

    async def one(path: Path) -> FileResult:
        async with gate:
            key = None if kept is None else await asyncio.to_thread(kept.key, path, options.described(path))
            if kept is not None and key is not None and (earlier := kept.load(key, path)):
                return earlier
            result = await _analyze_file(client, path, options)
            if kept is not None and key is not None and result.status.status != "failed":
                kept.save(key, result)
            return result

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(path)) for path in files]
            handed_out = 0
            try:
                for task in tasks:
                    result = await task
                    handed_out += 1
                    on_result(result)
            except asyncio.CancelledError:
                for task in tasks[handed_out:]:
                    if task.done() and not task.cancelled() and task.exception() is None:
                        on_result(task.result())
                raise
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _analyze_file(client: AsyncClient, path: Path, options: AnalysisOptions) -> FileResult:
    try:
        return await _conversation(client, path, options)
    except AudioFileError as error:
        return _failed(path, error.problem, error.reason)
    except KibunError as error:
        return _failed(path, str(error), error.reason, error.message)
    except OSError as error:
        return _failed(path, str(error), "FILE_UNREADABLE")


def _failed(path: Path, problem: str, reason: str, message: str = "") -> FileResult:
    status = FileStatus("failed", reason, message or problem)
    return FileResult(path, status, [row_without(path, status)], problem=problem)


@dataclass
class _Heard:
    """What came back of a conversation."""

    finals: list[tuple[TurnSpan, UtteranceResult, PersonalityUpdate | None, StreamStarted]] = field(
        default_factory=list
    )
    started: StreamStarted | None = None
    audio_s: float = 0.0
    warnings: list[StreamWarning] = field(default_factory=list)


async def _conversation(client: AsyncClient, path: Path, options: AnalysisOptions) -> FileResult:
    """One conversation; turn by turn, so that the same file gives the same rows."""
    result = FileResult(path, FileStatus("ok"))
    parts = _parts(path, options)
    heard = _Heard()
    conversation = client.conversation()
    # Names may be any text, ids may not.
    ids: dict[str, str] = {}
    for audio, spans in parts:
        for at, span in enumerate(spans, 1):
            participant_id = ids.setdefault(span.participant_id, f"speaker-{len(ids) + 1}")
            turn = conversation.turn(f"turn-{at}", participant_id, **_config(audio, span, options))
            await _listen(turn, audio, span, heard)
        if text := channel_note(audio, "--speakers channels takes each for a speaker, "):
            result.notes.append(text)
    await conversation.delete(allow_missing=True)
    result.notes += _told(warning for warning in heard.warnings if warning.reason not in MODEL_WARNINGS)
    result.model_notes += _told(warning for warning in heard.warnings if warning.reason in MODEL_WARNINGS)
    first = parts[0][0]
    length_s = first.duration_s if isinstance(first, AudioFile) else None
    length_s = length_s or (heard.audio_s if options.turns is None else None)
    if incomplete := next((audio.incomplete for audio, _ in parts if audio.incomplete), ""):
        result.problem = f"{incomplete}; the rest was analysed"
        result.status = FileStatus("incomplete", "FILE_INCOMPLETE", incomplete, length_s)
    elif not heard.finals:
        result.status = FileStatus("no_speech", "NO_SPEECH", "no utterance was found", length_s)
    else:
        result.status = FileStatus("ok", duration_s=length_s)
    rows = [row_of(path, result.status, *one) for one in heard.finals]
    result.rows = sorted(rows, key=_when) or [row_without(path, result.status, heard.started)]
    return result


def _when(row: Row) -> tuple[float, float]:
    return number(row["start_s"]), number(row["end_s"])


def _parts(path: Path, options: AnalysisOptions) -> list[tuple[RecordedAudio, list[TurnSpan]]]:
    """Which channels are sent, and the turns in each. Raises KibunError where the file has no such parts."""
    if options.speakers is Speakers.CHANNELS:
        whole = options.open(path, None)
        if not isinstance(whole, AudioFile):
            message = "--speakers channels needs a file, not a pipe, which can be read only once"
            raise InputError(message, ErrorDetails(reason="NOT_A_FILE"))
        if not 2 <= whole.channels <= _MOST_CHANNELS:
            raise InputError(
                f"it has {whole.channels} channel{'s'[: whole.channels > 1]}: --speakers channels is for recordings "
                f"with a channel per speaker, 2 to {_MOST_CHANNELS}; leave it out, or give --turns",
                ErrorDetails(reason="NO_CHANNEL"),
            )
        numbers = range(1, whole.channels + 1)
        return [(options.open(path, n), [TurnSpan("", f"channel-{n}", 0.0, float("inf"))]) for n in numbers]
    audio = options.open(path, options.channel)
    if options.turns is None:
        return [(audio, [TurnSpan("", SPEAKER, 0.0, float("inf"))])]
    if not (turns := options.turns.get(path)):
        raise InputError("--turns has none for it", ErrorDetails(reason="NO_TURNS"))
    if not isinstance(audio, AudioFile) or audio.duration_s is None:
        message = "--turns needs to know how long it is, and its header does not say: convert it"
        raise InputError(message, ErrorDetails(reason="NO_DURATION"))
    if late := next((turn for turn in turns if turn.start_s >= audio.duration_s), None):
        raise InputError(
            f"--turns: one of {late.participant_id} starts at {late.start_s:g} s, but the audio is "
            f"{audio.duration_s:.2f} s long: are they of another recording?",
            ErrorDetails(reason="TURN_AFTER_END"),
        )
    return [(audio, within(turns, audio.duration_s))]


def _config(audio: RecordedAudio, span: TurnSpan, options: AnalysisOptions) -> TurnOptions:
    return {
        "sample_rate_hz": audio.sample_rate_hz,
        "encoding": audio.encoding,
        "features": Features(eager_finals=False),  # nobody waits for the end of an utterance
        "model": options.model,
        "given_personality": options.traits_for(audio.path, span.participant_id),
        "audio_start_offset_s": span.start_s,
    }


async def _listen(turn: AsyncTurn, audio: RecordedAudio, span: TurnSpan, heard: _Heard) -> None:
    finals: list[UtteranceResult] = []
    updates: list[PersonalityUpdate] = []
    async with turn:
        turn.feed(audio.chunks(CHUNK_MS, span.start_s, span.end_s))
        async for event in turn:
            match event:
                case UtteranceResult(is_final=True):
                    finals.append(event)
                case PersonalityUpdate():
                    updates.append(event)
                case StreamWarning():
                    heard.warnings.append(event)
                case StreamEnded():
                    heard.audio_s = max(heard.audio_s, event.total_audio_s)
    heard.started = heard.started or turn.started
    for index, final in enumerate(finals):
        update = updates[index] if index < len(updates) else None
        heard.finals.append((span, final, update, turn.started))


def _told(warnings: Iterator[StreamWarning]) -> list[str]:
    """A line per reason: recordings with many turns have many of a kind."""
    told = list(warnings)
    counts = Counter(warning.reason for warning in told)
    first = {warning.reason: warning.message for warning in reversed(told)}
    return [
        f"{reason}: {first[reason]}" + (f" (and {count - 1} more of this kind)" if count > 1 else "")
        for reason, count in counts.items()
    ]


def channel_note(audio: RecordedAudio, remedy: str = "") -> str:
    """What to know about the channels of a recording whose mean is sent, "" if nothing.

    remedy: what to do where they differ, besides sending one alone.
    """
    if audio.channels == 1 or audio.channel is not None:
        return ""
    compared = audio.comparison
    if compared.differ:
        return (
            f"its {audio.channels} channels differ, as where each speaker has one: their mean is sent; "
            f"{remedy}--channel 1 sends one alone"
        )
    if compared.silent:
        silent = ", ".join(str(number) for number in compared.silent[:8])
        sounding = next(n for n in range(1, audio.channels + 1) if n not in compared.silent)
        return (
            f"of its {audio.channels} channels {silent} {'is' if len(compared.silent) == 1 else 'are'} silent: their "
            f"mean is sent, at a lower level; --channel {sounding} sends one alone"
        )
    return ""
