"""Which class learns which ``kind`` of task a recipe names."""

from tokred.train.classification import ClassificationTask
from tokred.train.config import Classification, Contrastive, FlexTokTraining, KARLTraining, PriorTraining, TrainSpec
from tokred.train.contrastive import ContrastiveTask
from tokred.train.flextok import FlexTokTask
from tokred.train.karl import KARLTask
from tokred.train.loop import Task
from tokred.train.prior import PriorTask
from tokred.train.vqa import VQATask


def build_task(spec: TrainSpec) -> Task:
    """Return the task that a recipe describes, with a freshly initialised model."""
    if isinstance(spec.task, Classification):
        return ClassificationTask(spec.task, spec.loop.seed)
    if isinstance(spec.task, FlexTokTraining):
        return FlexTokTask(spec.task, spec.loop.seed)
    if isinstance(spec.task, KARLTraining):
        return KARLTask(spec.task, spec.loop.seed)
    if isinstance(spec.task, PriorTraining):
        return PriorTask(spec.task, spec.loop.seed)
    if isinstance(spec.task, Contrastive):
        return ContrastiveTask(spec.task, spec.loop.seed)
    return VQATask(spec.task, spec.loop.seed)
