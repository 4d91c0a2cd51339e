"""How a command fails: with a message that names the fix, and an exit code."""


class CommandError(Exception):
    """The command cannot do what it was asked for; the message gives the reason and the remedy."""

    exit_code = 1


class UsageError(CommandError):
    """The command was called wrongly: a missing file, a malformed option."""

    exit_code = 2
