"""After `fork`, as by gunicorn --preload and multiprocessing: the SDK works in the child, or says what to do.

Each program runs in a process of its own, as the forks of this one would inherit what other tests left open.
"""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from kibun.client.server_process import ServerProcess
from tests.support import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")

PROLOGUE = """
import asyncio, json, os, signal, sys, time
from kibun.client import AsyncClient, Client

target = sys.argv[1]

def in_child(use):
    '''What `use` gives in a forked child, which ends as any program does: [its result or error, exit status].'''
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(15)
        try:
            answer = use()
        except Exception as error:
            answer = getattr(error, "reason", repr(error))
        os.write(writing, json.dumps(answer).encode())
        sys.exit(0)
    os.close(writing)
    answer = os.read(reading, 10_000).decode()
    _, status = os.waitpid(pid, 0)
    return [json.loads(answer) if answer else None, status]

def talk(client):
    with client.conversation().turn() as turn:
        turn.push(bytes(32000))
        return turn.result().end_reason

def new():
    with Client(target) as client:
        return talk(client)

def at_once(client):
    return asyncio.run(asynchronous(client))

async def asynchronous(client):
    async with client.conversation().turn() as turn:
        await turn.push(bytes(32000))
        return (await turn.result()).end_reason
"""
DONE = ["client_end_of_turn", 0]


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with ServerProcess("stub", ["--loader", "tests.support.stub_model:load"]) as server:
            yield server.target


def run(program: str, target: str, **environment: str) -> object:
    """What a program prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(program), target],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_idle_clients_work_on_in_parent_and_child(target: str) -> None:
    program = """
        client = Client(target)
        print(json.dumps([
            in_child(lambda: talk(client)), talk(client), in_child(lambda: talk(client)),
            in_child(new), in_child(lambda: [talk(client), client.close()][0]), talk(client),
        ]))
    """
    expected = [DONE, DONE[0], DONE, DONE, DONE, DONE[0]]
    assert run(program, target) == expected


def test_where_grpc_does_not_support_forks_a_child_says_so(target: str) -> None:
    program = """
        client = Client(target)
        unused = in_child(lambda: talk(client))
        print(json.dumps([unused, talk(client), in_child(lambda: talk(client)), in_child(new), talk(client)]))
    """
    expected = [DONE, DONE[0], ["FORKED", 0], ["FORKED", 0], DONE[0]]
    assert run(program, target, GRPC_ENABLE_FORK_SUPPORT="0") == expected


def test_a_client_made_at_import_works_in_every_worker(target: str) -> None:
    """gunicorn --preload: the application is imported, and then forked, by the master."""
    program = """
        client, other = Client(target), AsyncClient(target)
        print(json.dumps([in_child(lambda: [talk(client), at_once(other)][0]) for _ in range(3)]))
    """
    assert run(program, target) == [DONE] * 3


def test_asynchronous_clients_work_after_their_loops(target: str) -> None:
    program = """
        client = AsyncClient(target)
        print(json.dumps([at_once(client), in_child(lambda: at_once(client)), in_child(new), at_once(client)]))
    """
    assert run(program, target) == [DONE[0], DONE, DONE, DONE[0]]


def test_multiprocessing(target: str) -> None:
    program = """
        import multiprocessing

        client = Client(target)
        talk(client)

        def work(number):
            return talk(client)

        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(json.dumps(pool.map(work, range(4))))
    """
    assert run(program, target) == [DONE[0]] * 4


def test_errors_and_turns_of_the_past_are_in_no_ones_way(target: str) -> None:
    program = """
        client = Client(target)
        turn = client.conversation().turn()
        with turn:
            turn.push(bytes(32000))
        try:
            client.get_conversation("nobody")
        except Exception as error:
            kept = [error]
        try:
            with client.conversation().turn(sample_rate_hz=99):
                pass
        except Exception as error:
            kept.append(error)
        print(json.dumps([in_child(new), in_child(lambda: turn.result().end_reason), talk(client)]))
    """
    assert run(program, target) == [DONE, DONE, DONE[0]]


def test_a_turn_goes_on_in_the_parent_and_is_not_the_childs(target: str) -> None:
    """A microphone is open while the program forks, five times: no final of the parent's is lost or doubled."""
    program = """
        import threading

        import numpy as np
        from kibun.client import UtteranceResult
        from tests.support.serving import sound

        audio = (32767 * sound(*[("speech", 0.6), ("silence", 0.8)] * 3)).astype(np.int16)

        heard = threading.Semaphore(0)

        def microphone():
            for number, chunk in enumerate(np.array_split(audio, 60)):
                if number % 10 == 0:
                    heard.acquire(timeout=30)
                yield chunk

        def fork_after_some_audio():
            heard.release()
            time.sleep(0.1)
            return in_child(in_a_child)

        def spans(events):
            return [[event.start_s, event.end_s] for event in events if isinstance(event, UtteranceResult)]

        def in_a_child():
            try:
                turn.push(bytes(3200))
            except Exception as error:
                reason = error.reason
            return [reason, talk(client), new()]

        client = Client(target)
        expected = spans(client.analyze(audio).utterances)
        with client.conversation().turn() as turn:
            turn.feed(microphone())
            children = [fork_after_some_audio() for _ in range(5)]
            heard.release()
            found = spans(turn)
        print(json.dumps([children, found == expected, len(found), turn.started.reconnects > 0]))
    """
    expected = [[[["FORKED", DONE[0], DONE[0]], 0]] * 5, True, 3, True]
    assert run(program, target) == expected
