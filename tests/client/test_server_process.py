"""A server that a program starts for itself."""

import asyncio
import os
import subprocess
import sys

from kibun.bench.faults.servers import listens
from tests.support import ROOT
from tests.support.processes import until
from tests.support.serving import STUB_LOADER

PROGRAM = f"""
import time
from kibun.client.server_process import ServerProcess
server = ServerProcess("stub", ["--loader", "{STUB_LOADER}"])
server.start()
print(server.target.rpartition(":")[2], flush=True)
time.sleep(600)
"""


async def test_it_ends_with_its_program_even_if_that_is_killed() -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM), stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        assert program.stdout is not None
        port = int(await program.stdout.readline())
        assert listens(port)
    finally:
        program.kill()
        await program.wait()
    await until(lambda: not listens(port))
