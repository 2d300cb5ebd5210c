"""A writer for memwrite, by the name of my-writer."""

from memwrite.plugins import WriterPlugin, hookimpl
from memwrite_my_writer.config import MyConfig
from memwrite_my_writer.writer import MyWriter

WRITER = WriterPlugin(
    api=1,
    name="my-writer",
    summary="sums of embeddings",
    config=MyConfig,
    build=MyWriter,
    emits="prefix",
    capabilities=frozenset(
        {"streaming", "chunk-exact", "differentiable", "order-free", "mergeable"}
    ),
)


@hookimpl
def memwrite_writers() -> list[WriterPlugin]:
    """What this package provides."""
    return [WRITER]
