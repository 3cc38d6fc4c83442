"""Before anything else: without the stand-in, importing peft fails beside a CPU build of torch."""

from hypothesis import HealthCheck, settings

import scripts.cpu_torchvision  # noqa: F401

# Nothing is judged by its time: the machine runs other tests beside these
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
