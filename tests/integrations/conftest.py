from tests.lmms import lmms_eval

__all__ = ["lmms_eval"]
