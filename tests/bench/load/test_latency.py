"""The parts of `kibun bench latency`: what is sent, what is known of it, what is counted. No figure is tested."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from kibun.bench.commands import bench_app
from kibun.bench.load import early_work
from kibun.bench.load.latency import ALONE, ModelFigures, Moments, Phase, TimedFinal, make_report
from kibun.bench.load.latency_clients import How, Talkers, make_talk
from kibun.bench.support import material
from kibun.bench.support.speech_like import lay_out
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.session.turn_tracker import FIRST_SPARE
from tests.support import serving

UTTERANCES = material.utterances(3, 0.8, 1.6)
OPTIONS = EndpointingOptions()
FRAME = 512  # of silero


def test_it_is_known_which_message_decides_each_end() -> None:
    talk = make_talk(UTTERANCES, [0, 2], "silence", "silero")
    assert [known.utterance for known in talk.known.values()] == [0, 2]
    waited = (OPTIONS.utterance_end_silence_ms - OPTIONS.hang_over_ms) * 16
    for (start, end), known in talk.known.items():
        assert known.spoken_until is not None
        assert start < known.spoken_until < end + waited
        late = talk.due[known.decided_by] - end - waited
        assert 0 <= late < FRAME + material.CHUNK
        assert talk.due[known.decided_by - 1] < end + waited + FRAME


def test_an_end_of_turn_decides_as_a_message_of_its_own() -> None:
    talk = make_talk(UTTERANCES, [1, 0], "end_of_turn", "silero")
    deciding = [known.decided_by for known in talk.known.values()]
    assert len(deciding) == 2
    assert [talk.due[n] == talk.due[n - 1] for n in deciding] == [True, True]
    assert len(talk.messages) == len(talk.due) == len(set(talk.due)) + 2


@pytest.mark.parametrize("how", ["silence", "end_of_turn"])
def test_clients_get_the_finals_that_were_known_and_the_same_ones_eager_and_plain(how: How) -> None:
    with serving.serve() as server:
        clients = Talkers(server.target, UTTERANCES)
        told = [clients.handle("talk", talks=[([0, 1], 0.0)], eager=eager, how=how) for eager in (True, False)]
    for replies in told:
        assert (replies["offered"], replies["unexpected"], replies["refused"], replies["lost"]) == (2, 0, 0, [])
        assert [heard["utterance"] for heard in replies["finals"]] == [0, 1]
        assert all(heard["beyond_ms"] > 0 for heard in replies["finals"])
        assert all(heard["speech_ms"] > heard["beyond_ms"] for heard in replies["finals"])
    keys = ("span", "bits", "audio_s")
    assert [[heard[key] for key in keys] for heard in told[0]["finals"]] == [
        [heard[key] for key in keys] for heard in told[1]["finals"]
    ]


def test_clients_count_what_was_refused() -> None:
    with serving.serve("--max-streams", "1") as server:
        clients = Talkers(server.target, UTTERANCES)
        replies = clients.handle("talk", talks=[([0], 0.0), ([1], 0.3)], eager=True)
    assert [heard["utterance"] for heard in replies["finals"]] == [0]
    assert (replies["refused"], replies["lost"]) == (1, [])


# ---- what is encoded beside finals


def _recording(*parts: tuple[Any, float]) -> early_work.Recording:
    return early_work.Recording("made", 16_000, lay_out(list(parts)).audio)


ONE_PAUSE = _recording(("silence", 0.5), ("speech", 1.2), ("silence", 0.45), ("speech", 1.5), ("silence", 1.0))


def test_a_pause_after_which_somebody_goes_on_costs_an_encoding() -> None:
    work = early_work.count([ONE_PAUSE], eager=True, interims=False, vad="webrtc")
    (utterance,) = work.utterances
    first, last = utterance.encoded_s
    assert utterance.early
    assert last == pytest.approx(utterance.final_s)
    assert 1.2 < first < last
    assert (work.eager, work.wasted) == (2, 1)
    assert work.worst_factor == work.mean_factor == pytest.approx((first + last) / last)


def test_nothing_is_encoded_beside_finals_where_it_is_off_or_the_machine_is_busy() -> None:
    plain = early_work.count([ONE_PAUSE], eager=False, interims=False, vad="webrtc")
    busy = early_work.count([ONE_PAUSE], eager=True, interims=True, vad="webrtc", cost=early_work.BUSY_COST)
    for work in (plain, busy):
        (utterance,) = work.utterances
        assert (len(utterance.encoded_s), utterance.early) == (1, False)
        assert (work.eager, work.wasted, work.worst_factor) == (0, 0, 1.0)


def test_interims_and_eager_work_together_stay_below_three_encodings_but_for_what_a_stream_begins_with() -> None:
    pauses = [("speech", 0.5), ("silence", 0.35)] * 12
    restless = _recording(("silence", 0.5), *pauses, ("speech", 0.6), ("silence", 1.0))
    for interims in (True, False):
        work = early_work.count([restless], eager=True, interims=interims, vad="webrtc")
        (utterance,) = work.utterances
        assert utterance.final_s < sum(utterance.encoded_s) < 3 * utterance.final_s + FIRST_SPARE / 16_000


def test_the_worst_is_that_of_a_whole_recording() -> None:
    calm, restless = early_work.UtteranceWork(2.0, (2.0,), True), early_work.UtteranceWork(2.0, (1.5, 1.8, 2.0), True)
    work = early_work.Work(((calm, restless), (calm,)), 0)
    assert work.worst_factor == pytest.approx(7.3 / 4)
    assert work.mean_factor == pytest.approx(9.3 / 6)


def test_recordings_are_read_at_their_own_rate(tmp_path: Path) -> None:
    audio = np.linspace(-0.5, 0.5, 2_205).astype(np.float32)
    soundfile.write(tmp_path / "b.wav", audio, 22_050)
    soundfile.write(tmp_path / "a.flac", audio, 44_100)
    (tmp_path / "a.rttm").write_text("not audio")
    read = early_work.read(tmp_path)
    assert [(one.name, one.rate_hz, len(one.audio)) for one in read] == [("a", 44_100, 2_205), ("b", 22_050, 2_205)]
    assert all(np.abs(one.audio - audio).max() < 1e-4 for one in read)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_recordings_is_refused_before_anything_is_measured(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(bench_app, ["latency", "--recordings", str(tmp_path / name)])
    assert done.exit_code == 2
    assert f"--recordings: {tmp_path / name}" in done.stderr.replace("\n", "")


# ---- report


def _phase(mode: str, *finals: TimedFinal, load: str = ALONE) -> Phase:
    return Phase("a model", load, "silence", mode, len(finals), 0, 0, 0.5, finals)


EAGER = TimedFinal(0, 1.5, 2.0, 602.0, (-1, 100, 2000), "a")
LONG = TimedFinal(1, 5.5, 700.0, 1300.0, (-1, 9000, 90_000), "b")
PLAIN = (replace(EAGER, beyond_ms=50.0, speech_ms=650.0), replace(LONG, beyond_ms=1000.0, speech_ms=1600.0))


def _figures(*phases: Phase) -> ModelFigures:
    intervals: dict[str, tuple[float | None, float | None]] = {"eager": (590, 640), "plain": (None, None)}
    return ModelFigures("a model", "fp32", None, phases, Moments(300, 600, {"eager": 602, "plain": 650}, intervals, 50))


def test_identical_means_that_the_same_utterance_has_the_same_bits() -> None:
    assert _figures(_phase("eager", EAGER, LONG), _phase("plain", *PLAIN)).identical
    other = replace(PLAIN[0], bits="c")
    assert not _figures(_phase("eager", EAGER), _phase("plain", other)).identical
    assert not _figures(_phase("eager", EAGER), _phase("plain", PLAIN[1])).identical, "nothing was compared"
    beside = _phase("plain", other, load="20%")
    assert not _figures(_phase("eager", EAGER), _phase("plain", PLAIN[0]), beside).identical


def test_the_report_has_the_headline_of_short_utterances_and_says_what_was_not_counted() -> None:
    model = _figures(_phase("eager", EAGER, LONG), _phase("plain", *PLAIN))
    payload = json.loads(json.dumps(make_report([model], [0.8, 5.0], {}, None, None).payload))
    assert payload["beyond_endpoint_ms"] == {"eager": {"p50": 2.0, "p95": 2.0}, "plain": {"p50": 50.0, "p95": 50.0}}
    assert payload["identical"] is True
    assert payload["wasted_share"] is payload["encoding_factor"] is None
    assert "--recordings" in payload["not_counted"]
    by_load = payload["models"]["a model"]["by_load"]
    assert [(row["mode"], row["at_once_share"]) for row in by_load] == [("eager", 0.5), ("plain", 0.0)]


def test_the_report_counts_wasted_work_and_its_figure_can_be_drawn() -> None:
    model = _figures(_phase("eager", EAGER), _phase("plain", PLAIN[0]))
    went_on = early_work.UtteranceWork(4.0, (2.0, 4.0), early=True)
    waited = early_work.UtteranceWork(2.0, (2.0,), early=False)
    idle, busy = early_work.Work(((went_on, waited),), 0), early_work.Work(((waited, waited),), 0)
    report = make_report([model], [0.8], {}, {"without interims": idle, "with interims": idle}, busy)
    assert report.payload["wasted_share"] == 0.5
    assert report.payload["encoding_factor"]["without interims"] == {"mean": round(8 / 6, 3), "worst": round(8 / 6, 3)}
    counted = {"utterances": 2, "eager": 2, "wasted": 1, "finals_ahead": 1, "eager_when_busy": 0}
    assert report.payload["counted"] == counted
    assert report.draw().axes[0].get_xlabel().startswith("ms after")
