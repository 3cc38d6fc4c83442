"""The training loop: from an encoded dataset and a frozen model to a trained adapter."""
