"""Python SDK and command line of kibun."""
