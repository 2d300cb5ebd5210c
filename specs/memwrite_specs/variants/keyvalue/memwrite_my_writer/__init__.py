"""The writer my-writer for memwrite."""

from memwrite.plugins import WriterPlugin, hookimpl
from memwrite_my_writer.config import MyConfig
from memwrite_my_writer.writer import MyWriter

WRITER = WriterPlugin(
    api=2,
    name="my-writer",
    summary="keys and values of the last tokens",
    config=MyConfig,
    build=MyWriter,
    emits="keyvalue",
    slots="slots",
)


@hookimpl
def memwrite_writers() -> list[WriterPlugin]:
    """Declare the writer of this package."""
    return [WRITER]
