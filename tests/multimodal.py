"""A vision-language model small enough to be trained for two steps in a test."""

from tokred.train.config import TrainSpec

WORDS = (
    "?", ":", "question", "answer", "what", "is", "there", "the", "a", "an", "shape", "color", "in", "image", "yes",
    "no", "circle", "rectangle", "triangle", "red", "blue", "top", "middle", "bottom", "left", "center", "right",
)  # fmt: skip


def recipe(architecture: str = "llava", **task) -> TrainSpec:
    """A recipe for a tower of two layers and a language model of two, 16 wide."""
    model = {
        "architecture": architecture,
        "vision": {"image_size": 16, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16,
                   "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16},
        "text": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "num_key_value_heads": 2, "max_position_embeddings": 512},
        "words": WORDS,
        "grids": [[1, 2], [2, 1], [2, 2]] if architecture == "llava_next" else [],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    return TrainSpec.model_validate(
        {
            "name": "tiny",
            "task": {"kind": "vqa", "data": "tiny", "holdout": 4, "questions": 2, "model": model} | task,
            "loop": {"stages": [{"epochs": 1}], "batch_size": 4, "learning_rate": 0.01, "ema_decay": 0.5},
        }
    )
