"""The machine that figures were taken on, and how fast it multiplies matrices: the limit of every encoder."""

import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def describe() -> dict[str, Any]:
    """Processor, cores and versions, for the head of a report. Needs no torch unless it is imported already."""
    import sys

    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        found["torch"] = torch.__version__
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


@cache
def gemm_tflops(dtype: "torch.dtype", device: str = "cpu") -> float:
    """TFLOP/s of one matrix product as large as this device likes them, as many threads as torch has on a CPU.

    The best of several, of torch's own product and the prepacked one: a limit that nothing here exceeds.
    """
    import torch

    from kibun.models.packed import PackedLinear

    size = 8192 if device.startswith("cuda") else 1536
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    prepacked = PackedLinear((right, None), dtype=dtype)
    seconds = []
    with torch.inference_mode():
        for product in (lambda: left @ right, lambda: prepacked(left)):
            product()
            for _ in range(8):
                begin = time.perf_counter()
                product()
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds) / 1e12


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
        flags = next(line for line in lines if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(extensions)})"
