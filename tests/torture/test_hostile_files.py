"""Damaged and invented files for every reader but that of pickles: read, or refused with one error."""

from __future__ import annotations

import json
import random
import re
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lorabake.baking import plan
from lorabake.errors import FileError, LorabakeError
from lorabake.inspection import inspect
from lorabake.recipe import load_recipe
from lorabake.storage.recognition import find_packing
from lorabake.storage.statements import read_beside
from lorabake.tensors.checkpoint import open_checkpoint, open_lora
from tests import builders as b
from tests.torture.conftest import Tally
from tests.torture.fuzzing import NUMBERS, mutated, open_files, outcome, seeds

Make = Callable[[str, str], Tally]
Effort = Callable[[object, object], object]

PROMISE = "what the file says, or one error, within seconds, with no file left open and none written"


def read(path: Path) -> None:
    """Open a checkpoint, and read each tensor where its header says that it lies."""
    checkpoint = open_checkpoint(path)
    for info in checkpoint.tensors.values():
        assert 0 <= info.start <= info.stop <= info.file.stat().st_size, info
    find_packing(checkpoint, read_beside(checkpoint))


def attack(
    counted: Tally,
    place: Path,
    make: Callable[[random.Random], bytes],
    use: Callable[[], object],
    short: int,
    seconds: float | None,
) -> None:
    """Put what is made into the place of a file, and use it, again and again."""
    before = {each.name for each in place.parent.iterdir()} | {place.name}
    for number, rng in enumerate(seeds(short, seconds)):
        place.write_bytes(make(rng))
        held = open_files()
        told = outcome(use) or ("leaves files open" if open_files() > held else "")
        counted.hold(not told, f"seed {number}: {told}")
    assert {each.name for each in place.parent.iterdir()} == before


# -- by the bytes ----------------------------------------------------------------------------------------


def safetensors(folder: Path) -> Iterator[bytes]:
    tensors = {"a.weight": torch.ones(2, 3), "b": torch.ones(0), "ü": torch.ones(4).half(), "n": torch.tensor(1)}
    yield b.save(folder / "valid.safetensors", tensors, metadata={"format": "pt", "k": '{"a": 1}'}).read_bytes()
    text = b'{"w":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}}'
    yield struct.pack("<Q", len(text)) + text + bytes(4)


def numpy(folder: Path) -> Iterator[bytes]:
    path = folder / "valid.npz"
    np.savez(path, a=np.ones((2, 3), np.float32), b=np.asfortranarray(np.ones((3, 2))), c=np.float16(2))
    yield path.read_bytes()


def gguf(folder: Path) -> Iterator[bytes]:
    package = pytest.importorskip("gguf")
    for arch in ("flux", "llama"):
        path = folder / "valid.gguf"
        writer = package.GGUFWriter(path, arch)
        writer.add_array("general.tags", ["a", "b"])
        writer.add_array("tokenizer.ggml.scores", [float(i) for i in range(300)])
        writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(300)])
        if arch == "llama":
            writer.add_head_count(2)
        writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 8), np.float32))
        writer.add_tensor(
            "token_embd.weight", np.ones((4, 34), np.uint8), raw_dtype=package.GGMLQuantizationType.Q8_0
        )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield path.read_bytes()


BINARY = {"SafeTensors": (safetensors, ".safetensors"), "NumPy": (numpy, ".npz"), "GGUF": (gguf, ".gguf")}


@pytest.mark.parametrize("name", BINARY)
def test_damaged_files(name: str, tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally(f"damaged {name} files", PROMISE)
    make, suffix = BINARY[name]
    (tmp_path / "valid").mkdir()
    valid = tuple(make(tmp_path / "valid"))
    (tmp_path / "try").mkdir()
    path = tmp_path / "try" / f"x{suffix}"

    def use() -> None:
        read(path)
        inspect(path)

    for raw in valid:
        path.write_bytes(raw)
        read(path)
    attack(counted, path, lambda rng: mutated(rng.choice(valid), rng, valid), use, 400, effort(None, 60.0))  # type: ignore[arg-type]


def in_header(raw: bytes, rng: random.Random) -> bytes:
    """Change a header's JSON, and keep its length right, so that the parser gets to see it."""
    length = int.from_bytes(raw[:8], "little")
    text = mutated(raw[8 : 8 + length], rng)
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def test_headers_of_damaged_json(tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally("damaged SafeTensors files", PROMISE)
    (tmp_path / "valid").mkdir()
    valid = tuple(safetensors(tmp_path / "valid"))
    path = tmp_path / "try" / "x.safetensors"
    path.parent.mkdir()
    attack(counted, path, lambda rng: in_header(rng.choice(valid), rng), lambda: read(path), 400, effort(None, 60.0))  # type: ignore[arg-type]


# -- by what they say ------------------------------------------------------------------------------------


def value(rng: random.Random, depth: int = 0) -> object:
    """Make any value that JSON and YAML can say."""
    match rng.randrange(9 if depth < 3 else 6):
        case 0 | 1 | 2:
            return rng.choice(NUMBERS)
        case 3 | 4:
            return rng.choice(
                ("", "a", "weight", "\ud800" if rng.random() < 0.1 else "é", "x" * 300, "../a", "a\nb", "\0")
            )
        case 5:
            return rng.random() * 10 ** rng.randrange(-5, 5)
        case 6:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 7:
            return {str(rng.choice(("a", "", "weight", "0"))): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    nested: object = []
    for _ in range(rng.choice((3, 90, 400, 900))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def altered(said: object, rng: random.Random) -> object:
    """Change something somewhere in what a file says: another value, a key more, or one less."""
    if isinstance(said, dict) and said and rng.random() < 0.8:
        key = rng.choice([*said])
        match rng.randrange(5):
            case 0:
                return {name: each for name, each in said.items() if name != key}
            case 1:
                return {**said, str(value(rng, 9)): value(rng)}
            case 2:
                return {(str(value(rng, 9)) if name == key else name): each for name, each in said.items()}
        return {**said, key: altered(said[key], rng)}
    if isinstance(said, list) and said and rng.random() < 0.8:
        at = rng.randrange(len(said))
        return [*said[:at], altered(said[at], rng), *said[at + 1 :]]
    return value(rng)


def as_json(said: object, rng: random.Random) -> bytes:
    text = json.dumps(altered(said, rng), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutated(text, rng) if rng.random() < 0.2 else text


def test_indexes(tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally("indexes of shards", PROMISE)
    b.llama(tmp_path / "base", shards=2)
    path = tmp_path / "base" / "model.safetensors.index.json"
    said = json.loads(path.read_text())
    attack(counted, path, lambda rng: as_json(said, rng), lambda: read(tmp_path / "base"), 150, effort(None, 60.0))  # type: ignore[arg-type]


STATEMENTS = {
    "config.json": {
        "model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"],
        },
    },
    "quantize_config.json": {"bits": 4, "group_size": 128, "desc_act": False},
    "hf_quant_config.json": {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}},
    "quanto_qmap.json": {"model.layers.0.self_attn.q_proj": {"weights": "qint8", "activations": "none"}},
    "model_index.json": {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]},
}  # fmt: skip


@pytest.mark.parametrize("name", STATEMENTS)
def test_configurations_of_bases(name: str, tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally("configurations beside a base", PROMISE)
    b.llama(tmp_path / "base")
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    recipe = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    path = tmp_path / "base" / name
    path.write_text(json.dumps(STATEMENTS[name]))

    def use() -> None:
        plan(load_recipe(recipe))

    attack(counted, path, lambda rng: as_json(STATEMENTS[name], rng), use, 40, effort(None, 20.0))  # type: ignore[arg-type]


def test_statements_in_headers(tally: Make, effort: Effort, tmp_path: Path) -> None:
    """What a header's metadata says of how weights are stored, and the small tensors that say it, changed."""
    counted = tally("statements of how weights are stored", PROMISE)
    layer = "model.diffusion_model.input_blocks.1.1.proj_in"
    said = {
        "_quantization_metadata": json.dumps(
            {"format_version": "1.0", "layers": {layer: {"format": "float8_e4m3fn"}}}
        ),
        "quantization_config": json.dumps({"quant_method": "gptq", "bits": 4}),
        "lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.peft_type": "LORA"}),
        "ss_network_args": json.dumps({"split_qkv": True}),
        "ss_tag_frequency": json.dumps({"a": {"b": 3}}),
    }
    tensors = b.sd1(extras=False)
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{layer}.scale_weight"] = torch.tensor(0.5)
    tensors[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    path = b.save(tmp_path / "base.safetensors", tensors)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])

    def make(rng: random.Random) -> bytes:
        texts = dict(said)
        for name in rng.sample([*texts], 2):
            texts[name] = as_json(json.loads(said[name]), rng).decode("utf-8", "replace")
        text = json.dumps({"__metadata__": texts, **header}).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]

    def use() -> None:
        read(path)
        inspect(path)

    attack(counted, path, make, use, 60, effort(None, 60.0))  # type: ignore[arg-type]


ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {"k_proj": 4},
    "alpha_pattern": {"k_proj": 4}, "use_rslora": True, "use_dora": False, "bias": "none", "modules_to_save": None,
    "peft_version": "0.18.0", "init_lora_weights": True, "task_type": "CAUSAL_LM", "fan_in_fan_out": False,
    "layers_to_transform": None, "target_parameters": None, "trainable_token_indices": None,
}  # fmt: skip


def test_adapter_configurations(tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally("configurations of adapters", PROMISE)
    b.llama(tmp_path / "base")
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    recipe = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})

    def use() -> None:
        open_lora(tmp_path / "lora")
        inspect(tmp_path / "lora")
        plan(load_recipe(recipe))

    path = tmp_path / "lora" / "adapter_config.json"
    attack(counted, path, lambda rng: as_json(ADAPTER, rng), use, 80, effort(None, 60.0))  # type: ignore[arg-type]


RECIPE = {
    "version": 1,
    "base": {"path": "base.safetensors", "sha256": "0" * 64},
    "vae": "vae.safetensors",
    "loras": [
        "lora.safetensors",
        {"path": "lora.safetensors", "strength": {"unet": 0.5}, "blocks": {"*": 0.5}, "ignore": ["a*"]},
    ],
    "method": {"name": "ties", "density": 0.5},
    "compute_dtype": "float64",
    "output": {"path": "out.safetensors", "dtype": {"unet": "float16"}, "hash": True, "shard_size": "5GB"},
    "verify": {"prompts": ["a cat"], "seed": 3, "size": [512, 512], "steps": 4},
}  # fmt: skip


def test_recipes(tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally("recipes", PROMISE)

    def make(rng: random.Random) -> bytes:
        said = altered(RECIPE, rng)
        try:
            text = yaml.safe_dump(said).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            text = json.dumps(RECIPE).encode()
        for word, other in (
            (b"0.5", rng.choice((b"!!python/object:os.system x", b"*a", b"&a [*a]", b"1e999", b"0x10"))),
        ):
            text = text.replace(word, other) if rng.random() < 0.3 else text
        return mutated(text, rng) if rng.random() < 0.5 else text

    path = tmp_path / "recipe.yaml"
    attack(counted, path, make, lambda: load_recipe(path), 150, effort(None, 60.0))  # type: ignore[arg-type]


# -- by hand ---------------------------------------------------------------------------------------------


def a_gguf(*, tensors: int = 0, facts: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, facts) + rest


def a_fact(name: str, kind: int, raw: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + raw


def a_tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    text = struct.pack("<Q", len(name)) + name.encode()
    return text + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


GGUF = {
    "2^63 tensors": a_gguf(tensors=1 << 63),
    "2^63 facts": a_gguf(facts=1 << 63),
    "a list of 2^60 bytes": a_gguf(facts=1, rest=a_fact("a", 9, struct.pack("<IQ", 0, 1 << 60))),
    "a list of 2^60 texts": a_gguf(facts=1, rest=a_fact("a", 9, struct.pack("<IQ", 8, 1 << 60))),
    "lists in lists": a_gguf(facts=1, rest=a_fact("a", 9, struct.pack("<IQ", 9, 1) * 5000)),
    "a text of 2^63 bytes": a_gguf(facts=1, rest=struct.pack("<Q", 1 << 63)),
    "a text of 2^64 - 1 bytes": a_gguf(facts=1, rest=a_fact("a", 8, b"\xff" * 8)),
    "an alignment of 2^31": a_gguf(facts=1, rest=a_fact("general.alignment", 4, struct.pack("<I", 1 << 31))),
    "an alignment of 0": a_gguf(facts=1, rest=a_fact("general.alignment", 4, bytes(4))),
    "an alignment that is a text": a_gguf(facts=1, rest=a_fact("general.alignment", 8, bytes(8))),
    "a model that is a list": a_gguf(
        tensors=1, facts=1,
        rest=a_fact("general.architecture", 9, struct.pack("<IQ", 0, 2) + b"ab") + a_tensor("w", (1,)) + bytes(99),
    ),
    "a tensor of 2^62 values": a_gguf(tensors=1, rest=a_tensor("w", (1 << 62,))),
    "a tensor of 2^250 values": a_gguf(tensors=1, rest=a_tensor("w", (1 << 63,) * 4)),
    "five dimensions": a_gguf(tensors=1, rest=a_tensor("w", (1,) * 5)),
    "2^32 - 1 dimensions": a_gguf(tensors=1, rest=struct.pack("<Q", 1) + b"w" + b"\xff" * 40),
    "an offset of 2^64 - 1": a_gguf(tensors=1, rest=a_tensor("w", (1,), offset=(1 << 64) - 1) + bytes(99)),
    "an unknown type": a_gguf(tensors=1, rest=a_tensor("w", (1,), kind=999) + bytes(99)),
    "rows of half a block": a_gguf(tensors=1, rest=a_tensor("w", (5,), kind=8) + bytes(99)),
    "two tensors in one place": a_gguf(tensors=2, rest=a_tensor("v", (4,)) + a_tensor("w", (4,)) + bytes(99)),
    "two tensors of one name": a_gguf(
        tensors=2, rest=a_tensor("w", (8,)) + a_tensor("w", (8,), offset=32) + bytes(150)
    ),
    "a version of the future": a_gguf(version=77),
    "the other order of bytes": a_gguf(version=3 << 24),
    "a language model's tensor without a dot": a_gguf(
        tensors=1, facts=1,
        rest=a_fact("general.architecture", 8, struct.pack("<Q", 5) + b"llama") + a_tensor("w", ()) + bytes(99),
    ),
}  # fmt: skip


def safetensors_of(text: str, data: bytes = b"") -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets})


SAFETENSORS = {
    "a header of 2^64 - 1 bytes": b"\xff" * 8 + b"{",
    "a header of 100 MB and one": struct.pack("<Q", 100_000_001) + b"{",
    "nothing": b"",
    "nesting without end": safetensors_of('{"a":' * 100_000),
    "lists without end": safetensors_of('{"a":' + "[" * 200_000 + "]" * 200_000 + "}"),
    "a number of a million digits": safetensors_of(f'{{"w":{{"shape":[{"9" * 1_000_000}]}}}}'),
    "a key twice": safetensors_of(f'{{"w":{entry()},"w":{entry()}}}', bytes(4)),
    "half a pair of surrogates": safetensors_of('{"\\ud800":' + entry() + "}", bytes(4)),
    "surrogates as bytes": safetensors_of('{"\ud800":' + entry() + "}", bytes(4)),
    "a shape of texts": safetensors_of(f'{{"w":{entry(shape=["1"])}}}', bytes(4)),
    "a shape of floats": safetensors_of(f'{{"w":{entry(shape=[1.0])}}}', bytes(4)),
    "a shape of true": safetensors_of(f'{{"w":{entry(shape=[True])}}}', bytes(4)),
    "a negative shape": safetensors_of(f'{{"w":{entry(shape=[-1, -1])}}}', bytes(4)),
    "a shape of 65 sides": safetensors_of(f'{{"w":{entry(shape=[1] * 65)}}}', bytes(4)),
    "a shape of 64 large sides": safetensors_of(f'{{"w":{entry(shape=[2**62] * 64)}}}', bytes(4)),
    "an unknown dtype": safetensors_of(f'{{"w":{entry("F128")}}}', bytes(4)),
    "a dtype that is a list": safetensors_of(f'{{"w":{entry(["F32"])}}}', bytes(4)),
    "offsets backwards": safetensors_of(f'{{"w":{entry(offsets=[4, 0])}}}', bytes(4)),
    "offsets of 2^63": safetensors_of(f'{{"w":{entry(offsets=[2**63, 2**63 + 4])}}}', bytes(4)),
    "a gap": safetensors_of(f'{{"w":{entry(offsets=[4, 8])}}}', bytes(8)),
    "an overlap": safetensors_of(f'{{"v":{entry()},"w":{entry(offsets=[2, 6])}}}', bytes(6)),
    "bytes left over": safetensors_of(f'{{"w":{entry()}}}', bytes(5)),
    "bytes that are missing": safetensors_of(f'{{"w":{entry()}}}', bytes(3)),
    "metadata of numbers": safetensors_of('{"__metadata__":{"a":1}}'),
    "metadata that are a list": safetensors_of('{"__metadata__":[]}'),
    "no object": safetensors_of("[]"),
    "not a number": safetensors_of(f'{{"w":{entry(shape=[float("nan")])}}}', bytes(4)),
    "half a byte": safetensors_of(f'{{"w":{entry("F4", [1], [0, 0])}}}'),
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "corpus"), [(".gguf", GGUF), (".safetensors", SAFETENSORS)])
def test_files_made_to_do_harm(suffix: str, corpus: dict[str, bytes], tally: Make, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    counted = tally(f"{'GGUF' if suffix == '.gguf' else 'SafeTensors'} files made to do harm", PROMISE)
    for number, (name, raw) in enumerate(corpus.items()):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(raw)
        told: list[str] = []

        def use(path: Path = path, told: list[str] = told) -> None:
            try:
                plan_of(path)
            except LorabakeError as error:
                told.append(str(error))

        tracemalloc.start()
        wrong = outcome(use)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        wrong = wrong or ("was read" if not told else "" if peak < 100 << 20 else f"{peak >> 20} MiB")
        counted.hold(not wrong, f"{name}: {wrong}")


def plan_of(base: Path) -> None:
    """Read a base as far as a plan does."""
    read(base)
    from lorabake.sources.translation import transcribe

    transcribe(open_checkpoint(base))


def test_no_message_says_what_python_says(tmp_path: Path) -> None:
    """A refusal words the fault itself, and names no exception."""
    pytest.importorskip("gguf")
    for number, (name, raw) in enumerate({**GGUF, **SAFETENSORS}.items()):
        path = tmp_path / f"{number}.{'gguf' if name in GGUF else 'safetensors'}"
        path.write_bytes(raw)
        with pytest.raises(LorabakeError) as caught:
            plan_of(path)
        assert not re.search(r"\b[A-Z]\w+(Error|Exception)\b|\bobject is not\b", str(caught.value)), name
        assert isinstance(caught.value, FileError), name
