"""What tests of several rooms share. No test module imports another; what two need lies here."""

from pathlib import Path

#: Of the repository.
ROOT = Path(__file__).resolve().parents[2]
