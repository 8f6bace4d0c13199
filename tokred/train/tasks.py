"""Which class learns which ``kind`` of task a recipe names."""

from tokred.train.classification import ClassificationTask
from tokred.train.config import TrainSpec
from tokred.train.loop import Task


def build_task(spec: TrainSpec) -> Task:
    """Return the task that a recipe describes, with a freshly initialised model."""
    return {"classification": ClassificationTask}[spec.task.kind](spec.task, spec.loop.seed)
