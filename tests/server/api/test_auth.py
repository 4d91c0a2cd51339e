"""Who calls, and what each tenant may use: token files, buckets, accounts."""

import contextlib
import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kibun.server.api.auth import ANYONE, NO_TOKEN, NOT_ACCEPTED, Authenticator, TokenFileError
from kibun.server.api.quota import (
    AUDIO_BURST_S,
    MAX_CALLS,
    MAX_TENANT_CALLS,
    MESSAGE_BURST_S,
    Account,
    Bucket,
    Quotas,
    TenantLimits,
)
from kibun.server.errors import Failure, Kind
from tests.support import present


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def authenticator(tmp_path: Path, text: str, now: float = 0.0) -> Authenticator:
    path = tmp_path / "tokens"
    path.write_text(text)
    return Authenticator(path, clock=lambda: now)


# ---- tokens


def test_without_tokens_all_clients_are_one_tenant() -> None:
    anybody = Authenticator()
    assert anybody.tenant(anybody.digest(None)) == anybody.tenant(anybody.digest("Bearer x")) == ANYONE


def test_tokens_of_one_tenant_may_be_several(tmp_path: Path) -> None:
    known = authenticator(
        tmp_path, f"# comment\n\nacme {digest('a')}  # old\nacme {digest('b')}\nother {digest('c')}\n"
    )
    assert [known.tenant(known.digest(text)) for text in ("Bearer a", "bearer b")] == ["acme"] * 2
    assert known.tenant(known.digest("Bearer c")) == "other"
    for missing in (None, "", "Bearer", "Bearer ", "a", "Basic a"):
        with pytest.raises(Failure, match=NO_TOKEN):
            known.digest(missing)
    for wrong in (f"Bearer {digest('a')}", "Bearer a b", "Bearer é", "Bearer " + "a" * 10_000):
        with pytest.raises(Failure, match=NOT_ACCEPTED):
            known.digest(wrong)


A = f"acme {digest('a')}"


@pytest.mark.parametrize(
    "line",
    ["acme", "acme secret", f"ac/me {digest('b')}", f"acme {digest('b')} x", "acme " + "A" * 64, f"{digest('b')} acme"],
)
def test_a_bad_line_is_named_and_not_quoted(tmp_path: Path, line: str) -> None:
    with pytest.raises(TokenFileError, match=r"tokens:2: expected") as caught:
        authenticator(tmp_path, f"{A}\n{line}\n")
    assert line not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"{A} streams=0", "tokens:1: streams must be a number above 0"),
        (f"{A} streams=1.5", "streams must be"),
        (f"{A} audio_s_per_minute=nan", "audio_s_per_minute must be"),
        (f"{A} expires=tomorrow", "expires must be a time as"),
        (f"{A} messages_per_s=5\nacme {digest('b')} messages_per_s=6", "tokens:2: messages_per_s differs"),
        (f"{A}\nother {digest('a')}", "tokens:2: the same token"),
        ("# nobody\n", "no client could use the server"),
    ],
)
def test_options_of_a_line_are_checked(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(TokenFileError, match=named):
        authenticator(tmp_path, text)


def test_limits_of_a_tenant_may_stand_on_any_of_its_lines(tmp_path: Path) -> None:
    known = authenticator(tmp_path, f"{A} streams=3\nacme {digest('b')} audio_s_per_minute=90.5\nother {digest('c')}\n")
    default = TenantLimits(streams=7, messages_per_s=100.0)
    assert known.limits("acme", default) == TenantLimits(3, 90.5, 100.0)
    assert known.limits("other", default) == default
    assert Authenticator().limits(ANYONE, default) == default


def test_a_token_expires(tmp_path: Path) -> None:
    text = f"{A} expires=2026-12-31T23:00:00+01:00\nacme {digest('b')} expires=2026-12-31\n"
    path = tmp_path / "tokens"
    path.write_text(text)
    now = [1_798_754_399.0]  # 22:59:59 in UTC+1
    known = Authenticator(path, clock=lambda: now[0])
    held = known.digest("Bearer a")
    assert known.valid(held)
    with pytest.raises(Failure, match=NOT_ACCEPTED):
        known.digest("Bearer b")  # its day began at 00:00 UTC
    now[0] += 1
    assert not known.valid(held)
    with pytest.raises(Failure, match=NOT_ACCEPTED):
        known.digest("Bearer a")


def test_a_file_that_became_unusable_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{A}\n")
    known = Authenticator(path)
    held = known.digest("Bearer a")
    path.write_text("nonsense\n")
    with pytest.raises(TokenFileError, match="tokens:1"):
        known.reload()
    assert known.valid(held)
    path.write_text(f"acme {digest('new')}\nacme {digest('newer')}\n")
    known.reload()
    assert str(known) == "2 tokens"
    assert not known.valid(held)
    new = known.digest("Bearer new")
    assert known.valid(new, "acme")
    path.write_text(f"umbrella {digest('new')}\nacme {digest('newer')}\n")
    known.reload()
    assert known.valid(new)
    assert not known.valid(new, "acme"), "what began as another tenant's must not go on"
    path.write_text(f"acme {digest('new')}\nacme {digest('newer')}\n")
    known.reload()
    assert known.tenant(known.digest("Bearer new")) == "acme"


# ---- quotas


@given(
    rate=st.floats(0.1, 1000),
    burst_s=st.floats(1, 60),
    steps=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 50)), max_size=60),
)
def test_a_bucket_gives_no_more_than_its_rate_and_burst(
    rate: float, burst_s: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now, taken = Bucket(rate, burst_s, 0.0), 0.0, 0.0
    for wait_s, amount in steps:
        now += wait_s
        if bucket.take(amount, now):
            taken += amount
            assert taken <= rate * (burst_s + now) + amount + 1e-6, "but for the last, which may be more than there is"


def test_after_the_wait_a_stream_may_begin() -> None:
    now = [0.0]
    account = Account(TenantLimits(audio_s_per_minute=60), lambda: now[0])
    assert account.charge(AUDIO_BURST_S + 30) is None
    failure = present(account.charge(0.1))
    assert (failure.kind, failure.reason) == (Kind.RESOURCE_EXHAUSTED, "TENANT_AUDIO_LIMIT")
    refusal = present(account.refusal())
    assert refusal.retry_after_s is not None
    now[0] += refusal.retry_after_s - 0.01
    assert account.refusal()
    now[0] += 0.02
    assert account.refusal() is None


def test_as_many_streams_end_as_are_too_many() -> None:
    """Ten streams speak, and six times as fast as speech would be allowed: four must go, and the rest may stay."""
    now = [0.0]
    account = Account(TenantLimits(audio_s_per_minute=6 * 60), lambda: now[0])
    streams = set(range(10))
    for _ in range(3000):  # of 100 ms
        now[0] += 0.1
        for stream in sorted(streams):
            if account.charge(0.1):
                streams.remove(stream)
    assert 5 <= len(streams) <= 6


@pytest.mark.parametrize("message_s", [0.1, 32.0, 2000.0])
@pytest.mark.parametrize("at_a_time", [1, 20])
def test_streams_that_end_on_purpose_bring_no_more_audio_than_permitted(message_s: float, at_a_time: int) -> None:
    """Each sends until it is refused; then as many begin as may."""
    now, taken = [0.0], 0.0
    account = Account(TenantLimits(audio_s_per_minute=60), lambda: now[0])
    while now[0] < 3600:
        streams = 0 if account.refusal() else at_a_time
        for _ in range(streams):
            while account.charge(message_s) is None:
                taken += message_s
        now[0] += 0.5
    lent_s = AUDIO_BURST_S + at_a_time * (message_s + 1)  # at any time: a message each and the room that its end made
    assert taken <= AUDIO_BURST_S + 3600 + lent_s


def test_messages_are_counted_whatever_they_hold() -> None:
    now = [0.0]
    account = Account(TenantLimits(messages_per_s=10), lambda: now[0])
    failures = [account.charge(0.0) for _ in range(round(10 * MESSAGE_BURST_S) + 1)]
    assert next(f for f in failures if f).reason == "TENANT_MESSAGE_LIMIT"
    assert all(f is None for f in failures[:-1])


def test_places_are_counted_and_given_back() -> None:
    limits = {"small": TenantLimits(streams=1)}
    quotas = Quotas(2, lambda tenant: limits.get(tenant, TenantLimits()))
    with quotas.stream("small"):
        with pytest.raises(Failure, match="1 streams open") as caught, quotas.stream("small"):
            pass
        assert (caught.value.reason, caught.value.quota) == ("TENANT_STREAM_LIMIT", "concurrent streams of a tenant")
        with quotas.stream("large"):
            assert quotas.active == 2
            with pytest.raises(Failure, match="2 streams at a time") as caught, quotas.stream("large"):
                pass
            assert caught.value.reason == "TOO_MANY_STREAMS"
    assert quotas.active == 0
    with quotas.stream("small") as account:
        limits["small"] = TenantLimits(streams=2)
        with quotas.stream("small") as same:
            assert same is account
            assert account.streams == 2


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_places_never_exceed_a_limit(order: list[str]) -> None:
    quotas = Quotas(4, lambda tenant: TenantLimits(streams=2))
    open_: dict[int, object] = {}
    numbers = itertools.count()
    for tenant in order:
        context = quotas.stream(tenant)
        try:
            context.__enter__()
        except Failure:
            if open_:
                open_.pop(min(open_)).__exit__(None, None, None)  # type: ignore[attr-defined]
            continue
        open_[next(numbers)] = context
        assert quotas.active == len(open_) <= 4


def test_calls_beside_streams_have_room_of_their_own() -> None:
    quotas = Quotas(1, lambda tenant: TenantLimits(messages_per_s=1000.0))
    with contextlib.ExitStack() as stack, quotas.stream("a"):
        for _ in range(MAX_TENANT_CALLS):
            stack.enter_context(quotas.call("a"))
        with pytest.raises(Failure, match="64 calls in progress") as caught, quotas.call("a"):
            pass
        assert (caught.value.kind, caught.value.reason) == (Kind.RESOURCE_EXHAUSTED, "TENANT_CALL_LIMIT")
        for number in range(MAX_CALLS - MAX_TENANT_CALLS):
            stack.enter_context(quotas.call(f"b{number}"))
        with pytest.raises(Failure, match="256 calls at a time") as caught, quotas.call("c"):
            pass
        assert caught.value.reason == "TOO_MANY_CALLS"
    assert quotas.calls == 0
    with quotas.call("a"):
        assert quotas.calls == 1


def test_opening_counts_as_a_message() -> None:
    quotas = Quotas(9, lambda tenant: TenantLimits(messages_per_s=1.0), clock=lambda: 0.0)
    for _ in range(round(MESSAGE_BURST_S)):
        with quotas.call("a"):
            pass
    for opened in (quotas.call, quotas.stream):
        with pytest.raises(Failure, match="messages per second"), opened("a"):
            pass


def test_limits_read_anew_hold_for_open_streams() -> None:
    limits = {"a": TenantLimits()}
    quotas = Quotas(9, lambda tenant: limits[tenant], clock=lambda: 0.0)
    with quotas.stream("a") as account:
        assert account.charge(1e6) is None
        limits["a"] = TenantLimits(audio_s_per_minute=60)
        assert account.charge(1e6) is None
        quotas.refresh()
        assert account.charge(100) is None, "one may be more than there is"
        failure = present(account.charge(0.1))
        assert failure.reason == "TENANT_AUDIO_LIMIT"
