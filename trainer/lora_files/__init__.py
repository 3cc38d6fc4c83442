"""LoRA files: every key convention read and written; describing, resizing, merging and weighting LoRAs."""
