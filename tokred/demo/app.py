"""The page of all tabs, and how it is shown."""

from __future__ import annotations

import os
from typing import Any

from tokred.errors import ConfigError, TokredError

_QUEUE = 32
"""Requests that may wait; who comes later is told to try again."""
_AT_ONCE = 2


def build() -> Any:
    """The page, a ``gradio.Blocks``.

    Raises:
        TokredError: gradio is not installed; the message says what to type.
    """
    gr = _need_gradio()
    from tokred.demo import ask, coarse_to_fine, compare, merge_prune
    from tokred.demo.look import HEADLINE, TITLE
    from tokred.demo.page import SECONDS_KEPT

    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT), fill_width=True
    ) as page:
        gr.Markdown(HEADLINE)
        with gr.Tab("Merge & prune"):
            merge_prune.add_tab(page.load)  # the first thing that visitors see
        with gr.Tab("Ask the picture") as tab:
            ask.add_tab(tab.select)
        with gr.Tab("Coarse to fine") as tab:
            coarse_to_fine.add_tab(tab.select)
        with gr.Tab("Compare"):
            compare.add_tab()
    return page.queue(max_size=_QUEUE, default_concurrency_limit=_AT_ONCE)


def launch(host: str | None = "127.0.0.1", port: int | None = None, *, wait: bool = True) -> Any:
    """Show the page until it is interrupted; return it.

    Nothing is sent anywhere: no usage data, no fonts, no version check.

    Args:
        host: the address to listen at; ``None`` leaves it to gradio, as a Space wants it.
        port: the port; ``None`` takes the first that is free from 7860 on.
        wait: stay until it is interrupted; otherwise return at once, and ``close()`` ends it.

    Raises:
        TokredError: gradio is not installed.
        ConfigError: the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    page = build()
    from tokred.demo.look import CSS, theme
    from tokred.demo.uploads import MAX_BYTES

    try:
        page.launch(
            server_name=host, server_port=port, theme=theme(), css=CSS, max_file_size=MAX_BYTES, share=False,
            ssr_mode=False, enable_monitoring=False, footer_links=["settings"], prevent_thread_lock=not wait,
            show_error=False, quiet=not wait,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"The page cannot be shown at {host}, port {port} ({error}). Try another --port.") from error
    return page


def _need_gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise TokredError(
            f"The demo needs gradio, which is not installed ({error}). Type: pip install 'tokred[demo]'"
        ) from error
    return gradio
