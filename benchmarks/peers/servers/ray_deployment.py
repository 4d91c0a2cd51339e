"""Ray Serve: the bytes as the body, batches by `@serve.batch`."""

import ray
from ray import serve
from starlette.requests import Request

from peers.model import Model
from peers.settings import Settings

SETTINGS = Settings.read()


@serve.deployment(
    num_replicas=SETTINGS.workers,
    ray_actor_options={"num_cpus": SETTINGS.threads},
    max_ongoing_requests=2 * SETTINGS.batch,
    max_queued_requests=-1 if SETTINGS.shed is None else round(SETTINGS.shed),
)
class Emotions:
    """One model in each replica."""

    def __init__(self) -> None:
        self.model = Model(SETTINGS)

    @serve.batch(max_batch_size=SETTINGS.batch, batch_wait_timeout_s=SETTINGS.wait_s)  # type: ignore[untyped-decorator]
    async def analyze(self, batch: list[bytes]) -> list[dict[str, float]]:
        return self.model.analyze(batch)

    async def __call__(self, request: Request) -> dict[str, float]:
        estimates: dict[str, float] = await self.analyze(await request.body())
        return estimates


ray.init(include_dashboard=False)
serve.start(http_options={"host": "127.0.0.1", "port": SETTINGS.port})
serve.run(Emotions.bind(), blocking=True)  # type: ignore[attr-defined]  # it is a Deployment now
