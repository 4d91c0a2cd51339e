"""Reading recordings, and changing them at random for training."""
