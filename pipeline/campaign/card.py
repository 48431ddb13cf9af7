"""The winner's card: what it was trained with, ready to be used, where its model is, and what that reaches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
import yaml

from pipeline.campaign.reading import Campaign
from pipeline.campaign.scores import Score, best_metrics, metric_label, seed_scores
from pipeline.errors import SettingsError, one_line
from pipeline.evaluation.metric_names import MetricName
from pipeline.search.records import TrialRecord, folder_of
from pipeline.search.space import trial_settings
from pipeline.training.finetune_recipe import FinetuneSettings, with_epochs

_CONSTANT = "val_constant_"


@dataclass(frozen=True)
class Card:
    """What is shown of the winner; without one, of the best trial."""

    title: str
    checkpoint: str
    """URI."""
    yaml: str
    """Settings for `jobs.finetune --config`; empty where this version cannot tell them."""
    note: str
    """What has to be said of them."""
    columns: list[str]
    """Of the metrics."""
    rows: list[tuple[MetricName, list[float | None]]]
    """A metric, and its value in each column."""
    seeds: list[float]
    """Score of each seed, where there are several."""


def winners_card(campaign: Campaign, score: Score, best: TrialRecord) -> Card:
    """best: the best trial."""
    winner = _mapping(campaign.winner.get("winner"))
    values = _mapping(winner.get("values")) or best.values
    text, note = finetune_yaml(campaign, values)
    if winner:
        columns = {"winner": _mapping(winner.get("metrics"))}
        if default := _mapping(_mapping(campaign.winner.get("default")).get("metrics")):
            columns["default settings"] = default
        seeds = winner.get("seed_scores")
        seeds = [*seeds.values()] if isinstance(seeds, Mapping) else seeds or []
    else:
        columns, seeds = {f"trial {best.name}": best_metrics(best)}, seed_scores(best)
    return Card(
        title="The winner" if winner else f"The best trial, {best.name}",
        checkpoint=str(winner.get("checkpoint") or "" if winner else _checkpoint(campaign, best)),
        yaml=text,
        note=note,
        columns=[*columns, "one fixed hand"],
        rows=_rows(columns),
        seeds=[score.factor * value for value in seeds],
    )


def finetune_yaml(campaign: Campaign, values: Mapping[str, Any]) -> tuple[str, str]:
    """Settings of a fine-tuning like the trial with these values, as YAML of all that are not the defaults; and what is to be said of it.

    Values of a pretraining before it (pretrain.NAME) are a comment.
    """
    own = {name: value for name, value in values.items() if not name.startswith("pretrain.")}
    before = {name: value for name, value in values.items() if name not in own}
    try:
        base = FinetuneSettings.model_validate(campaign.finetune)
        if num_labels := campaign.result.get("num_labels"):  # as the search counted its epochs
            base = with_epochs(base, num_labels, 1)
        settings = trial_settings(base, own)
    except (pydantic.ValidationError, SettingsError, ValueError, TypeError, KeyError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else error
        return "", f"This version cannot tell the settings of a fine-tuning like it ({one_line(reason)})."
    defaults = FinetuneSettings(frame_set="").model_dump(mode="json")
    changed = _difference(settings.model_dump(mode="json"), defaults)
    lines = [f"# {name}: {_flow(value)}" for name, value in before.items()]
    if lines:
        lines.insert(0, "# The pretraining before it had")
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return "\n".join([*lines, text]), ""


def _difference(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not the defaults."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            if part := _difference(value, defaults[name]):
                found[name] = part
        elif name not in defaults or value != defaults[name]:
            found[name] = value
    return found


def _checkpoint(campaign: Campaign, best: TrialRecord) -> str:
    """A search that is over has a copy of it; of a trial's folder the best checkpoint is taken."""
    return campaign.result.get("best_checkpoint") or folder_of(campaign.folder, best.number)


def _rows(columns: Mapping[str, Mapping[str, Any]]) -> list[tuple[MetricName, list[float | None]]]:
    """The metrics of models on labelled frames, and last what one fixed hand reaches."""
    names = dict.fromkeys(name for metrics in columns.values() for name in metrics)
    shown = [name for name in names if name.startswith("val_") and not name.startswith(_CONSTANT)]
    first = next(iter(columns.values()))
    return [
        (
            metric_label(name),
            [
                *(_number(metrics.get(name)) for metrics in columns.values()),
                0.0 if name.endswith("skill") else _number(first.get(name.replace("val_", _CONSTANT, 1))),
            ],
        )
        for name in shown
    ]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
