"""The hooks through which a plugin module declares what it provides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy

from memwrite.plugins.declarations import ImporterPlugin, ReaderPlugin, TaskPlugin, WriterPlugin
from memwrite.state import StateKind

#: The entry-point group, and the name of the hooks.
GROUP = "memwrite"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """The hooks that a plugin module may implement, each marked with `hookimpl`."""

    @hookspec
    def memwrite_writers(self) -> Sequence[WriterPlugin]:
        """Return the writers of this distribution.

        Example:
            @hookimpl
            def memwrite_writers():
                return [
                    WriterPlugin(
                        api=2, name="my-writer", summary="sums of embeddings", config=MyConfig,
                        build=MyWriter, emits="prefix", slots="slots",
                        capabilities=Capabilities(streaming=True, differentiable=True),
                    )
                ]
        """
        raise AssertionError("hook specifications are never called")

    @hookspec
    def memwrite_readers(self) -> Sequence[ReaderPlugin]:
        """Return the readers of this distribution.

        Example:
            @hookimpl
            def memwrite_readers():
                return [
                    ReaderPlugin(
                        api=2, name="my-reader", summary="scales a prefix", config=MyConfig,
                        build=MyReader, accepts=frozenset({"prefix"}),
                    )
                ]
        """
        raise AssertionError("hook specifications are never called")

    @hookspec
    def memwrite_kinds(self) -> Sequence[StateKind]:
        """Return the kinds of state that this distribution's writers and readers agree on.

        Example:
            @hookimpl
            def memwrite_kinds():
                def recall(tensors, queries):
                    weights = torch.linalg.solve(tensors["G"], queries.transpose(1, 2).mT)
                    return (tensors["H"].mT @ weights).mT.transpose(1, 2)

                return [
                    StateKind(
                        "least-squares", {"G": "L H Dk Dk", "H": "L H Dk Dv"}, recall=recall,
                        summary="a ridge regression per layer and head",
                    )
                ]
        """
        raise AssertionError("hook specifications are never called")

    @hookspec
    def memwrite_importers(self) -> Sequence[ImporterPlugin]:
        """Return the importers of this distribution.

        Example:
            @hookimpl
            def memwrite_importers():
                return [
                    ImporterPlugin(
                        api=2, name="theirs", summary="checkpoints of their scripts", load=load
                    )
                ]
        """
        raise AssertionError("hook specifications are never called")

    @hookspec
    def memwrite_tasks(self) -> Sequence[TaskPlugin]:
        """Return the tasks of this distribution.

        Example:
            @hookimpl
            def memwrite_tasks():
                return [
                    TaskPlugin(
                        api=2, name="my-task", summary="questions on my texts", config=MyTaskConfig,
                        build=MyTask, evaluate=my_scores, examples="examples",
                    )
                ]
        """
        raise AssertionError("hook specifications are never called")

    @hookspec
    def memwrite_laws(self) -> Sequence[Any]:
        """Return the laws, of memwrite-specs, that this distribution adds to those that bind every pair.

        Example:
            @law(binds=lambda case: None if case.pair.writer.name == "my-writer" else "it is my writer's")
            def half_life(case):
                '''What was written long ago counts for less than what was written last.'''
                ...

            @hookimpl
            def memwrite_laws():
                return [half_life]
        """
        raise AssertionError("hook specifications are never called")
