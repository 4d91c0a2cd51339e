"""BentoML: JSON with base64, adaptive batching, as many workers as the settings say."""

import base64

import bentoml

from peers.model import Model
from peers.settings import Settings

SETTINGS = Settings.read()


@bentoml.service(workers=SETTINGS.workers, traffic={"timeout": 60})
class Emotions:
    """One model in each worker."""

    def __init__(self) -> None:
        self.model = Model(SETTINGS)

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True,
        max_batch_size=SETTINGS.batch,
        max_latency_ms=60000 if SETTINGS.shed is None else round(1000 * SETTINGS.shed),
    )
    def analyze(self, audio: list[str]) -> list[dict[str, float]]:
        return self.model.analyze([base64.b64decode(one) for one in audio])
