"""Hours of speech: counts, durations and means are those of every utterance, however many, on however many streams."""

from collections.abc import AsyncIterator
from fractions import Fraction
from functools import cache
from typing import Any

import pytest

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.api import responses
from kibun.server.conversation.state import MAX_RECORDS
from kibun.server.session.events import (
    Audio,
    EndOfTurn,
    PersonalityUpdate,
    Request,
    StreamEnded,
    StreamStarted,
    TurnResult,
    UtteranceResult,
)
from tests.support.scripted import MODEL
from tests.support.session_world import OpenSession, SessionWorld, events, finals, pcm, run_on

SECONDS, UTTERANCE_S = 3600, 2.0
SPOKEN_S = 0.5


def speech(number: int) -> bytes:
    """One utterance and a long pause: each is as loud as none other nearby, and so is its emotion."""
    return _spoken(number % 97)


@cache
def _spoken(loudness: int) -> bytes:
    return pcm((0.2 + loudness / 200, SPOKEN_S), (0, UTTERANCE_S - SPOKEN_S))


async def talk(first: int, last: int) -> AsyncIterator[Request]:
    for number in range(first, last):
        yield Audio(speech(number))


def mean(results: list[UtteranceResult], index: int) -> float:
    """Rounded once, at the end."""
    total = sum(u.analyzed for u in results)
    values = [(Fraction((u.emotion.valence, u.emotion.arousal)[index]), u.analyzed) for u in results if u.emotion]
    return float(sum(value * weight for value, weight in values) / total)


def check(result: TurnResult, said: list[UtteranceResult]) -> None:
    assert (result.utterance_count, result.missing) == (len(said), 0)
    assert (result.start, result.end) == (said[0].start, said[-1].end)
    assert result.speech == sum(u.analyzed for u in said)
    assert result.emotion
    assert (result.emotion.valence, result.emotion.arousal) == (mean(said, 0), mean(said, 1)), "to the last bit"


async def test_a_turn_of_an_hour() -> None:
    """1,800 utterances, of which the store keeps 512."""
    world = SessionWorld()
    count = round(SECONDS / UTTERANCE_S)
    replies = await run_on(world.session(), talk(0, count))
    said = finals(replies)
    assert len(said) == count
    (result,) = events(replies, TurnResult)
    check(result, said)
    updates = events(replies, PersonalityUpdate)
    assert [u.revision for u in updates] == list(range(1, count + 1))
    assert updates[-1].personality.utterance_count == MAX_RECORDS, "what features are kept of"
    (ended,) = events(replies, StreamEnded)
    assert (ended.received, ended.speech) == (SECONDS * SAMPLE_RATE_HZ, result.speech)
    (person,) = responses.conversation(ended.conversation, MODEL).participants
    assert (person.utterance_count, person.turn_count) == (count, 1)
    assert person.speech_duration == responses.duration(result.speech)
    assert person.mean_emotion == responses.emotion(result.emotion)


@pytest.mark.parametrize("turn_id", ["t1", "t2"])
async def test_what_follows_counts_on(turn_id: str) -> None:
    """A turn that is cut after 600 utterances and resumed, or the next one."""
    world, cut = SessionWorld(), 600
    offset = round(cut * UTTERANCE_S * SAMPLE_RATE_HZ)
    async with OpenSession(world.session()) as stream:
        said = []
        for number in range(cut):
            stream.send(Audio(speech(number)))
            said.append(await stream.until(UtteranceResult, is_final=True))
        if turn_id == "t2":
            stream.send(EndOfTurn())
            check(await stream.until(TurnResult), said)
    resumed = turn_id == "t1"
    options: dict[str, Any] = {"resumes": True, "start_offset": said[-1].end} if resumed else {}
    rest = talk(cut, cut + 40)
    if resumed:
        rest = _after(said[-1].end - offset + round(UTTERANCE_S * SAMPLE_RATE_HZ), cut)
    replies = await run_on(world.session(turn_id=turn_id, **options), rest)
    (started,) = events(replies, StreamStarted)
    assert started.prior_utterances == cut
    (result,) = events(replies, TurnResult)
    check(result, (said if resumed else []) + finals(replies))
    person = (await world.conversation()).participant("p")
    assert person.totals.utterances == cut + 40
    assert person.totals.speech == sum(u.analyzed for u in said + finals(replies))


async def _after(samples: int, cut: int) -> AsyncIterator[Request]:
    """What is left of the utterance before the cut, from that sample on, and 40 more."""
    yield Audio(speech(cut - 1)[2 * samples :])
    async for request in talk(cut, cut + 40):
        yield request
