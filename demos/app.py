"""The Space: the page that ``tokred demo`` shows."""

from tokred.demo.app import launch

launch(host=None)
