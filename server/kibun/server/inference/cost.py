"""How long a batch takes, learnt from the batches so far: `CostModel`. No clock, no asyncio."""

MEMORY = 50  # batches that count; older ones fade away
TRUSTED = 8  # batches after which a time far from the expected one is taken for an outlier
SAME_LENGTH = 0.1  # lengths that vary by less than this share of their mean cannot separate the two costs
TICK_S = 1e-3  # shorter times are not distinguished


class CostModel:
    """Fits `seconds = per_audio_s * audio_seconds + per_batch_s`, by least squares of the relative error.

    Divided by the audio, this is a line through the points (1 / audio, seconds / audio), with slope `per_batch_s` and
    intercept `per_audio_s`; only running means and variances of the points are stored. The past fades exponentially. A
    single time counts as at most twice and at least half of the expected one, so that an outlier (e.g. a worker that
    was restarted) changes little, while a lasting change is followed within a few dozen batches. Where all batches are
    about the same length, all of the cost counts as `per_audio_s`: nothing shows then that larger batches would pay.
    """

    def __init__(self, per_audio_s: float = 0.1) -> None:
        """per_audio_s: assumed before anything is measured; the default is a slow core's time."""
        self._weight = 0.0
        self._seen = 0
        self._x, self._y = 1.0, per_audio_s  # means of 1 / audio, seconds / audio
        self._xx = self._xy = 0.0  # variance, covariance

    @property
    def per_batch_s(self) -> float:
        """Seconds that a batch costs whatever is in it: saved when two batches become one; >= 0."""
        slope = self._xy / (self._xx + (SAME_LENGTH * self._x) ** 2)
        return min(max(slope, 0.0), self._y / self._x)

    @property
    def per_audio_s(self) -> float:
        """Seconds that each second of audio adds; >= 0."""
        return max(self._y - self.per_batch_s * self._x, 0.0)

    @property
    def trusted(self) -> bool:
        """Whether enough batches were measured for `expect` to mean something."""
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
        """Seconds that a batch with this much audio will take."""
        return self.per_audio_s * audio_s + self.per_batch_s

    def per_audio_when_busy_s(self, job_s: float, batch_s: float) -> float:
        """Seconds per second of audio while jobs of `job_s` queue up for batches of up to `batch_s`.

        Batches then grow until half of their time is due to their audio. A job that alone exceeds this goes alone.
        """
        worth_s = self.per_batch_s / max(self.per_audio_s, 1e-9)
        return self.per_audio_s + self.per_batch_s / max(job_s, min(worth_s, batch_s))
