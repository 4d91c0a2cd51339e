"""Real-time factor of a HuBERT-base-size bundle on the CPU, fp32, beside the paper's deployment.

The paper runs one full HuBERT per task (personality, valence, arousal); a bundle runs one trunk and three tails. Both
get random weights, which cost the same as trained ones. The paths take turns within one process, so that a busy machine
slows all of them; still, only the ratios carry over to other machines.

    python benchmarks/encoder_rtf.py [--seconds 2 5 10] [--rounds 7] [--threads 1] [--json]
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kibun.models._transformers import HubertConfig, HubertModel
from kibun.models.config import KibunConfig
from kibun.models.model import KibunModel
from kibun.models.types import Utterance

SAMPLE_RATE_HZ = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 5.0, 10.0], help="lengths of the audio")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds, of which the median is reported")
    parser.add_argument("--threads", type=int, default=1, help="threads of one operation")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = measure(options.seconds, options.rounds, options.threads)
    print(json.dumps(report, indent=2) if options.json else as_table(report))


def measure(lengths: list[float], rounds: int, threads: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = KibunModel(KibunConfig()).eval()
    singles = [HubertModel(HubertConfig()).eval() for _ in range(3)]
    rows = [measure_length(model, singles, seconds, rounds) for seconds in lengths]
    return {
        "threads": threads,
        "rounds": rounds,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "parameters": {
            "bundle": sum(p.numel() for p in model.parameters()),
            "three_full_models": sum(p.numel() for single in singles for p in single.parameters()),
        },
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "results": rows,
    }


def measure_length(model: KibunModel, singles: list[HubertModel], seconds: float, rounds: int) -> dict[str, Any]:
    audio = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)
    waveform = torch.from_numpy(audio)
    request = Utterance(audio, np.zeros((10, model.vector_size), np.float16))
    paths: dict[str, Callable[[], object]] = {
        "three_full_models": lambda: [single(waveform[None]).last_hidden_state for single in singles],
        "one_full_model": lambda: singles[0](waveform[None]).last_hidden_state,
        "trunk_and_three_tails": lambda: three_tails(model, waveform),
        "analyze": lambda: model.analyze([request]),  # tails, heads and all
    }
    times = run_interleaved(paths, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    spread = {name: (max(values) - min(values)) / medians[name] for name, values in times.items()}
    return {
        "audio_seconds": seconds,
        "real_time_factor": {name: value / seconds for name, value in medians.items()},
        "relative_spread": spread,
        "speedup_over_three_full_models": {
            name: statistics.median(a / b for a, b in zip(times["three_full_models"], values, strict=True))
            for name, values in times.items()
        },
    }


def three_tails(model: KibunModel, waveform: torch.Tensor) -> list[torch.Tensor]:
    frames = model.encode([waveform])
    return [model.tail(task)(frames).hidden for task in model.config.tasks]


@torch.inference_mode()
def run_interleaved(paths: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in paths}
    for path in paths.values():  # first calls pay for memory and kernels
        path()
    for _ in range(rounds):
        for name, path in paths.items():
            start = time.perf_counter()
            path()
            times[name].append(time.perf_counter() - start)
    return times


def as_table(report: dict[str, Any]) -> str:
    lines = [
        f"fp32, {report['threads']} thread(s), median of {report['rounds']} interleaved rounds,"
        f" torch {report['torch']}, peak memory {report['peak_memory_mib']} MiB (all paths together)",
        f"{'audio':>7}  {'path':<22} {'real-time factor':>16}  {'against three full models':>25}",
    ]
    for row in report["results"]:
        for name, factor in row["real_time_factor"].items():
            ratio = row["speedup_over_three_full_models"][name]
            lines.append(f"{row['audio_seconds']:>5g} s  {name:<22} {factor:>16.3f}  {ratio:>24.2f}x")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
