"""The training engine: torch, peft, diffusers and safetensors, and nothing of the host.

Calls go downstairs only (web -> nodes -> trainer -> torch), so this package can be used from a script or a test
without ComfyUI. Start reading at `loop.py`.
"""
