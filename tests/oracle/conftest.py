"""What the oracle tests share: bake a recipe, read what it wrote, measure it against float64.

The measure: `distance` counts the distance of baked values from the oracle's float64 result in spacings of the
output dtype. A correctly rounded result is at most 0.5 away; sums in float32 add a little.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before an oracle library is imported
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

torch = pytest.importorskip("torch")
import yaml  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import lorabake  # noqa: E402

Tensors = dict[str, torch.Tensor]
LEAST_NORMAL = {torch.float16: 2.0**-14, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126}
WORST: dict[str, float] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and let only the oracle libraries' own deprecations pass."""
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.oracle)
        for category in ("DeprecationWarning", "FutureWarning"):
            for module in ("peft", "diffusers", "transformers", "huggingface_hub", "accelerate"):
                item.add_marker(pytest.mark.filterwarnings(rf"ignore::{category}:{module}(\..*)?"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the worst distances measured, where `-v` asks for them."""
    if WORST and terminalreporter.config.get_verbosity() > 0:
        terminalreporter.section("oracle: worst distance from the oracle's float64 result, in ulp")
        for name in sorted(WORST):
            terminalreporter.write_line(f"{WORST[name]:9.4f}  {name}")


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Compute in one thread: the models are tiny, and threads that wait for each other take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bake(tmp_path: Path) -> Callable[..., Path]:
    """Bake `loras` (paths or recipe entries) into a base; return what was written."""

    def run(base: Path, *loras: Path | dict[str, object], output: str = "baked", **recipe: object) -> Path:
        entries = [{"path": str(lora)} if isinstance(lora, Path) else lora for lora in loras]
        text = {"version": 1, "base": str(base), "loras": entries, "output": {"path": output}} | recipe
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(text, sort_keys=False), encoding="utf-8")
        return lorabake.bake(lorabake.load_recipe(path), lorabake.RunOptions(fsync=False)).path

    return run


@pytest.fixture(scope="session")
def read() -> Callable[[Path], Tensors]:
    """Return all tensors of a file or a folder; those of a diffusers folder have the component in front."""

    def tensors(path: Path) -> Tensors:
        if path.is_file():
            return load_file(path)
        found: Tensors = {}
        for file in sorted(path.rglob("*.safetensors")):
            folder = file.parent.relative_to(path).as_posix()
            prefix = "" if folder == "." else folder + "/"
            found |= {prefix + key: tensor for key, tensor in load_file(file).items()}
        return found

    return tensors


def distance(actual: torch.Tensor, expected: torch.Tensor, base: torch.Tensor) -> float:
    """Return the largest distance in spacings of `actual`'s dtype, at the larger of result and base.

    The base counts because W + Δ rounds at the size of W, however small the sum is. Terms of Δ may cancel too:
    so one spacing of float32 at the tensor's root mean square is added, which matters to small values only.
    """
    if not actual.numel():
        return 0.0
    size = torch.maximum(expected.double().abs(), base.double().abs())
    size = size.clamp_min(LEAST_NORMAL[actual.dtype])
    spacing = torch.finfo(actual.dtype).eps * torch.exp2(torch.floor(torch.log2(size)))
    spacing += torch.finfo(torch.float32).eps * expected.double().square().mean().sqrt()
    return float(((actual.double() - expected.double()).abs() / spacing).max())


@pytest.fixture
def assert_baked(request: pytest.FixtureRequest) -> Callable[..., float]:
    """Compare a bake with the oracle's float64 result.

    Changed tensors must lie within `limit` ulp of it, all others must have the base's very bytes, and `changed`
    says how many must differ from the base.
    """

    def check(baked: Tensors, expected: Tensors, base: Tensors, *, limit: float, changed: int | None = None) -> float:
        assert sorted(baked) == sorted(base)
        missing = base.keys() - expected.keys()
        assert not missing, f"the oracle has no {sorted(missing)[:5]}"
        worst, where, touched = 0.0, "", 0
        for key, before in base.items():
            after, wanted = baked[key], expected[key].reshape(before.shape)
            assert after.dtype == before.dtype
            if torch.equal(before.double(), wanted.double()):
                assert torch.equal(after.view(torch.uint8), before.view(torch.uint8)), key
                continue
            touched += 1
            far = distance(after, wanted, before)
            if not far <= worst:
                worst, where = far, key
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in base.values() if tensor.is_floating_point()}
        name = f"{request.node.module.__name__.rpartition('.')[2]}::{request.node.name} ({', '.join(sorted(dtypes))})"
        WORST[name] = max(WORST.get(name, 0.0), worst)
        assert touched, "the oracle changed nothing"
        assert changed in (None, touched), f"{touched} tensors changed, not {changed}"
        assert worst <= limit, f"{where} is {worst} ulp from the oracle"
        return worst

    return check


@pytest.fixture(scope="session")
def shuffle() -> Callable[..., None]:
    """Give trainable parameters random values, so that no LoRA is the zero that it starts as."""

    def fill(named: Iterable[tuple[str, torch.nn.Parameter]], seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in named:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                if "lora_magnitude_vector" in name:
                    parameter.mul_(1 + 0.2 * noise.to(parameter.dtype))
                elif parameter.requires_grad or "lora_" in name:
                    parameter.add_(0.1 * noise.to(parameter.dtype))

    return fill
