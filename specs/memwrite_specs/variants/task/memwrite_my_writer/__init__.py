"""The task my-writer for memwrite."""

from memwrite.plugins import TaskPlugin, hookimpl
from memwrite_my_writer.config import MyConfig
from memwrite_my_writer.task import MyTask

TASK = TaskPlugin(
    api=2,
    name="my-writer",
    summary="random words, of which the first is asked for",
    config=MyConfig,
    build=MyTask,
)


@hookimpl
def memwrite_tasks() -> list[TaskPlugin]:
    """Declare the task of this package."""
    return [TASK]
