"""`kibun stream`: audio files or a microphone to a server, results as they arrive."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from kibun.client.client import AsyncClient, AsyncConversation
from kibun.client.commands.audio_files import AudioFile, open_audio
from kibun.client.commands.connection import (
    DEFAULT_SERVER,
    CaOption,
    Connection,
    JsonOption,
    ModelOption,
    ServerOption,
    TlsOption,
    TokenOption,
)
from kibun.client.commands.failure import UsageError
from kibun.client.commands.mic import Microphone
from kibun.client.commands.report import JsonLines, LiveTable, note, summary_table
from kibun.client.commands.streaming import Sink, StreamingOptions, stream_turns
from kibun.client.commands.traits_file import SUFFIXES, load_traits, parse_traits
from kibun.client.commands.turns_file import TurnSpan, load_turns
from kibun.client.estimates import Traits
from kibun.client.options import Features
from kibun.client.pcm import CHUNK_MS


def stream(
    sources: Annotated[list[str], typer.Argument(metavar="FILE|mic[:ID]", help="Audio files, or a microphone.")],
    server: ServerOption = DEFAULT_SERVER,
    turns: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who speaks when, in one FILE: .json or .rttm.")
    ] = None,
    conversation: Annotated[str, typer.Option(help="Conversation to continue; default: a new one.")] = "",
    participant: Annotated[str, typer.Option(help="Participant id, unless --turns gives it.")] = "user",
    realtime: Annotated[bool, typer.Option("--realtime", help="Stream in real time.")] = False,
    chunk_ms: Annotated[int, typer.Option(min=10, max=2000, help="Audio per message.")] = CHUNK_MS,
    channel: Annotated[int | None, typer.Option(min=1, help="Channel to send; default: the mean of all.")] = None,
    interim: Annotated[bool, typer.Option("--interim", help="Estimates while an utterance is spoken.")] = False,
    model: ModelOption = "",
    traits: Annotated[
        str,
        typer.Option(
            metavar="O,C,E,A,N|FILE",
            help="Known traits, 1..7: of --participant, or a .csv/.jsonl file with a row per participant.",
        ),
    ] = "",
    as_json: JsonOption = False,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
) -> None:
    """Stream audio files or a microphone to a server.

    Without --turns, each FILE is one turn of --participant.

    With --turns, one FILE holds a dialogue, sent as one stream per turn.
    """
    connection = Connection(server, token, tls, ca)
    known = _traits(traits, participant, dialogue=turns is not None)
    options = StreamingOptions(chunk_ms, realtime, Features(interim_results=interim), model, known)
    speaker = _Speaker(conversation, participant)
    console = Console(stderr=True) if as_json else Console()
    if any(source == "mic" or source.startswith("mic:") for source in sources):
        if len(sources) > 1 or turns is not None or realtime:
            raise UsageError("mic cannot be combined with files, --turns or --realtime")
        device = sources[0].removeprefix("mic").removeprefix(":")
        work = _from_microphone(connection, device, speaker, options, console, as_json)
    else:
        jobs = _jobs([Path(source) for source in sources], turns, participant, channel)
        _note_unmatched(known, jobs)
        work = _from_files(connection, jobs, speaker, options, console, as_json)
    _run(work)


def _traits(text: str, participant_id: str, *, dialogue: bool) -> dict[str, Traits]:
    """Known traits by participant."""
    if not text:
        return {}
    if text.lower().endswith(SUFFIXES):
        return load_traits(Path(text), ("participant", "speaker"))
    if dialogue:
        raise UsageError("--turns names several participants: give --traits a .csv or .jsonl file with a row for each")
    return {participant_id: parse_traits(text)}


def _note_unmatched(traits: Mapping[str, Traits], jobs: list[tuple[AudioFile, list[TurnSpan]]]) -> None:
    """Warns of names that do not match, as a misspelt one would otherwise go unnoticed."""
    speakers = list(dict.fromkeys(turn.participant_id for _, turns in jobs for turn in turns))
    if not traits:
        return
    if without := [speaker for speaker in speakers if speaker not in traits]:
        note(f"--traits has none for {', '.join(without)}")
    if unused := [name for name in traits if name not in speakers]:
        note(f"--traits names {', '.join(unused)}, who does not speak here")


@dataclass(frozen=True)
class _Speaker:
    conversation_id: str
    participant_id: str


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _jobs(
    paths: list[Path], turns: Path | None, participant_id: str, channel: int | None
) -> list[tuple[AudioFile, list[TurnSpan]]]:
    """Each recording with its turns; everything that can be checked before the first byte is sent is checked here."""
    files = [open_audio(path, channel) for path in paths]
    if turns is not None:
        if len(files) != 1:
            raise UsageError("--turns describes one recording: name exactly one FILE")
        return [(files[0], load_turns(turns, files[0].duration_s))]
    # Ids are the server's: a conversation that is continued may know "turn-1" already.
    return [(file, [TurnSpan("", participant_id, 0.0, file.duration_s)]) for file in files]


async def _from_files(
    connection: Connection,
    jobs: list[tuple[AudioFile, list[TurnSpan]]],
    speaker: _Speaker,
    options: StreamingOptions,
    console: Console,
    as_json: bool,
) -> None:
    async with connection.client() as client:
        await client.service_info()  # fails early if the server cannot be used
        conversation = client.conversation(speaker.conversation_id or None)
        for file, _ in jobs:
            if file.channels > 1 and file.channel is None:
                note(f"{file.path.name} has {file.channels} channels: their mean is sent; --channel 1 picks one")
        with _sink(console, as_json) as sink:
            for file, turns in jobs:
                await stream_turns(conversation, file, turns, options, sink)
        await _finish(client, conversation, console, as_json)


async def _from_microphone(
    connection: Connection,
    device: str,
    speaker: _Speaker,
    options: StreamingOptions,
    console: Console,
    as_json: bool,
) -> None:
    microphone = Microphone(device, options.chunk_ms)
    async with connection.client() as client:
        await client.service_info()
        conversation = client.conversation(speaker.conversation_id or None)
        turn = conversation.turn(
            None,
            speaker.participant_id,
            sample_rate_hz=microphone.sample_rate_hz,
            features=options.features,
            model=options.model,
            given_personality=options.traits.get(speaker.participant_id),
        )
        console.print(
            f"listening to {microphone.name} ({microphone.sample_rate_hz} Hz): Ctrl-C ends the turn", markup=False
        )
        async with microphone, turn:
            with contextlib.suppress(NotImplementedError):  # no signal handlers on this platform: Ctrl-C aborts
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, microphone.stop)
            turn.feed(microphone.chunks())
            with _sink(console, as_json) as sink:
                async for event in turn:
                    sink.on_event(event, speaker.participant_id)
        if microphone.dropped_chunks:
            note(f"{microphone.dropped_chunks} chunks of {options.chunk_ms} ms were dropped: the network was too slow")
        await _finish(client, conversation, console, as_json)


@contextlib.contextmanager
def _sink(console: Console, as_json: bool) -> Iterator[Sink]:
    if as_json:
        yield JsonLines()
        return
    with LiveTable(console) as table:
        yield table


async def _finish(client: AsyncClient, conversation: AsyncConversation, console: Console, as_json: bool) -> None:
    if as_json:
        JsonLines().write(await client.get_conversation_proto(conversation.conversation_id))
    else:
        console.print(summary_table(await conversation.get()))
