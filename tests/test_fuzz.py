"""Whatever a file holds that came from a stranger: an error of ours in a sentence, or what it honestly says.

`make soak` tries fifty times as many cases as the tests.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import resource
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from fuzzing import mutated_bytes, mutated_data
from support import MODELS, SOAK

from memwrite import Memory, MemoryState
from memwrite.checkpoints import container
from memwrite.checkpoints.state_file import load_state
from memwrite.config import load_config
from memwrite.errors import MemwriteError
from memwrite.stores import Store

#: Beyond what the process holds when a test begins: more than any honest file here could want.
ROOM = 3 << 30
SECONDS = 60
CONFIG = {
    "backbone": MODELS["gpt2"],
    "writer": {"name": "gradient", "params": {"slots": 2}},
    "reader": {"name": "prefix"},
    "task": {"name": "kv-retrieval", "params": {"pairs": 2}},
    "seed": 4,
}
LORA = {
    **CONFIG,
    "writer": {"name": "delta", "params": {"update": "lambda_outside", "forgetting": "coupled"}},
    "reader": {"name": "lora", "params": {}},
}


KEPT = {**CONFIG, "writer": {"name": "full-context"}, "reader": {"name": "key-value"}}


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Memory beyond `ROOM` cannot be had, and a case that hangs ends the process with its traceback."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(cases: int, case: Callable[[Random], object]) -> tuple[int, int]:
    """Run `case` on each seed; how many were taken and how many refused."""
    taken, cases = 0, round(cases * SOAK)
    for seed in range(cases):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                case(Random(seed))
                taken += 1
            except MemwriteError as error:
                if "\n" in str(error) or len(str(error)) > 20_000:
                    pytest.fail(f"seed {seed}: no sentence: {str(error)[:500]!r}")
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise
    return taken, cases - taken


def ask(memory: Memory, state: MemoryState) -> None:
    answer = memory.ask(state, "ab", max_new_tokens=2)
    assert isinstance(answer, str)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """State files of a prefix, of a matrix with the weights of a reader, and of keys and values, and a run folder."""
    folder = tmp_path_factory.mktemp("saved")
    paths = {}
    for name, config in (("prefix", CONFIG), ("lora", LORA), ("keyvalue", KEPT)):
        memory, paths[name] = Memory.from_config(config), folder / f"{name}.st"
        memory.save(memory.write("a secret").state, paths[name])
    paths["run"] = folder / "run"
    Memory.from_config(CONFIG).save_run(paths["run"])
    return paths


@pytest.mark.parametrize("kind", ["prefix", "lora"])
def test_bytes_of_state_files(saved: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """None is taken that is not the file itself: the checksum covers every byte."""
    whole, path = saved[kind].read_bytes(), tmp_path / "x.st"

    def case(random: Random) -> None:
        data = mutated_bytes(whole, random)
        path.write_bytes(data)
        load_state(path)
        assert data == whole

    taken, refused = fuzz(500, case)
    assert refused > 9 * taken


def resized(header: Any, tensors: dict[str, Any], random: Random) -> tuple[Any, dict[str, Any]]:
    """One axis of the state is shorter or longer, in one tensor or in all that have it, and the header says so."""
    header, tensors = copy.deepcopy(header), dict(tensors)
    specs = header["spec"]["tensors"]
    which = [name for name in specs if specs[name]["shape"]]
    axis = random.randrange(max(len(specs[name]["shape"]) for name in which))
    size = random.randrange(9)
    for name in which if random.random() < 0.5 else [random.choice(which)]:
        if axis < len(specs[name]["shape"]):
            old = tensors[f"state.{name}"]
            index = torch.arange(size) % max(old.shape[axis + 1], 1)
            tensors[f"state.{name}"] = new = old.index_select(axis + 1, index)
            specs[name]["shape"] = list(new.shape[1:])
    if random.random() < 0.3:
        header["spec"]["layers"] = list(range(size))
    return header, tensors


@pytest.mark.parametrize("kind", ["prefix", "lora", "keyvalue"])
def test_headers_and_tensors_of_state_files(
    saved: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """With a checksum that is right. What is taken is read from, and holds what the file says."""
    header, tensors = container.unpack(saved[kind].read_bytes(), kind)
    path = tmp_path / "x.st"

    def case(random: Random) -> None:
        changed, held = header, dict(tensors)
        if random.random() < 0.3:
            changed, held = resized(header, tensors, random)
        elif random.random() < 0.8:
            changed = mutated_data(header, random)
        if random.random() < 0.2:
            name = random.choice([*held])
            tensor = held.pop(name)
            form = random.randrange(6)
            if form == 0:
                held[f"{name}x"] = tensor
            elif form == 1:
                held[name] = tensor.reshape(-1)
            elif form == 2:
                held[name] = tensor.to(random.choice([torch.float64, torch.int8, torch.bool]))
            elif form == 3:
                held[name] = tensor * float("nan")
            elif form == 4:
                held[name] = torch.cat([tensor, tensor])
        path.write_bytes(container.pack(json.dumps(changed), held, "x"))
        memory, state = Memory.load(path)
        for name, tensor in state.tensors.items():
            assert torch.equal(tensor, held[f"state.{name}"])
            assert tensor.isfinite().all()
        if state.batch_size == 1:
            ask(memory, state)

    taken, refused = fuzz(100, case)
    assert min(taken, refused) > 0


@pytest.mark.parametrize("kind", ["gradient", "delta"])
def test_headers_of_files_of_format_1(tmp_path: Path, kind: str) -> None:
    """They go through the migration, which is as wary."""
    old = Path(__file__).parent / "checkpoints" / "data" / "v1" / f"{kind}.safetensors"
    header, tensors = container.unpack(old.read_bytes(), kind)
    path = tmp_path / "x.st"

    def case(random: Random) -> None:
        path.write_bytes(container.pack(json.dumps(mutated_data(header, random)), tensors, "x"))
        ask(*Memory.load(path))

    taken, refused = fuzz(60, case)
    assert min(taken, refused) > 0


def test_files_of_run_folders(saved: dict[str, Path], tmp_path: Path) -> None:
    """Configuration, weights, and the model's folder: by their bytes and by what they say."""
    names = [path.relative_to(saved["run"]) for path in saved["run"].rglob("*") if path.is_file()]

    def case(random: Random) -> None:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved["run"], folder)
        path = folder / random.choice(sorted(names))
        whole = path.read_bytes()
        if path.suffix == ".json" and random.random() < 0.7:
            path.write_text(json.dumps(mutated_data(json.loads(whole), random)))
        elif path.suffix == ".yaml" and random.random() < 0.7:
            text = json.dumps(mutated_data(yaml.safe_load(whole), random))  # YAML, too
            path.write_text(text, encoding="utf-8")
        else:
            path.write_bytes(mutated_bytes(whole, random))
        Memory.from_config(folder)

    taken, refused = fuzz(75, case)
    assert min(taken, refused) > 0


def test_configurations(tmp_path: Path) -> None:
    """As bytes and as data; what is taken is a configuration of plain data."""
    text, path = yaml.safe_dump(CONFIG).encode(), tmp_path / "x.yaml"

    def case(random: Random) -> None:
        if random.random() < 0.5:
            path.write_bytes(mutated_bytes(text, random))
        else:
            path.write_text(json.dumps(mutated_data(CONFIG, random)))
        config = load_config(path, random.sample(["seed=1", "task.params.pairs=[[", "a.b=1"], 1))
        assert config.seed >= 0

    taken, refused = fuzz(250, case)
    assert min(taken, refused) > 0


def test_stores(saved: dict[str, Path], tmp_path: Path) -> None:
    """The database by its bytes, and its rows by what they say."""
    memory = Memory.from_config(CONFIG)
    rows = memory.write(["one", "two", "three"]).state
    place, path = tmp_path / "whole.db", tmp_path / "x.db"
    with Store(place) as store:
        store.put_rows(list("abc"), memory, rows, texts=list("abc"))
    whole = place.read_bytes()

    def case(random: Random) -> None:
        for ending in ("", "-wal", "-shm", "-journal"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        if random.random() < 0.5:
            path.write_bytes(mutated_bytes(whole, random))
        else:
            path.write_bytes(whole)
            _change_row(path, random)
        with Store(path) as store:
            for row, key in enumerate("abc"):
                assert torch.equal(store.get(key, memory)["memory"], rows["memory"][row : row + 1])
                store.provenance(key)
            list(store.list())
            store.expire()
            store.size()

    taken, refused = fuzz(200, case)
    assert min(taken, refused) > 0


def _change_row(path: Path, random: Random) -> None:
    column = random.choice(["key", "recipe", "created", "expires", "source", "data"])
    value = random.choice(["", "a", "../a", "2020-01-01", "9" * 30, "\x00", None, b"", b"{" * 50])
    with sqlite3.connect(path) as connection:
        if random.random() < 0.3:
            [(data,)] = connection.execute("SELECT data FROM recipes").fetchall()
            header, tensors = container.unpack(data, "recipe")
            data = container.pack(json.dumps(mutated_data(header, random)), tensors, "recipe")
            connection.execute("UPDATE recipes SET data = ?", (data,))
            return
        if column == "data" and random.random() < 0.8:
            [(data,)] = connection.execute("SELECT data FROM memories WHERE key = 'b'").fetchall()
            note, tensors = container.unpack(data, "record")
            value = container.pack(json.dumps(mutated_data(note, random)), tensors, "record")
        with suppress(sqlite3.Error):  # the table itself does not take it
            connection.execute(f"UPDATE memories SET {column} = ? WHERE key = 'b'", (value,))


def test_what_is_declared_is_not_taken_at_its_word(saved: dict[str, Path], tmp_path: Path) -> None:
    """Sizes that would fill the memory, or hours, are refused before anything is made of them."""
    header, tensors = container.unpack(saved["lora"].read_bytes(), "x")
    path = tmp_path / "x.st"
    backbone = header["backbone"]
    for name, value in (("n_layer", 10**9), ("n_embd", 1 << 16), ("n_positions", 10**10)):
        params = {**backbone["params"], name: value}
        path.write_bytes(
            container.pack(
                json.dumps({**header, "backbone": {**backbone, "params": params}}), tensors, "x"
            )
        )
        with pytest.raises(MemwriteError, match=r"can be meant|to be built for it"):
            Memory.load(path)
    static = Memory.from_config(
        {**CONFIG, "writer": {"name": "no-memory"}, "reader": {"name": "static-lora"}}
    )
    static.save(static.write("a secret").state, path)
    header, tensors = container.unpack(path.read_bytes(), "x")
    header["reader"]["params"]["rank"] = 10**9
    path.write_bytes(container.pack(json.dumps(header), tensors, "x"))
    with pytest.raises(MemwriteError, match="holds other weights than its reader 'static-lora'"):
        Memory.load(path)
    shutil.copytree(saved["run"], tmp_path / "run")
    described = tmp_path / "run" / "backbone" / "config.json"
    for name, value in (("n_layer", 10**9), ("n_embd", 1 << 15)):
        text = (saved["run"] / "backbone" / "config.json").read_text()
        described.write_text(json.dumps({**json.loads(text), name: value}))
        with pytest.raises(MemwriteError, match=r"can be meant|the files beside it hold"):
            Memory.from_config(tmp_path / "run")


DEEP = "[" * 50_000


@pytest.mark.parametrize("text", [f"backbone: {DEEP}", f"a: {'{b: ' * 200}"])
def test_yaml_nested_beyond_the_stack_is_refused(tmp_path: Path, text: str) -> None:
    """The parser's own stack overflowed, and took the process with it."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(MemwriteError, match="levels deep"):
        load_config(path)
    with pytest.raises(MemwriteError, match="levels deep"):
        load_config(CONFIG, [f"backbone.params.x={DEEP}"])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("layers", [[0], [1]]),
        ("path", "é" * 3000),
        ("dropout", float("nan")),
    ],
)
def test_headers_that_once_ended_in_a_traceback(
    saved: dict[str, Path], tmp_path: Path, part: str, value: Any
) -> None:
    header, tensors = container.unpack(saved["lora"].read_bytes(), "x")
    if part == "layers":
        header["spec"]["layers"] = value
    elif part == "path":
        header["backbone"] |= {"path": value, "type": None, "params": {}}
    else:
        header["backbone"]["params"]["resid_pdrop"] = value
    path = tmp_path / "x.st"
    path.write_bytes(container.pack(json.dumps(header), tensors, "x"))
    with pytest.raises(MemwriteError) as caught:
        Memory.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("expires", []), ("recipe", "\ud800"), ("source", 7)])
def test_notes_of_records_that_once_ended_in_a_traceback(
    tmp_path: Path, name: str, value: Any
) -> None:
    memory, path = Memory.from_config(CONFIG), tmp_path / "x.db"
    with Store(path) as store:
        store.put("a", memory, memory.write("one").state)
    with sqlite3.connect(path) as connection:
        [(data,)] = connection.execute("SELECT data FROM memories").fetchall()
        note, tensors = container.unpack(data, "record")
        changed = container.pack(json.dumps({**note, name: value}), tensors, "record")
        connection.execute("UPDATE memories SET data = ?", (changed,))
    with Store(path) as store, pytest.raises(MemwriteError, match="its header does not fit"):
        store.file("a")
