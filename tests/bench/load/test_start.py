"""The parts of `kibun bench start`: what it reads from a server's log, and what it reports. No figure is tested."""

import json

import pytest

from kibun.bench.load.start import STAGES, StageError, Starts, make_report, read_stages
from kibun.client.server_process import ServerProcess

LOG = "".join(
    json.dumps({"time": f"1970-01-01T00:00:{second:06.3f}Z", "level": "INFO", "event": event}) + "\n"
    for second, event in [
        (12.5, "modules are imported"),
        (12.75, "models are loaded"),
        (13.0, "models have answered"),
        (13.5, "serving on 127.0.0.1:1"),
        (13.5, "demo-tiny runs in float32"),
    ]
)


def test_stages_follow_each_other_from_the_command_on() -> None:
    stages = read_stages(10.0, LOG)
    assert stages == {"imports": 2.5, "weights": 0.25, "warm-up": 0.25, "hand-over": 0.5}
    assert Starts("a", (stages,)).serving_after_s == (3.5,)


@pytest.mark.parametrize("event", STAGES.values())
def test_a_log_without_a_stage_is_an_error(event: str) -> None:
    lacking = "".join(line for line in LOG.splitlines(keepends=True) if event not in line)
    with pytest.raises(StageError, match=event):
        read_stages(10.0, lacking)


def test_a_real_server_tells_all_stages() -> None:
    with ServerProcess("demo-tiny", ["--log-level", "INFO", "--log-format", "json"]) as server:
        stages = read_stages(0.0, server.stderr)
    assert stages.keys() == STAGES.keys()
    assert min(stages.values()) >= 0


def test_the_report_has_medians_and_the_ratio_of_each_round() -> None:
    rounds = [dict.fromkeys(STAGES, seconds) for seconds in (1.0, 2.0, 9.0)]
    report = make_report([Starts("a", tuple(rounds))], [1.0, 4.0, 5.0], {"cores": 2})
    assert report.payload["serving_after_s"] == {"a": 8.0}
    assert report.payload["stages_s"]["a"] == dict.fromkeys(STAGES, 2.0)
    assert report.payload["over_torch"] == {"a": 4.0}  # of 4, 2 and 7.2
    assert (report.payload["import_torch_s"], report.payload["rounds"]) == (4.0, 3)
    assert report.draw() is not None
