"""Before anything else: without it, importing peft fails beside a CPU build of torch."""

import scripts.cpu_torchvision  # noqa: F401
