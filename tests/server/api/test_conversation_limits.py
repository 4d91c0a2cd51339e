"""Limits of a conversation, so that one client cannot slow or fill the store for others."""

import pytest
from google.protobuf.duration_pb2 import Duration

from kibun.server.api import requests
from kibun.server.api.service import ServiceLimits
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.conversation.state import MAX_PARTICIPANTS
from kibun.server.errors import Failure, Kind, StartError
from kibun.server.session.events import Audio
from kibun.server.settings import Settings
from kibun.v1 import speech_analysis_pb2 as pb
from tests.support.scripted import MODEL
from tests.support.session_world import TRAITS, OpenSession, SessionWorld, open_and_drop, pcm, run

# ---- participants of a conversation


async def test_a_conversation_has_a_maximum_of_participants() -> None:
    here = SessionWorld()
    for number in range(MAX_PARTICIPANTS):
        await open_and_drop(here.session(participant_id=f"p{number}", given_traits=TRAITS))
    with pytest.raises(Failure, match="begin another") as caught:
        await run(here.session(participant_id="one-more"), Audio(pcm((0, 0.1))))
    assert (caught.value.kind, caught.value.reason) == (Kind.FAILED_PRECONDITION, "TOO_MANY_PARTICIPANTS")
    assert len((await here.conversation()).participants) == MAX_PARTICIPANTS
    async with OpenSession(here.session(participant_id="p7", turn_id="t2")):
        pass  # those who are in it go on


async def test_participants_of_empty_turns_count_as_well() -> None:
    """Without any speech, a config and the end of the stream add a participant."""
    here = SessionWorld()
    refused = 0
    for number in range(MAX_PARTICIPANTS + 5):
        try:
            await run(here.session(participant_id=f"p{number}"))
        except Failure as failure:
            assert failure.reason == "TOO_MANY_PARTICIPANTS"  # noqa: PT017
            refused += 1
    assert refused == 5


# ---- how long


@pytest.mark.parametrize(("longest_s", "asked_s", "allowed"), [(3600.0, 3600, True), (3600.0, 3601, False)])
def test_a_client_may_ask_for_as_long_as_the_operator_allows(longest_s: float, asked_s: int, allowed: bool) -> None:
    defaults = requests.Defaults((MODEL,), EndpointingOptions(), 1800.0, lambda kind: f"{kind}-1", longest_s)
    config = pb.StreamingAnalyzeConfig(conversation_ttl=Duration(seconds=asked_s))
    config.audio_config.encoding, config.audio_config.sample_rate_hertz = pb.AUDIO_ENCODING_LINEAR16, 16_000
    if allowed:
        assert requests.stream_options(config, tenant="", defaults=defaults).ttl_s == asked_s
        return
    with pytest.raises(Failure, match="conversation_ttl must be 1 to 3600 s") as caught:
        requests.stream_options(config, tenant="", defaults=defaults)
    assert (caught.value.reason, caught.value.field) == ("INVALID_DURATION", "conversation_ttl")


def test_the_default_is_no_longer_than_the_longest() -> None:
    Settings(("m",), limits=ServiceLimits(conversation_ttl_s=60, max_conversation_ttl_s=60))
    with pytest.raises(StartError, match=r"--conversation-ttl is above --max-conversation-ttl \(60 s\)"):
        Settings(("m",), limits=ServiceLimits(conversation_ttl_s=61, max_conversation_ttl_s=60))
