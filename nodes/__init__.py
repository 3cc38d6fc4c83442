"""ComfyUI nodes: a schema and a few lines each. The thinking lives in trainer/, the host's insides in nodes/host/."""
