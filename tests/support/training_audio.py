"""Pure tones, and the mark of tests that need torchaudio."""

import numpy as np
import pytest

from kibun.models._torchaudio import ensure_importable

needs_torchaudio = pytest.mark.skipif(
    ensure_importable() not in ("ok", "without-extension"), reason="torchaudio is not installed, or does not import"
)


def tone(hz: float, rate_hz: int, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)
