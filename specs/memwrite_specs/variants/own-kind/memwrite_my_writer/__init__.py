"""The writer my-writer for memwrite, its kind of state and the reader of that."""

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_my_writer.config import MyConfig, NoParams
from memwrite_my_writer.reader import MyReader
from memwrite_my_writer.writer import MyWriter

KIND = StateKind(
    "my-kind", {"sums": "M D", "counts": "M"}, summary="sums of vectors, and of how many"
)
WRITER = WriterPlugin(
    api=2,
    name="my-writer",
    summary="means of embeddings",
    config=MyConfig,
    build=MyWriter,
    emits="my-kind",
    slots="slots",
    capabilities=Capabilities(
        streaming=True, chunk_exact=True, differentiable=True, order_free=True, mergeable=True
    ),
)
READER = ReaderPlugin(
    api=2,
    name="my-writer",
    summary="prepends the means",
    config=NoParams,
    build=MyReader,
    accepts=frozenset({"my-kind"}),
)


@hookimpl
def memwrite_kinds() -> list[StateKind]:
    """Declare the kind of state on which writer and reader agree."""
    return [KIND]


@hookimpl
def memwrite_writers() -> list[WriterPlugin]:
    """Declare the writer of this package."""
    return [WRITER]


@hookimpl
def memwrite_readers() -> list[ReaderPlugin]:
    """Declare the reader of this package."""
    return [READER]
