"""The asynchronous and the synchronous client are twins: the same names, parameters, results and errors."""

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

import pytest

import kibun.client
from kibun.client import (
    AsyncClient,
    AsyncConversation,
    AsyncStream,
    AsyncTurn,
    AsyncWatch,
    Client,
    Conversation,
    StreamConfig,
)
from kibun.client.client import ClientOptions

TWINS = {name: name.removeprefix("Async") for name in kibun.client.__all__ if name.startswith("Async")}
# What Python itself names differently.
SPECIAL = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__", "__anext__": "__next__"}
MEMBERS = [
    (name, member)
    for name in TWINS
    for member in dir(getattr(kibun.client, name))
    if not member.startswith("_") or member in SPECIAL
]


def pair(name: str) -> tuple[type[Any], type[Any]]:
    return getattr(kibun.client, name), getattr(kibun.client, TWINS[name])


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_each_class_has_a_twin_and_nothing_else_is_asynchronous() -> None:
    assert set(TWINS.values()) == {"Client", "Conversation", "Stream", "Turn", "Watch"}
    assert set(TWINS.values()) <= set(kibun.client.__all__)
    twins = {getattr(kibun.client, name) for name in (*TWINS, *TWINS.values())}
    for name in kibun.client.__all__:
        thing = getattr(kibun.client, name)
        if thing not in twins and inspect.isclass(thing) and name != "AffectTap":  # for hosts that are asynchronous
            waits = [n for n, member in inspect.getmembers(thing) if inspect.iscoroutinefunction(member)]
            assert not waits, f"{name} has no twin"


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_names(name: str) -> None:
    asynchronous, synchronous = pair(name)
    assert public(asynchronous) == public(synchronous)
    special = {SPECIAL[member] for member in SPECIAL if hasattr(asynchronous, member)}
    assert special == {member for member in SPECIAL.values() if hasattr(synchronous, member)}


async def test_their_instances_do_too() -> None:
    """Attributes that are set as they are made."""
    config = StreamConfig(conversation_id="c")
    async with AsyncClient("127.0.0.1:1") as client:
        with Client("127.0.0.1:1") as other:
            assert public(client) == public(other)
            for name, argument in {"conversation": "c", "stream": config, "turn": config, "watch": "c"}.items():
                assert public(getattr(client, name)(argument)) == public(getattr(other, name)(argument))


@pytest.mark.parametrize(("name", "member"), MEMBERS)
def test_a_member_takes_gives_and_raises_the_same(name: str, member: str) -> None:
    asynchronous, synchronous = pair(name)
    one = inspect.getattr_static(asynchronous, member)
    other = inspect.getattr_static(synchronous, SPECIAL.get(member, member))
    assert isinstance(one, property) == isinstance(other, property)
    # A method that waits in one blocks in the other, so that none of that is asynchronous.
    assert not inspect.iscoroutinefunction(other)
    if isinstance(one, property):
        assert resolved(one.fget, "return") == resolved(other.fget, "return")
    else:
        parameters = [
            [(p.name, p.kind, p.default, spelt(p.annotation)) for p in inspect.signature(f).parameters.values()]
            for f in (one, other)
        ]
        assert parameters[0] == parameters[1]
        if member not in SPECIAL:
            assert resolved(one, "return") == resolved(other, "return")
    assert errors(one) == errors(other)
    assert bool(inspect.getdoc(one)) == bool(inspect.getdoc(other)), "described in one of them alone"


def test_their_constructors_do_too() -> None:
    """Of the others, no user makes one: they come from these, whose keywords `Client` hands on as they are."""
    keywords = {
        p.name: p.annotation
        for p in inspect.signature(AsyncClient).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert keywords == typing.get_type_hints(ClientOptions)
    assert not ClientOptions.__required_keys__
    (target, options) = inspect.signature(Client).parameters.values()
    assert (target.name, target.annotation) == ("target", str)
    assert options.annotation == typing.Unpack[ClientOptions]


def spelt(annotation: object) -> str:
    """Of a twin, what both are called."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None) or str(annotation)
    return re.sub(r"\bAsync(?=Client|Conversation|Stream\b|Turn|Watch)", "", str(text).strip("\"'"))


def resolved(function: Callable[..., Any] | None, name: str) -> str:
    assert function is not None
    return spelt(function.__annotations__[name])


def errors(member: object) -> set[str]:
    """The errors that a description names."""
    return set(re.findall(r"\b\w+Error\b|\bStopIteration\b", inspect.getdoc(member) or ""))


def test_the_test_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(self: Conversation, timeout_s: float = 1.0) -> object:
        """Raises InternalError."""

    monkeypatch.setattr(Conversation, "get", get)
    with pytest.raises(AssertionError):
        test_a_member_takes_gives_and_raises_the_same("AsyncConversation", "get")
    monkeypatch.setattr(AsyncConversation, "one_more", get, raising=False)
    with pytest.raises(AssertionError):
        test_twins_have_the_same_names("AsyncConversation")


def test_what_is_listed_is_all_of_it() -> None:
    listed = {(AsyncTurn, "result"), (AsyncStream, "end_of_turn"), (AsyncWatch, "__anext__"), (AsyncClient, "analyze")}
    assert listed <= {(getattr(kibun.client, name), member) for name, member in MEMBERS}
