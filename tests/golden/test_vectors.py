"""tokred reproduces the numbers of the reference implementations."""

from __future__ import annotations

import pytest

from .case import Case, run_checks


def test_vector(vector: Case, request: pytest.FixtureRequest, report_unknown, report_unread):
    if run_checks(vector):
        if vector.unread():
            report_unread(vector.path.name, vector.unread())
        return
    tensors = ", ".join(sorted(name for name in vector.names if not name.startswith("sd."))[:8])
    reason = f"{vector.path.name}: no check knows method {vector.method!r} with the tensors {tensors}"
    report_unknown(reason)
    if request.config.getoption("golden_strict", default=False):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
