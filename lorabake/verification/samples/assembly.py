"""Put diffusers' pipelines together of a few networks that are there and others that are hollow."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import Any

from lorabake.errors import first_line
from lorabake.sources.loras import LoraSource
from lorabake.verification.samples.building import hollow
from lorabake.verification.samples.kit import Kit
from lorabake.verification.samples.refusals import CannotDrawError, CannotLoadError


class Assembly:
    """Hold a kit and its networks without values; those with values come and go."""

    def __init__(self, made: Kit, device: str) -> None:
        self.kit = made
        self.hollow = {name: hollow(part, device) for name, part in made.networks.items()}

    def pipeline(self, networks: Mapping[str, Any], **seams: Any) -> Any:
        """Put networks into a pipeline whose others are hollow; `seams` take the place of its methods."""
        maker: Any = type(self.kit.pipeline.__name__, (self.kit.pipeline,), seams)
        parts = {**self.hollow, **networks}
        known = signature(self.kit.pipeline.__init__).parameters
        rest = {name: None for name, each in known.items() if each.default is each.empty and name != "self"}
        others = {  # a scheduler counts its steps; a tokenizer is large, and stays as it is
            name: copy.deepcopy(each) if hasattr(each, "config_name") else each
            for name, each in self.kit.others.items()
        }
        given = {**rest, **self.kit.settings, **others, **parts}
        try:
            pipeline = maker(**{name: value for name, value in given.items() if name in known})
        except (ImportError, ValueError, TypeError, AttributeError) as error:
            name = self.kit.pipeline.__name__
            raise CannotDrawError(f"{name} cannot be put together: {first_line(error)}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def load_file(self, network: Any, component: str, lora: LoraSource, adapter: str) -> None:
        """Let the pipeline's own loader load a LoRA, into the one network that is there."""
        path = lora.checkpoint.path
        if not hasattr(self.kit.pipeline, "load_lora_weights"):
            if hasattr(network, "load_lora_adapter"):
                network.load_lora_adapter(str(path), prefix=component, adapter_name=adapter, local_files_only=True)
                return
            raise CannotLoadError(f"{self.kit.pipeline.__name__} loads no LoRAs")
        # What belongs to networks that are hollow now is loaded when they are there.
        seams = {
            name: classmethod(partial(_only, getattr(self.kit.pipeline, name).__func__, network))
            for name in dir(self.kit.pipeline)
            if name.startswith("load_lora_into_")
        }
        pipeline = self.pipeline({component: network}, **seams)
        more = {f"load_into_{component}": True} if component == "transformer_2" else {}
        pipeline.load_lora_weights(str(path), adapter_name=adapter, local_files_only=True, **more)


def _only(load: Any, network: Any, owner: Any, *args: Any, **kwargs: Any) -> None:
    if any(each is network for each in (*args, *kwargs.values())):
        load(owner, *args, **kwargs)
