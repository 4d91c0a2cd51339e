"""The guarantees of a stream, over a real socket against a real server."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from kibun.server.audio.vad import SileroVad
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.decoding import resampled_length
from tests.support.serving import (
    RATE_HZ,
    Encoding,
    RunningServer,
    Talk,
    check_stream,
    chunks,
    config,
    converse,
    encode,
    end_of_turn,
    finals,
    of_kind,
    samples,
    seconds,
    serve,
    sound,
    spoken,
)

pytestmark = pytest.mark.usefixtures("eager_finals")

ENCODINGS: dict[Encoding, pb.AudioEncoding] = {
    "linear16": pb.AUDIO_ENCODING_LINEAR16,
    "mulaw": pb.AUDIO_ENCODING_MULAW,
    "float32": pb.AUDIO_ENCODING_FLOAT32,
    "alaw": pb.AUDIO_ENCODING_ALAW,
}
Event = pb.SpeechEvent
DELAY_S = 0.06  # of each inference, so that finals are slower than their stream


@pytest.fixture(scope="module")
def server(eager_finals: None) -> Iterator[RunningServer]:
    # Room for all streams of a test at once, also where the machine is busy and the stub is measured to be slow.
    with serve(model=f"stub?delay_s={DELAY_S}&slots=16") as running:
        yield running
        log = running.log.read_text()
        for word in ("failed", "error=", "Traceback", "never retrieved", "never awaited"):
            assert word not in log, log


def dialogue() -> np.ndarray:
    """7.9 s: three utterances, the last one without a pause after it."""
    return np.concatenate([spoken(1.3), spoken(1.7, seed=1), spoken(1.3, seed=2, pause=0)])


def results(responses: list[pb.StreamingAnalyzeResponse]) -> list[Any]:
    """All that must not depend on chunking, speed or load."""
    kinds = ("utterance_result", "personality_update", "turn_result")
    found = [(kind, value) for r in responses for kind in kinds for value in of_kind([r], kind)]
    return [(kind, value) for kind, value in found if kind != "utterance_result" or value.is_final]


# ---- one stream


async def test_every_sample_is_accounted_for_in_every_encoding_and_rate(stub: Stub) -> None:
    async def one(encoding: Encoding, rate: int) -> None:
        audio = spoken(0.8, rate=rate)
        payload = encode(audio, encoding)
        responses = await converse(stub, [config(rate=rate, encoding=ENCODINGS[encoding]), *chunks(payload, 3333)])
        ended = check_stream(responses)
        assert samples(ended.audio_received) == resampled_length(len(audio), rate)
        (final,) = finals(responses)
        assert 0.7 < final.analyzed_duration.ToMilliseconds() / 1000 < 1.6
        assert not samples(ended.dropped_duration)

    cases = [(encoding, rate) for encoding in ENCODINGS for rate in (8_000, 11_025, 16_000, 22_050, 44_100, 48_000)]
    await asyncio.gather(*(one(encoding, rate) for encoding, rate in cases))


async def test_any_chunking_gives_the_same_results(stub: Stub) -> None:
    payload = encode(dialogue())

    async def results_of(size: int) -> list[Any]:
        responses = await converse(stub, [config(conversation_id=f"size-{size}", turn_id="t"), *chunks(payload, size)])
        check_stream(responses)
        return results(responses)

    whole, *others = await asyncio.gather(*(results_of(size) for size in (256 * 1024, 111, 3_200, 777, 64_001)))
    assert [kind for kind, _ in whole] == ["utterance_result", "personality_update"] * 3 + ["turn_result"]
    for other in others:
        assert other == whole


async def test_alone_as_beside_others(stub: Stub) -> None:
    async def run(name: str, seed: int) -> list[Any]:
        audio = encode(np.concatenate([spoken(1.0, seed=seed), spoken(0.7, seed=seed + 1)]))
        return results(await converse(stub, [config(conversation_id=name, turn_id="t"), *chunks(audio)]))

    alone = [await run(f"alone-{seed}", seed) for seed in range(3)]
    beside = await asyncio.gather(*(run(f"beside-{n}", n % 3) for n in range(15)))
    for n, result in enumerate(beside):
        assert result == alone[n % 3]


async def test_stream_started_describes_the_stream(stub: Stub) -> None:
    responses = await converse(stub, [config()])
    check_stream(responses)
    (started,) = of_kind(responses, "stream_started")
    assert started.request_id
    assert started.participant_id == "user"
    assert started.model == "stub"
    assert started.conversation_created
    assert started.synthetic_model
    assert started.max_audio_content_bytes == 256 * 1024
    effective = started.effective_config
    assert effective.conversation_id == started.conversation_id != ""
    assert effective.turn_id == started.turn_id != ""
    assert effective.audio_config == pb.AudioConfig(
        encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=16_000, audio_channel_count=1
    )
    assert effective.endpointing_config.utterance_end_silence == seconds(0.5)
    assert effective.conversation_ttl == seconds(1800)
    again = config()
    again.streaming_config.CopyFrom(effective)
    again.streaming_config.turn_id = "next"
    (echoed,) = of_kind(await converse(stub, [again]), "stream_started")
    assert not echoed.conversation_created
    effective.turn_id = "next"
    assert echoed.effective_config == effective, "an effective config means itself"


@pytest.mark.parametrize("how", ["half_close", "end_of_turn"])
async def test_both_ways_to_end_a_turn_flush_speech_under_way(stub: Stub, how: str) -> None:
    async with Talk(stub) as talk:
        await talk.send(config(turn_id="t1"), *chunks(encode(sound(("silence", 0.4), ("speech", 0.9)))))
        if how == "end_of_turn":
            await talk.send(end_of_turn("t2"))
            reason = pb.END_REASON_CLIENT_END_OF_TURN
            turn = await talk.until("turn_result")  # while the stream stays open
            assert turn.turn_id == "t1"
        else:
            reason = pb.END_REASON_HALF_CLOSE
        responses = await talk.finish()
    check_stream(responses)
    (final,) = finals(responses)
    (turn,) = of_kind(responses, "turn_result")
    assert final.end_offset == seconds(1.3)
    assert final.end_reason == turn.end_reason == reason
    assert (turn.start_offset, turn.end_offset) == (final.start_offset, final.end_offset)
    assert turn.emotion == final.emotion
    assert turn.speech_duration == final.analyzed_duration


async def test_the_end_of_an_utterance_is_found_without_a_word_of_the_client(stub: Stub) -> None:
    async with Talk(stub) as talk:
        await talk.send(config(), *chunks(encode(spoken(1.0))))
        final = await talk.until("utterance_result", is_final=True)
        assert final.end_reason == pb.END_REASON_SILENCE
        check_stream(await talk.finish())


async def test_speech_events(stub: Stub) -> None:
    features = pb.AnalysisFeatures(enable_voice_activity_events=True)
    responses = await converse(stub, [config(features=features, turn_id="t"), *chunks(encode(spoken(1.0)))])
    speech_events = of_kind(responses, "speech_event")
    assert [e.type for e in speech_events] == [
        Event.TYPE_START_OF_TURN,
        Event.TYPE_SPEECH_ACTIVITY_BEGIN,
        Event.TYPE_SPEECH_ACTIVITY_END,
        Event.TYPE_END_OF_TURN,
    ]
    assert {e.turn_id for e in speech_events} == {"t"}
    begin, end = (samples(e.offset) / RATE_HZ for e in speech_events[1:3])
    assert begin == pytest.approx(0.4, abs=0.1)
    assert end == pytest.approx(1.4, abs=0.2)
    kinds = [r.WhichOneof("streaming_response") for r in responses]
    assert kinds.index("utterance_result") > kinds.index("speech_event") + 2, "events do not wait for the analysis"
    quiet = of_kind(await converse(stub, [config(), *chunks(encode(spoken(1.0)))]), "speech_event")
    assert [e.type for e in quiet] == [Event.TYPE_START_OF_TURN, Event.TYPE_END_OF_TURN]


# ---- endpointing


async def test_the_server_ends_turns_after_silence(stub: Stub) -> None:
    audio = np.concatenate([spoken(0.9, pause=1.5), spoken(0.9, seed=1, pause=1.5)])
    first = config(turn_id="t1", endpointing_config={"end_of_turn_silence": seconds(1)})
    responses = await converse(stub, [first, *chunks(encode(audio))])
    check_stream(responses)
    turns = of_kind(responses, "turn_result")
    assert [t.end_reason for t in turns] == [pb.END_REASON_SILENCE] * 2
    assert turns[0].turn_id == "t1"
    assert [u.turn_id for u in finals(responses)] == [t.turn_id for t in turns], "and no third turn of silence"
    ends = [e for e in of_kind(responses, "speech_event") if e.type == Event.TYPE_END_OF_TURN]
    assert samples(ends[0].offset) / RATE_HZ == pytest.approx(0.4 + 0.9 + 1.0, abs=0.15)


async def test_no_speech_timeout(stub: Stub) -> None:
    first = config(endpointing_config={"speech_start_timeout": seconds(0.5)})
    responses = await converse(stub, [first, *chunks(bytes(2 * RATE_HZ))])
    check_stream(responses)
    timeouts = [e for e in of_kind(responses, "speech_event") if e.type == Event.TYPE_NO_SPEECH_TIMEOUT]
    (offset,) = (samples(e.offset) for e in timeouts)
    assert RATE_HZ // 2 <= offset < RATE_HZ // 2 + SileroVad.frame_samples


async def test_long_speech_is_cut_without_losing_a_sample(stub: Stub) -> None:
    first = config(endpointing_config={"max_utterance_duration": seconds(1)})
    responses = await converse(stub, [first, *chunks(encode(sound(("speech", 3.5))))])
    check_stream(responses)
    found = finals(responses)
    assert [u.end_reason for u in found][:-1] == [pb.END_REASON_MAX_DURATION] * (len(found) - 1)
    assert len(found) >= 4
    for before, after in pairwise(found):
        assert before.end_offset == after.start_offset


async def test_too_little_speech_is_dropped_by_name(stub: Stub) -> None:
    """Speech that is cut after a second and ends 390 samples later: those are too few for the model."""
    first = config(endpointing_config={"max_utterance_duration": seconds(1)})
    responses = await converse(stub, [first, *chunks(encode(sound(("speech", 2))[: RATE_HZ + 390]))])
    ended = check_stream(responses)
    whole, rest = finals(responses)
    assert whole.HasField("emotion")
    assert not rest.HasField("emotion")
    assert not rest.HasField("personality")
    assert not rest.HasField("condition")
    assert not samples(rest.analyzed_duration)
    assert samples(ended.dropped_duration) == 390
    assert samples(ended.speech_duration) == RATE_HZ
    assert [w.reason for w in of_kind(responses, "stream_warning")] == ["TOO_LITTLE_SPEECH"]
    (turn,) = of_kind(responses, "turn_result")
    assert (turn.utterance_count, samples(turn.speech_duration)) == (2, RATE_HZ)


async def test_an_odd_byte_is_carried_over_and_the_last_one_named(stub: Stub) -> None:
    payload = encode(spoken(0.8))
    whole = await converse(stub, [config(conversation_id="even", turn_id="t"), *chunks(payload, 1001)])
    odd = await converse(stub, [config(conversation_id="odd", turn_id="t"), *chunks(payload + b"\x01", 1001)])
    assert results(odd) == results(whole)
    assert [w.reason for w in of_kind(odd, "stream_warning")] == ["INCOMPLETE_SAMPLE"]
    assert check_stream(odd).audio_received == check_stream(whole).audio_received


# ---- interims


@pytest.mark.parametrize(
    ("interval_s", "expected_s"), [(None, [1, 2.5]), (0.75, [0.75, 1.5, 2.25, 3.0, 3.75])], ids=["geometric", "fixed"]
)
async def test_interims_come_when_due_and_before_their_final(
    stub: Stub, interval_s: float | None, expected_s: list[float]
) -> None:
    features = pb.AnalysisFeatures(interim_results=True, interim_interval=seconds(interval_s) if interval_s else None)
    payload = encode(sound(("silence", 0.4), ("speech", 4.4), ("silence", 0.8)))
    async with Talk(stub) as talk:
        await talk.send(config(features=features))
        sent = 0
        for due_s in expected_s:  # 0.4 s of silence, less 0.3 s of pre-roll; a little more, to be sure it is due
            upto = 2 * round((0.4 + due_s) * RATE_HZ)
            await talk.send(*chunks(payload[sent:upto], 1600))
            sent = upto
            interim = await talk.until("utterance_result")
            assert not interim.is_final
            length = samples(interim.end_offset) - samples(interim.start_offset)
            assert length == round(due_s * RATE_HZ), "to the sample"
            assert interim.emotion.arousal > 1
        await talk.send(*chunks(payload[sent:]))
        responses = await talk.finish()
    check_stream(responses)
    (final,) = finals(responses)
    utterances = of_kind(responses, "utterance_result")
    assert utterances[-1] == final
    assert {u.utterance_id for u in utterances} == {final.utterance_id}
    assert {samples(u.start_offset) for u in utterances} == {samples(final.start_offset)}


async def test_no_interims_unless_asked_for(stub: Stub) -> None:
    responses = await converse(stub, [config(), *chunks(encode(spoken(2.5)))], pause_s=0.01)
    assert len(of_kind(responses, "utterance_result")) == 1


# ---- features


async def test_traits_given_by_one_stream_do_not_change_another_that_is_open(stub: Stub) -> None:
    def traits(value: float) -> pb.BigFiveTraits:
        return pb.BigFiveTraits(
            openness=value, conscientiousness=value, extraversion=value, agreeableness=value, neuroticism=value
        )

    async def condition(talk: Talk) -> pb.BigFiveTraits:
        await talk.send(*chunks(encode(spoken(1.0))))
        final: pb.UtteranceResult = await talk.until("utterance_result", is_final=True)
        return final.condition.traits

    names = {"conversation_id": "given-by-others"}
    async with Talk(stub) as none, Talk(stub) as two, Talk(stub) as six, Talk(stub) as later:
        await none.start(turn_id="a", **names)
        predicted = await condition(none)
        await two.start(turn_id="b", given_personality=traits(2), **names)
        await six.start(turn_id="c", given_personality=traits(6), **names)
        assert await condition(none) not in (traits(2), traits(6))
        assert await condition(two) == traits(2)
        assert await condition(six) == traits(6)
        assert predicted not in (traits(2), traits(6))
        started = await later.start(turn_id="d", **names)
        assert started.effective_config.given_personality == traits(6), "the latest"
        assert await condition(later) == traits(6)


async def test_given_personality_conditions_emotion(stub: Stub) -> None:
    given = pb.BigFiveTraits(openness=1, conscientiousness=2, extraversion=3, agreeableness=6, neuroticism=7)
    responses = await converse(stub, [config(given_personality=given), *chunks(encode(spoken(1.0)))])
    (final,) = finals(responses)
    assert final.condition.source == pb.PERSONALITY_SOURCE_GIVEN
    assert final.condition.traits == given
    assert final.personality.source == pb.PERSONALITY_SOURCE_UTTERANCE
    assert final.personality.traits != given, "what is estimated from speech is still reported"
    (update,) = of_kind(responses, "personality_update")
    assert update.personality.source == pb.PERSONALITY_SOURCE_CONVERSATION


@pytest.mark.parametrize("without", ["emotion", "personality"])
async def test_features_can_be_left_out(stub: Stub, without: str) -> None:
    leave_out: dict[str, Any] = {f"disable_{without}": True}
    features = pb.AnalysisFeatures(**leave_out)
    responses = await converse(stub, [config(features=features), *chunks(encode(spoken(1.0)))])
    check_stream(responses)
    (final,), (turn,) = finals(responses), of_kind(responses, "turn_result")
    other = "personality" if without == "emotion" else "emotion"
    for result in (final, turn):
        assert result.HasField(other)
        assert not result.HasField(without)
    assert bool(of_kind(responses, "personality_update")) == (without == "emotion")
    assert final.HasField("condition") == (without == "personality"), "emotion rests on traits, shown or not"


async def test_emotion_is_conditioned_on_the_conversation_this_utterance_included(stub: Stub) -> None:
    responses = await converse(stub, [config(), *chunks(encode(dialogue()))])
    found, updates = finals(responses), of_kind(responses, "personality_update")
    for number, (final, update) in enumerate(zip(found, updates, strict=True), 1):
        assert final.condition.source == update.personality.source == pb.PERSONALITY_SOURCE_CONVERSATION
        assert final.condition.traits == update.personality.traits
        assert final.condition.utterance_count == update.personality.utterance_count == number
        assert final.personality.utterance_count == 1
        assert update.revision == number
    assert len({u.personality.traits.openness for u in updates}) == 3, "the stub's traits follow the history"
    (turn,) = of_kind(responses, "turn_result")
    assert turn.personality == updates[-1].personality


# ---- turns and conversations


TURNS = [spoken(1.0), spoken(1.4, seed=3), spoken(0.8, seed=5, pause=0)]


async def one_stream_per_turn(stub: Stub, name: str) -> list[Any]:
    values, offset = [], 0
    for number, audio in enumerate(TURNS):
        first = config(conversation_id=name, turn_id=f"t{number}", audio_start_offset=seconds(offset / RATE_HZ))
        responses = await converse(stub, [first, *chunks(encode(audio))])
        check_stream(responses)
        values += results(responses)
        offset += len(audio)
    return values


def without_reasons(values: list[Any]) -> list[Any]:
    """A client's end of turn and a half-close differ in nothing but their names."""
    for kind, value in values:
        if kind != "personality_update":
            value.end_reason = pb.END_REASON_UNSPECIFIED
    return values


async def test_many_turns_on_one_stream_equal_one_stream_per_turn(stub: Stub) -> None:
    requests = [config(conversation_id="one", turn_id="t0")]
    for number, audio in enumerate(TURNS, 1):
        requests += [*chunks(encode(audio)), end_of_turn(f"t{number}")]
    responses = await converse(stub, requests)
    check_stream(responses)
    assert [t.turn_id for t in of_kind(responses, "turn_result")] == ["t0", "t1", "t2"], "none for the empty t3"
    assert without_reasons(results(responses)) == without_reasons(await one_stream_per_turn(stub, "each"))


async def test_the_next_stream_may_open_while_the_last_one_drains(stub: Stub) -> None:
    """Its estimates still rest on the turns before, as if it had waited."""

    one_by_one = await one_stream_per_turn(stub, "patient")
    talks, offset = [Talk(stub) for _ in TURNS], 0
    for number, (talk, audio) in enumerate(zip(talks, TURNS, strict=True)):
        first = config(conversation_id="hasty", turn_id=f"t{number}", audio_start_offset=seconds(offset / RATE_HZ))
        await talk.send(first, *chunks(encode(audio)))
        await talk.call.done_writing()
        await talk.until("stream_started")
        offset += len(audio)
    per_stream = [await talk.rest() for talk in talks]
    for responses in per_stream:
        check_stream(responses)
    assert [r for responses in per_stream for r in results(responses)] == one_by_one
    starts = [of_kind(responses, "stream_started")[0] for responses in per_stream]
    assert starts[1].prior_utterance_count == 0, "it did open before the first was answered"


async def test_an_open_stream_that_is_silent_delays_no_other(stub: Stub) -> None:
    async with Talk(stub) as silent:
        await silent.send(config(conversation_id="held", turn_id="t1"), *chunks(bytes(3200)))
        await silent.until("stream_started")
        async with asyncio.timeout(3):
            audio = chunks(encode(spoken(0.8)))
            assert finals(await converse(stub, [config(conversation_id="held", turn_id="t2"), *audio]))


async def test_two_participants_at_once(stub: Stub) -> None:
    def request(who: str, name: str, seed: int) -> list[Any]:
        first = config(conversation_id=name, participant_id=who, turn_id="t")
        return [first, *chunks(encode(np.concatenate([spoken(1.0, seed=seed), spoken(0.8, seed=seed + 1)])))]

    together = await asyncio.gather(
        *(converse(stub, request(who, "both", seed), pause_s=0.002) for who, seed in (("a", 0), ("b", 7)))
    )
    for (who, seed), responses in zip((("a", 0), ("b", 7)), together, strict=True):
        check_stream(responses)
        alone = await converse(stub, request(who, f"only-{who}", seed))
        assert results(responses) == results(alone), "neither knows of the other's voice"
    name = pb.GetConversationRequest(conversation_id="both")
    found = (await stub.GetConversation(name)).conversation
    assert sorted(p.participant_id for p in found.participants) == ["a", "b"]
    assert [(p.turn_count, p.utterance_count) for p in found.participants] == [(1, 2)] * 2


async def test_a_later_stream_knows_what_was_before(stub: Stub) -> None:
    for number in range(3):
        first = config(conversation_id="known", turn_id=f"t{number}", require_existing_conversation=number > 0)
        responses = await converse(stub, [first, *chunks(encode(spoken(0.8)))])
        (started,) = of_kind(responses, "stream_started")
        assert started.conversation_created == (number == 0)
        assert started.prior_utterance_count == number
        (participant,) = responses[-1].stream_ended.conversation.participants
        assert participant.turn_count == participant.utterance_count == number + 1


async def test_analyze_gives_the_results_of_a_stream(stub: Stub) -> None:
    payload = encode(dialogue())
    streamed = await converse(stub, [config(conversation_id="s", turn_id="t"), *chunks(payload)])
    request = config(conversation_id="a", turn_id="t").streaming_config
    answer = await stub.Analyze(pb.AnalyzeRequest(config=request, audio_content=payload))
    assert list(answer.utterances) == finals(streamed)
    assert [answer.turn_result] == of_kind(streamed, "turn_result")
    assert answer.conversation.participants == streamed[-1].stream_ended.conversation.participants
    assert answer.request_id


# ---- resuming


async def undisturbed(stub: Stub, name: str, **fields: Any) -> list[pb.StreamingAnalyzeResponse]:
    return await converse(stub, [config(conversation_id=name, turn_id="t", **fields), *chunks(encode(dialogue()))])


@pytest.mark.parametrize("answered", [0, 1, 2])
@pytest.mark.parametrize("cut", [False, True], ids=["pauses", "forced cuts"])
async def test_a_turn_resumed_gives_what_it_would_have_given(stub: Stub, answered: int, cut: bool) -> None:
    """The connection is lost in the middle of speech, after `answered` finals; the client replays from the last one."""
    fields: dict[str, Any] = {"endpointing_config": {"max_utterance_duration": seconds(1)}} if cut else {}
    whole = await undisturbed(stub, f"whole-{answered}-{cut}", **fields)
    name, audio = f"resumed-{answered}-{cut}", dialogue()
    ends = [0, *(samples(u.end_offset) for u in finals(whole))]
    lost_at = (ends[answered] + ends[answered + 1]) // 2
    async with Talk(stub) as talk:
        sent = encode(audio[: max(lost_at, ends[answered] + RATE_HZ)])
        await talk.send(config(conversation_id=name, turn_id="t", **fields), *chunks(sent))
        for _ in range(answered):
            await talk.until("utterance_result", is_final=True)
    offset = ends[answered]
    first = config(conversation_id=name, turn_id="t", audio_start_offset=seconds(offset / RATE_HZ), **fields)
    resumed = await converse(stub, [first, *chunks(encode(audio[offset:]))])
    check_stream(resumed)
    assert finals(resumed) == finals(whole)[answered:]
    (turn,), (expected) = of_kind(resumed, "turn_result"), of_kind(whole, "turn_result")
    assert [turn] == expected, "of the whole turn"
    (participant,) = resumed[-1].stream_ended.conversation.participants
    (was,) = whole[-1].stream_ended.conversation.participants
    assert participant == was, "nothing counted twice, nothing lost"


@pytest.mark.parametrize("cut", [False, True], ids=["pauses", "forced cuts"])
async def test_a_server_that_does_not_know_the_turn_resumes_it_from_the_request(stub: Stub, cut: bool) -> None:
    """What the first server knew is lost; the client sends how the last utterance that it knows of had ended."""
    fields: dict[str, Any] = {"endpointing_config": {"max_utterance_duration": seconds(1)}} if cut else {}
    whole = await undisturbed(stub, f"known-{cut}", **fields)
    for number, last in enumerate(finals(whole)[:-1], 1):
        first = config(
            conversation_id=f"unknown-{cut}-{number}",
            turn_id="t",
            audio_start_offset=last.end_offset,
            resume_turn=True,
            resume_after=last.end_reason,
            **fields,
        )
        resumed = await converse(stub, [first, *chunks(encode(dialogue()[samples(last.end_offset) :]))])
        assert of_kind(resumed, "stream_started")[0].conversation_created
        spans = [[(u.start_offset, u.end_offset, u.end_reason) for u in finals(r)] for r in (whole, resumed)]
        assert spans[1] == spans[0][number:]


async def test_silence_that_ends_a_turn_is_counted_across_a_lost_connection(stub: Stub) -> None:
    audio = spoken(0.9, pause=1.5)
    fields: dict[str, Any] = {"turn_id": "t", "endpointing_config": {"end_of_turn_silence": seconds(1)}}
    whole = await converse(stub, [config(conversation_id="silent-whole", **fields), *chunks(encode(audio))])
    async with Talk(stub) as talk:
        await talk.send(config(conversation_id="silent", **fields), *chunks(encode(audio[: int(2.1 * RATE_HZ)])))
        final = await talk.until("utterance_result", is_final=True)
    again = config(conversation_id="silent", audio_start_offset=final.end_offset, **fields)
    resumed = await converse(stub, [again, *chunks(encode(audio[samples(final.end_offset) :]))])
    (turn,), (expected,) = of_kind(resumed, "turn_result"), of_kind(whole, "turn_result")
    assert turn == expected
    assert turn.end_reason == pb.END_REASON_SILENCE


@pytest.mark.parametrize("answered", [0, 1])
async def test_a_result_lost_on_its_way_is_given_again(stub: Stub, answered: int) -> None:
    """The server has written everything; the client got only `answered` finals and comes back for the rest."""
    name, audio = f"lost-{answered}", dialogue()
    whole = await undisturbed(stub, name)
    offset = [0, *(samples(u.end_offset) for u in finals(whole))][answered]
    again = config(conversation_id=name, turn_id="t", audio_start_offset=seconds(offset / RATE_HZ), resume_turn=True)
    resumed = await converse(stub, [again, *chunks(encode(audio[offset:]))])
    assert finals(resumed) == finals(whole)[answered:]
    assert of_kind(resumed, "turn_result") == of_kind(whole, "turn_result")
    (participant,) = resumed[-1].stream_ended.conversation.participants
    assert participant == whole[-1].stream_ended.conversation.participants[0], "nothing counted twice"


async def test_progress_reports_what_needs_no_replay(stub: Stub) -> None:
    """In silence it grows; while an utterance waits or is spoken it stays before it; the offset is in it."""
    audio = sound(("silence", 11.0), ("speech", 1.0), ("silence", 12.0), ("speech", 8.0), ("silence", 0.8))
    heard = chunks(encode(audio))
    async with Talk(stub) as talk:
        await talk.send(config(audio_start_offset=seconds(100)), *heard[:150])
        await talk.until("utterance_result", is_final=True)
        await talk.send(*heard[150:])
        responses = await talk.finish()
    check_stream(responses)
    progress_s = [samples(p.settled_offset) / RATE_HZ - 100 for p in of_kind(responses, "stream_progress")]
    assert len(progress_s) == 3, "one in ten seconds"
    assert 5 < progress_s[0] <= 10
    assert 15 < progress_s[1] <= 20
    last = finals(responses)[-1]
    assert 19 < progress_s[2] <= samples(last.start_offset) / RATE_HZ - 100 < 25


@pytest.mark.parametrize("known", [True, False], ids=["known", "forgotten"])
async def test_a_stream_resumed_where_all_was_settled_gives_the_same(stub: Stub, known: bool) -> None:
    """Both kinds of place: the end of the last final, and a long quiet; on a server that knows the turn, or another."""
    parts = [("speech", 1.0), ("silence", 8.0), ("speech", 5.0), ("silence", 0.8), ("speech", 9.0), ("silence", 9.0)]
    audio = sound(*parts)
    audio = audio + np.random.default_rng(4).normal(0, 0.002, len(audio))  # no two silences are alike
    fields: dict[str, Any] = {"turn_id": "t", "endpointing_config": {"max_utterance_duration": seconds(6)}}
    heard = encode(audio)
    async with Talk(stub) as talk:
        await talk.send(config(conversation_id=f"all-{known}", **fields))
        for begin_s, end_s in ((0, 9.5), (9.5, 15.5), (15.5, 21.5)):
            await talk.send(*chunks(heard[round(32_000 * begin_s) : round(32_000 * end_s)]))
            await talk.until("utterance_result", is_final=True)
        await talk.send(*chunks(heard[round(32_000 * 21.5) :]))
        whole = await talk.finish()
    points = {samples(p.settled_offset) for p in of_kind(whole, "stream_progress")}
    assert len(points) == 3
    for point in points:
        before = [u for u in finals(whole) if samples(u.end_offset) <= point]
        reason = before[-1].end_reason if before and samples(before[-1].end_offset) == point else 0
        again = config(
            conversation_id=f"all-{known}" if known else f"all-{known}-{point}",
            audio_start_offset=seconds(point / RATE_HZ),
            resume_turn=True,
            resume_after=reason,
            **fields,
        )
        resumed = await converse(stub, [again, *chunks(heard[2 * point :])])
        spans = [[(u.start_offset, u.end_offset, u.end_reason) for u in finals(r)] for r in (whole, resumed)]
        assert spans[1] == spans[0][len(before) :]


async def test_resuming_earlier_replaces_what_came_after(stub: Stub) -> None:
    audio = dialogue()
    async with Talk(stub) as talk:
        await talk.send(config(conversation_id="replaced", turn_id="t"), *chunks(encode(audio)))
        for _ in range(2):
            await talk.until("utterance_result", is_final=True)
        first, _second = finals(talk.responses)
    offset = samples(first.end_offset)
    again = config(conversation_id="replaced", turn_id="t", audio_start_offset=seconds(offset / RATE_HZ))
    resumed = await converse(stub, [again, *chunks(bytes(2 * RATE_HZ))])
    (turn,) = of_kind(resumed, "turn_result")
    assert turn.utterance_count == 1
    assert turn.end_offset == first.end_offset
    (participant,) = resumed[-1].stream_ended.conversation.participants
    assert participant.utterance_count == 1
    assert participant.personality.utterance_count == 1
    assert participant.last_emotion == first.emotion
