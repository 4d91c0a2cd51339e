"""The programs of the documentation, as a reader copies them."""

import re

from tests.support import ROOT


def of_the_documentation(page: str) -> list[str]:
    """Those of a page, named by its path from the root."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
