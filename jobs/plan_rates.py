"""Measured rates, from which `jobs.plan` plans: those that come with the package (plan_rates.yaml), and the user's own."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import pydantic
from pydantic import Field, model_validator

from pipeline.config import Settings
from pipeline.errors import EquihandError, SettingsError
from pipeline.models.encoder import EncoderSettings
from pipeline.text_files import parse_yaml

_SHIPPED = Path(__file__).with_name("plan_rates.yaml")
Unit = Literal["core", "gpu"]


class Rate(Settings):
    """A row: one figure that was measured."""

    kind: Literal["pretrain", "decode", "frame", "start"]
    """What the figure is; see plan_rates.yaml."""
    figure: float = Field(gt=0)
    machine: str = Field(min_length=1)
    """The name that `jobs.plan --machine` takes."""
    device: str
    """In words."""
    date: datetime.date
    command: str
    """What measured it."""
    num_workers: int = Field(default=1, ge=1)
    """GPUs or cores that the figure is of, together."""
    unit: Unit = "core"
    encoder: EncoderSettings | None = None
    view_size: int | None = None
    batch_size: int | None = None
    """Frames of each worker's step."""
    image_size: int | None = None
    """Side of the stored frames, pixels."""
    around_s: float | None = Field(default=None, ge=0)
    """Of a run: seconds beyond its frames at that rate, for its start and end. none: the "start" of some machine."""

    @model_validator(mode="after")
    def _says_of_what(self) -> Self:
        needed = ["encoder", "view_size", "batch_size"] if self.kind == "pretrain" else []
        needed += ["image_size"] if self.kind in ("decode", "frame") else []
        lacking = [name for name in needed if getattr(self, name) is None]
        if lacking:
            raise ValueError(f"a row of kind '{self.kind}' must also have {', '.join(lacking)}")
        return self

    @property
    def source(self) -> str:
        """Where and when it was measured."""
        return f"{self.device}, {self.date}, `{self.command}`"


def read_rates(path: str | None) -> list[Rate]:
    """The user's rows, from a YAML file with a list of them, then those of the package. Raises SettingsError."""
    own = [] if path is None else _rows(Path(path))
    return [*own, *_rows(_SHIPPED)]


def of_machine(rates: Sequence[Rate], machine: str) -> list[Rate]:
    """What trainings on that machine have been measured; the first file's that has any. Raises EquihandError for none."""
    found = [rate for rate in rates if rate.kind == "pretrain" and rate.machine == machine]
    if not found:
        known = dict.fromkeys(rate.machine for rate in rates if rate.kind == "pretrain")
        raise EquihandError(
            f"no training has been measured on '{machine}' (--machine; there are: {', '.join(known) or 'none'}); measure one there, with "
            "`python -m jobs.plan --measure true` or `python -m jobs.bench train`, and give its row with --rates FILE.yaml"
        )
    return found


def _rows(path: Path) -> list[Rate]:
    try:
        rows = parse_yaml(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"setting 'rates': cannot read '{path}': {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"setting 'rates': '{path}' is not valid YAML ({error})") from None
    if not isinstance(rows, list):
        raise SettingsError(f"setting 'rates': '{path}' must hold a list of rows, as jobs/plan_rates.yaml does")
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(Rate.model_validate(row))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "row"
            message = first["msg"].removeprefix("Value error, ")
            raise SettingsError(f"setting 'rates': '{path}', row {number}, {where}: {message}") from None
    return found
