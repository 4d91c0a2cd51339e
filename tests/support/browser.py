"""Headless Chromium, as the system has it."""

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.asynccontextmanager
async def chromium(microphone: Path | None = None, *, autoplay: bool = True) -> AsyncIterator[Any]:
    """Playwright's Browser; `microphone`: a WAV file that it hears in a loop; `autoplay`: sound needs no click first.

    Skips where there is none.
    """
    playwright = pytest.importorskip("playwright.async_api", reason="needs playwright, as in the extra dev")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium or Chrome on the PATH, e.g. Debian's package chromium")
    arguments = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--no-sandbox"]
    if autoplay:
        arguments.append("--autoplay-policy=no-user-gesture-required")
    if microphone is not None:
        arguments.append(f"--use-file-for-fake-audio-capture={microphone}")
    async with playwright.async_playwright() as running:
        browser = await running.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()
