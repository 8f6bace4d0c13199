"""How the page looks: one calm theme, light and dark, with fonts that the visitor has."""

from __future__ import annotations

from typing import Any

TITLE = "tokred: fewer tokens, the same answer"
HEADLINE = """
# Fewer tokens, the same answer

See which parts of a picture a transformer needs. The models here are small and ship with **tokred**; everything runs,
and is measured, on this machine.
"""

CSS = """
.gradio-container { width: 100%; max-width: 1320px !important; margin: 0 auto !important; }
.gradio-container h1 { letter-spacing: -0.02em; margin-bottom: 0; }

/* a patch of 2 x 2 pixels must stay a square, however large it is shown */
.pixels img { image-rendering: pixelated; }
.whole img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
.thumbs .grid-container { padding-top: 34px; }
.choose .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
.thumbs img { object-fit: contain !important; }

.prose table { width: 100%; font-variant-numeric: tabular-nums; border: none; }
.prose table tr, .prose table th, .prose table td { border: none; background: none; }
.prose table tr { border-bottom: 1px solid var(--border-color-primary); }
.prose table td, .prose table th { padding: 6px 8px 6px 0; font-weight: normal; }
.prose table th { color: var(--body-text-color-subdued); white-space: nowrap; }
.answer textarea { font-size: 1.3rem; font-weight: 600; }
"""


def theme() -> Any:
    """Slate and teal, and fonts of the system: nothing is fetched from elsewhere."""
    from gradio.themes import Default

    return Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        font=("ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    )
