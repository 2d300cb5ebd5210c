"""The writer my-writer for memwrite."""

from memwrite.plugins import Capabilities, WriterPlugin, hookimpl
from memwrite_my_writer.config import MyConfig
from memwrite_my_writer.writer import MyWriter

WRITER = WriterPlugin(
    api=2,
    name="my-writer",
    summary="sums of embeddings",
    config=MyConfig,
    build=MyWriter,
    emits="prefix",
    slots="slots",
    capabilities=Capabilities(
        streaming=True, chunk_exact=True, differentiable=True, order_free=True, mergeable=True
    ),
)


@hookimpl
def memwrite_writers() -> list[WriterPlugin]:
    """Declare the writer of this package."""
    return [WRITER]
