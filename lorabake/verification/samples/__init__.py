"""The third stage: let the base, the base with its LoRAs at run time, and the checkpoint make the same thing.

Two controls take the place of thresholds. The *floor* is the run-time model with its weights rounded to the output's
dtype: a right bake is no further from the run-time model than that. The *ceiling* is the base, without the LoRAs, or
the model without one of them where that is nearer. A checkpoint passes where it is nearer to the floor than to the
ceiling, on a logarithmic scale: its distance is below their geometric mean. Samplers multiply rounding, but floor
and checkpoint alike, so that a right bake has the floor's distance to a few per cent; twice the floor always passes.
Where not even the ceiling is above that, the prompt cannot tell, and the finding warns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from warnings import catch_warnings, filterwarnings, simplefilter

from lorabake.codecs.codec import Stored
from lorabake.configs import Loop, loop_of
from lorabake.configs.sizes import SizeUnknownError
from lorabake.errors import SurroundingsError, first_line
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.settings import ON_CPU, PROMPTS, STAGES
from lorabake.tensors.checkpoint import Checkpoint, open_checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.verification.converted import Seen, in_layout_of_base
from lorabake.verification.findings import Finding, SampleOptions, Samples, Status
from lorabake.verification.samples.album import Album
from lorabake.verification.samples.drawing import Artist
from lorabake.verification.samples.foreign_code import carried
from lorabake.verification.samples.kit import gather
from lorabake.verification.samples.networks import TEXT_ENCODERS, configs
from lorabake.verification.samples.pipelines import Pipelines
from lorabake.verification.samples.refusals import CannotDrawError
from lorabake.verification.samples.studio import Studio
from lorabake.verification.samples.tokenizers import EXTRA
from lorabake.verification.samples.unets import UNets
from lorabake.verification.samples.values import seen

NEEDED = ("diffusers", "transformers", "peft", "accelerate")


Ready = Callable[[], tuple[list[Finding], Samples | None]]
"""Sample, once all that it takes is there."""


def prepare(
    plan: Plan, baked: Path, options: SampleOptions, stack: ExitStack, album: Album | None = None
) -> tuple[list[Finding], Ready | None]:
    """Find and open all that sampling takes, and return what then samples; or a finding that says what is lacking.

    What is opened is closed with `stack`. What the base makes is taken from `album`, or kept there. Raise
    SurroundingsError where the extra or the device is not there.
    """
    from lorabake.verification.samples.texts import is_language_model, prepare_texts

    said = plan.sources.recipe.verify
    prompts = tuple(options.prompts or (said.prompts if said else ()))

    def lacking(note: str) -> tuple[list[Finding], None]:
        return [Finding("samples.skipped", Status.SKIP, baked.name, "", "", note)], None

    if not prompts:
        return lacking(f"no prompts: give verify.prompts in the recipe, or {PROMPTS}")
    code = _carried(plan)
    speaks = is_language_model(plan)
    if speaks and (plan.sources.packing.known):
        return lacking(
            "the base's weights are packed or scaled: transformers has no plain model of them to compare with"
        )
    if strange := plan.sources.packing.strange:
        key, first = next(iter(strange.items()))
        return lacking(f"{len(strange)} of the base's weights cannot be decoded, such as {key}: {first.title}")
    loop = loop_of(plan.sources.key_map.architecture.name) if "unet" in plan.sources.key_map.placed else None
    absent = {"unet", "vae"} - plan.sources.key_map.placed.keys()
    if loop is not None and (absent or not {*TEXT_ENCODERS} & plan.sources.key_map.placed.keys()):
        return lacking("a single network: pictures take a UNet, a VAE and a text encoder")
    there = in_layout_of_base(plan, _opened(plan, baked))
    if not speaks and (lost := _unfit(there)):
        return lacking(f"{lost[0]} and {len(lost) - 1} more tensors are not there in the base's shape")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SurroundingsError(
            f"sampling needs {', '.join(missing)}", f"To sample, {EXTRA}. Without samples: {STAGES}"
        )
    with _quiet():
        _try_device(options.device or "cpu")
        files = Files(there.woven)
        stack.callback(files.close)
        try:
            if speaks:
                ready = prepare_texts(plan, baked, prompts, options, album)
            else:
                artist = _artist(there, loop, files, prompts, options, stack)
                artist.check_words()
                ready = Studio(artist, album).run
        except (CannotDrawError, SizeUnknownError) as error:
            more = f"; the model carries code of its own ({code}), which lorabake does not run" if code else ""
            return lacking(f"{error}{more}")
    return [], _quietly(ready, code)


def _artist(
    there: Seen,
    loop: Loop | None,
    files: Files,
    prompts: tuple[str, ...],
    options: SampleOptions,
    stack: ExitStack,
) -> Artist:
    """Choose who draws: lorabake's loop where the family says how, else diffusers' pipeline."""
    if loop is None:
        return Pipelines(there, gather(there.plan), files, prompts, options)
    return UNets(there, stack.enter_context(configs(there.plan)), loop, files, prompts, options)


def _carried(plan: Plan) -> str:
    """Say by what the folders of a plan ask for code of their own to be run; empty if none does."""
    said = plan.sources.recipe.verify
    given = [plan.sources.recipe.locate(name) for name in (said.config, said.tokenizers) if name] if said else []
    folders = [*([plan.sources.base.path] if plan.sources.base.is_folder else []), *given]
    return ", ".join(filter(None, (carried(folder) for folder in folders if folder.is_dir())))


def _quietly(work: Ready, code: str) -> Ready:
    """Return what a pipeline cannot do with the base as a finding, and keep libraries quiet meanwhile.

    `code` says by what the model asks for code of its own, which is a finding, too.
    """
    note = (
        f"the model carries code of its own ({code}), which lorabake does not run: the libraries' classes were used"
    )
    told = [Finding("samples.code", Status.WARN, "the base", "", "", note)] if code else []

    def sample() -> tuple[list[Finding], Samples | None]:
        with _quiet():
            try:
                findings, samples = work()
            except CannotDrawError as error:
                return [*told, Finding("samples.skipped", Status.SKIP, "the base", "", "", str(error))], None
        return [*told, *findings], samples

    return sample


def _try_device(name: str) -> None:
    """Compute something on a device; raise SurroundingsError where that cannot be done."""
    import torch

    from lorabake.execution.device import place_of

    place = place_of(name)
    try:
        (torch.ones(1, device=place) + 1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SurroundingsError(f"device {name!r} cannot be used: {first_line(error)}", f"Try {ON_CPU}.") from None


def _unfit(looked_at: Seen) -> list[str]:
    """List what a network would miss in the checkpoint: weights that are absent or of another shape."""
    there, sources = seen(looked_at.checkpoint), looked_at.plan.sources
    wanted = {
        key: info
        for key, info in seen(sources.base).items()
        if key in sources.key_map.owner and key not in looked_at.left_out and _is_weight(info)
    }
    return [key for key, info in wanted.items() if key not in there or there[key].shape != info.shape]


def _is_weight(weight: Stored) -> bool:
    return weight.tensor is None or DTYPES[weight.tensor.dtype].floating


def _opened(plan: Plan, baked: Path) -> Checkpoint:
    return open_checkpoint(baked, plan.variant if baked.is_dir() else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' advice and bars out of the way, and put their levels back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("peft", "bitsandbytes")]
    own = [logger.level for logger in loggers]
    loggers[1].setLevel(logging.CRITICAL)  # PEFT imports it, and it misses what this machine cannot have
    try:
        with catch_warnings():
            simplefilter("ignore", FutureWarning)
            simplefilter("ignore", DeprecationWarning)
            filterwarnings("ignore", "In CPU autocast", UserWarning)
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
        for logger, level in zip(loggers, own, strict=True):
            logger.setLevel(level)
