"""What Memory.save and Memory.load promise; a state file is untrusted input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support import MODELS

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.checkpoints import container
from memwrite.checkpoints.state_file import load_state, save_state
from memwrite.errors import ContractViolation, IncompatiblePair, MemwriteError, StorageError
from memwrite.plugins import registry

SECRET = "the launch code is 7361-Ωmega"
PLUGIN = '''
"""A writer whose state is the mean embedding, and a reader with a weight of its own."""
from dataclasses import dataclass
import torch
from torch import nn
from memwrite.plugins import ReaderPlugin, WriterPlugin, hookimpl
from memwrite.protocols import Conditioning, WriteOutput
from memwrite.state import MemoryState, StateSpec

@dataclass(frozen=True)
class Params:
    slots: int = 2

class MeanWriter(nn.Module):
    reserved_positions = 0
    def __init__(self, config, backbone):
        super().__init__()
        self._backbone = backbone
        self.spec = StateSpec("mean", {"mean": (config.slots, backbone.info.hidden_size)})
    def init(self, batch_size, /):
        return MemoryState(self.spec, {"mean": torch.zeros(batch_size, *self.spec.shapes["mean"])})
    def write(self, state, context, /):
        total = (self._backbone.embed(context.ids) * context.mask[..., None]).sum(1)
        mean = total / context.lengths.clamp(min=1)[:, None]
        return WriteOutput(MemoryState(self.spec, {"mean": state["mean"] + mean[:, None]}))

class TurnReader(nn.Module):
    accepts = frozenset({"mean"})
    def __init__(self, config, backbone, spec):
        super().__init__()
        width = spec.shapes["mean"][-1]
        self.turn = nn.Linear(width, width)
        self.register_buffer("scale", torch.tensor(1.5))
    def condition(self, state, /):
        return Conditioning(prefix=self.scale * self.turn(state["mean"]))

@hookimpl
def memwrite_writers():
    return [WriterPlugin(
            api=2, name="mean", summary="mean embedding", config=Params, build=MeanWriter, emits="mean"
        )]

@hookimpl
def memwrite_readers():
    return [ReaderPlugin(
            api=2, name="turn", summary="a linear map", config=Params, build=TurnReader,
            accepts=frozenset({"mean"}),
        )]
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugin as an installed distribution, here and for child processes with PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "memwrite_turning.py").write_text(PLUGIN)
    info = folder / "turning-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: turning\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[memwrite]\nturning = memwrite_turning\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        registry.cache_clear()
        yield folder
    registry.cache_clear()
    sys.modules.pop("memwrite_turning", None)


Saved = tuple[Path, Memory, MemoryState]


@pytest.fixture(scope="module")
def saved(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    memory = Memory.from_config(
        {
            "backbone": MODELS["gpt2"],
            "writer": {"name": "mean", "params": {"slots": 3}},
            "reader": {"name": "turn"},
            "seed": 4,
        }
    )
    with torch.no_grad():
        memory.reader.turn.weight.add_(torch.linspace(-1, 1, 32).outer(torch.linspace(1, 2, 32)))
    state = memory.write([SECRET, "other"]).state
    path = tmp_path_factory.mktemp("saved") / "doc.st"
    memory.save(state, path)
    return path, memory, state


def test_a_file_comes_back_bit_for_bit(saved: Saved) -> None:
    """State, spec, the reader with its weights and buffers, and every answer."""
    path, memory, state = saved
    again, loaded = Memory.load(path)
    assert loaded.spec == state.spec
    assert torch.equal(loaded["mean"], state["mean"])
    weights = again.reader.state_dict()
    assert weights.keys() == {"turn.weight", "turn.bias", "scale"}
    for name, weight in memory.reader.state_dict().items():
        assert torch.equal(weights[name], weight), name
    query = Tokens.from_rows([[1, 2], [3]])
    assert torch.equal(again.read(loaded, query).logits, memory.read(state, query).logits)
    assert not again.can_write
    assert (again.config.writer.params, again.config.seed) == ({"slots": 3}, 4)


def test_a_fresh_process_reads_the_same(saved: Saved, site: Path) -> None:
    """Logits and answers are those of the process that wrote, bit for bit."""
    path, memory, state = saved
    code = """
import sys, torch
from memwrite import Memory, Tokens
memory, state = Memory.load(sys.argv[1])
logits = memory.read(state, Tokens.from_rows([[1, 2], [3]])).logits
print(logits.detach().numpy().tobytes().hex())
print(memory.ask(state.rows(slice(0, 1)), "ab", max_new_tokens=6).encode().hex())
"""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    logits, answer = done.stdout.split("\n")[:2]
    found = memory.read(state, Tokens.from_rows([[1, 2], [3]])).logits.detach()
    other = torch.frombuffer(bytearray.fromhex(logits), dtype=torch.float32).reshape(found.shape)
    torch.testing.assert_close(other, found, atol=1e-6, rtol=1e-6)
    asked = memory.ask(state.rows(slice(0, 1)), "ab", max_new_tokens=6)
    assert bytes.fromhex(answer).decode() == asked


def test_nothing_of_the_text_is_in_the_file(saved: Saved) -> None:
    """Neither as UTF-8, nor escaped, nor as token ids of any width."""
    data = saved[0].read_bytes()
    ids = list(SECRET.encode())
    for form in (
        SECRET.encode(),
        json.dumps(SECRET)[1:-1].encode(),
        SECRET.encode("utf-16-le"),
        json.dumps(ids)[1:-1].encode(),
        torch.tensor(ids).numpy().tobytes(),
        torch.tensor(ids, dtype=torch.int32).numpy().tobytes(),
    ):
        pieces = [form[start : start + 12] for start in range(0, len(form) - 12, 4)]
        assert not any(piece in data for piece in pieces)


def forged(
    original: Path, out: Path, change: Callable[[dict[str, Any]], Any], escape: str = ""
) -> Path:
    """The file with another header, its checksum right again; the letter `escape` is spelled by its number."""
    data = original.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["memwrite"])
    change(header)
    text = json.dumps(header)
    if escape:
        text = text.replace(escape, f"\\u{ord(escape):04x}")
    out.write_bytes(container.pack(text, safetensors.torch.load(data), str(out)))
    return out


@pytest.mark.parametrize("escape", ["", "$"])
@pytest.mark.parametrize("field", ["created", "path", "params", "key"])
def test_headers_never_reach_the_environment(
    saved: Saved, tmp_path: Path, escape: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header is data: whatever its spelling, an interpolation is refused and never resolved."""
    monkeypatch.setenv("PRIVATE", "hunter2")
    probe = "${oc.env:PRIVATE}"

    def change(header: dict[str, Any]) -> None:
        if field == "created":
            header["created"] = probe
        elif field == "path":
            header["backbone"] |= {"path": probe, "type": None}
        elif field == "params":
            header["reader"]["params"]["slots"] = probe
        else:
            header["backbone"]["params"][probe] = probe

    path = forged(saved[0], tmp_path / "forged.st", change, escape)
    with pytest.raises(StorageError) as caught:
        Memory.load(path)
    assert "hunter2" not in str(caught.value)


LIES: list[Callable[[dict[str, Any]], Any]] = [
    lambda header: header.update(format="1"),
    lambda header: header.update(format=1),
    lambda header: header.update(format=3, requires=3),
    lambda header: header.update(requires="2"),
    lambda header: header.update(format=None),
    lambda header: header.pop("format"),
    lambda header: header.pop("spec"),
    lambda header: header.update(seed="many"),
    lambda header: header.update(seed=None),
    lambda header: header.update(reader="turn"),
    lambda header: header["reader"].update(name="theirs"),
    lambda header: header.update(reader={"name": ["turn"]}),
    lambda header: header["reader"].update(params={"slots": "x"}),
    lambda header: header["reader"].update(params={"slotz": 3}),
    lambda header: header["spec"].update(dtype="int8"),
    lambda header: header["spec"].update(dtype="Tensor"),
    lambda header: header["spec"].update(layers="all"),
    lambda header: header["spec"]["tensors"]["mean"].update(shape=[3, -32]),
    lambda header: header["spec"]["tensors"]["mean"].update(shape=[3, "x"]),
    lambda header: header["spec"]["tensors"]["mean"].update(dtype="int8"),
    lambda header: header["spec"]["tensors"]["mean"].update(dtype="Tensor"),
    lambda header: header["spec"]["tensors"].update(mean=[3, 32]),
    lambda header: header["spec"].update(tensors={}),
    lambda header: header["spec"].update(kind="prefix"),
    lambda header: header.update(backbone={}),
    lambda header: header.update(backbone={"type": "gpt2", "params": {"n_embd": -1}}),
    lambda header: header.update(backbone={"type": "no such type"}),
    lambda header: header["backbone"].update(tokenizer="no/such/tokenizer"),
    lambda header: header["backbone"].update(device="cuda:99"),
    lambda header: header["backbone"].update(dtype="int4"),
]


@pytest.mark.parametrize("lie", range(len(LIES)))
def test_headers_that_lie_are_errors_of_ours(saved: Saved, tmp_path: Path, lie: int) -> None:
    """With a checksum that is right: one sentence, never a traceback from below, never acceptance."""
    path = forged(saved[0], tmp_path / "lies.st", LIES[lie])
    with pytest.raises(MemwriteError) as caught:
        Memory.load(path)
    assert "\n" not in str(caught.value)


def test_another_backbone_is_refused_by_both_names(saved: Saved, tmp_path: Path) -> None:
    """Unless it is forced."""
    path, memory, _ = saved
    other = Memory.from_config({"backbone": {**MODELS["gpt2"], "trainable": True}, "seed": 5})
    other.save_run(tmp_path / "other")
    with pytest.raises(StorageError) as caught:
        Memory.load(path, backbone=str(tmp_path / "other"))
    assert memory.backbone.fingerprint in str(caught.value)
    assert other.backbone.fingerprint in str(caught.value)
    forced, loaded = Memory.load(path, backbone=str(tmp_path / "other"), force=True)
    assert forced.backbone.fingerprint == other.backbone.fingerprint
    assert forced.read(loaded, Tokens.from_rows([[1], [2]])).logits.shape == (2, 1, 258)


def test_weights_that_do_not_fit_the_reader_are_refused(
    site: Path, saved: Saved, tmp_path: Path
) -> None:
    """Of other names or other shapes: one sentence, not the list that torch gives."""
    path, _, _ = saved
    whole = load_state(path)
    for weights in (
        {**whole.weights, "turn.bias": torch.zeros(7)},
        {name: weight for name, weight in whole.weights.items() if name != "scale"},
        {**whole.weights, "more": torch.zeros(1)},
        {},
    ):
        save_state(tmp_path / "w.st", replace(whole, weights=weights))
        with pytest.raises(StorageError, match="'turn'"):
            Memory.load(tmp_path / "w.st")


def test_a_backbone_that_is_gone_is_asked_for(tmp_path: Path) -> None:
    """By the folder's name and --backbone; the folder named then works, and so does a run folder."""
    Memory.from_config({"backbone": {**MODELS["llama"], "trainable": True}}).save_run(
        tmp_path / "run"
    )
    memory = Memory.from_config(
        {
            "backbone": {"path": str(tmp_path / "run")},
            "writer": {"name": "full-context"},
            "reader": {"name": "key-value"},
        }
    )
    state = memory.write("abc").state
    memory.save(state, tmp_path / "doc.st")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    with pytest.raises(StorageError, match="--backbone") as caught:
        Memory.load(tmp_path / "doc.st")
    assert str(tmp_path / "run") in str(caught.value)
    for folder in (tmp_path / "moved", tmp_path / "moved" / "backbone"):
        again, loaded = Memory.load(tmp_path / "doc.st", backbone=str(folder))
        query = Tokens.from_rows([[1, 2]])
        assert torch.equal(again.read(loaded, query).logits, memory.read(state, query).logits)
    with pytest.raises(StorageError, match="--backbone"):
        Memory.load(tmp_path / "doc.st", backbone="some-org/some-model")


def test_a_file_is_read_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the backbone was named relative to the folder it was written from."""
    Memory.from_config({"backbone": {**MODELS["gpt2"], "trainable": True}}).save_run(
        tmp_path / "run"
    )
    monkeypatch.chdir(tmp_path)
    memory = Memory.from_config({"backbone": {"path": "run"}})
    memory.save(memory.write("abc").state, tmp_path / "doc.st")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again, _ = Memory.load(tmp_path / "doc.st")
    assert again.backbone.fingerprint == memory.backbone.fingerprint


def test_opening_a_file_never_asks_the_network(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that names a tokenizer or model of the hub gets an error, not a download."""
    import transformers

    asked: list[str] = []

    def fetch(name: Any, *_: Any, **__: Any) -> Any:
        if not Path(name).is_dir():
            asked.append(str(name))
        raise OSError("no network here")

    for loader in ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(transformers, loader), "from_pretrained", fetch)
    for change in (
        lambda header: header["backbone"].update(tokenizer="some-org/some-model"),
        lambda header: header["backbone"].update(path="some-org/some-model", type=None),
    ):
        path = forged(saved[0], tmp_path / "hub.st", change)
        with pytest.raises(MemwriteError):
            Memory.load(path)
    assert asked == []


def test_a_state_of_another_kind_is_not_saved(saved: Saved, tmp_path: Path) -> None:
    """A file that nothing could open again is refused when it is written."""
    _, memory, _ = saved
    other = MemoryState(StateSpec("prefix", {"memory": (1, 32)}), {"memory": torch.zeros(1, 1, 32)})
    with pytest.raises((IncompatiblePair, ContractViolation)):
        memory.save(other, tmp_path / "doc.st")
    assert not (tmp_path / "doc.st").exists()


def test_the_fingerprint_in_a_file_is_that_of_the_weights_as_they_are(tmp_path: Path) -> None:
    """A backbone that was trained on is another one, also where a file was saved before."""
    memory = Memory.from_config({"backbone": {**MODELS["gpt2"], "trainable": True}})
    state = memory.write("abc").state
    memory.save(state, tmp_path / "before.st")
    with torch.no_grad():
        next(memory.model.parameters()).mul_(1.5)
    memory.save(state, tmp_path / "after.st")
    before, after = (load_state(tmp_path / f"{name}.st").header for name in ("before", "after"))
    assert before.fingerprint != after.fingerprint


def test_loading_leaves_global_randomness_alone(saved: Saved) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Memory.load(saved[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_keys_and_values_of_every_dtype_come_back(tmp_path: Path, dtype: str) -> None:
    """Masks stay bool and positions int64; empty tensors are tensors too."""
    config = {
        "backbone": {**MODELS["llama"], "dtype": dtype},
        "writer": {"name": "full-context"},
        "reader": {"name": "key-value"},
    }
    memory = Memory.from_config(config)
    for name, state in (
        ("full", memory.write(Tokens.from_rows([[1, 2, 3], [4]])).state),
        ("none", memory.writer.init(2)),
    ):
        memory.save(state, tmp_path / name)
        loaded = Memory.load(tmp_path / name)[1]
        assert loaded.spec == state.spec
        for key, tensor in state.tensors.items():
            assert torch.equal(loaded[key], tensor), key


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("mask", {"dtype": "float32"}, "'mask' of a 'keyvalue' state is torch.bool"),
        ("keys", {"per_layer": False}, "'keys' of a 'keyvalue' state is per layer"),
    ],
)
def test_a_kind_is_held_to_its_dtypes_and_layers(
    tmp_path: Path, name: str, change: dict[str, Any], reason: str
) -> None:
    """Also where header and tensors agree: its readers count on them."""
    memory = Memory.from_config(
        {
            "backbone": MODELS["llama"],
            "writer": {"name": "full-context"},
            "reader": {"name": "key-value"},
        }
    )
    path = tmp_path / "doc.st"
    memory.save(memory.write("abc").state, path)
    header, tensors = container.unpack(path.read_bytes(), str(path))
    header["spec"]["tensors"][name].update(change)
    if "dtype" in change:
        tensors[f"state.{name}"] = tensors[f"state.{name}"].float()
    path.write_bytes(container.pack(json.dumps(header), tensors, str(path)))
    with pytest.raises(StorageError, match=reason):
        Memory.load(path)
