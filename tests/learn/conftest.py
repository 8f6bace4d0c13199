from tests.sweep.tiny import pictures, tiny_model

__all__ = ["pictures", "tiny_model"]
