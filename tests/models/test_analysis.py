"""The one call: alone or among others, with any history, within the scales, and what it refuses."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kibun.models.analysis import Model, NonFiniteError, analyze
from kibun.models.building.self_test import self_test
from kibun.models.frames import Frames, normalised
from kibun.models.model import KibunModel
from kibun.models.packed_model import pack
from kibun.models.types import Analysis, Evidence, Utterance
from tests.support import present
from tests.support.tiny_hubert import noise, tiny_model

GIVEN = (2.0, 6.5, 3.0, 7.0, 1.0)
CENTRE = (4.5, 3.5, 4.0, 5.0, 3.0)
NO_HISTORY = np.zeros((0, 32), np.float16)


@pytest.fixture(scope="module")
def model() -> KibunModel:
    return tiny_model()


def history(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 32)).astype(np.float16)


def estimates(analysis: Analysis) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(analysis).items() if name != "vector"}


def mixed_requests() -> list[Utterance]:
    return [
        Utterance(noise(16_000, 1), NO_HISTORY),
        Utterance(noise(400, 2), history(3)),
        Utterance(noise(16_000, 3), history(1), given_traits=GIVEN),
        Utterance(noise(7_777, 4), NO_HISTORY, personality=False),
        Utterance(noise(24_001, 5), history(20), emotion=False),
    ]


def test_among_others_every_bit_is_as_alone(model: KibunModel) -> None:
    together = model.analyze(mixed_requests())
    for request, analysis in zip(mixed_requests(), together, strict=True):
        [alone] = model.analyze([request])
        assert np.array_equal(alone.vector, analysis.vector)
        assert estimates(alone) == estimates(analysis)
    assert model.analyze([]) == []


def test_padded_batches_agree_to_1e_5(model: KibunModel) -> None:
    """The path of training and of GPUs: one padded batch through every step."""
    waveforms = [torch.from_numpy(request.audio) for request in mixed_requests()]
    traits = torch.tensor(GIVEN).expand(len(waveforms), 5)
    with torch.no_grad():
        frames = model.encode(waveforms)
        vectors, emotion = model.vectors(frames), model.emotion(frames, traits)
        for index, waveform in enumerate(waveforms):
            alone = model.encode([waveform])
            torch.testing.assert_close(vectors[index], model.vectors(alone)[0], atol=1e-5, rtol=0)
            for name, value in model.emotion(alone, traits[:1]).items():
                torch.testing.assert_close(emotion[name][index], value[0], atol=1e-5, rtol=0)


def test_batched_analysis_agrees_with_one_by_one(model: KibunModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does. A vector may land one float16 step away, and that moves estimates by little."""
    alone = model.analyze(mixed_requests())
    monkeypatch.setattr("kibun.models.analysis._batches", lambda model, requests: [requests])
    for first, second in zip(alone, model.analyze(mixed_requests()), strict=True):
        np.testing.assert_allclose(first.vector, second.vector, atol=2e-3)
        for name, value in estimates(first).items():
            other = estimates(second)[name]
            assert (value is None) == (other is None), name
            if isinstance(value, float | tuple):
                np.testing.assert_allclose(value, other, atol=1e-3)


def test_training_and_serving_agree(model: KibunModel) -> None:
    requests = mixed_requests()[:3]
    padded = np.full((3, 16_000), np.nan, np.float32)  # what lies behind an utterance's end must not matter
    for samples, request in zip(padded, requests, strict=True):
        samples[: len(request.audio)] = request.audio
    with torch.no_grad():
        output = model(torch.from_numpy(padded), [len(r.audio) for r in requests], torch.tensor([GIVEN] * 3))
    given = [dataclasses.replace(request, given_traits=GIVEN) for request in requests]
    for row, analysis in enumerate(model.analyze(given)):
        np.testing.assert_allclose(output.traits[row], present(analysis.utterance_traits), atol=1e-3)
        np.testing.assert_allclose(output.valence[row], present(analysis.valence), atol=1e-5)
        np.testing.assert_allclose(output.arousal[row], present(analysis.arousal), atol=1e-5)


def test_a_new_utterance_counts_as_one_read_back_from_a_store(model: KibunModel) -> None:
    """Utterance by utterance, each time with stored vectors, equals all vectors at once."""
    stored: list[bytes] = []
    for turn in range(5):
        earlier = np.stack([np.frombuffer(blob, np.float16) for blob in stored]) if stored else NO_HISTORY
        [analysis] = model.analyze([Utterance(noise(4_000 + 800 * turn, turn), earlier)])
        assert analysis.vector.dtype == np.float16
        assert analysis.vector.shape == (model.vector_size,)
        stored.append(analysis.vector.tobytes())
        vectors = torch.from_numpy(np.stack([np.frombuffer(blob, np.float16) for blob in stored]).astype(np.float32))
        with torch.no_grad():
            together = model.conversation_traits(vectors[None])[0]
            average = model.utterance_traits(vectors).mean(0)
        np.testing.assert_allclose(present(analysis.conversation_traits), together, atol=1e-6)
        np.testing.assert_allclose(present(analysis.average_traits), average, atol=1e-6)


def test_the_first_utterance_is_its_own_average(model: KibunModel) -> None:
    [analysis] = model.analyze([Utterance(noise(8_000), NO_HISTORY)])
    assert analysis.average_traits == analysis.utterance_traits
    [later] = model.analyze([Utterance(noise(8_000), history(4))])
    assert later.utterance_traits == analysis.utterance_traits
    assert later.average_traits != analysis.average_traits
    assert later.conversation_traits != analysis.conversation_traits


def test_history_may_come_in_any_order(model: KibunModel) -> None:
    [first] = model.analyze([Utterance(noise(8_000), history(6))])
    [second] = model.analyze([Utterance(noise(8_000), history(6)[::-1])])
    np.testing.assert_allclose(present(first.conversation_traits), present(second.conversation_traits), atol=1e-5)


@pytest.mark.parametrize("source", ["utterance", "average", "conversation"])
def test_emotion_is_conditioned_on_the_named_traits_or_the_given_ones(source: str) -> None:
    model = tiny_model(condition_source=source)
    [predicted] = model.analyze([Utterance(noise(8_000), history(3))])
    assert predicted.condition_source == source
    assert predicted.condition_traits == getattr(predicted, f"{source}_traits")

    [given] = model.analyze([Utterance(noise(8_000), history(3), given_traits=GIVEN)])
    assert (given.condition_source, given.condition_traits) == ("given", GIVEN)
    assert predicted.condition_weight == ((1.0,) * 5 if source == "conversation" else None)
    assert given.condition_weight is None
    assert given.conversation_traits == predicted.conversation_traits, "given traits do not replace what is heard"
    assert given.valence != predicted.valence
    assert given.arousal != predicted.arousal

    [same] = model.analyze([Utterance(noise(8_000), history(3), given_traits=predicted.condition_traits)])
    assert (same.valence, same.arousal) == (predicted.valence, predicted.arousal)


def test_heard_traits_count_as_much_as_they_are_worth() -> None:
    model = tiny_model(condition_centre=CENTRE)
    weights = (0.0, 0.25, 0.5, 0.75, 1.0)
    model.evidence = (Evidence(1, GIVEN), Evidence(3, GIVEN, GIVEN, weights))
    [two, three] = model.analyze([Utterance(noise(8_000), history(count)) for count in (1, 2)])
    assert two.condition_traits == two.conversation_traits
    heard = np.array(present(three.conversation_traits))
    np.testing.assert_allclose(present(three.condition_traits), CENTRE + np.array(weights) * (heard - CENTRE))
    assert (two.condition_weight, three.condition_weight) == ((1.0,) * 5, weights)
    [same] = model.analyze([Utterance(noise(8_000), history(2), given_traits=three.condition_traits)])
    assert (same.valence, same.arousal) == (three.valence, three.arousal)
    assert same.condition_traits == three.condition_traits, "given traits count in full"


@pytest.mark.parametrize("packed", [False, True])
def test_heard_traits_count_less_in_a_voice_unlike_those_of_training(packed: bool, tmp_path: Path) -> None:
    made = tiny_model(condition_centre=CENTRE, familiarity=True)
    known = made.conversation_head.familiarity
    assert known is not None
    with torch.no_grad():
        known.reach.copy_(torch.tensor([0.0, 1e4]))
    made.save_pretrained(tmp_path)
    loaded = KibunModel.from_pretrained(tmp_path)
    share = loaded.familiarity(torch.from_numpy(history(2).astype(np.float32)))
    assert 0 < share < 1
    [answer] = analyze(pack(loaded) if packed else loaded, [Utterance(noise(8_000), history(2))])
    vectors = torch.from_numpy(np.concatenate([history(2), answer.vector[None]]).astype(np.float32))
    share = made.familiarity(vectors)
    heard = np.array(present(answer.conversation_traits))
    np.testing.assert_allclose(present(answer.condition_traits), CENTRE + share * (heard - CENTRE), atol=1e-5)
    np.testing.assert_allclose(present(answer.condition_weight), (share,) * 5, atol=1e-5)
    assert made.familiarity(vectors[:1]) != share, "every vector counts"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("head", ["concat", "ca", "ticn-ca"])
def test_traits_without_weight_leave_the_bits_of_a_constant_trait(head: str, packed: bool) -> None:
    def make() -> Model[Any]:
        model = tiny_model(condition_centre=CENTRE, condition_scale=(0.5, 1.5, 1.0, 2.0, 0.75), emotion_head=head)
        model.evidence = (Evidence(1, GIVEN, GIVEN, (0.0,) * 5),)
        return pack(model) if packed else model

    model = make()
    unknown = [Utterance(noise(8_000), history(count, seed)) for count, seed in ((0, 1), (3, 2), (9, 3))]
    heard = analyze(model, unknown)
    [constant] = analyze(model, [Utterance(noise(8_000), history(1), given_traits=CENTRE)])
    [other] = analyze(model, [Utterance(noise(8_000), history(1), given_traits=GIVEN)])
    assert len({analysis.conversation_traits for analysis in heard}) == 3
    for analysis in heard:
        assert analysis.condition_traits == CENTRE
        assert (analysis.valence, analysis.arousal) == (constant.valence, constant.arousal)
    assert constant.valence != other.valence


def test_only_the_traits_that_evidence_is_of_are_weighted() -> None:
    model = tiny_model(condition_source="average", condition_centre=CENTRE)
    model.evidence = (Evidence(1, GIVEN, GIVEN, (0.0,) * 5),)
    [analysis] = model.analyze([Utterance(noise(8_000), history(3))])
    assert analysis.condition_traits == analysis.average_traits


def test_only_what_is_wanted_is_returned(model: KibunModel) -> None:
    [everything] = model.analyze([Utterance(noise(8_000), history(2))])
    [emotion] = model.analyze([Utterance(noise(8_000), history(2), personality=False)])
    [personality] = model.analyze([Utterance(noise(8_000), history(2), emotion=False)])
    assert emotion.utterance_traits is emotion.average_traits is emotion.conversation_traits is None
    assert (emotion.valence, emotion.condition_traits) == (everything.valence, everything.condition_traits)
    assert (personality.valence, personality.arousal) == (None, None)
    assert (personality.condition_traits, personality.condition_source) == (None, None)
    assert personality.conversation_traits == everything.conversation_traits
    assert np.array_equal(emotion.vector, everything.vector)
    assert np.array_equal(personality.vector, everything.vector)


def test_estimates_stay_within_their_scales() -> None:
    model = tiny_model()
    for centre, trait, emotion in ((-50.0, 1.0, 1.0), (50.0, 7.0, 5.0)):
        with torch.no_grad():
            for head in ("personality_head", "conversation_head", "emotion_heads.valence", "emotion_heads.arousal"):
                model.get_parameter(f"{head}.out.bias").fill_(centre)
        [analysis] = model.analyze([Utterance(noise(8_000), NO_HISTORY)])
        assert analysis.utterance_traits == analysis.conversation_traits == (trait,) * 5
        assert (analysis.valence, analysis.arousal) == (emotion, emotion)
        assert analysis.condition_traits == (trait,) * 5, "emotion is conditioned on what is reported"


@pytest.mark.parametrize("samples", [400, 401, 16_000])
@pytest.mark.parametrize("kind", ["silence", "constant", "square", "tiny", "loud", "absurd"])
def test_odd_audio_gives_finite_estimates(model: KibunModel, kind: str, samples: int) -> None:
    signals: dict[str, NDArray[Any]] = {
        "silence": np.zeros(samples),
        "constant": np.full(samples, 0.7),
        "square": np.sign(np.sin(np.arange(samples))),
        "tiny": noise(samples) * 1e-20,
        "loud": noise(samples) * 1e6,
        "absurd": noise(samples) * 1e35,
    }
    [analysis] = model.analyze([Utterance(signals[kind].astype(np.float32), NO_HISTORY)])
    assert np.isfinite(analysis.vector).all()
    assert 1 <= present(analysis.valence) <= 5
    assert all(1 <= value <= 7 for value in present(analysis.conversation_traits))


def test_normalisation_is_that_of_transformers() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    extractor: Any = Wav2Vec2FeatureExtractor(do_normalize=True)  # type: ignore[no-untyped-call]
    for signal in (noise(16_000) + 0.3, noise(400), noise(16_000) * 1e-4, np.zeros(400, np.float32)):
        expected = extractor(signal, sampling_rate=16_000, return_tensors="np").input_values[0]
        actual = normalised(torch.from_numpy(signal), True)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_level_and_offset_carry_nothing_where_the_checkpoint_normalises() -> None:
    def vectors(model: KibunModel) -> list[np.ndarray]:
        signals = (noise(8_000), noise(8_000) * np.float32(0.02) + np.float32(0.1))
        return [
            analysis.vector.astype(float) for analysis in model.analyze([Utterance(s, NO_HISTORY) for s in signals])
        ]

    first, second = vectors(tiny_model())
    np.testing.assert_allclose(first, second, atol=2e-3)
    first, second = vectors(tiny_model(do_normalize=False))
    assert np.abs(first - second).max() > 0.01


def test_loud_audio_is_not_mistaken_for_silence() -> None:
    """Squares of 1e35 overflow float32, and everything divided by infinity would be zero."""
    normal, absurd = (noise(8_000) * np.float32(gain) for gain in (1.0, 1e35))
    np.testing.assert_allclose(
        normalised(torch.from_numpy(normal), True), normalised(torch.from_numpy(absurd), True), atol=1e-4
    )


def test_threads_may_share_a_model(model: KibunModel) -> None:
    expected = model.analyze(mixed_requests())
    with ThreadPoolExecutor(4) as pool:
        for analyses in pool.map(model.analyze, [mixed_requests()] * 8):
            assert [estimates(analysis) for analysis in analyses] == [estimates(analysis) for analysis in expected]


@pytest.mark.filterwarnings("error")
def test_arrays_may_be_read_only(model: KibunModel) -> None:
    samples, vectors = np.frombuffer(noise(800).tobytes(), np.float32), np.frombuffer(history(2).tobytes(), np.float16)
    assert not samples.flags.writeable
    model.analyze([Utterance(samples, vectors.reshape(2, 32))])


def test_two_calls_are_equal_and_the_model_leaves_the_global_random_state_alone(model: KibunModel) -> None:
    before = torch.random.get_rng_state()
    self_test(model)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": noise(399)}, r"utterance 1: audio has 399 samples, at least 400"),
        ({"audio": noise(0)}, r"audio has 0 samples"),
        ({"audio": noise(800).reshape(2, 400)}, r"audio is float32 \(2, 400\).*mono 16 kHz"),
        ({"audio": np.zeros(800, np.int16)}, r"audio is int16.*float32"),
        ({"audio": np.zeros(800)}, r"audio is float64.*float32"),
        ({"audio": np.full(800, np.nan, np.float32)}, r"audio contains NaN or infinity"),
        ({"audio": np.full(800, np.inf, np.float32)}, r"audio contains NaN or infinity"),
        ({"history": np.zeros((2, 31), np.float16)}, r"history is float16 \(2, 31\).*\(utterances, 32\)"),
        ({"history": np.zeros((2, 32), np.float32)}, r"history is float32 \(2, 32\).*float16 \(utterances, 32\)"),
        ({"history": np.zeros(32, np.float16)}, r"history is float16 \(32,\)"),
        ({"history": np.full((1, 32), np.inf, np.float16)}, r"history contains NaN or infinity"),
        ({"given_traits": (0.9, 4, 4, 4, 4)}, r"given_traits is .* 5 numbers 1..7"),
        ({"given_traits": (4, 4, 4, 4)}, r"given_traits is .* 5 numbers 1..7"),
        ({"given_traits": (4, 4, 4, 4, float("nan"))}, r"given_traits is .* 5 numbers 1..7"),
    ],
)
def test_a_malformed_utterance_is_named(model: KibunModel, change: dict[str, Any], message: str) -> None:
    good = Utterance(noise(800), NO_HISTORY)
    with pytest.raises(ValueError, match=message):
        model.analyze([good, dataclasses.replace(good, **change)])


def test_training_mode_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"call eval\(\)"):
        tiny_model().train().analyze([Utterance(noise(800), NO_HISTORY)])


@pytest.mark.parametrize("part", ["trunk.layers.0.final_layer_norm", "emotion_heads.arousal.out"])
def test_nan_from_the_model_is_an_error_and_no_estimate(part: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(f"{part}.weight").fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN"):
        model.analyze([Utterance(noise(800), NO_HISTORY)])


def test_a_vector_beyond_float16_is_an_error() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("tails.personality.layers.1.final_layer_norm.bias").fill_(1e5)
    with pytest.raises(NonFiniteError):
        model.analyze([Utterance(noise(800), NO_HISTORY)])


def test_a_model_may_lack_personality_or_emotion() -> None:
    emotion_only = tiny_model(tasks=["arousal"])
    assert emotion_only.vector_size == 0
    empty = np.zeros((0, 0), np.float16)
    [analysis] = emotion_only.analyze([Utterance(noise(800), empty, given_traits=GIVEN)])
    assert analysis.arousal is not None
    assert (analysis.valence, analysis.conversation_traits) == (None, None)
    assert analysis.vector.shape == (0,)
    with pytest.raises(ValueError, match="needs given_traits"):
        emotion_only.analyze([Utterance(noise(800), empty)])
    with pytest.raises(ValueError, match="pass `traits`"):
        emotion_only(torch.zeros(1, 800))

    personality_only = tiny_model(tasks=["personality"])
    [analysis] = personality_only.analyze([Utterance(noise(800), NO_HISTORY)])
    assert analysis.conversation_traits is not None
    assert (analysis.valence, analysis.arousal, analysis.condition_traits) == (None, None, None)


def test_a_batch_mixes_utterances_with_and_without_emotion(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a row that wants no emotion shares a batch with one that does, and may have no traits at all."""
    model = tiny_model(tasks=["arousal"])
    monkeypatch.setattr("kibun.models.analysis._batches", lambda model, requests: [requests])
    empty = np.zeros((0, 0), np.float16)
    wanted, unwanted = model.analyze(
        [Utterance(noise(800), empty, given_traits=GIVEN), Utterance(noise(900), empty, emotion=False)]
    )
    assert wanted.arousal is not None
    assert unwanted.arousal is None


def test_frames_of_equal_length_need_no_mask() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    assert Frames(hidden, (3, 3)).mask is None
    assert present(Frames(hidden, (3, 1)).mask).tolist() == [[True, True, True], [True, False, False]]
    assert Frames(hidden, (3, 1)).mean().tolist() == [[2.0, 3.0], [6.0, 7.0]]
