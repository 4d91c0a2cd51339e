"""Reads histories of a fault run for broken promises. Pure functions.

The promises: (a) every stream ends with StreamEnded or one named error; (b) every sample is accounted for; (c) a final
never changes and is never lost or doubled, and a turn has one result, which is of the finals that its client has or
says that some are missing; (d) the same audio gives the same result; (e)
and (f) are in the same comparison: who was not to be hurt must have what an undisturbed run of the same plan gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kibun.bench.faults.history import (
    Accounting,
    ClientHistory,
    Final,
    Interim,
    Opened,
    Seen,
    TurnError,
    TurnHistory,
    TurnOutcome,
)

PROMISES = (
    "finals_lost",
    "finals_doubled",
    "finals_changed",
    "results_lost",
    "results_doubled",
    "results_incomplete",
    "unknown_status",
    "hangs",
    "samples_unaccounted",
    "out_of_order",
    "personality_differences",
)
"""Kinds of violations; what a report counts under these names must be 0."""


SAME_EMOTION = 1e-5  # float32 on its way


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise; `amount`: how often, or how many samples."""

    kind: str
    where: str  # client and turn
    text: str
    amount: int = 1


def check(
    histories: Sequence[ClientHistory], undisturbed: Mapping[str, ClientHistory], *, state_survives: bool
) -> list[Violation]:
    """All violations of a run.

    `undisturbed`: of the same plan without faults, by client. `state_survives`: False where a fault erases what the
    server knows of conversations: estimates then rest on less, and only what does not depend on them is compared.
    """
    found: list[Violation] = []
    for history in histories:
        expected = undisturbed[history.client]
        for turn, wanted in zip(history.turns, expected.turns, strict=True):
            found += check_turn(turn)
            found += compare_turns(turn, wanted, state_survives=state_survives)
        found += compare_memory(history, expected, state_survives=state_survives)
    return found


def check_turn(turn: TurnHistory) -> list[Violation]:
    """What holds for every turn by itself."""
    found = [*_end(turn), *_once(turn), *_sum_up(turn), *_order(turn), *_account(turn)]
    return [Violation(kind, f"{turn.client} {turn.turn_id}", text, amount) for kind, text, amount in found]


def compare_turns(turn: TurnHistory, wanted: TurnHistory, *, state_survives: bool) -> list[Violation]:
    """A turn beside the same one undisturbed."""
    found = [*_compare_finals(turn, wanted, state_survives), *_compare_result(turn, wanted, state_survives)]
    return [Violation(kind, f"{turn.client} {turn.turn_id}", text, amount) for kind, text, amount in found]


def compare_memory(history: ClientHistory, wanted: ClientHistory, *, state_survives: bool) -> list[Violation]:
    """What the server remembers of a participant in the end, beside what it remembers undisturbed."""
    if history.hung:
        return [Violation("hangs", history.client, f"waited in vain for {history.hung}")]
    if history.error is not None and not is_named(history.error):
        return [Violation("unknown_status", history.client, _words(history.error))]
    if state_survives and history.remembered != wanted.remembered:
        text = f"remembered {history.remembered}, undisturbed {wanted.remembered}"
        return [Violation("personality_differences", history.client, text)]
    return []


def is_named(error: TurnError) -> bool:
    """Whether an error is named: it has a reason from the server or the SDK, or the connection was lost."""
    if error.code == "UNKNOWN" or error.reason in ("UNKNOWN", ""):
        return False
    if error.reason in ("STREAM_CUT", "NO_TURN_RESULT"):
        return False  # the SDK's name for a stream that ended without a word
    return error.reason != error.code or error.code in ("UNAVAILABLE", "CANCELLED")


# ---- one turn. Each yields (kind, text, amount)

Finding = tuple[str, str, int]


def _end(turn: TurnHistory) -> Iterator[Finding]:
    if turn.hung:
        yield "hangs", f"waited in vain for {turn.hung}", 1
    elif turn.error is not None and not is_named(turn.error):
        yield "unknown_status", _words(turn.error), 1
    elif turn.error is None and not turn.of(TurnOutcome) and not turn.of(Accounting):
        yield "unknown_status", "ended with neither StreamEnded nor an error", 1


def _once(turn: TurnHistory) -> Iterator[Finding]:
    finals = _finals(turn)
    for utterance_id, count in Counter(final.utterance_id for final in finals).items():
        if count > 1:
            yield "finals_doubled", f"{utterance_id} came {count} times", count - 1
        if len({final for final in finals if final.utterance_id == utterance_id}) > 1:
            yield "finals_changed", f"{utterance_id} came with other contents", 1
    spans = sorted({(final.start, final.end) for final in finals})
    for (start, end), (following, _) in pairwise(spans):
        if following < end:
            yield "finals_doubled", f"finals overlap: one from {start} to {end}, one from {following}", 1
    results = [seen.what for seen in turn.of(TurnOutcome)]
    if len(results) > 1:
        yield "results_doubled", f"{len(results)} results", len(results) - 1
    if any(isinstance(result, TurnOutcome) and result.turn_id != turn.turn_id for result in results):
        yield "results_doubled", "the result of another turn", 1


def _sum_up(turn: TurnHistory) -> Iterator[Finding]:
    finals = list({final.utterance_id: final for final in _finals(turn)}.values())
    for result in (seen.what for seen in turn.of(TurnOutcome)):
        if not isinstance(result, TurnOutcome) or (result.missing and not turn.hands_over):
            continue
        speech = sum(final.analyzed for final in finals)
        if (result.utterance_count, result.speech) != (len(finals), speech):
            text = f"{result.utterance_count} utterances, {result.speech} samples; its finals: {len(finals)}, {speech}"
            yield "results_incomplete", text, 1
        weighed = [final for final in finals if None not in final.estimates[:2]]
        weight = sum(final.analyzed for final in weighed)
        for index in (0, 1):
            mine, total = result.estimates[index], sum(f.analyzed * (f.estimates[index] or 0.0) for f in weighed)
            if (mine is None) != (weight == 0) or (mine is not None and abs(mine - total / weight) > SAME_EMOTION):
                yield "results_incomplete", f"emotion {mine}, of its finals {total / max(weight, 1)}", 1


def _order(turn: TurnHistory) -> Iterator[Finding]:
    final: set[str] = set()
    answered = False
    ends = -1
    for seen in turn.seen:
        match seen.what:
            case Interim(utterance_id):
                if utterance_id in final:
                    yield "out_of_order", f"an interim of {utterance_id} after its final", 1
            case Final() as what:
                if answered:
                    yield "out_of_order", f"{what.utterance_id} after the turn's result", 1
                if what.start < ends and what.utterance_id not in final:
                    yield "out_of_order", f"{what.utterance_id} after a later one", 1
                final.add(what.utterance_id)
                ends = max(ends, what.start)
            case TurnOutcome():
                answered = True
    for earlier, later in pairwise(turn.seen):
        if later.number != (earlier.number + 1 if later.call == earlier.call else 0):
            yield "out_of_order", f"number {later.number} of call {later.call} after {earlier.number}", 1


def _account(turn: TurnHistory) -> Iterator[Finding]:
    offset = 0
    received: dict[int, int] = {}
    for seen in turn.seen:
        if isinstance(seen.what, Opened):
            offset = seen.what.offset
        if seen.received < received.get(seen.call, 0):
            yield "samples_unaccounted", "the count of received samples fell", received[seen.call] - seen.received
        received[seen.call] = seen.received
        if (surplus := offset + seen.received - turn.pushed) > 0:
            yield "samples_unaccounted", f"{surplus} samples more were received than pushed", surplus
        if isinstance(seen.what, Accounting):
            yield from _sums(seen, seen.what, offset, turn.pushed)


def _sums(seen: Seen, account: Accounting, offset: int, pushed: int) -> Iterator[Finding]:
    parts = account.speech + account.non_speech + account.dropped
    if account.received != parts:
        text = f"call {seen.call}: received {account.received}, its parts are {parts}"
        yield "samples_unaccounted", text, abs(account.received - parts)
    if (missing := pushed - offset - account.received) > 0:
        yield "samples_unaccounted", f"pushed {pushed}, accounted for {pushed - missing}", missing


# ---- beside the undisturbed one


def _compare_finals(turn: TurnHistory, wanted: TurnHistory, state_survives: bool) -> Iterator[Finding]:
    got = {final.utterance_id: final for final in reversed(_finals(turn))}  # the first of each id
    for final in _finals(wanted):
        if (mine := got.pop(final.utterance_id, None)) is None:
            ended = f" (the turn ended with {_words(turn.error)})" if turn.error else ""
            yield "finals_lost", f"no final of {final.utterance_id}{ended}", 1
        elif not _same(mine, final, state_survives):
            yield "finals_changed", f"{mine}, undisturbed {final}", 1
    for final in got.values():
        yield "finals_changed", f"{final} is no utterance of the undisturbed run", 1


def _same(mine: Final, wanted: Final, state_survives: bool) -> bool:
    spans_agree = (mine.start, mine.end, mine.analyzed) == (wanted.start, wanted.end, wanted.analyzed)
    return spans_agree and mine.reason == wanted.reason and (not state_survives or mine.estimates == wanted.estimates)


def _compare_result(turn: TurnHistory, wanted: TurnHistory, state_survives: bool) -> Iterator[Finding]:
    if turn.of(TurnOutcome):
        if state_survives and turn.of(TurnOutcome)[0].what != wanted.of(TurnOutcome)[0].what:
            text = f"{turn.of(TurnOutcome)[0].what}, undisturbed {wanted.of(TurnOutcome)[0].what}"
            yield "personality_differences", text, 1
    elif not turn.hung:
        yield "results_lost", f"no result; it ended with {_words(turn.error) if turn.error else 'nothing'}", 1


def _finals(turn: TurnHistory) -> list[Final]:
    return [seen.what for seen in turn.seen if isinstance(seen.what, Final)]


def _words(error: TurnError) -> str:
    return f"{error.kind} {error.code or '(no code)'} {error.reason}: {error.text}"
