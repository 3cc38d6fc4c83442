"""A run on disk and in time: checkpoints, results, run.toml, history, samples, and the thread it runs in."""
