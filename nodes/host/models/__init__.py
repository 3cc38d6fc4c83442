"""The graph's MODEL as the engine's Denoiser, and LoRAs on it; model files as the host lists them."""
