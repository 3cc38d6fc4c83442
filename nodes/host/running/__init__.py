"""A training run on the host: the request of a node, the thread, samples, the run from start to end."""
