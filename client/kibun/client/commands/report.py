"""What commands show of events: drawings or lines for people, JSON lines for programs."""

import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from kibun.client.client import AsyncClient, AsyncConversation
from kibun.client.commands.growth import SYNTHETIC_BANNER, Growth, glyphs
from kibun.client.estimates import TRAITS, PersonalityEstimate
from kibun.client.events import (
    Event,
    PersonalityUpdate,
    StreamWarning,
    UtteranceResult,
)
from kibun.client.recordings.analysis import MODEL_WARNINGS
from kibun.client.recordings.formats import print_json
from kibun.client.resources import ConversationState, ServiceInfo


class JsonLines:
    """Prints every response as received, one JSON object per line, names as in the .proto."""

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output or sys.stdout

    def on_event(self, event: Event, participant_id: str) -> None:
        if event.response is not None:
            self.write(event.response)

    def write(self, message: Message) -> None:
        """Prints one message, fields with default values included."""
        values = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        ordered = {field.name: values[field.name] for field in message.DESCRIPTOR.fields if field.name in values}
        print_json(ordered, self._output)


class Display:
    """Shows events to people: on a terminal, a drawing that grows in place; elsewhere, a line per utterance.

    A line is printed as soon as its utterance has its final and its traits. At the end both print the whole drawing.
    """

    def __init__(self, console: Console, banner: str = "") -> None:
        """banner: stands above what is shown."""
        self._console = console
        self._growth = Growth(banner)
        self._told: set[str] = set()
        # rich draws in a thread of its own, a few times per second, however many events come.
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._rows: _Rows | None = None
        if console.is_interactive and console.file.isatty():
            self._live = Live(console=console, refresh_per_second=5, transient=True, get_renderable=self._view)
        else:
            self._rows = _Rows(console, self._growth)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._rows is not None:
            self._rows.finish()
            self._console.print()
        self._console.print(self._growth)

    def on_event(self, event: Event, participant_id: str) -> None:
        """Takes one event of a turn of `participant_id`."""
        with self._lock:
            self._growth.on_event(event, participant_id)
        if self._rows is not None:
            self._rows.on_event(event, participant_id)
        if isinstance(event, StreamWarning):
            text = f"{event.reason}: {event.message}"
            if text not in self._told:
                self._console.print(Text(text, style="yellow"))
            if event.reason in MODEL_WARNINGS:
                self._told.add(text)

    def know(self, conversation: ConversationState, *, concluded: bool = True) -> None:
        """Takes what the server knows of the conversation; concluded: no event shown is newer."""
        with self._lock:
            self._growth.know(conversation, concluded=concluded)

    def _view(self) -> Group:
        with self._lock:
            return Group(*self._growth.view(self._console.options, self._console.height - 1))


class _Rows:
    """A line per utterance, printed when it is complete."""

    def __init__(self, console: Console, growth: Growth) -> None:
        self._console = console
        self._growth = growth
        self._headed = False
        # Finals whose traits may still come, by participant.
        self._waiting: dict[str, UtteranceResult] = {}

    def on_event(self, event: Event, participant_id: str) -> None:
        waiting = self._waiting.pop(participant_id, None)
        if waiting is not None:
            self._print(waiting, participant_id, event.personality if isinstance(event, PersonalityUpdate) else None)
        if isinstance(event, UtteranceResult) and event.is_final:
            self._waiting[participant_id] = event

    def finish(self) -> None:
        for participant_id, event in self._waiting.items():
            self._print(event, participant_id, None)
        self._waiting.clear()

    def _print(self, event: UtteranceResult, participant_id: str, personality: PersonalityEstimate | None) -> None:
        dash = glyphs(self._console.options).nothing
        if not self._headed:
            self._headed = True
            if self._growth.banner:
                self._line(self._growth.banner)
            self._line(
                _row("seconds", "speaker", ("valence", "arousal"), [name[0].upper() for name in TRAITS], "heard")
            )
        emotion, traits, heard = [dash] * 2, [dash] * len(TRAITS), dash
        if event.emotion is not None:
            emotion = [f"{event.emotion.valence:.2f}", f"{event.emotion.arousal:.2f}"]
        if personality is not None:
            traits = [f"{value:.1f}" for value in personality.traits.as_tuple()]
            heard = f"{personality.utterance_count} utt., {personality.speech_s:.0f} s"
        self._line(_row(f"{event.start_s:.1f}{dash}{event.end_s:.1f}", participant_id, emotion, traits, heard))

    def _line(self, text: str) -> None:
        note(text, self._console)


def _row(span: str, who: str, emotion: Sequence[str], traits: Sequence[str], heard: str) -> str:
    numbers = "".join(f"{cell:>8}" for cell in emotion) + "".join(f"{cell:>5}" for cell in traits)
    return f"{span:>13}  {who:<8}{numbers}  {heard:>13}"


async def conclude(client: AsyncClient, conversation: AsyncConversation, sink: Display | Growth | JsonLines) -> None:
    """Tells `sink` what the server knows in the end."""
    if isinstance(sink, JsonLines):
        sink.write(await client.get_conversation_proto(conversation.conversation_id))
    else:
        sink.know(await conversation.get())


def synthetic_banner(info: ServiceInfo, name: str) -> str:
    """What stands above the estimates of a model that learnt from generated speech, in all or in part; "" for another.

    name: of the model; "": the server's default.
    """
    for model in info.models:
        if model.synthetic and (model.name == name if name else model.is_default):
            return f"{model.name}: {model.notice}" if model.notice else SYNTHETIC_BANNER
    return ""


def note(text: str, console: Console | None = None) -> None:
    """Prints a line for people, as it is, on stderr or another console."""
    (console or Console(stderr=True)).print(text, markup=False, highlight=False, soft_wrap=True)
