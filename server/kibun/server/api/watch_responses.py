"""What a watch yields, and what streams tell watchers, to messages of `kibun.v1`."""

from __future__ import annotations

from collections.abc import Callable

from kibun.server.api import responses
from kibun.server.api.responses import StreamFacts
from kibun.server.conversation.audience import Notice, NoticeKind
from kibun.server.conversation.state import Conversation
from kibun.server.session import events
from kibun.server.session.watch import Past, Watched, WatchEnded, WatchGap, WatchStarted
from kibun.v1 import speech_analysis_pb2 as pb

_GAPS = {
    "SLOW_WATCHER": "responses were not read in time: interims and events are missing here",
    "OTHER_SERVERS_LOST": "this server cannot hear the others that share its store: what is said there comes later, "
    "without interims",
    "OTHER_SERVERS_BACK": "this server hears the others again that share its store",
    "OTHER_SERVERS_MISSED": "something that another server told did not arrive: interims and events are missing here",
}


def notice(reply: events.Reply, stream: StreamFacts) -> Notice:
    """What the watchers of the conversation get of one event of a stream."""
    participant_id = stream.options.participant_id
    message = pb.WatchConversationResponse(
        participant_id=participant_id, turn_id=reply.turn_id, event=responses.response(reply, stream)
    )
    kind, start = _kind(reply.event, stream.options)
    opened = reply.event.opened if isinstance(reply.event, events.StreamStarted) else 0.0
    return Notice(kind, participant_id, reply.turn_id, start, message.SerializeToString(), opened)


def _kind(event: events.Event, options: events.StreamOptions) -> tuple[NoticeKind, int]:
    match event:
        case events.StreamStarted():
            return ("resumed" if options.resumes else "began"), options.start_offset
        case events.UtteranceResult():
            return ("final" if event.is_final else "interim"), event.start
        case events.TurnResult():
            return "turn_result", event.start
        case events.SpeechEvent() | events.StreamProgress():
            return "aside", 0
    return "other", 0


def response(
    watched: Watched, request_id: str, conversation: Callable[[Conversation], pb.Conversation]
) -> pb.WatchConversationResponse:
    """Returns the message for what a watch yields. `conversation` makes that of a conversation."""
    match watched:
        case Notice():
            return pb.WatchConversationResponse.FromString(watched.payload)
        case Past():
            return pb.WatchConversationResponse(
                participant_id=watched.participant_id, turn_id=watched.turn_id, past=True, event=_past(watched)
            )
        case WatchStarted(known, past):
            state = conversation(known) if known else None
            started = pb.WatchStarted(request_id=request_id, conversation=state, past_response_count=past)
            return pb.WatchConversationResponse(watch_started=started)
        case WatchGap(reason):
            return pb.WatchConversationResponse(watch_gap=pb.WatchGap(reason=reason, message=_GAPS[reason]))
        case WatchEnded(known):
            ended = pb.WatchEnded(
                reason="COMPLETED" if known else "DELETED", conversation=conversation(known) if known else None
            )
            return pb.WatchConversationResponse(watch_ended=ended)


def _past(past: Past) -> pb.StreamingAnalyzeResponse:
    match past.event:
        case events.UtteranceResult() as event:
            return pb.StreamingAnalyzeResponse(utterance_result=responses.utterance(event))
        case events.TurnResult() as event:
            return pb.StreamingAnalyzeResponse(turn_result=responses.turn(event))
        case events.PersonalityUpdate() as event:
            return pb.StreamingAnalyzeResponse(personality_update=responses.personality_update(event))
