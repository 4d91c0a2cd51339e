"""What one check found."""

from dataclasses import dataclass
from typing import Literal

# absent: not there, or not to be seen, and nobody needs it; warning: works now, and may not later or for others.
State = Literal["ok", "absent", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: State
    # What is wrong, why that matters and how to mend it; or what is right.
    detail: str
    # False: kibun's client works without it.
    required: bool = False
