"""What single parts cost: encoder, interims, conversations, training."""
