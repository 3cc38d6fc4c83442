"""LoRA layers into and out of a model, and LoRA files."""
