"""What plugins declare, and the table of those that are installed."""

from memwrite.plugins.declarations import (
    API,
    Capabilities,
    Exported,
    Imported,
    ImporterPlugin,
    Plugin,
    ReaderPlugin,
    TaskPlugin,
    WriteReport,
    WriterPlugin,
)
from memwrite.plugins.hooks import hookimpl
from memwrite.plugins.registry import Registry, register, registry

__all__ = [
    "API",
    "Capabilities",
    "Exported",
    "Imported",
    "ImporterPlugin",
    "Plugin",
    "ReaderPlugin",
    "Registry",
    "TaskPlugin",
    "WriteReport",
    "WriterPlugin",
    "hookimpl",
    "register",
    "registry",
]
