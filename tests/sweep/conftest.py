from tests.learn.tiny_llava import llava_folder, question_file
from tests.lmms import lmms_eval
from tests.sweep.tiny import pictures, tiny_model
from tests.sweep.tiny_clip import tiny_clip_folder

__all__ = ["llava_folder", "lmms_eval", "pictures", "question_file", "tiny_clip_folder", "tiny_model"]
