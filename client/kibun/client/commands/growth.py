"""What has been heard of each speaker, drawn in characters: how estimates grow from utterance to utterance."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kibun.client.estimates import (
    EMOTION_MAX,
    EMOTION_MIN,
    TRAIT_MAX,
    TRAIT_MIN,
    TRAITS,
    Emotion,
    PersonalityEstimate,
    PersonalitySource,
)
from kibun.client.events import Event, PersonalityUpdate, StreamStarted, UtteranceResult
from kibun.client.resources import ConversationState, ParticipantState

SYNTHETIC_BANNER = "synthetic model: tells you nothing about real people"
_EMOTIONS = ("valence", "arousal")
# Of a line: the name of what is drawn, the track, the figures behind it.
_NAME_WIDTH = max(map(len, TRAITS))
_FIGURES_WIDTH = 21
_NARROWEST_TRACK, _WIDEST_TRACK = 13, 79
# More columns than the widest track has.
_MOST_UTTERANCES = _WIDEST_TRACK
_LINES_OF_A_SPEAKER = 1 + len(_EMOTIONS) + len(TRAITS)


@dataclass(frozen=True)
class Glyphs:
    """The characters of a drawing."""

    # From the lowest to the highest value.
    levels: str
    point: str
    point_before: str
    error: str
    error_before: str
    empty: str
    nothing: str
    plus_minus: str
    earlier: str


_UNICODE = Glyphs("▁▂▃▄▅▆▇█", "●", "○", "━", "╌", "·", "–", "±", "‹")
_ASCII = Glyphs("12345", "O", "o", "=", "-", ".", "-", "+-", "<")


def glyphs(options: ConsoleOptions) -> Glyphs:
    """Those that the console's encoding has."""
    return _ASCII if options.ascii_only else _UNICODE


@dataclass
class _Utterance:
    """Its estimates, one after another: interims, then its final."""

    event: UtteranceResult
    emotions: list[Emotion | None] = field(default_factory=list)

    def hear(self, event: UtteranceResult) -> None:
        if self.event.is_final:
            return
        if event.is_final and self.event.covers_speech_so_far:  # an interim that turns out to be the final
            self.emotions.pop()
        self.event = event
        self.emotions.append(event.emotion)


@dataclass
class _Speaker:
    participant_id: str
    utterances: dict[str, _Utterance] = field(default_factory=dict)
    final_count: int = 0
    final_s: float = 0.0
    personality: PersonalityEstimate | None = None
    # The first that was known.
    first: PersonalityEstimate | None = None
    # As the server knew it when it was last asked.
    state: ParticipantState | None = None
    concluded: bool = False

    def hear(self, event: UtteranceResult) -> None:
        known = self.utterances.get(event.utterance_id)
        if known is None:
            known = self.utterances[event.utterance_id] = _Utterance(event, [event.emotion])
            if len(self.utterances) > _MOST_UTTERANCES:
                del self.utterances[next(iter(self.utterances))]
        elif known.event.is_final:
            return
        else:
            known.hear(event)
        if event.is_final:
            self.final_count += 1
            self.final_s += event.analyzed_s

    def learn(self, personality: PersonalityEstimate | None) -> None:
        if personality is None:
            return
        self.personality = personality
        self.first = self.first or personality

    @property
    def evidence(self) -> str:
        known = [(self.final_count, self.final_s)]
        known += [(of.utterance_count, of.speech_s) for of in (self.personality, self.state) if of is not None]
        count = max(count for count, _ in known)
        heard = f"{_counted(count, 'utterance')}, {max(heard_s for _, heard_s in known):.0f} s of speech"
        return f"{_counted(self.state.turn_count, 'turn')}, {heard}" if self.state and self.concluded else heard


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


class Growth:
    """What events and states tell of each participant, as a drawing: a rich renderable that fits 80 columns.

    A bar per utterance for valence and arousal, interims faint before the final that they led to; each trait as a
    point on its scale, with the expected error now and what it was at first. Without colour, and in ASCII, it shows
    the same.
    """

    def __init__(self, banner: str = "") -> None:
        """banner: stands above the drawing."""
        self._banner = banner
        self._speakers: dict[str, _Speaker] = {}
        # Who was heard last comes last.
        self._recent: dict[str, None] = {}

    @property
    def banner(self) -> str:
        return self._banner

    def on_event(self, event: Event, participant_id: str) -> None:
        """Takes one event of a turn of `participant_id`."""
        match event:
            case StreamStarted(synthetic_model=True):
                self._banner = self._banner or SYNTHETIC_BANNER
            case UtteranceResult():
                self._speaker(participant_id).hear(event)
            case PersonalityUpdate():
                self._speaker(participant_id).learn(event.personality)

    def know(self, conversation: ConversationState, *, concluded: bool = True) -> None:
        """Takes what the server knows; concluded: nothing that is drawn is newer."""
        for state in conversation.participants:
            speaker = self._speaker(state.participant_id)
            speaker.state, speaker.concluded = state, concluded
            speaker.learn(state.personality)

    def view(self, options: ConsoleOptions, most_lines: int | None = None) -> list[Text]:
        """The drawing's lines. most_lines: of a screen; those who spoke last are then drawn, others told of."""
        lines = [Text(f" {self._banner} ", style="bold black on yellow")] if self._banner else []
        if not self._speakers:
            return lines
        chosen = glyphs(options)
        drawn = list(self._speakers)
        if most_lines is not None:
            room = most_lines - len(lines) - len(_LEGEND) - len(self._speakers)
            fitting = max(room // _LINES_OF_A_SPEAKER, 1)
            drawn = list(self._recent)[-fitting:]
        for participant_id, speaker in self._speakers.items():
            if participant_id in drawn:
                lines += [Text(""), *_drawing(speaker, chosen, options.max_width)]
            else:
                lines.append(_told(speaker, chosen))
        lines += [Text(""), *(Text(text.format(**asdict(chosen)), style="dim") for text in _LEGEND)]
        for line in lines if most_lines is not None else ():
            line.no_wrap, line.overflow = True, "crop"
        if most_lines is None:
            lines += [remark for speaker in self._speakers.values() for remark in _remarks(speaker)]
        return lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.view(options)

    def _speaker(self, participant_id: str) -> _Speaker:
        self._recent.pop(participant_id, None)
        self._recent[participant_id] = None
        return self._speakers.setdefault(participant_id, _Speaker(participant_id))


_LEGEND = (
    "valence, arousal, 1..5, 3 neutral: a bar per utterance, faint ones: interims",
    "apparent traits, 1..7: {point} now, {point_before} at first; {error} expected error now, {error_before} at first",
)


def _drawing(speaker: _Speaker, chosen: Glyphs, width: int) -> Iterable[Text]:
    track = min(max(width - _NAME_WIDTH - _FIGURES_WIDTH - 4, _NARROWEST_TRACK), _WIDEST_TRACK)
    latest = next(reversed(speaker.utterances.values()), None)
    heading = Text(speaker.participant_id, style="bold")
    heading.append(f"  {speaker.evidence}", style="not bold")
    if latest is not None:
        dash = chosen.nothing
        heading.append(f", latest {latest.event.start_s:.1f}{dash}{latest.event.end_s:.1f} s", style="not bold dim")
    yield heading
    for dimension in _EMOTIONS:
        yield _line(dimension, _bars(speaker, dimension, chosen, track), _emotion_figures(speaker, dimension, chosen))
    worthless = speaker.personality.no_better_than_mean if speaker.personality else ()
    for name in TRAITS:
        line = _line(name, _band(speaker, name, chosen, track), _trait_figures(speaker, name, chosen))
        if name in worthless:
            line.stylize("dim")
        yield line


def _line(name: str, drawn: Text, figures: str) -> Text:
    return Text.assemble(f" {name:<{_NAME_WIDTH}} ", drawn, f" {figures}")


def _bars(speaker: _Speaker, dimension: str, chosen: Glyphs, width: int) -> Text:
    """A group of bars per utterance, a gap between; what doesn't fit is left out: old interims, then old utterances."""
    groups = [(list(utterance.emotions), utterance.event.is_final) for utterance in speaker.utterances.values()]

    def taken() -> int:
        return sum(len(emotions) + 1 for emotions, _ in groups) - 1

    left_out = False
    for index, (emotions, is_final) in enumerate(groups):
        if taken() > width and is_final:
            groups[index] = emotions[-1:], is_final
    while taken() > width - 1 and len(groups) > 1:
        left_out = True
        del groups[0]
    drawn = Text().append(chosen.earlier if left_out else "", style="dim")
    for index, (emotions, is_final) in enumerate(groups):
        drawn.append("" if index == 0 else " ")
        for position, emotion in enumerate(emotions[-width:]):
            final = is_final and position == len(emotions[-width:]) - 1
            drawn.append(_level(emotion, dimension, chosen), style="bold cyan" if final else "dim")
    drawn.truncate(width)
    drawn.pad_right(width - drawn.cell_len)
    return drawn


def _level(emotion: Emotion | None, dimension: str, chosen: Glyphs) -> str:
    if emotion is None:
        return chosen.nothing
    share = (getattr(emotion, dimension) - EMOTION_MIN) / (EMOTION_MAX - EMOTION_MIN)
    return chosen.levels[round(min(max(share, 0.0), 1.0) * (len(chosen.levels) - 1))]


def _band(speaker: _Speaker, name: str, chosen: Glyphs, width: int) -> Text:
    """A trait on its scale: a point within its expected error, within that at first."""
    inner = width - 2

    def column(value: float) -> int:
        share = (value - TRAIT_MIN) / (TRAIT_MAX - TRAIT_MIN)
        return round(min(max(share, 0.0), 1.0) * (inner - 1))

    cells, styles = [chosen.empty] * inner, ["dim"] * inner
    if (estimate := speaker.personality) is not None:
        at = column(getattr(estimate.traits, name))
        first = speaker.first or estimate
        for error, mark, style in (
            (first.expected_error, chosen.error_before, "dim"),
            (estimate.expected_error, chosen.error, "cyan"),
        ):
            if error is not None:
                reach = round(getattr(error, name) / (TRAIT_MAX - TRAIT_MIN) * (inner - 1))
                for covered in range(max(at - reach, 0), min(at + reach + 1, inner)):
                    cells[covered], styles[covered] = mark, style
        for point, mark in ((column(getattr(first.traits, name)), chosen.point_before), (at, chosen.point)):
            cells[point], styles[point] = mark, "bold cyan"
    drawn = Text().append(f"{TRAIT_MIN:.0f}", style="dim")
    for cell, style in zip(cells, styles, strict=True):
        drawn.append(cell, style=style)
    return drawn.append(f"{TRAIT_MAX:.0f}", style="dim")


def _emotion_figures(speaker: _Speaker, dimension: str, chosen: Glyphs) -> str:
    latest = next(reversed(speaker.utterances.values()), None)
    emotion = latest.emotions[-1] if latest else speaker.state.last_emotion if speaker.state else None
    mean = speaker.state.mean_emotion if speaker.state and speaker.concluded else None
    if emotion is None and mean is None:
        return chosen.nothing
    text = chosen.nothing if emotion is None else f"{getattr(emotion, dimension):.2f}"
    if latest is not None and not latest.event.is_final:
        return f"{text} so far"
    return text if mean is None else f"{text}, mean {getattr(mean, dimension):.2f}"


def _trait_figures(speaker: _Speaker, name: str, chosen: Glyphs) -> str:
    if (estimate := speaker.personality) is None:
        return chosen.nothing
    text = f"{getattr(estimate.traits, name):.1f}"
    if estimate.source is PersonalitySource.GIVEN:
        return f"{text} given"
    if estimate.expected_error is None:
        return text
    text = f"{text} {chosen.plus_minus} {getattr(estimate.expected_error, name):.2f}"
    if name in estimate.no_better_than_mean:
        return f"{text}, a guess"
    before = speaker.first.expected_error if speaker.first else None
    return f"{text}, was {getattr(before, name):.2f}" if before and before != estimate.expected_error else text


def _told(speaker: _Speaker, chosen: Glyphs) -> Text:
    """One who doesn't fit on the screen, on one line."""
    figures = ", ".join(f"{name} {_emotion_figures(speaker, name, chosen)}" for name in _EMOTIONS)
    return Text.assemble((speaker.participant_id, "bold"), f"  {speaker.evidence}: {figures}")


def _remarks(speaker: _Speaker) -> Iterable[Text]:
    """Which traits are worth nothing, in words."""
    if speaker.personality is not None and (names := speaker.personality.no_better_than_mean):
        yield Text(f"{speaker.participant_id}: {', '.join(names)}: no better than guessing the mean for everyone")
