"""What all tests share: settings, and what records the operations of a server."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from power_trace import LAYER, STRACE, Recorder, why_no_layer, why_no_strace

# How long an example takes says more of the machine than of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def recorders() -> list[Recorder]:
    """Return the recorders that this machine allows, the best one first."""
    return [one for one, why_not in ((STRACE, why_no_strace), (LAYER, why_no_layer)) if not why_not()]


@pytest.fixture(params=[one.name for one in recorders()[:1]] or ["none"])
def recorder(request: pytest.FixtureRequest) -> Recorder:
    """Return the best recorder there is; its name is in the test's."""
    if request.param == "none":
        pytest.skip(f"{why_no_strace()}; {why_no_layer()}")
    return {one.name: one for one in recorders()}[request.param]
