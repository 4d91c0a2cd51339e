"""LitServe: JSON with base64, batching and worker restarts as its documentation has them."""

import base64
from typing import Any

import litserve as ls

from peers.model import Model
from peers.settings import Settings

SETTINGS = Settings.read()


class Emotions(ls.LitAPI):  # type: ignore[misc]
    """One model in each worker."""

    def setup(self, device: str) -> None:
        self.model = Model(SETTINGS)

    def decode_request(self, request) -> bytes:  # type: ignore[no-untyped-def]  # a type here would mean a schema
        return base64.b64decode(request["audio"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs  # the default stacks tensors of one shape

    def predict(self, inputs: Any) -> Any:
        if SETTINGS.batch == 1:
            return self.model.analyze([inputs])[0]
        return self.model.analyze(inputs)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    server = ls.LitServer(
        Emotions(max_batch_size=SETTINGS.batch, batch_timeout=SETTINGS.wait_s),
        accelerator="cpu",
        workers_per_device=SETTINGS.workers,
        timeout=30 if SETTINGS.shed is None else SETTINGS.shed,
        restart_workers=True,
    )
    server.run(host="127.0.0.1", port=SETTINGS.port, generate_client_file=False)
