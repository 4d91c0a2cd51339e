"""What the comparison with other servers counts: goodput, losses, lines of code."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from peers import figures
from peers.catalogue import PEERS, python_of
from peers.settings import Settings

LENGTHS = [1.0, 4.0]


def reply(due: float, done: float, outcome: str = "answered", *, utterance: int = 0, sent: float | None = None) -> Any:
    estimates = (3.0, 3.0) if outcome == "answered" else None
    sent = due if sent is None else sent
    known = {"utterance": utterance, "due": due, "sent": sent, "done": done, "outcome": outcome}
    return known | {"reason": "" if outcome == "answered" else f"why {outcome}", "estimates": estimates}


def test_only_an_answer_within_two_seconds_is_goodput() -> None:
    replies = [
        reply(0.0, 0.5),
        reply(1.0, 2.9, utterance=1),
        reply(2.0, 4.5, utterance=1),  # late
        reply(3.0, 3.1, "refused"),
        reply(4.0, 4.2, "failed"),
    ]
    found = figures.load_figures(replies, LENGTHS, 10.0)
    assert (found["offered"], found["answered"], found["in_time"]) == (5, 3, 2)
    assert (found["refused"], found["failed"], found["reasons"]) == (1, 1, ["why failed"])
    assert found["goodput_per_s"] == pytest.approx(0.2)
    assert found["goodput_audio_s_per_s"] == pytest.approx(0.5)
    assert found["offered_audio_s_per_s"] == pytest.approx(1.1)
    assert found["p50_ms"] == pytest.approx(1900.0), "late answers count in the percentiles"
    assert figures.load_figures([], LENGTHS, 10.0)["p95_ms"] is None


def test_lost_is_what_was_in_flight_when_the_worker_died_and_got_no_answer() -> None:
    replies = [
        reply(0.0, 4.0),  # answered before
        reply(0.5, 0.6, "refused"),  # turned away before: it was never taken
        reply(4.0, 9.0),  # in flight, and answered by another worker
        reply(4.5, 6.0, "failed"),  # in flight, and lost
        reply(4.6, 8.0, "refused"),  # in flight: taken, and then turned away
        reply(7.0, 12.0, sent=4.9),  # still speaking
        reply(5.5, 5.6, "failed"),  # made when nobody was there
        reply(6.0, 8.5),
        reply(7.0, 8.0),
    ]
    found = figures.kill_figures(replies, 5.0)
    assert (found["in_flight"], found["lost"], found["failed_later"]) == (4, 2, 1)
    assert found["lost_reasons"] == ["why failed", "why refused"]
    assert found["recovered_after_s"] == pytest.approx(3.0)
    assert figures.kill_figures(replies[:1], 5.0)["recovered_after_s"] is None


def run(peer: str, rotation: int, done: float, estimate: float = 3.0) -> Any:
    replies = [reply(1.0, done, utterance=1) | {"estimates": (estimate, 2.0)}]
    kill = {"at": 5.0, "replies": [reply(4.0, 6.0, "answered" if peer == "kibun" else "failed")]}
    known = {"peer": peer, "rotation": rotation, "settings": {}, "loads": {"2": replies}, "kill": kill}
    return known | {"start_s": 1.0 + rotation, "peak_mb": 100.0 + rotation, "client_cpu_s": 0.1}


def test_rotations_are_pooled_and_kibun_is_held_against_the_best_peer() -> None:
    runs = [run("kibun", 0, 2.0), run("kibun", 1, 2.0), run("LitServe", 0, 2.5, 3.25), run("LitServe", 1, 9.0)]
    results = {"runs": runs, "lengths_s": LENGTHS, "seconds": 10.0, "capacity": 0.2}
    results["machine"] = {"processor": "P", "cores": 2}
    found = figures.summary(results)
    assert found["kibun"]["loads"]["2"]["goodput_audio_s_per_s"] == pytest.approx(0.4)
    assert found["LitServe"]["loads"]["2"]["goodput_audio_s_per_s"] == pytest.approx(0.2)
    assert found["LitServe"]["loads"]["2"]["goodput_by_rotation"] == pytest.approx([0.4, 0.0])
    assert figures.compared(found) == {"2": pytest.approx(2.0)}
    assert (found["kibun"]["kill"]["lost"], found["LitServe"]["kill"]["lost"]) == (0, 2)
    assert found["kibun"]["peak_mb"] == 101.0
    assert found["LitServe"]["code_lines"] > 10
    assert figures.largest_difference(runs) == pytest.approx(0.25), "another model would show"
    assert [len(table.rows) for table in figures.tables(results)] == [2, 2]
    assert len(figures.draw(results).axes) == 2


def test_the_best_of_the_settings_that_were_tried_is_taken() -> None:
    def tried(batch: int, goodput: float) -> Any:
        settings = asdict(Settings(batch=batch))
        return {"peer": "LitServe", "settings": settings, "loads": {"1.5": {"goodput_audio_s_per_s": goodput}}}

    results = {"tuning": [tried(1, 2.0), tried(2, 3.0), tried(4, 1.0)]}
    assert figures.best_settings(results, "LitServe") == Settings(batch=2)
    assert figures.best_settings(results, "BentoML") is None
    assert figures.best_settings({}, "LitServe") is None


def test_code_lines_are_neither_blank_nor_comment_nor_docstring(tmp_path: Path) -> None:
    source = tmp_path / "server.py"
    source.write_text(
        '"""Two lines\nof docstring."""\n\nimport os  # 1\n\n# a comment\n\ndef f(x):  # 2\n    """What."""\n'
        '    return os.fspath(  # 3\n        x  # 4\n    )  # 5\n\nS = """6\n7"""\n'
    )
    assert figures.code_lines(source) == 7


def test_every_peer_has_its_server_its_requirements_and_settings_that_differ(tmp_path: Path) -> None:
    for peer in PEERS.values():
        assert len({peer.kept, *peer.tried}) == 1 + len(peer.tried)
        command = peer.command(python_of(peer, tmp_path), Settings(bundle="b", port=7))
        assert "7" in command or (peer.server is not None and str(peer.server) in command)
        if peer.package is not None:
            assert peer.server is not None
            pinned = (peer.server.parents[1] / "requirements" / f"{peer.package}.txt").read_text()
            assert f"{peer.package}==" in pinned.replace("[serve]", "")


def test_what_the_model_needs_is_pinned_as_in_constraints() -> None:
    root = Path(__file__).resolve().parents[2]
    constraints = set((root / "constraints.txt").read_text().splitlines())
    model = (root / "benchmarks" / "peers" / "requirements" / "model.txt").read_text().splitlines()
    pins = [line for line in model if "==" in line]
    assert len(pins) == 4
    assert set(pins) <= constraints
