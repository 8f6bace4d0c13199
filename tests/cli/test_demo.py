"""``tokred demo``: without gradio it says what to type."""

import sys

from tokred.cli import main


def test_without_gradio_the_demo_says_what_to_type(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    assert main(["demo"]) == 2
    assert "The demo needs gradio, which is not installed" in (said := capsys.readouterr().err)
    assert "pip install 'tokred[demo]'" in said
