"""What of a bundle learnt from generated speech, in the words that every card, command and server uses."""

from collections.abc import Collection, Sequence


def describe(tasks: Sequence[str], synthetic_parts: Collection[str]) -> str:
    """One clause about a bundle of these tasks; "" where nothing learnt from generated speech.

    synthetic_parts: as `BundleSettings.synthetic_parts`.
    """
    generated = [task for task in tasks if task in synthetic_parts]
    recorded = [task for task in tasks if task not in synthetic_parts]
    trunk = ", over a trunk that first learnt from generated speech" if "trunk" in synthetic_parts else ""
    if not recorded:
        return "trained on generated speech: it tells you nothing about real people"
    if not generated:
        return f"trained on recordings{trunk}" if trunk else ""
    tell = "tells" if len(generated) == 1 else "tell"
    return (
        f"{' and '.join(generated)} trained on generated speech, so {tell} you nothing about real people;"
        f" {' and '.join(recorded)} trained on recordings{trunk}"
    )
