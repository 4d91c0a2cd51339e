"""Looks for what must not be anywhere: audio, scores, names and tokens, in whatever form they might be written.

Also run inside the server's processes, to list which files they open for writing: `watch_files`, and `load`, a loader
of stub models that watches the worker.
"""

import base64
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kibun.models.types import Analysis, Utterance
from kibun.server.inference.runner import LoadedModels
from kibun.server.inference.worker_protocol import LoadOptions
from tests.support import stub_model

VALENCE = 2.718281746  # exact in float32
EXCEPTION = "Boom-Larsen-80"  # what the server's own exceptions say
FILES = "LEAKS_FILES"  # environment variable: where to list them

WINDOW = 12  # samples of audio that are looked for together
EVERY = 800  # samples; a window at each


@dataclass
class Secrets:
    """What was sent and received, by kind; needles are made of it."""

    names: dict[str, str] = field(default_factory=dict)  # kind of name: the name
    tokens: list[str] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=dict)  # kind of score: scores
    audio: list[np.ndarray] = field(default_factory=list)  # int16 or float32 (n,), as sent

    def needles(self) -> dict[str, list[bytes]]:
        found = {name: _text(text) for name, text in self.names.items()}
        found["token"] = [n for token in self.tokens for n in _token(token)]
        found |= {kind: [n for v in values for n in _number(v)] for kind, values in self.numbers.items()}
        found["audio"] = [n for audio in self.audio for window in _windows(audio) for n in _audio(window)]
        return found


def hits(evidence: Mapping[str, bytes], secrets: Secrets) -> list[tuple[str, str, bytes]]:
    """(where, what kind, the needle) of everything that is found."""
    lower = {where: text.lower() for where, text in evidence.items()}
    return [
        (where, kind, needle)
        for kind, needles in secrets.needles().items()
        for needle in set(needles)
        for where, text in lower.items()
        if needle.lower() in text
    ]


def _text(text: str) -> list[bytes]:
    plain = text.encode()
    return [plain, repr(text).strip("'").encode(), plain.hex().encode(), *_base64(plain)]


def _token(token: str) -> list[bytes]:
    digest = hashlib.sha256(token.encode()).digest()
    return [*_text(token), digest.hex().encode(), repr(digest)[2:-1].encode(), *_base64(digest)]


def _number(value: float) -> list[bytes]:
    """As a double and as a float32 would be written, cut to where both agree."""
    return [f"{value:.9f}"[:8].encode(), repr(float(np.float32(value))).encode()]


def _windows(audio: np.ndarray) -> Iterable[np.ndarray]:
    for begin in range(0, len(audio) - WINDOW, EVERY):
        window = audio[begin : begin + WINDOW]
        if len(np.unique(window)) > WINDOW // 2:  # silence is not worth looking for: it is everywhere
            yield window


def _audio(window: np.ndarray) -> list[bytes]:
    forms = []
    floats = window.astype(np.float32) / 32768 if window.dtype == np.int16 else window
    for samples in (window, floats, np.round(floats * 32768).astype(np.int16)):
        raw = samples.tobytes()
        forms += [raw, raw.hex().encode(), repr(raw)[2:-1].encode(), *_base64(raw)]
        forms += [", ".join(map(str, samples[:4].tolist())).encode(), repr(list(raw[:8]))[1:-1].encode()]
    return forms


def _base64(data: bytes) -> list[bytes]:
    """At each alignment, without what depends on the neighbours."""
    found = []
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + data)
        found.append(text[4 if shift else 0 : len(text) // 4 * 4 - 4])
    return [text for text in found if len(text) >= 8]


# ---- in the server's processes


class _Scored(stub_model.StubModel):
    """Its valence differs from all other numbers."""

    def analyze(self, utterances: Sequence[Utterance]) -> list[Analysis]:
        from dataclasses import replace

        return [replace(result, valence=VALENCE) for result in super().analyze(utterances)]


def load(options: LoadOptions) -> LoadedModels:
    """A loader, see `kibun serve --loader`."""
    watch_files()
    loaded = stub_model.load(options)
    models = [_Scored(model.info.name, 0.0, 0.0) for model in loaded.models]
    return LoadedModels(models, loaded.slots, loaded.batch_s, loaded.device)


def watch_files() -> None:
    """From now on this process lists every file that it opens for writing."""
    listed = os.open(os.environ[FILES], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or (isinstance(mode, str) and re.search("[wax+]", mode)):
                os.write(listed, f"{path}\n".encode())

    sys.addaudithook(hook)
