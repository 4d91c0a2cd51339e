"""The page of the site for the Python SDK: every public name, described by its docstrings."""

from __future__ import annotations

import kibun.client

_TITLE = """# Python API

Everything in `kibun.client`; [how it is used](sdk.md). `AsyncClient`, `AsyncConversation`, `AsyncTurn`,
`AsyncStream` and `AsyncWatch` have synchronous twins, `Client`, `Conversation`, `Turn`, `Stream` and `Watch`.
"""
#: What lies elsewhere and belongs to a section, as it needs more packages than the client.
_MORE = {"audio_file": ["recordings.analyze_files"]}
_SECTIONS = {
    "client": "Asynchronous client",
    "turn": "",
    "stream": "",
    "watch": "",
    "sync": "Synchronous client",
    "options": "Options",
    "audio_file": "Recordings",
    "events": "Events",
    "estimates": "Estimates",
    "baseline": "Relative to the speaker",
    "resources": "Conversations and models",
    "errors": "Errors",
}


def page() -> str:
    """The reference, as directives of mkdocstrings."""
    names = kibun.client._MODULE_OF
    parts = [_TITLE]
    for module in (*_SECTIONS, *(name for name in names if name not in _SECTIONS)):
        if title := _SECTIONS.get(module, module):
            parts.append(f"## {title}")
        paths = [*(f"{module}.{name}" for name in names[module]), *_MORE.get(module, [])]
        parts += [f"::: kibun.client.{path}" for path in paths]
    return "\n\n".join(parts) + "\n"
