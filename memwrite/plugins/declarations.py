"""What a plugin declares: its writers, readers, importers and tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from memwrite.backbones.tokenizers import Tokenizer
from memwrite.config import Config
from memwrite.protocols import Backbone, Reader, Writer
from memwrite.state import StateSpec
from memwrite.tasks.base import EvaluatedMemory, Evaluation, Examples, Task

#: The version of this plugin API. It changes only when an old plugin would break.
API = 2


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What every declaration says.

    Attributes:
        role: "writer", "reader", "task" or "importer".
        api: version of the plugin API that it was written for, a literal.
        name: what configs call it.
        summary: one line for `memwrite plugins`.
    """

    role: ClassVar[str]

    api: Literal[2]
    name: str
    summary: str


@dataclass(frozen=True)
class Capabilities:
    """Promises of a writer beyond those that bind every writer; each is held to by the law of its name.

    Attributes:
        streaming: a context may come in pieces, and no piece wipes out an earlier one.
        chunk_exact: cut anywhere, a context leaves the state that it leaves as a whole.
        differentiable: gradients through WRITE and READ are those of finite differences.
        order_free: contexts may come in any order.
        mergeable: two states can be made one, see `MergingWriter`.
        deletion: what one write has put into a state can be taken out again, see `DeletingWriter`.
        online: what is read while it is written is the same however the text comes in, see `OnlineWriter`.
    """

    streaming: bool = False
    chunk_exact: bool = False
    differentiable: bool = False
    order_free: bool = False
    mergeable: bool = False
    deletion: bool = False
    online: bool = False


@dataclass(frozen=True)
class WriteReport:
    """What a writer says to people about a write.

    Attributes:
        facts: sentences about what the memory holds and is worth, without a full stop.
        notes: sentences about what it lacks, and what to do about that.
    """

    facts: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class WriterPlugin(Plugin):
    """Declares a writer.

    Attributes:
        config: a module-level frozen dataclass; its `__post_init__` validates.
        build: makes the writer, an nn.Module, from a config and the backbone.
        emits: the kind of its states.
        capabilities: promises beyond those that bind everyone.
        gaps: laws of memwrite-specs that it is known to break, each with the reason.
        steps: the parameter that counts the steps of a write (K); None where it has none.
        max_steps: the parameter that is the largest K of training, which draws K from `steps` to this; None where
            it has none.
        slots: the parameter that counts the slots of a state; None where it has none.
        untrained: says, for a config, what the states are worth while nobody has trained the writer, as the end of a
            sentence; "" where there is nothing to say. None: where the writer has weights they mean nothing.
        report: says what the trace of a write amounts to, given the values (steps,) of one row by their names; None where
            there is nothing to say.
    """

    role: ClassVar[str] = "writer"

    config: type[Any]
    build: Callable[[Any, Backbone], Writer]
    emits: str
    capabilities: Capabilities = Capabilities()
    gaps: Mapping[str, str] = field(default_factory=dict)
    steps: str | None = None
    max_steps: str | None = None
    slots: str | None = None
    untrained: Callable[[Any], str] | None = None
    report: Callable[[Mapping[str, Tensor]], WriteReport] | None = None


@dataclass(frozen=True, kw_only=True)
class ReaderPlugin(Plugin):
    """Declares a reader.

    Attributes:
        config: a module-level frozen dataclass; its `__post_init__` validates.
        build: makes the reader, an nn.Module, from a config, the backbone and the spec of the states.
        accepts: the kinds of state that it reads; "recall" stands for every kind that has a recall.
        gaps: laws of memwrite-specs that it is known to break, each with the reason.
    """

    role: ClassVar[str] = "reader"

    config: type[Any]
    build: Callable[[Any, Backbone, StateSpec], Reader]
    accepts: frozenset[str]
    gaps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """What an importer makes of a folder.

    Attributes:
        config: as `Memory.from_config` takes it.
        weights: of the whole memory by their names in its `state_dict`; tied ones may be named once.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Exported:
    """What an exporter is given: the mirror of `Imported`.

    Attributes:
        config: of the memory.
        weights: its whole `state_dict`.
        spec: of its states.
        backbone: the language model, for the sizes of its projections.
    """

    config: Config
    weights: Mapping[str, Tensor]
    spec: StateSpec
    backbone: Backbone


@dataclass(frozen=True, kw_only=True)
class ImporterPlugin(Plugin):
    """Declares an importer of weights that others have released.

    Attributes:
        load: makes a memory's config and weights of a folder and, where that is needed, of a second folder with
            the language model's configuration and tokenizer.
        save: writes a memory as such a folder; None where that cannot be done.
    """

    role: ClassVar[str] = "importer"

    load: Callable[[Path, Path | None], Imported]
    save: Callable[[Exported, Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskPlugin(Plugin):
    """Declares a task to train on and to be evaluated on.

    Attributes:
        config: a module-level frozen dataclass; its `__post_init__` validates.
        build: makes the task from a config and the backbone's tokenizer.
        evaluate: scores a memory, in evaluation mode and without gradients, on examples of the task; None for the
            scores that fit any task: the labelled tokens, beside controls.
        evaluation_params: returns the parameters of an evaluation, given those of the training with all overrides,
            and the names of those that were overridden; None where they are the same.
        examples: the parameter that counts the held-out examples; None where their number follows from the data.
    """

    role: ClassVar[str] = "task"

    config: type[Any]
    build: Callable[[Any, Tokenizer], Task]
    evaluate: Callable[[EvaluatedMemory, Examples], Evaluation] | None = None
    evaluation_params: Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]] | None = None
    examples: str | None = None
