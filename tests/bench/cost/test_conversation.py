"""How much memory a conversation takes, through the real session, batcher, worker process and store."""

import asyncio

from kibun.bench.cost import conversation as bench
from kibun.server.inference.worker_pool import LocalBackend


def test_a_conversation_holds_its_vectors_and_little_more() -> None:
    async def measure() -> tuple[int, int, int]:
        backend = LocalBackend(["stub"], loader="tests.support.stub_model:load")
        try:
            (model,) = await backend.start()
            speaker = bench.ConversationDriver(model, backend)
            held, counted = await bench.measure_memory(speaker)
            known = bench.with_records(await speaker.conversation(), 99)
            await speaker.turn(bench.pcm_of(bench.SHORT_S), known)
            records = (await speaker.conversation()).participant(bench.SPEAKER).records
            return held, counted, len(records)
        finally:
            await backend.close()

    held, counted, utterances = asyncio.run(measure())
    # A vector that is a view of a message, or of memory shared with the worker, would hold all of it.
    assert counted < held < counted + bench.UTTERANCES * 2048
    assert utterances == 100
