"""What the wheel and the source distribution hold: bundles under another licence than the code's are in neither."""

from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.plugin.interface import BuilderInterface
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tests.support import ROOT


@pytest.mark.parametrize("builder", [WheelBuilder, SdistBuilder])
def test_only_bundles_under_our_licence_are_handed_on(builder: type[BuilderInterface[Any, Any]]) -> None:
    files = [Path(file.distribution_path) for file in builder(str(ROOT)).recurse_included_files()]
    bundles = {path.parent.name for path in files if path.name == "model.safetensors"}
    assert bundles == {"demo-tiny"}
    assert not [path for path in files if "voices-tiny" in path.parts]


def test_every_installation_has_the_contract() -> None:
    """`kibun proto` prints where it lies there."""
    files = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert "kibun/v1/speech_analysis.proto" in files
