"""The host's memory management: loading the model, its layers' weights, sharing the device, the memory plan."""
