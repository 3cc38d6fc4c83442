"""The graph's VAE and CLIP as the engine's Encoder."""
