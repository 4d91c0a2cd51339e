"""What commands show: a live table of utterances, a summary per participant, or JSON lines."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kibun.client.estimates import TRAITS, Emotion, PersonalityEstimate, PersonalitySource, Traits
from kibun.client.events import (
    Event,
    PersonalityUpdate,
    StreamStarted,
    StreamWarning,
    UtteranceResult,
)
from kibun.client.recordings.analysis import MODEL_WARNINGS
from kibun.client.recordings.formats import print_json
from kibun.client.resources import ConversationState, ParticipantState, ServiceInfo

SYNTHETIC_BANNER = "synthetic model: tells you nothing about real people"
# What the tables of utterances need.
_TABLE_WIDTH = 80
# Heading, rules, legend and banner of the table, and the line above it.
_LINES_AROUND_ROWS = 9
_LEGEND = "emotion: 1..5, 3 neutral; OCEAN: apparent traits so far, 1..7; heard: evidence"


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


class LiveTable:
    """A table that grows by a row per utterance; without a terminal it is printed once, at the end."""

    def __init__(self, console: Console, banner: str = "") -> None:
        """banner: stands above the table."""
        self._console = console
        self._banner = banner
        self._rows: dict[str, list[str | Text]] = {}
        self._last_utterance: dict[str, str] = {}
        self._told: set[str] = set()
        # What doesn't fit on the screen scrolls out of the live view; the whole table is printed at the end.
        self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self._view)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        widen(self._console)
        self._console.print(self._table(list(self._rows.values())))

    def on_event(self, event: Event, participant_id: str) -> None:
        """Takes one event of a turn of `participant_id`."""
        match event:
            case StreamStarted(synthetic_model=True):
                self._banner = self._banner or SYNTHETIC_BANNER
            case UtteranceResult():
                self._last_utterance[participant_id] = event.utterance_id
                self._rows[event.utterance_id] = _utterance_cells(event, participant_id)
            case PersonalityUpdate(personality=PersonalityEstimate() as personality):
                row = self._rows.get(self._last_utterance.get(participant_id, ""))
                if row is not None:
                    row[4:] = _personality_cells(personality)
            case StreamWarning():
                text = f"{event.reason}: {event.message}"
                if text not in self._told:
                    self._console.print(Text(text, style="yellow"))
                if event.reason in MODEL_WARNINGS:
                    self._told.add(text)
        if self._console.is_terminal:
            self._live.refresh()

    def _view(self) -> Group:
        return self._table(list(self._rows.values())[-max(self._console.height - _LINES_AROUND_ROWS, 1) :])

    def _table(self, rows: list[list[str | Text]]) -> Group:
        table = compact_table()
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("speaker", no_wrap=True, max_width=12)
        for heading in ("valence", "arousal", *(name[0].upper() for name in TRAITS)):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("heard", justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        banner = [Text(f" {self._banner} ", style="bold black on yellow")] if self._banner else []
        return Group(*banner, table, Text(_LEGEND, style="dim"))


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


def compact_table(gap: int = 2, **options: Any) -> Table:
    """A table that fits ten columns of numbers into 80 characters; gap: characters between them, 1 or 2."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), **options)


def widen(console: Console) -> None:
    """Lets tables keep all of their columns; on a narrower terminal each row then takes several lines."""
    console.width = max(console.width, _TABLE_WIDTH)


def summary_table(conversation: ConversationState) -> Table:
    """What the conversation knows, a column per participant; "± …" is the expected error, where it is known."""
    table = compact_table()
    table.add_column("")
    for participant in conversation.participants:
        table.add_column(Text(participant.participant_id), justify="right")
    table.add_column("scale", style="dim")
    for label, scale, cell in _SUMMARY_ROWS:
        table.add_row(label, *(cell(participant) for participant in conversation.participants), scale)
    if remarks := [remark for participant in conversation.participants if (remark := _remark(participant))]:
        table.caption, table.caption_justify = Text("\n".join(remarks)), "left"
    return table


def _remark(participant: ParticipantState) -> str:
    """Which traits are worth nothing, in words."""
    personality = participant.personality
    if personality is None or not (names := personality.no_better_than_mean):
        return ""
    return f"{participant.participant_id}: {', '.join(names)}: no better than guessing the mean for everyone"


def _emotion_cell(which: str, dimension: str) -> "_Cell":
    def cell(participant: ParticipantState) -> str:
        emotion: Emotion | None = getattr(participant, f"{which}_emotion")
        return "–" if emotion is None else f"{getattr(emotion, dimension):.2f}"

    return cell


def _trait_cell(name: str) -> "_Cell":
    def cell(participant: ParticipantState) -> str:
        personality = participant.personality
        if personality is None:
            return "–"
        if personality.source is PersonalitySource.GIVEN:
            return f"{getattr(personality.traits, name):.2f} given"
        error = personality.expected_error
        return f"{getattr(personality.traits, name):.2f}" + ("" if error is None else f" ± {getattr(error, name):.2f}")

    return cell


_Cell = Callable[[ParticipantState], str]
_SUMMARY_ROWS: list[tuple[str, str, _Cell]] = [
    ("turns", "", lambda participant: str(participant.turn_count)),
    ("utterances", "", lambda participant: str(participant.utterance_count)),
    ("speech", "", lambda participant: f"{participant.speech_s:.1f} s"),
    ("mean valence", "1..5", _emotion_cell("mean", "valence")),
    ("mean arousal", "1..5", _emotion_cell("mean", "arousal")),
    ("last valence", "1..5", _emotion_cell("last", "valence")),
    ("last arousal", "1..5", _emotion_cell("last", "arousal")),
    *((name, "1..7", _trait_cell(name)) for name in TRAITS),
]


def _utterance_cells(event: UtteranceResult, participant_id: str) -> list[str | Text]:
    style = "" if event.is_final else "dim italic"
    cells = [f"{event.start_s:.1f}–{event.end_s:.1f}", participant_id, *_emotion_cells(event.emotion)]
    return [*(Text(cell, style=style) for cell in cells), *(["–"] if event.is_final else [""]) * 6]


def _emotion_cells(emotion: Emotion | None) -> tuple[str, str]:
    return ("–", "–") if emotion is None else (f"{emotion.valence:.2f}", f"{emotion.arousal:.2f}")


def _personality_cells(estimate: PersonalityEstimate) -> list[str]:
    traits: Traits = estimate.traits
    evidence = f"{estimate.utterance_count} utt., {estimate.speech_s:.0f} s"
    return [*(f"{value:.1f}" for value in traits.as_tuple()), evidence]
