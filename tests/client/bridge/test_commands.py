"""`kibun console` and `kibun demo --console` as people run them: a process, the address that it prints, a browser."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.support.browser import chromium
from tests.support.serving import RATE_HZ, RunningServer, serve, spoken

# A browser of the kind that `webbrowser` waits for, such as one in the terminal.
BROWSER = """
import sys, urllib.request
from pathlib import Path
with urllib.request.urlopen(sys.argv[1].partition("#")[0], timeout=60) as answer:
    Path(__file__).with_name("opened").write_text(f"{sys.argv[1]} {answer.status}")
"""


# Notes from which second on each sound is played.
SOUNDS = """
globalThis.sounds = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when, offset) {
  sounds.push(offset);
  start.call(this, when, offset);
};
"""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve() as running:
        yield running


@contextlib.asynccontextmanager
async def command(*arguments: str, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A running `kibun ARGUMENTS`, and the address that it printed. Killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kibun.client.main", *arguments),
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        found = re.search(r"http://\S+?(?=,| )", line)
        assert found, line
        yield process, found[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def log(page: Any, text: str) -> None:
    """Waits until the page's log has a line with this text."""
    await page.locator("#log li", has_text=text).first.wait_for(timeout=60_000)


async def untouched(page: Any, expression: str) -> Any:
    """Its value, without what the browser takes for a click, as Playwright's own `evaluate`."""
    session = await page.context.new_cdp_session(page)
    answer = await session.send("Runtime.evaluate", {"expression": expression, "returnByValue": True})
    return answer["result"].get("value")


async def test_the_demo_opens_a_browser_and_plays_by_itself(tmp_path: Path) -> None:
    program = tmp_path / "browser.py"
    program.write_text(BROWSER)
    browser = f"{sys.executable} {program} %s"
    async with (
        command("demo", "--console", "--port", "0", BROWSER=browser) as (process, address),
        chromium(autoplay=False) as chrome,
    ):
        assert address.endswith("/#demo")
        page = await chrome.new_page()
        await page.add_init_script(SOUNDS)
        await page.goto(address)
        async with asyncio.timeout(60):
            while not (settings := await untouched(page, "document.getElementById('settings').textContent")):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert settings.endswith("Click anywhere to hear it.")
        assert await untouched(page, "sounds") == []
        await log(page, "valence")
        assert await page.locator(".participant").count() == 2
        assert "Synthetic model" in await page.inner_text("#honesty")
        assert await page.inner_text("#alert") == ""
        await page.click("h1")
        await page.wait_for_function("() => sounds.length === 1 && sounds[0] > 0")
        assert (tmp_path / "opened").read_text() == f"{address} 200"
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) in (0, 130)


async def test_a_bridge_that_is_killed_and_comes_back_is_waited_for(server: RunningServer, tmp_path: Path) -> None:
    wav = tmp_path / "microphone.wav"
    soundfile.write(wav, spoken(1.0), RATE_HZ, subtype="PCM_16")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = ("console", "--server", server.target, "--port", str(port))
    async with chromium(wav) as browser:
        context = await browser.new_context()
        speaking, watching = await context.new_page(), await context.new_page()
        async with command(*run) as (_, address):
            await speaking.goto(address)
            await speaking.click("#start")
            await log(speaking, "valence")
            await watching.goto(address)
            await watching.check("input[value=watch]")
            await watching.fill("#watched", await speaking.inner_text("#conversation"))
            await watching.click("#start")
            await log(watching, "valence")
        for page in (speaking, watching):
            await page.locator("#alert", has_text="Start it again").wait_for()
        before = [await drawn(page) for page in (speaking, watching)]
        async with command(*run):
            for page, (finals, time) in zip((speaking, watching), before, strict=True):
                await log(page, "The bridge is back")
                await page.wait_for_function(f"(n) => {FINALS} > n", arg=finals)
                assert await page.inner_text("#alert") == ""
                assert (await drawn(page))[1] > time, "one clock for both connections"
            told = await watching.evaluate(FINALS)
            await speaking.click(".participant .stop")
            await speaking.locator(".participant .stop:disabled").wait_for()
            said = await speaking.evaluate(FINALS)
            assert told <= said, "the past that was told again is not shown twice"


FINALS = "kibun.entry('guest').participant.finals.items.length"


async def drawn(page: Any) -> tuple[int, float]:
    """Finals in the picture, and the seconds that it reaches to."""
    return await page.evaluate(FINALS), await page.evaluate("kibun.entry('guest').participant.time")
