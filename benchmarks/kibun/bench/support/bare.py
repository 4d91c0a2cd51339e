"""The bare encoder loop, in a separate process: `python -m kibun.bench.support.bare MATERIAL.npz`.

What the worker of `kibun serve` computes, loaded the way it loads it, in as many threads; without gRPC, without voice
activity detection, without a queue. Each thread takes the next utterance of a list and analyses it alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kibun.bench.support import machine, material
from kibun.bench.support.child import answer
from kibun.models.types import Precision, Utterance
from kibun.server.inference.runner import LoadedModels
from kibun.server.inference.worker import load_models
from kibun.server.inference.worker_protocol import LoadOptions


def base_size(folder: str) -> dict[str, Any]:
    """Write a bundle of HuBERT-base's size with three tails and random weights, the same every time."""
    import torch

    from kibun.models.config import KibunConfig
    from kibun.models.model import KibunModel

    torch.manual_seed(0)
    KibunModel(KibunConfig(bundle_name="base-random")).save_pretrained(folder)
    return {}


def describe() -> dict[str, Any]:
    """The machine, with what one thread reaches in a large matrix product: the limit of every encoder."""
    import torch

    from kibun.models.precision import EMULATED, emulates_bfloat16

    torch.set_num_threads(1)
    left_out = EMULATED if emulates_bfloat16() else None
    peaks = {
        "gemm_tflops_fp32": machine.gemm_tflops(torch.float32),
        "gemm_tflops_bf16": None if left_out else machine.gemm_tflops(torch.bfloat16),
        "bf16_left_out": left_out,
    }
    return machine.describe() | peaks


class Bare:
    """The loop over utterances; one model at a time."""

    def __init__(self, utterances: Sequence[material.Pcm]) -> None:
        self._audio = [
            pcm.astype(np.float32) / np.float32(32768) for pcm in utterances
        ]  # as the server decodes LINEAR16
        self._loaded: LoadedModels | None = None

    def handle(self, what: str, **details: Any) -> dict[str, Any]:
        """Answer one question of `Child.ask`."""
        actions: dict[str, Callable[..., dict[str, Any]]] = {
            "base_size": base_size,
            "describe": describe,
            "load": self.load,
            "run": self.run,
        }
        return actions[what](**details)

    def load(self, model: str, precision: Precision) -> dict[str, Any]:
        """As the worker of `kibun serve --allow-untrained --precision PRECISION` loads it."""
        options = LoadOptions(loader="", models=(model,), allow_untrained=True, precision=precision)
        self._loaded = None  # the memory of the last one
        self._loaded = load_models(options)
        info = self._loaded.models[0].info
        return {"threads": self._loaded.slots, "device": self._loaded.device, "precision": info.precision}

    def run(self, order: list[int]) -> dict[str, Any]:
        """Analyse utterances in this order. Returns seconds, CPU seconds, and [valence, arousal] of each utterance."""
        assert self._loaded is not None, "load comes first"
        threads = self._loaded.slots
        turns = iter(order)  # shared: next() of a list's iterator is atomic
        cpu, begin = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(lambda _: dict(self._analyse(turns)), range(threads)))
        seconds = time.perf_counter() - begin
        estimates = {index: estimate for part in parts for index, estimate in part.items()}
        return {"seconds": seconds, "cpu_s": time.process_time() - cpu, "estimates": estimates}

    def _analyse(self, turns: Iterator[int]) -> Iterator[tuple[int, tuple[float | None, float | None]]]:
        assert self._loaded is not None
        model = self._loaded.models[0]
        nothing = np.empty((0, model.info.vector_size), np.float16)
        for index in turns:
            (result,) = model.analyze([Utterance(self._audio[index], nothing)])
            yield index, (result.valence, result.arousal)


if __name__ == "__main__":
    answer(Bare(material.read(Path(sys.argv[1]))).handle)
