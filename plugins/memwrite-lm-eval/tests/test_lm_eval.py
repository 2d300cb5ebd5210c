"""Tasks of the harness answered from memories, beside the harness's own model of transformers on the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from memwrite_lm_eval import MemoryLM, running
from memwrite_lm_eval.running import load_tasks, run
from memwrite_specs.testing import MODELS
from transformers import LlamaConfig, LlamaForCausalLM

from memwrite import Memory
from memwrite.backbones.tokenizers import train_bpe
from memwrite.cli.main import main
from memwrite.errors import ConfigError, InputError
from memwrite.state import Tokens

TASKS = Path(__file__).parent / "tasks"
POSITIONS = 512
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)
Build = Callable[..., Memory]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny language model whose tokenizer knows the texts of the tasks."""
    place = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe([path.read_text() for path in sorted(TASKS.glob("*.json"))], 400)
    tokenizer.wrapped.chat_template = TEMPLATE
    tokenizer.save(place)
    sizes = {**MODELS["llama"]["params"], "vocab_size": 400, "max_position_embeddings": POSITIONS}
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**sizes, "initializer_range": 0.3}, **ends)).save_pretrained(
        place
    )
    return str(place)


@pytest.fixture(scope="module")
def build(folder: str) -> Build:
    """Builds a memory from a writer, its reader and its parameters."""

    def build(writer: str, reader: str, **params: object) -> Memory:
        parts = {"writer": {"name": writer, "params": params}, "reader": {"name": reader}}
        return Memory.from_config({"backbone": {"path": folder}, **parts})

    return build


@pytest.fixture(scope="module")
def full(build: Build) -> Memory:
    return build("full-context", "key-value")


@pytest.fixture(scope="module")
def plain(full: Memory) -> HFLM:
    """The harness's own model, with the same weights and tokenizer.

    Its cache of logits confuses continuations of one token with longer ones (harness 0.4.13), so it is left out.
    """
    tokenizer: Any = full.backbone.tokenizer
    return HFLM(full.model, tokenizer=tokenizer.wrapped, batch_size=2, logits_cache=False)


def asked(kind: str, *arguments: Any, **document: Any) -> Instance:
    return Instance(kind, document, arguments, 0, ("a-task", 0, 1))


def answers(model: Any, chat: bool = False) -> list[Any]:
    """Return all answers to the tasks of the folder, in order."""
    tasks = load_tasks([str(TASKS)], {})
    run(model, tasks, apply_chat_template=chat)
    return [each.resps[0] for task in tasks["tasks"].values() for each in task.instances]


def assert_same(found: list[Any], right: list[Any]) -> None:
    """Answers are the same, and log-likelihoods nearly so."""
    assert len(found) == len(right)
    for own, other in zip(found, right, strict=True):
        if isinstance(other, str):
            assert own == other
        else:
            assert own[1] == other[1]
            assert own[0] == pytest.approx(other[0], abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
def test_a_memory_of_the_full_context_gives_what_the_harness_gives(
    full: Memory, plain: HFLM, chat: bool
) -> None:
    found = answers(MemoryLM(full, batch_size=2), chat)
    assert_same(found, answers(plain, chat))
    assert len({each for each in found if isinstance(each, str)}) == 8


def test_every_context_is_written_once(full: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[int, ...]] = []
    write = full.write

    def counted(context: Tokens) -> Any:
        rows.extend(
            tuple(ids[mask].tolist()) for ids, mask in zip(context.ids, context.mask, strict=True)
        )
        return write(context)

    monkeypatch.setattr(full, "write", counted)
    model = MemoryLM(full, batch_size=3)
    answers(model)
    assert len(rows) == len(set(rows)) == model.written == 5
    assert model.asked == 13


def test_batches_change_nothing_and_contexts_do(build: Build) -> None:
    memory = build("forward", "prefix", slots=4)
    together = answers(MemoryLM(memory, batch_size=4))
    assert_same(together, answers(MemoryLM(memory, batch_size=1)))
    assert together != answers(MemoryLM(build("no-memory", "no-memory")))


def test_nothing_of_a_context_is_left_without_a_memory(build: Build) -> None:
    """Prompts that differ in their contexts alone are one prompt for a memory that keeps nothing."""
    model = MemoryLM(build("no-memory", "no-memory"))
    requests = [
        asked("loglikelihood", f"{context}\nWhere is Tom?", " in", context=context)
        for context in ("The mill is old.", "Tom went to the kitchen.", "Bees.")
    ]
    first, *others = model.loglikelihood(requests)
    assert_same(others, [first] * 2)


def test_texts_without_a_context_are_asked_of_an_empty_memory(full: Memory, plain: HFLM) -> None:
    model = MemoryLM(full)
    texts = ["The kiln is fired on Mondays.", "Bees.", "Rain fell on the harbour. " * 60]
    requests = [asked("loglikelihood_rolling", text) for text in texts]
    whole = HFLM(
        pretrained=full.model, tokenizer=plain.tokenizer, batch_size=2, max_length=POSITIONS - 1
    )
    found = model.loglikelihood_rolling(requests)
    assert found == pytest.approx(whole.loglikelihood_rolling(requests), abs=1e-2, rel=1e-5)
    bare = [asked("loglikelihood", "", " on Mondays"), asked("loglikelihood", "", "<|start|>Bees")]
    assert_same(model.loglikelihood(bare), plain.loglikelihood(bare))
    assert model.written == 0


def test_white_space_belongs_to_what_follows_it(full: Memory, plain: HFLM) -> None:
    context = "Mira keeps bees. "
    requests = [
        asked("loglikelihood", f"{context}She sells ", "honey", context=context),
        asked("loglikelihood", f"{context}", "She sells honey", context=context),
    ]
    assert_same(MemoryLM(full).loglikelihood(requests), plain.loglikelihood(requests))


def test_answers_end_at_stop_strings(
    full: Memory, plain: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the lengths of the questions, which hold stop strings themselves."""
    context = "Tom went to the kitchen. Old maps covered the wall."
    prompts = [f"{context}\n{'all ' * count}Where is Tom?" for count in (0, 3, 1, 2)]
    free = {"until": [], "max_gen_toks": 60}
    texts = plain.generate_until([asked("generate_until", prompt, free) for prompt in prompts])
    stops = [texts[0][9], texts[1][4:6], "W"]
    options = {"until": stops, "max_gen_toks": 60}
    requests = [
        asked("generate_until", prompt, given, context=context)
        for prompt in prompts
        for given in (options, free)
    ]
    widths = []
    generate = full.generate

    def watched(*given: Any, **named: Any) -> torch.Tensor:
        new = generate(*given, **named)
        widths.append(new.shape[1])
        return new

    monkeypatch.setattr(full, "generate", watched)
    found = MemoryLM(full).generate_until(requests)
    assert found == plain.generate_until(requests)
    assert found[1::2] == texts
    assert min(widths) < 30 <= max(widths)


def test_samples_are_drawn_where_a_task_wants_them(full: Memory) -> None:
    options = {"do_sample": True, "temperature": 5.0, "max_gen_toks": 8, "until": []}
    request = asked("generate_until", "Bees. Where?", options, context="Bees.")
    torch.manual_seed(0)
    assert len({*MemoryLM(full).generate_until([request] * 4)}) == 4


def test_the_command_prints_the_harness_table(folder: str, full: Memory) -> None:
    words = ["lm-eval", "--model", folder, "--writer", "full-context", "--tasks", str(TASKS)]
    shown = CliRunner().invoke(main, [*words, "--limit", "2"])
    assert shown.exit_code == 0, shown.output
    assert "|squad_form" in shown.stdout
    assert "9 questions on 4 contexts, each written once" in shown.stdout
    printed = CliRunner().invoke(main, [*words, "--json", "--num-fewshot", "1"])
    results = json.loads(printed.stdout)
    assert results["n-shot"] == {"babilong_form": 1, "choices_form": 1, "squad_form": 1}
    assert results["questions_asked"] == 13


@pytest.mark.parametrize(
    ("tasks", "more", "part"),
    [
        ("no_such_task", [], "no task 'no_such_task'"),
        ("EMPTY", [], "no YAML file of a task"),
        ("BROKEN", [], "could not be loaded"),
        ("TASKS", ["--context-field", "story"], "no field 'story'"),
        ("TASKS", ["--metadata", "4096"], "JSON object"),
    ],
)
def test_what_cannot_be_run_is_told_in_a_sentence(
    folder: str,
    tmp_path: Path,
    tasks: str,
    more: list[str],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The harness's own tasks are thousands of files.
    few = {"include_defaults": False}
    monkeypatch.setattr(running, "TaskManager", lambda **given: TaskManager(**{**given, **few}))
    place = str(TASKS) if tasks == "TASKS" else tasks if tasks.islower() else str(tmp_path)
    if tasks == "BROKEN":
        (tmp_path / "broken.yaml").write_text("task: broken\ncustom_dataset: !function gone.load\n")
    words = ["lm-eval", "--model", folder, "--writer", "full-context", "--tasks", place, *more]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_the_model_is_told_in_a_sentence(full: Memory) -> None:
    context = "Bees. " * POSITIONS
    request = asked("loglikelihood", f"{context}\nWhere?", " here", context=context)
    with pytest.raises(InputError, match="positions"):
        MemoryLM(full).loglikelihood([request])


def test_a_model_without_a_chat_template_says_so(full: Memory) -> None:
    parts = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    memory = Memory.from_config({"backbone": MODELS["llama"], **parts})
    with pytest.raises((InputError, ConfigError), match="no chat template"):
        run(MemoryLM(memory), load_tasks([str(TASKS)], {}), apply_chat_template=True)
