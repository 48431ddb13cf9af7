"""The results of a study: one Parquet file, a row for each cell, from which its report can be made again at any time.

The file's metadata holds what is the same for all rows: settings, the test frames, what the verdicts are of.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.evaluation.yardsticks import CONSTANT, RANDOM
from pipeline.storage import exists, join, list_files, read_bytes, write_bytes
from pipeline.study.grid import Cell, arm_recipe, describe, transforms
from pipeline.study.settings import FindingsSettings, StudySettings

Metric = Literal["pa_epe", "root_relative_epe", "probe_pa_epe", "probe_root_relative_epe"]

METRIC_NAMES: dict[Metric, str] = {
    "pa_epe": "PA-EPE",
    "root_relative_epe": "root-relative EPE",
    "probe_pa_epe": "ridge PA-EPE",
    "probe_root_relative_epe": "ridge root-relative EPE",
}

ASIDE = "aside"
"""Folder, in a study's, of tables with rows that a later start did not ask for."""
_METADATA = b"equihand.study"
_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One cell, or one of the answers that need no looking (CONSTANT and RANDOM of yardsticks.py). Errors in mm."""

    key: str
    method: str
    labels: float
    """Share of the labelled clips."""
    labelled_frames: int
    seed: int
    grids: list[str]
    pa_epe_mm: float
    root_relative_epe_mm: float
    pa_skill: float
    """1 - error / the constant's."""
    root_relative_skill: float
    constant_pa_epe_mm: float
    constant_root_relative_epe_mm: float
    clip_pa_epe_mm: list[float]
    """Mean error of each test clip, in the order of `About.clips`."""
    clip_root_relative_epe_mm: list[float]

    # Of what looks at images.
    encoder: str = ""
    probe_pa_epe_mm: float | None = None
    """Of a ridge regression from the frozen encoder that fine-tuning starts from."""
    probe_root_relative_epe_mm: float | None = None
    clip_probe_pa_epe_mm: list[float] | None = None
    clip_probe_root_relative_epe_mm: list[float] | None = None
    frames_seen: int = 0
    """In fine-tuning."""
    wall_s: float = 0.0
    """Of fine-tuning."""

    # Of what is pretrained.
    unlabelled: float = 0.0
    """Share of the unlabelled clips."""
    unlabelled_frames: int = 0
    pretrain_frames: int = 0
    """Budget: frames seen in pretraining."""
    pretrain_frames_seen: int = 0
    """As they came out."""
    pretrain_wall_s: float = 0.0
    """Of the pretraining, which other cells may share."""
    objective: str = "none"
    used: str = ""
    """Transforms by which two views differ."""
    undone: str = ""
    """Those of them that the objective undoes."""

    def error(self, metric: Metric) -> float | None:
        """The mean over all test frames."""
        value: float | None = getattr(self, f"{metric}_mm")
        return value

    def clip_errors(self, metric: Metric) -> list[float] | None:
        """The means of the clips."""
        values: list[float] | None = getattr(self, f"clip_{metric}_mm")
        return values


@dataclass(frozen=True)
class About:
    """What is the same for all rows."""

    title: str
    findings: dict[str, Any]
    """FindingsSettings."""
    grids: list[dict[str, str]]
    """Name and axis of each grid."""
    clips: list[str]
    """Of the test split."""
    clip_frames: list[int]
    frame_set: str
    frame_set_digest: str
    test_split: str
    finetune_frames: int
    num_cells: int
    """Cells that the study asks for; there are as many rows of methods when it is complete."""
    settings: str
    """YAML."""
    machine: dict[str, Any]
    """report_data.Environment."""
    created_at: str
    """UTC, ISO 8601."""

    @property
    def judged(self) -> FindingsSettings:
        """Which cells the verdicts are of."""
        return FindingsSettings.model_validate(self.findings)


@dataclass(frozen=True)
class Results:
    """All of it."""

    about: About
    rows: list[Row]

    def of_grid(self, name: str) -> list[Row]:
        """The cells of a grid, without the answers that need no looking."""
        return [row for row in self.rows if name in row.grids and row.method not in (CONSTANT, RANDOM)]

    @property
    def keys(self) -> set[str]:
        """Of all cells."""
        return {row.key for row in self.rows}

    def rows_for(self, cells: Mapping[str, Cell]) -> list[Row]:
        """The rows of these cells, by their keys, and of what needs no looking with as many labels and the same seed; with the cells'
        grids, which may have changed."""
        rows = [replace(row, grids=list(cells[row.key].grids)) for row in self.rows if row.key in cells]
        grids: dict[tuple[float, int], list[str]] = {}
        for row in rows:
            grids.setdefault((row.labels, row.seed), []).extend(row.grids)
        for row in self.rows:
            if row.method in (CONSTANT, RANDOM) and (place := (row.labels, row.seed)) in grids:
                rows.append(replace(row, grids=list(dict.fromkeys(grids[place]))))
        return rows

    def write(self, uri: str) -> None:
        """As Parquet."""
        columns = {field.name: [getattr(row, field.name) for row in self.rows] for field in fields(Row)}
        text = json.dumps({"version": _VERSION, **asdict(self.about)})
        table = pa.table(columns, schema=_SCHEMA).replace_schema_metadata({_METADATA: text.encode()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_bytes(uri, buffer.getvalue())

    @classmethod
    def read(cls, uri: str) -> Self:
        """The inverse of `write`. Raises DataError where there is no such file, or it is another."""
        if not exists(uri):
            raise DataError(f"{uri}: no results here; run the study first")
        try:
            table = pq.read_table(io.BytesIO(read_bytes(uri)))
            values = json.loads((table.schema.metadata or {})[_METADATA])
        except (pa.ArrowInvalid, KeyError, ValueError):
            raise DataError(f"{uri}: not the results of a study") from None
        version = values.pop("version")
        if version != _VERSION:
            raise DataError(f"{uri}: has version {version}, this version of the project reads {_VERSION}")
        return cls(About(**values), [Row(**row) for row in table.to_pylist()])


@dataclass(frozen=True)
class KeptTables:
    """What earlier starts of a study have left, on this machine or another."""

    newest: Results | None
    """results.parquet."""
    aside: list[Results]
    """Tables with rows that a later start did not ask for."""

    @classmethod
    def read(cls, folder: str) -> Self:
        """folder: URI of the study."""
        uri = join(folder, "results.parquet")
        aside = [Results.read(each) for each in list_files(join(folder, ASIDE), ".parquet")]
        return cls(Results.read(uri) if exists(uri) else None, aside)

    @property
    def all(self) -> Results | None:
        """As one table; the newest row of a key counts."""
        tables = sorted(
            [*self.aside, *([self.newest] if self.newest else [])], key=lambda table: table.about.created_at
        )
        rows = {row.key: row for table in tables for row in table.rows}
        return Results(tables[-1].about, [*rows.values()]) if tables else None


def rows_of(
    settings: StudySettings,
    done: Sequence[tuple[Cell, Mapping[str, Any], Mapping[str, Any] | None]],
) -> list[Row]:
    """Rows from finished cells, each with its file's content and that of its pretraining (None from scratch).

    Answers that need no looking come last, one row for each share of labels and seed.
    """
    rows = [_row(settings, *each) for each in done]
    constants: dict[tuple[float, int, str], Row] = {}
    for (cell, result, _), row in zip(done, rows, strict=True):
        for method, source in ((CONSTANT, "constant"), (RANDOM, "random")):
            place = (cell.labels, cell.arm.seed, method)
            grids = list(dict.fromkeys([*(constants[place].grids if place in constants else []), *row.grids]))
            constants[place] = _blind(method, source, cell, result, grids)
    return rows + [constants[place] for place in sorted(constants)]


def merged(rows: Sequence[Row], kept: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """Rows of this start and those that were kept of earlier ones, each once, in the order of these keys; what needs no looking last."""
    by_key = {row.key: row for row in kept}
    for row in rows:
        before = by_key.get(row.key)
        grids = [*(before.grids if before else []), *row.grids]
        by_key[row.key] = replace(row, grids=list(dict.fromkeys(grids)))
    place = {key: number for number, key in enumerate(order)}
    blind = len(place)
    return sorted(by_key.values(), key=lambda row: (place.get(row.key, blind), row.labels, row.seed, row.method))


def _row(settings: StudySettings, cell: Cell, result: Mapping[str, Any], arm_result: Mapping[str, Any] | None) -> Row:
    arm = cell.arm
    objective, used, undone = "none", "", ""
    if arm.pretrained:
        recipe = arm_recipe(settings, arm)
        objective, (used, undone) = describe(recipe), transforms(recipe)
    probe = _errors(result, "probe")
    return Row(
        key=result["key"],
        method=arm.method,
        unlabelled=arm.unlabelled,
        unlabelled_frames=arm_result["unlabelled_frames"] if arm_result else 0,
        pretrain_frames=arm.frames,
        labels=cell.labels,
        labelled_frames=result["labelled_frames"],
        encoder=arm.encoder,
        seed=arm.seed,
        grids=list(cell.grids),
        objective=objective,
        used=used,
        undone=undone,
        frames_seen=result["frames"],
        pretrain_frames_seen=arm_result["frames"] if arm_result else 0,
        wall_s=result["wall_s"],
        pretrain_wall_s=arm_result["wall_s"] if arm_result else 0.0,
        **_errors(result, "model"),
        **_against_constant(result, "model"),
        **{name.replace("clip_", "clip_probe_") if "clip" in name else f"probe_{name}": v for name, v in probe.items()},
    )


def _blind(method: str, source: str, cell: Cell, result: Mapping[str, Any], grids: list[str]) -> Row:
    """The row of an answer that needs no looking."""
    return Row(
        key=f"{source}-l{cell.labels:g}-s{cell.arm.seed}",
        method=method,
        labels=cell.labels,
        labelled_frames=result["labelled_frames"],
        seed=cell.arm.seed,
        grids=grids,
        **_errors(result, source),
        **_against_constant(result, source),
    )


def _errors(result: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Mean over all test frames, and means of the clips, from a cell's sums."""
    frames = np.asarray(result["clip_frames"])
    values: dict[str, Any] = {}
    for name in ("pa_epe", "root_relative_epe"):
        sums = np.asarray(result[source][name])
        values[f"{name}_mm"] = float(sums.sum() / frames.sum())
        values[f"clip_{name}_mm"] = (sums / frames).round(4).tolist()
    return values


def _against_constant(result: Mapping[str, Any], source: str) -> dict[str, Any]:
    model, constant = _errors(result, source), _errors(result, "constant")
    values = {}
    for name in ("pa", "root_relative"):
        values[f"constant_{name}_epe_mm"] = constant[f"{name}_epe_mm"]
        values[f"{name}_skill"] = 1 - model[f"{name}_epe_mm"] / constant[f"{name}_epe_mm"]
    return values


_TYPES = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    list[str]: pa.list_(pa.string()),
    list[float]: pa.list_(pa.float64()),
}


def _schema() -> pa.Schema:
    kinds = {}
    for name, kind in get_type_hints(Row).items():
        optional = [part for part in get_args(kind) if part in _TYPES] if type(None) in get_args(kind) else []
        kinds[name] = _TYPES[optional[0] if optional else kind]
    return pa.schema(kinds.items())


_SCHEMA = _schema()
