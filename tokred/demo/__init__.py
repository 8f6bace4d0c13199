"""The demo: one page with a tab for each thing to look at; ``tokred demo`` shows it, ``demos/`` is a Space of it.

A tab is a file: what it computes are functions without a page, what it shows is ``add_tab``.
"""
