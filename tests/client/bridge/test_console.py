"""The console in headless Chromium, with a real server behind it: what people do with it, and what may go wrong."""

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from kibun.client.bridge.serving import BridgeServer
from tests.support import ROOT
from tests.support.bridges import bridging
from tests.support.browser import chromium
from tests.support.serving import RunningServer, serve, spoken

RATE_HZ = 16_000
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("recording") / "speech.wav"
    soundfile.write(path, spoken(2.0), RATE_HZ, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def server() -> Any:
    with serve() as running:
        yield running


class Console:
    """A page with the console, and what it said on the way."""

    def __init__(self, page: Any, bridge: BridgeServer) -> None:
        self.page = page
        self.bridge = bridge
        self.faults: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda line: self.faults.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: self.requests.append(request.url))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.bridge.port}/"

    async def log(self, text: str) -> None:
        """Waits until the log has a line with this text."""
        await self.page.locator("#log li", has_text=text).first.wait_for(timeout=60_000)

    async def choose(self, source: str) -> None:
        await self.page.check(f"input[value={source}]")


@contextlib.asynccontextmanager
async def console(target: str, microphone: Path | None = None, **options: Any) -> AsyncIterator[Console]:
    async with bridging(target, page=True, demo=True) as bridge, chromium(microphone) as browser:
        context = await browser.new_context(**options)
        page = await context.new_page()
        shown = Console(page, bridge)
        await page.goto(shown.address)
        await page.locator("#demo-source").wait_for()
        yield shown


async def test_a_microphone_is_heard_without_what_browsers_do_to_it(server: RunningServer, recording: Path) -> None:
    async with console(server.target, recording) as shown:
        page = shown.page
        await page.click("#start")
        await shown.log("valence")
        assert "echo cancellation, noise suppression and gain control are off" in await page.inner_text("#settings")
        assert await page.locator("#device option").count() > 1
        await page.click(".participant .end")
        await shown.log("turn over")
        assert (await page.inner_text("#latency")).endswith(" s")
        await shown.log("turn began")  # the microphone is still open: what it hears is the next turn's
        await page.click(".participant .stop")
        await page.locator(".participant .stop:disabled").wait_for()
        label = await page.get_attribute("#plane", "aria-label")
        assert "guest: valence" in label, "what the picture shows, in words"
        assert shown.faults == []


def bytes_of(path: Path) -> list[int]:
    return list(path.read_bytes())


async def test_a_dropped_recording_is_analysed_beside_another_speaker(server: RunningServer, recording: Path) -> None:
    async with console(server.target) as shown:
        page = shown.page
        await shown.choose("file")
        await page.select_option("#pace", "0")
        data = bytes_of(recording)
        for name in ("mira", "jonas"):
            await page.fill("#participant", name)
            await page.evaluate(
                """(bytes) => {
                  const moved = new DataTransfer();
                  moved.items.add(new File([new Uint8Array(bytes)], "speech.wav", { type: "audio/wav" }));
                  document.dispatchEvent(new DragEvent("drop", { dataTransfer: moved, cancelable: true }));
                }""",
                data,
            )
            await page.locator(f".participant[data-participant={name}]").wait_for()
        for name in ("mira", "jonas"):
            await page.locator("#log li", has_text="turn over").filter(has_text=name).first.wait_for(timeout=60_000)
        assert await page.locator(".participant").count() == 2
        assert shown.faults == []


async def test_given_traits_reach_the_server(server: RunningServer, recording: Path) -> None:
    async with console(server.target) as shown:
        page = shown.page
        sent: list[str] = []
        page.on("websocket", lambda one: one.on("framesent", lambda frame: sent.append(frame)))
        await page.click("summary")
        await page.fill("#give-openness", "6.5")
        await choose_recording(shown, recording)
        await page.click("#start")
        await shown.log("turn over")
        [first] = [json.loads(frame) for frame in sent if isinstance(frame, str) and "streaming_config" in frame]
        assert first["streaming_config"]["given_personality"]["openness"] == 6.5


async def choose_recording(shown: Console, recording: Path) -> None:
    await shown.choose("file")
    await shown.page.select_option("#pace", "0")
    await shown.page.set_input_files("#file", recording)


async def test_a_server_that_is_killed_and_comes_back_costs_nothing(recording: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve(port=port) as first:
        async with console(first.target, recording) as shown:
            await shown.page.click("#start")
            await shown.log("valence")
            first.process.kill()
            first.process.wait()
            await shown.page.locator("#server.bad").wait_for()
            with contextlib.ExitStack() as stack:
                await asyncio.to_thread(stack.enter_context, serve(port=port))
                await shown.log("The server was lost and is back")
                before = await shown.page.locator("#log li", has_text="valence").count()
                await shown.page.wait_for_function(
                    "(n) => document.getElementById('log').textContent.split('valence').length - 1 > n",
                    arg=before,
                )
                assert await shown.page.inner_text("#alert") == ""


async def test_a_refused_token_is_told_with_what_to_do(recording: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    digest = hashlib.sha256(b"right-token-0123456789").hexdigest()
    tokens.write_text(f"table {digest}\n")
    tokens.chmod(0o600)
    with serve("--token-file", str(tokens)) as closed:
        async with console(closed.target) as shown:
            page = shown.page
            await page.click("summary")
            await page.fill("#token", "wrong-token-0123456789")
            await choose_recording(shown, recording)
            await page.click("#start")
            await page.locator("#alert", has_text="enter another under More").wait_for()
            assert "UNAUTHENTICATED" in await page.inner_text("#alert")
            await page.fill("#token", "right-token-0123456789")
            await page.click("#start")
            await shown.log("turn over")
            assert await page.inner_text("#alert") == ""
            assert not [url for url in shown.requests if "token" in url]


async def test_a_file_that_no_browser_decodes_is_told(server: RunningServer, tmp_path: Path) -> None:
    nonsense = tmp_path / "speech.wav"
    nonsense.write_bytes(b"nonsense")
    async with console(server.target) as shown:
        await choose_recording(shown, nonsense)
        await shown.page.click("#start")
        await shown.page.locator("#alert", has_text="cannot decode that file").wait_for()


async def test_one_page_watches_what_another_speaks(server: RunningServer, recording: Path) -> None:
    async with console(server.target) as shown:
        await choose_recording(shown, recording)
        other = await shown.page.context.new_page()
        await shown.page.click("#start")
        await shown.log("turn began")
        await other.goto(shown.address)
        await other.check("input[value=watch]")
        await other.fill("#watched", await shown.page.inner_text("#conversation"))
        await other.click("#start")
        await other.locator("#log li", has_text="valence").first.wait_for()
        await other.locator(".participant[data-participant=guest]").wait_for()


async def test_hours_of_events_take_no_more_room_than_minutes(server: RunningServer) -> None:
    """As many as come in two hours of talk: a final every 3 s with five interims, and their speech events."""
    async with console(server.target) as shown:
        sizes = [await shown.page.evaluate(EVENTS, hours) for hours in (0.5, 2.0)]
        assert sizes[0] == sizes[1]
        assert sizes[0][0], "within the limits"
        assert len(sizes[0][1]) >= 6, "the lists were found"


EVENTS = """async (hours) => {
  const traits = { openness: 4, conscientiousness: 4, extraversion: 4, agreeableness: 4, neuroticism: 4 };
  const emotion = { valence: 3, arousal: 3 };
  const one = kibun.entry("guest");
  const block = new Float32Array(1600);
  const stream = { since: () => 500 };
  one.stream = stream;
  for (let n = 0; n < hours * 1200; n++) {
    const at = (seconds) => `${3 * n + seconds}s`;
    for (let i = 0; i < 30; i++) one.participant.hear(block, 16000);
    const take = (message) => kibun.take(one, stream, message);
    take({ speech_event: { type: "TYPE_SPEECH_ACTIVITY_BEGIN", offset: at(0.1) } });
    for (let i = 0; i < 5; i++) take({ utterance_result: { emotion } });
    take({ speech_event: { type: "TYPE_SPEECH_ACTIVITY_END", offset: at(2) } });
    take({ utterance_result: { is_final: true, start_offset: at(0.1), end_offset: at(2), emotion } });
    take({ personality_update: { personality: { traits, utterance_count: n } } });
    if (n % 100 === 0) await new Promise((done) => setTimeout(done, 80));
  }
  const lists = Object.entries(one.participant).filter(([, value]) => Array.isArray(value?.items));
  const all = [...lists.map(([, list]) => list), kibun.latencies];
  const within = all.every(({ items, limit }) => items.length <= limit * 1.25);
  one.stream = undefined;
  return [within, lists.map(([name, { limit }]) => [name, limit]), document.querySelectorAll("#log li").length];
}"""


async def test_nothing_comes_from_outside_and_nothing_inline_runs(server: RunningServer) -> None:
    async with console(server.target) as shown:
        assert {url.rpartition(f":{shown.bridge.port}/")[0] for url in shown.requests} == {"http://127.0.0.1"}
        ran = await shown.page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "globalThis.ran = true";
              document.body.append(script);
              return globalThis.ran === true;
            }"""
        )
        assert not ran
        assert any("Content Security Policy" in fault for fault in shown.faults)


async def test_no_page_of_another_address_shows_it_in_a_frame() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        frames = f'<iframe src="/own"></iframe><iframe src="http://127.0.0.1:{bridge.port}/"></iframe>'
        body = frames if path == b"/" else '<form id="form"></form>'
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with (
        bridging("127.0.0.1:1", page=True) as bridge,
        await asyncio.start_server(answer, "127.0.0.1", 0) as other,
        chromium() as browser,
    ):
        page = await browser.new_page()
        said: list[str] = []
        page.on("console", lambda line: said.append(line.text))
        await page.goto(f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/")
        shown = [[await frame.locator("#form").count(), frame.url] for frame in page.frames[1:]]
        assert shown == [[1, f"{page.url}own"], [0, "chrome-error://chromewebdata/"]]
        assert any("frame-ancestors 'none'" in text for text in said), said
        await page.goto(f"http://127.0.0.1:{bridge.port}/")
        assert await page.locator("#form").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(server: RunningServer, recording: Path, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("needs axe-core: npm install --no-save axe-core")
    async with console(server.target, color_scheme=scheme) as shown:
        await choose_recording(shown, recording)
        await shown.page.click("summary")
        await shown.page.click("#start")
        await shown.log("turn over")
        await shown.page.evaluate(AXE.read_text())
        found = await shown.page.evaluate("axe.run()")
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []


@pytest.mark.parametrize("width", [360, 768, 1280])
async def test_no_width_cuts_anything_off(server: RunningServer, width: int) -> None:
    async with console(server.target, viewport={"width": width, "height": 800}) as shown:
        await shown.page.evaluate("kibun.entry('mira'); kibun.entry('jonas')")
        assert await shown.page.evaluate("document.documentElement.scrollWidth") <= width


async def test_all_can_be_done_by_the_keyboard(server: RunningServer, recording: Path) -> None:
    async with console(server.target, recording) as shown:
        page = shown.page
        for _ in range(12):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.id") == "start":
                break
        await page.keyboard.press("Enter")
        await shown.log("turn began")
        await page.locator(".participant .end:enabled").focus()
        await page.keyboard.press("Enter")
        await shown.log("turn over")
