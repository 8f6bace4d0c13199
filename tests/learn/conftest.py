from tests.learn.tiny_llava import llava_folder, question_file, questions
from tests.sweep.tiny import pictures, tiny_model

__all__ = ["llava_folder", "pictures", "question_file", "questions", "tiny_model"]
