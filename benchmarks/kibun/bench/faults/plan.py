"""What happens in a fault run: a pure function of its seed, the scenario and the size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kibun.bench.faults.stub_client import ResumePoint
from kibun.bench.support.speech_like import speech_like
from kibun.models.types import SAMPLE_RATE_HZ

FaultKind = Literal[
    "worker_kill",
    "worker_freeze",
    "server_kill",
    "server_drain",
    "server_freeze",
    "client_kill",
    "redis_kill",
    "redis_freeze",
    "outage_kill",
    "reset",
    "end_client",
    "end_server",
    "vanish",
    "stall",
    "latency",
    "trickle",
]
NETWORK: tuple[FaultKind, ...] = ("reset", "end_client", "end_server", "vanish", "stall", "latency", "trickle")

QUICK_WINDOW_S = 2.0
PIECES = 24  # of speech, shared by all runs
LONG_PIECES = 3  # the last of them: longer than MAX_UTTERANCE_MS
MAX_UTTERANCE_MS = 3_000
PROXIES = 4  # groups of clients that share connections, where there is a network between
SPEEDS = (1.0, 4.0, 0.0, 2.0)
WINDOW_S = 3.0  # within which faults begin, in the ordinary run
GAP_OF_KILLS_S = 1.5  # a job is tried twice: two kills closer than that may meet the same one


@dataclass(frozen=True)
class Fault:
    """`target`: number of the server or of the proxy; `seconds`: how long it lasts, or until the restart."""

    at_s: float
    kind: FaultKind
    target: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class TurnPlan:
    """`audio`: numbers of pieces, and -n for n milliseconds of silence, in turn."""

    turn_id: str
    gap_s: float  # of silence before it is opened
    audio: tuple[int, ...]


@dataclass(frozen=True)
class ClientPlan:
    name: str
    conversation: str
    participant: str
    start_s: float
    speed: float  # times faster than speech; 0: as fast as the server takes it
    chunk_seed: int | None  # None: 100 ms each
    interims: bool
    eager: bool
    turns: tuple[TurnPlan, ...]
    resume_point: ResumePoint | None  # of a client made from the contract alone; None: the SDK


@dataclass(frozen=True)
class FaultPlan:
    seed: int
    scenario: str
    servers: int
    store: Literal["memory", "redis"]
    network: bool  # proxies between clients and servers
    victims: int  # streams of a process that is killed
    clients: tuple[ClientPlan, ...]
    faults: tuple[Fault, ...]

    @property
    def ends_servers(self) -> bool:
        """Whether a server ends, by whatever signal."""
        return any(fault.kind in ("server_kill", "server_drain", "outage_kill") for fault in self.faults)

    @property
    def state_survives(self) -> bool:
        """Whether what servers know of conversations outlives every fault."""
        known = self.store == "redis" and not any(fault.kind == "outage_kill" for fault in self.faults)
        return known or not self.ends_servers


@dataclass(frozen=True)
class Scenario:
    """`faults`: how often each kind comes, from and to; kinds joined by "|" are drawn from."""

    name: str
    faults: tuple[tuple[str, int, int], ...]
    store: Literal["memory", "redis"] = "memory"
    servers: int = 1
    seconds: tuple[float, float] = (0.0, 0.5)  # of each fault
    window_s: float = WINDOW_S
    victims: int = 0
    pauses_ms: tuple[int, int] = (50, 900)  # between utterances
    resume_points: tuple[ResumePoint | None, ...] = (None,)  # of one client after the other
    rare: bool = False  # takes long: comes once in RARE_EVERY rounds

    @property
    def ends_redis(self) -> bool:
        return any(kinds.startswith(("redis", "outage")) for kinds, _, _ in self.faults)

    @property
    def network(self) -> bool:
        return any(kind in NETWORK for kinds, _, _ in self.faults for kind in kinds.split("|"))


_NETWORK = "|".join(NETWORK)
SCENARIOS = (
    Scenario("worker_kill", (("worker_kill", 2, 2),)),
    Scenario("server_kill_store", (("server_kill", 1, 2),), store="redis"),
    Scenario("network", ((_NETWORK, 8, 16),), seconds=(0.2, 1.5)),
    Scenario("server_kill", (("server_kill", 1, 2),)),
    Scenario("rolling", (("server_drain", 4, 4),), store="redis", servers=2, window_s=6.0),
    Scenario("server_drain", (("server_drain", 1, 2),)),
    Scenario("client_kill", (("client_kill", 1, 1),), victims=4),
    Scenario("redis_kill", (("redis_kill", 1, 2),), store="redis", seconds=(0.1, 1.5)),
    Scenario(
        "everything",
        (("worker_kill", 1, 1), ("server_kill|server_drain", 1, 2), (_NETWORK, 4, 10)),
        store="redis",
        servers=2,
        seconds=(0.2, 1.0),
    ),
    Scenario(
        "stub_client",
        (("server_kill", 2, 3), (_NETWORK, 6, 12)),
        store="redis",
        seconds=(0.2, 1.0),
        window_s=6.0,
        pauses_ms=(50, 6000),  # long enough for StreamProgress
        resume_points=("final", "settled"),
    ),
    Scenario("outage_kill", (("outage_kill", 1, 2),), store="redis", seconds=(0.8, 1.5)),
    Scenario("server_freeze", (("server_freeze", 1, 2),), seconds=(0.5, 2.0)),
    Scenario("redis_freeze", (("redis_freeze", 1, 2),), store="redis", seconds=(0.5, 2.0)),
    Scenario("worker_freeze", (("worker_freeze", 1, 1),), rare=True),
    Scenario("long_freeze", (("server_freeze", 1, 1),), seconds=(28.0, 32.0), rare=True),
    Scenario("long_stall", (("stall|vanish", 2, 4),), seconds=(28.0, 32.0), rare=True),
    Scenario("rolling_20", (("server_drain", 20, 20),), store="redis", servers=2, window_s=40.0, rare=True),
)
RARE_EVERY = 6


def scenario_named(name: str) -> Scenario:
    """Raises KeyError."""
    return {scenario.name: scenario for scenario in SCENARIOS}[name]


def order() -> list[Scenario]:
    """Scenarios in the order in which seeds go through them, again and again."""
    common = [scenario for scenario in SCENARIOS if not scenario.rare]
    rare = [scenario for scenario in SCENARIOS if scenario.rare]
    found = []
    for one in rare:
        found += RARE_EVERY * common
        found.append(one)
    return found


def make(seed: int, scenario: Scenario, *, quick: bool) -> FaultPlan:
    """The run of a seed. `quick`: six clients, otherwise twenty."""
    random = Random(f"{scenario.name} {seed} {quick}")  # texts are hashed the same way in every process
    count = 6 if quick else 20
    if quick:
        scenario = replace(scenario, window_s=min(scenario.window_s, QUICK_WINDOW_S))
    clients = tuple(_client(random, seed, number, scenario) for number in range(count))
    faults = sorted(_faults(random, scenario), key=lambda fault: fault.at_s)
    return FaultPlan(
        seed=seed,
        scenario=scenario.name,
        servers=scenario.servers,
        store=scenario.store,
        network=scenario.network,
        victims=scenario.victims,
        clients=clients,
        faults=tuple(faults),
    )


def _client(random: Random, seed: int, number: int, scenario: Scenario) -> ClientPlan:
    speed = SPEEDS[number % len(SPEEDS)]
    # Two participants in every fourth conversation.
    conversation = number - 1 if number % 4 == 1 else number
    return ClientPlan(
        name=f"client-{number}",
        conversation=f"run-{seed}-{conversation}",
        participant=f"person-{number}",
        start_s=round(random.uniform(0.0, 0.5), 3),
        speed=speed,
        chunk_seed=random.choice((None, random.randrange(2**31))),
        interims=random.random() < 0.3,
        eager=random.random() < 0.7,
        turns=tuple(_turns(random, number, speed, scenario)),
        resume_point=scenario.resume_points[number % len(scenario.resume_points)],
    )


def _turns(random: Random, number: int, speed: float, scenario: Scenario) -> list[TurnPlan]:
    """Turns that fill the time in which faults come, at this client's speed."""
    window_s = scenario.window_s
    left_s, turns = window_s, list[TurnPlan]()
    while left_s > 0:
        pieces = PIECES if speed != 1.0 else PIECES - LONG_PIECES
        audio = [-random.randint(50, 400)]
        for _ in range(1 if speed == 1.0 else random.randint(1, 3)):
            audio += [random.randrange(pieces), -random.randint(*scenario.pauses_ms)]
        gap_s = round(
            random.uniform(0.2, 1.2) * max(window_s / 10, 1.0) if speed == 0.0 else random.uniform(0.0, 0.3), 3
        )
        turns.append(TurnPlan(f"turn-{number}-{len(turns)}", gap_s, tuple(audio)))
        left_s -= gap_s + (length_s(audio) / speed if speed else 0.1)
    return turns


def _faults(random: Random, scenario: Scenario) -> list[Fault]:
    faults = []
    for kinds, least, most in scenario.faults:
        count = random.randint(least, most)
        for number in range(count):
            kind: Any = random.choice(kinds.split("|"))
            targets = PROXIES if kind in NETWORK else scenario.servers
            spread = max(scenario.window_s / count, GAP_OF_KILLS_S if kind == "worker_kill" else 0.0)
            at_s = 0.2 + number * spread + random.uniform(0.0, max(spread - GAP_OF_KILLS_S, 0.1))
            target = number % targets if kind == "server_drain" else random.randrange(targets)
            faults.append(Fault(round(at_s, 3), kind, target, round(random.uniform(*scenario.seconds), 3)))
    return faults


# ---- sound

Pcm = npt.NDArray[np.int16]

_LENGTHS_S = (*(0.5 + 0.09 * number for number in range(PIECES - LONG_PIECES)), 4.0, 5.0, 6.5)


def length_s(audio: Sequence[int]) -> float:
    """Seconds of a turn's audio."""
    return sum(_LENGTHS_S[part] if part >= 0 else -part / 1000 for part in audio)


def pieces() -> list[Pcm]:
    """The speech that turns are put together from, (samples,) each."""
    sounds = (
        speech_like(seconds, SAMPLE_RATE_HZ, f0=100 + 7 * number, seed=number)
        for number, seconds in enumerate(_LENGTHS_S)
    )
    return [np.round(32767 * sound).astype(np.int16) for sound in sounds]


def audio_of(turn: TurnPlan, speech: Sequence[Pcm]) -> Pcm:
    """All samples of a turn, (samples,): speech, and room tone between."""
    tone, samples_per_ms = np.random.default_rng(len(turn.audio)), SAMPLE_RATE_HZ // 1000
    parts = [
        speech[part] if part >= 0 else np.round(3 * tone.standard_normal(-part * samples_per_ms)).astype(np.int16)
        for part in turn.audio
    ]
    return np.concatenate(parts)
