"""What `lorabake verify --json` prints of several outputs, and `--report FOLDER` writes as report.json."""

from __future__ import annotations

from dataclasses import dataclass

from lorabake.documents.batch import Chosen
from lorabake.documents.names import AnyVerdict
from lorabake.documents.records import STRICT
from lorabake.documents.verify import EnvironmentRecord, Found, StatusCount, Verdict, VerifiedStage


@dataclass(frozen=True, slots=True)
class VerdictCount:
    """How many outputs have a verdict."""

    __pydantic_config__ = STRICT
    verdict: AnyVerdict
    """The verdict; failed is an output that could not be looked at."""
    count: int
    """How many."""


@dataclass(frozen=True, slots=True)
class VerifiedOutputRecord:
    """What was found of one output."""

    __pydantic_config__ = STRICT
    name: str
    """The output's name: its file's without the ending, or its folder's; the file of a recipe that cannot be read."""
    recipe: str | None
    """The recipe's file; null for one that cannot be read, and for a recipe that was in no file."""
    path: str | None
    """The output, as the recipe writes it; null where that is unknown."""
    choices: tuple[Chosen, ...]
    """Its values on the axes of the matrix; empty without one."""
    verdict: AnyVerdict
    """failed: it could not be looked at, and error says why. The others are those of verify."""
    exit_code: int
    """The exit code of the command for this output alone."""
    counts: tuple[StatusCount, ...]
    """How many findings have each status; every status is there."""
    stages: tuple[VerifiedStage, ...]
    """The stages that ran."""
    findings: tuple[Found, ...]
    """What was found, check by check."""
    page: str | None
    """Its own report, told from the report's folder; null without one."""
    error: tuple[str, ...]
    """The lines of the error; none unless it failed."""


@dataclass(frozen=True, slots=True)
class VerifyBatchDocument:
    """Whether several checkpoints are what their recipes say."""

    __pydantic_config__ = STRICT
    verdict: Verdict
    """The worst verdict of any output; not_finished where one could not be looked at."""
    exit_code: int
    """The command's exit code."""
    counts: tuple[VerdictCount, ...]
    """How many outputs have each verdict; verdicts that none has are left out."""
    outputs: tuple[VerifiedOutputRecord, ...]
    """Every output, in the order of the recipes."""
    environment: EnvironmentRecord | None
    """What verified them, without an output; null where none could be looked at."""
    seconds: float
    """How long it took."""
