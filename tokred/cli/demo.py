"""``tokred demo``: the page with everything to look at."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 shows the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Left out: the first that is free from 7860 on.")] = None,
) -> None:
    """Show the demo in the browser: merge and prune, ask a picture, coarse to fine, compare. Works offline."""
    from tokred.demo.app import launch

    launch(host, port)
