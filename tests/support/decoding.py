"""How many samples a decoder must return."""

from kibun.models.types import SAMPLE_RATE_HZ


def resampled_length(samples: int, sample_rate_hz: int) -> int:
    """Number of 16 kHz samples that `samples` at `sample_rate_hz` become, after `flush`; halves round upwards."""
    return (2 * samples * SAMPLE_RATE_HZ + sample_rate_hz) // (2 * sample_rate_hz)
