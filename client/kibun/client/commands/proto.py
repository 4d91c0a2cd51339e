"""`kibun proto`: where the contract lies, for clients in other languages."""

from importlib.util import find_spec
from pathlib import Path


def proto() -> None:
    """Print the path of the contract, speech_analysis.proto, in this installation.

    The folder to import from is three above it: protoc -I "$(dirname "$(kibun proto)")/../.." "$(kibun proto)" …
    """
    print(contract())


def contract() -> Path:
    """Of the installed package, be it a wheel or the clone."""
    package = find_spec("kibun.v1")
    assert package is not None  # every installation has it
    assert package.origin is not None
    return Path(package.origin).with_name("speech_analysis.proto")
