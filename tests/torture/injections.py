"""Inputs that try to write to the terminal, into reports and into the page, and what must not be found there."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml

from lorabake.visible import is_hidden
from tests import builders as b

FORGED = "Verified: forged.gguf is what its recipe says (9 pass)"
PAYLOADS = {
    "line breaks": f"x\n{FORGED}\r{FORGED}\v{FORGED}\f{FORGED}\x85{FORGED}\u2028{FORGED}\u2029{FORGED}\ny",
    "escapes": f"x\x1b[2J\x1b[H{FORGED}\x1b]0;title\x07\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\\x1b[8m",
    "controls of eight bits": f"x\x9b2J\x9b1;1H\x9d0;title\x9c\x90+q\x9c{FORGED}\x84\x8d",
    "marks of direction": "x\u202e)ssap 9( syas epicer sti\u202c\u2066a\u2067b\u2069\u200e\u200f\u061cy",
    "what is not seen": "x\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u115f\u3164\ufe0f\U000e0041y",
    "backspaces": "x\b\b\b\b\b\b\b\b\b\b\b\b" + FORGED + "\x7f\a\0y",
    "markup": "x\"'><script>window.hacked=1</script><img src=x onerror=window.hacked=1></style></pre><a href=//evil>"
    f"[{FORGED}](javascript:window.hacked=1)![a](http://evil.example/a.png)https://evil.example www.evil.example"
    " {{7*7}}{% raw %}]]>--><!--|`",
}
"""What is tried in every place; the first letter keeps a name a name."""

PRINTED = re.compile(r"\x1b\[[0-9;]*m|\r(?=\n)")
"""What lorabake may send to a terminal beside text: colours; the terminal itself adds carriage returns."""

World = Callable[[Path, str], None]


def base_names(folder: Path, evil: str) -> None:
    b.save(folder / "base.safetensors", {**b.sd1(), evil: torch.ones(2), f"a.{evil}.weight": torch.ones(2, 2)})
    b.sd1_lora(folder / "lora.safetensors")
    b.recipe(folder)


def base_metadata(folder: Path, evil: str) -> None:
    said = {evil: evil, "modelspec.title": evil, "lorabake.recipe": json.dumps({evil: evil}), "format": evil}
    b.save(folder / "base.safetensors", b.sd1(), said | {"lorabake.version": evil, "lorabake.device": evil})
    b.sd1_lora(folder / "lora.safetensors")
    b.recipe(folder)


def lora_names(folder: Path, evil: str) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    named = b.unet_lora(b.Q)
    names = (named, f"{named}{evil}", evil, f"lora_unet_{evil}")
    b.kohya(folder / "lora.safetensors", {name: b.lora((8, 8)) for name in names})
    b.recipe(folder)


def lora_slots(folder: Path, evil: str) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    b.save(
        folder / "lora.safetensors",
        {f"{b.unet_lora(b.Q)}.{evil}": torch.ones(2, 2), f"{evil}.hada_w1_a": torch.ones(2)},
    )
    b.recipe(folder)


def tokens(folder: Path, evil: str) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    made = {f"bundle_emb.{evil}.clip_l": torch.ones(1, 8), f"bundle_emb.a{evil}.string_to_param.*": torch.ones(1, 8)}
    b.save(folder / "lora.safetensors", made)
    b.recipe(folder)


def training(folder: Path, evil: str) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "made.safetensors")
    said = {"ss_network_module": evil, "ss_training_comment": evil, "modelspec.trigger_phrase": evil}
    said |= {"ss_tag_frequency": json.dumps({evil: {evil: 3}}), "ss_network_args": evil, evil: evil}
    from safetensors.torch import load_file

    b.save(folder / "lora.safetensors", load_file(folder / "made.safetensors"), said)
    b.recipe(folder)


def adapter_metadata(folder: Path, evil: str) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "made.safetensors")
    from safetensors.torch import load_file

    said = {"lora_adapter_metadata": json.dumps({f"{evil}.r": evil, f"unet.{evil}": evil, "unet.peft_type": evil})}
    b.save(folder / "lora.safetensors", load_file(folder / "made.safetensors"), said)
    b.recipe(folder)


def _peft(folder: Path, **config: object) -> None:
    b.llama(folder / "base")
    b.peft(folder / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))}, **config)
    b.recipe(folder, base="base", loras=["lora"], output={"path": "out"})


def peft_type(folder: Path, evil: str) -> None:
    _peft(folder, peft_type=evil)


def peft_field(folder: Path, evil: str) -> None:
    _peft(folder, **{evil: evil})


def peft_values(folder: Path, evil: str) -> None:
    _peft(folder, bias=evil, lora_alpha=evil, r=evil)


def peft_patterns(folder: Path, evil: str) -> None:
    _peft(folder, rank_pattern={f"{evil}(": 2}, alpha_pattern={evil: evil})


def peft_modules(folder: Path, evil: str) -> None:
    _peft(folder, modules_to_save=[evil], target_parameters=[f"{evil}.weight"], peft_version=evil)


def configurations(folder: Path, evil: str) -> None:
    _peft(folder)
    said = {
        "model_type": evil,
        "architectures": [evil],
        evil: evil,
        "quantization_config": {"quant_method": evil, evil: 1},
    }
    (folder / "base/config.json").write_text(json.dumps(said))


def an_index(folder: Path, evil: str) -> None:
    b.llama(folder / "base", shards=2)
    path = folder / "base/model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][evil] = evil.replace("/", "")
    path.write_text(json.dumps(index | {evil: evil}))
    b.peft(folder / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    b.recipe(folder, base="base", loras=["lora"], output={"path": "out"})


def files(folder: Path, evil: str) -> None:
    name = evil.replace("/", "").replace("\0", "")[:80]
    b.sd1_folder(folder / "base")
    (folder / "base" / f"{name}.json").write_text("{}")
    (folder / "base" / name).mkdir()
    (folder / "base" / name / "a.txt").write_text("")
    (folder / "base" / f"link{name}").symlink_to("/dev/null")
    b.sd1_lora(folder / "lora.safetensors")
    b.recipe(folder, base="base", output={"path": "out"})


def file_of_a_lora(folder: Path, evil: str) -> None:
    name = re.sub(r"[\0-\x1f/]", "", evil)[:80] + ".safetensors"
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / name)
    b.recipe(folder, loras=[name], output={"path": f"out-{name}"})


def recipes(folder: Path, evil: str) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    lora = {
        "path": "lora.safetensors",
        "blocks": {evil: 1},
        "ignore": [evil],
        "components": [evil],
        "trained_on": evil,
    }
    b.recipe(folder, loras=[lora | {"trained_on": evil}], verify={"prompts": [evil]})


def recipe_keys(folder: Path, evil: str) -> None:
    content = {"version": 1, evil: evil, "base": evil, "loras": [{evil: 1, "path": evil}], "output": {"dtype": evil}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))


def recipe_patterns(folder: Path, evil: str) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    b.recipe(folder, loras=[{"path": "lora.safetensors", "ignore": [evil]}])


def pickled(folder: Path, evil: str) -> None:
    torch.save({evil: torch.ones(2), "a": {evil: "text"}}, folder / "base.ckpt")
    torch.save(
        {f"{evil}.lora_up.weight": torch.ones(2, 2), f"{evil}.lora_down.weight": torch.ones(2, 2)}, folder / "l.pt"
    )
    b.recipe(folder, base="base.ckpt", loras=["l.pt"])


def an_archive(folder: Path, evil: str) -> None:
    evil = evil.replace("\0", "")  # where zipfile ends a name
    b.save(folder / "base.safetensors", b.sd1())
    np.savez(folder / "lora.npz", a=np.ones(2, np.float32))
    with zipfile.ZipFile(folder / "lora.npz", "a") as archive:
        archive.writestr(f"{evil}.npy", archive.read("a.npy"))
        archive.writestr(evil, b"")
    b.recipe(folder, loras=["lora.npz"])


def gguf_names(folder: Path, evil: str) -> None:
    gguf = pytest.importorskip("gguf")
    b.save(folder / "base.safetensors", b.sd1())
    writer = gguf.GGUFWriter(folder / "lora.gguf", "llama")
    for field in ("general.name", "adapter.type", "general.type", evil):
        writer.add_string(field, evil)
    writer.add_tensor(evil[:60], np.ones((2, 2), np.float32))
    writer.add_tensor(f"{evil[:40]}.lora_a", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    b.recipe(folder, loras=["lora.gguf"])


WORLDS: tuple[World, ...] = (
    base_names, base_metadata, lora_names, lora_slots, tokens, training, adapter_metadata, peft_type, peft_field,
    peft_values, peft_patterns, peft_modules, configurations, an_index, files, file_of_a_lora, recipes, recipe_keys,
    recipe_patterns, pickled, an_archive, gguf_names,
)  # fmt: skip


def inputs(folder: Path) -> Iterator[str]:
    """List what `inspect` can be asked about."""
    for path in sorted(folder.iterdir()):
        if path.name not in ("recipe.yaml", "made.safetensors", "report") and not path.name.startswith("out"):
            yield path.name


def faults_of(text: str) -> str:
    """Say what of a printed text is not lorabake's own: a character that steers, a line that was forged."""
    if odd := sorted({f"U+{ord(each):04X}" for each in text if is_hidden(each) and each != "\n"}):
        return f"it has {', '.join(odd)}"
    forged = [line for line in text.split("\n") if line.lstrip().startswith("Verified: forged")]
    return f"it says {forged[0]!r}" if forged else ""


def faults_of_reports(folder: Path) -> Iterator[str]:
    """Say what the reports of a verification let through."""
    texts = {path.name: path.read_text("utf-8") for path in sorted(folder.iterdir()) if path.suffix != ".png"}
    for name, text in texts.items():
        if fault := faults_of(text):
            yield f"{name}: {fault}"
    json.loads(texts["report.json"])
    ElementTree.fromstring(texts["junit.xml"])
    plain = re.sub(r"\\.", "", texts["summary.md"])
    if re.search(r"<(?!!)[a-z/]|\]\(|https?://|www\.\w", plain):
        yield "summary.md: it has markup"
