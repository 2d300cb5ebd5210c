"""The reader my-writer for memwrite."""

from memwrite.plugins import ReaderPlugin, hookimpl
from memwrite_my_writer.config import MyConfig
from memwrite_my_writer.reader import MyReader

READER = ReaderPlugin(
    api=2,
    name="my-writer",
    summary="a prefix, each dimension scaled",
    config=MyConfig,
    build=MyReader,
    accepts=frozenset({"prefix"}),
)


@hookimpl
def memwrite_readers() -> list[ReaderPlugin]:
    """Declare the reader of this package."""
    return [READER]
