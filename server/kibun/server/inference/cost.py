"""What a batch costs in time, learnt from what batches took: `CostModel`. Pure: no clock, no asyncio."""

MEMORY = 50  # batches that count; older ones fade away
TRUSTED = 8  # batches after which a time far from the expected one is taken for an accident
SAME_LENGTH = 0.1  # batches whose lengths vary by less than this share of their mean cannot tell a from b
TICK_S = 1e-3  # times below this are not told apart


class CostModel:
    """Fits `seconds = per_audio_s * audio_seconds + per_batch_s`, by least squares of the relative error.

    Dividing by the audio makes it a line through (1 / audio, seconds / audio), of which `per_batch_s` is the slope and
    `per_audio_s` the intercept; a running mean and variance of that cloud are all that is kept. The past fades
    exponentially. A single time counts as at most twice and at least half of what was expected, so that an accident
    (a worker that was started anew, say) moves little, while a lasting change is followed within some dozen batches.
    Where batches are all about as long, everything is taken to be `per_audio_s`: then nothing shows that larger ones
    would pay.
    """

    def __init__(self, per_audio_s: float = 0.1) -> None:
        """`per_audio_s`: what to assume before anything was measured; the default is a slow core's time."""
        self._weight = 0.0
        self._seen = 0
        self._x, self._y = 1.0, per_audio_s  # means of 1 / audio, seconds / audio
        self._xx = self._xy = 0.0  # variance, covariance

    @property
    def per_batch_s(self) -> float:
        """Seconds that a batch costs, whatever is in it: saved whenever two batches become one; >= 0."""
        slope = self._xy / (self._xx + (SAME_LENGTH * self._x) ** 2)
        return min(max(slope, 0.0), self._y / self._x)

    @property
    def per_audio_s(self) -> float:
        """Seconds that each second of audio adds; >= 0."""
        return max(self._y - self.per_batch_s * self._x, 0.0)

    @property
    def trusted(self) -> bool:
        """Whether enough was seen to expect anything."""
        return self._seen >= TRUSTED

    def observe(self, audio_s: float, took_s: float) -> None:
        """Learn that a batch with `audio_s` (> 0) seconds of audio took `took_s` seconds."""
        if self.trusted:
            expected_s = self.expect(audio_s)
            took_s = min(max(took_s, expected_s / 2), 2 * max(expected_s, TICK_S))
        self._seen += 1
        self._weight = 1 + (1 - 1 / MEMORY) * self._weight
        share = 1 / self._weight
        dx, dy = 1 / audio_s - self._x, took_s / audio_s - self._y
        self._x += share * dx
        self._y += share * dy
        self._xx = (1 - share) * (self._xx + share * dx * dx)
        self._xy = (1 - share) * (self._xy + share * dx * dy)

    def expect(self, audio_s: float) -> float:
        """Seconds that a batch with so much audio will take."""
        return self.per_audio_s * audio_s + self.per_batch_s

    def per_audio_when_busy_s(self, job_s: float, batch_s: float) -> float:
        """Seconds per second of audio while jobs of `job_s` queue up for batches of up to `batch_s`.

        Batches then grow until half of their time is the audio's own. Where a single job is more than that, it goes
        alone.
        """
        worth_s = self.per_batch_s / max(self.per_audio_s, 1e-9)
        return self.per_audio_s + self.per_batch_s / max(job_s, min(worth_s, batch_s))
