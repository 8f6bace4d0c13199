"""Token reduction methods, one paper a file."""

from tokred.methods.base import Method, create_method, methods, register
from tokred.methods.tome import ToMe

__all__ = ["Method", "ToMe", "create_method", "methods", "register"]
