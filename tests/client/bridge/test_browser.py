"""docs/browser.md: its module runs in a browser, on a page of another address, as it is printed there."""

import re
from pathlib import Path

import soundfile

from kibun.bench.support.speech_like import lay_out
from tests.support import ROOT
from tests.support.bridges import bridging
from tests.support.browser import chromium
from tests.support.processes import until
from tests.support.scripted_service import ScriptedService, serving

SITE = "http://localhost:4173"  # never asked: Playwright answers; a browser gives no microphone to http elsewhere
CALL = """
import { listen } from "/module.js";
window.answers = [];
const url = new URLSearchParams(location.search).get("bridge");
window.talk = await listen(url, "table-4", (answer) => window.answers.push(answer), "secret");
"""


def test_it_is_short() -> None:
    assert len([line for line in module().splitlines() if line]) <= 35


def module() -> str:
    (code,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "browser.md").read_text(), re.DOTALL)
    return str(code)


async def test_the_module_streams_a_microphone(tmp_path: Path) -> None:
    wav = tmp_path / "microphone.wav"
    soundfile.write(wav, lay_out([("silence", 0.3), ("speech", 1.5), ("silence", 0.8)]).audio, 16_000, subtype="PCM_16")
    files = {"/": ("text/html", '<script type="module" src="/call.js"></script>')}
    files |= {"/call.js": ("text/javascript", CALL), "/module.js": ("text/javascript", module())}
    service = ScriptedService()
    async with serving(service) as target, bridging(target, origins=[SITE]) as bridge, chromium(wav) as browser:
        context = await browser.new_context()
        await context.grant_permissions(["microphone", "local-network-access"], origin=SITE)
        page = await context.new_page()

        async def serve(route, request) -> None:  # type: ignore[no-untyped-def]
            kind, body = files[request.url.removeprefix(SITE).partition("?")[0]]
            await route.fulfill(content_type=kind, body=body)

        await page.route(f"{SITE}/**", serve)
        await page.goto(f"{SITE}/?bridge=ws://127.0.0.1:{bridge.port}/v1/stream")
        await page.wait_for_function("window.answers?.some((answer) => answer.utterance_result)")
        await page.evaluate("window.talk.endTurn()")
        await page.wait_for_function("window.answers.some((answer) => answer.turn_result)")
        await page.evaluate("window.talk.stop()")
        await until(lambda: bridge.bridge.open_sockets == 0)
    audio = service.connections[0].config.audio_config
    assert audio.sample_rate_hertz in (44_100, 48_000), "the context's own rate"
    assert service.connections[0].config.conversation_id == "table-4"
