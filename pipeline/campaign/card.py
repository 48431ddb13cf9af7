"""The winner's card: what it was trained with, ready to be used, where its model is, and what that reaches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
import yaml

from pipeline.campaign.reading import Campaign
from pipeline.campaign.scores import Score, best_metrics, metric_label
from pipeline.errors import SettingsError, one_line
from pipeline.evaluation.metric_names import METRICS, MetricName
from pipeline.search.records import TrialRecord, folder_of
from pipeline.search.space import PRETRAIN, trial_settings
from pipeline.storage import join
from pipeline.training.finetune_recipe import FinetuneSettings, with_epochs

_CONSTANT = "constant_"


@dataclass(frozen=True)
class Cell:
    """A metric of one model."""

    value: float | None
    deviation: float | None = None
    """Standard deviation over seeds, where there are several."""


@dataclass(frozen=True)
class Card:
    """What is shown of the winner; without one, of the best trial."""

    title: str
    frames: str
    """What the metrics are of."""
    columns: list[str]
    """Of the metrics."""
    rows: list[tuple[MetricName, list[Cell]]]
    """A metric, and its value in each column."""
    seeds: str
    """What each seed reached, where there are several."""
    checkpoint: str
    """URI."""
    registration: str
    """What MLflow's registry calls it; empty where it is not in there."""
    yaml: str
    """Settings for `jobs.finetune --config`; empty where this version cannot tell them."""
    note: str
    """Why, then."""


def card_of(campaign: Campaign, score: Score, best: TrialRecord) -> Card:
    """best: the best trial."""
    return _of_winner(campaign) if campaign.winner else _of_trial(campaign, score, best)


def _of_winner(campaign: Campaign) -> Card:
    winner = campaign.winner
    arms, test = winner["arms"], winner["test"]
    seeds, error = arms["winner"]["seeds"], winner["verdict"]["error"]
    label = metric_label(error)
    reached = [f"{each['metrics'][error]:.{label.decimals + 1}f}" for each in seeds if error in each["metrics"]]
    registration = winner.get("registration") or {}
    text, note = _or_reason(lambda: FinetuneSettings.model_validate(_recipe(winner)))
    if text and winner["identity"].get("pretrainings", {}).get("winner"):
        text = f"{_pretraining_note(campaign, winner.get('best_values', {}))}\n{text}"
    return Card(
        title=f"The winner, settings of trial {winner['best_trial']}",
        frames=f"{test['num_frames']:,} frames of split '{test['split']}', which the search never saw"
        + (f"; means of {len(seeds)} seeds, ± their standard deviation" if len(seeds) > 1 else ""),
        columns=["winner", *(["default settings"] if "default" in arms else []), "one fixed hand"],
        rows=_rows([arms[arm] for arm in ("winner", "default") if arm in arms]),
        seeds=f"{label.label} of its seeds: {', '.join(reached)}" if len(reached) > 1 else "",
        checkpoint=f"{winner['best_checkpoint']}",
        registration=f"models:/{registration['name']}/{registration['version']}, {registration['alias']}"
        if "version" in registration
        else registration.get("problem", ""),
        yaml=text,
        note=note,
    )


def _recipe(winner: Mapping[str, Any]) -> dict[str, Any]:
    return {**winner["identity"]["arms"]["winner"], "seed": winner["chosen"]["seed"]}


def _of_trial(campaign: Campaign, score: Score, best: TrialRecord) -> Card:
    metrics = {
        name.removeprefix("val_"): value for name, value in best_metrics(best).items() if name.startswith("val_")
    }
    seeds = [f"{score.factor * each:.2f}" for each in best.seed_scores]
    text, note = finetune_yaml(campaign, best.values)
    return Card(
        title=f"The best trial, {best.name}",
        frames="Validation at which the score was best" + (", of the first seed" if len(seeds) > 1 else ""),
        columns=[f"trial {best.name}", "one fixed hand"],
        rows=_rows([{"mean": metrics}]),
        seeds=f"{score.label} of its seeds: {', '.join(seeds)}" if len(seeds) > 1 else "",
        # A search that is over has a copy of it; of a trial's folder the best checkpoint is taken.
        checkpoint=campaign.result.get("best_checkpoint") or folder_of(campaign.folder, best.number),
        registration="",
        yaml=text,
        note=note,
    )


def finetune_yaml(campaign: Campaign, values: Mapping[str, Any]) -> tuple[str, str]:
    """Settings of a fine-tuning like the trial with these values, as YAML of all that are not the defaults; or else why not.

    What a pretraining before it had is a comment.
    """

    def settings() -> FinetuneSettings:
        base = FinetuneSettings.model_validate(campaign.finetune)
        num_labels = campaign.result.get("num_labels")
        # As the search counted its epochs.
        return trial_settings(base if num_labels is None else with_epochs(base, num_labels, 1), values)

    text, note = _or_reason(settings)
    if not text or campaign.settings.get("pretrain") is None:
        return text, note
    return f"{_pretraining_note(campaign, values)}\n{text}", note


def _pretraining_note(campaign: Campaign, values: Mapping[str, Any]) -> str:
    before = [f"#   {name}: {_flow(value)}" for name, value in values.items() if name.startswith(PRETRAIN)]
    head = f"# As init it needs its pretraining, which is in {join(campaign.folder, 'pretrainings')}{' and had' if before else ''}"
    return "\n".join([head, *before])


def _or_reason(make: Callable[[], FinetuneSettings]) -> tuple[str, str]:
    """The settings as YAML; or why this version cannot tell them."""
    try:
        settings = make()
    except (pydantic.ValidationError, SettingsError, ValueError, TypeError, KeyError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else error
        return "", f"This version cannot tell the settings of a fine-tuning like it ({one_line(reason)})."
    defaults = FinetuneSettings(frame_set="").model_dump(mode="json")
    changed = _difference(settings.model_dump(mode="json"), defaults)
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100), ""


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


def _rows(arms: list[dict[str, Any]]) -> list[tuple[MetricName, list[Cell]]]:
    """The metrics of models on labelled frames, and last what one fixed hand reaches. arms: {"mean": metrics, "deviation"} of each."""
    known = {name: metric_label(name) for name in arms[0]["mean"]}
    order = [*METRICS.values()]
    shown = [name for name, label in known.items() if label in order]
    first = arms[0]["mean"]

    def constant(name: str) -> float | None:
        return 0.0 if name.endswith("skill") else first.get(f"{_CONSTANT}{name}")

    return [
        (
            known[name],
            [
                *(Cell(arm["mean"].get(name), arm.get("deviation", {}).get(name)) for arm in arms),
                Cell(constant(name)),
            ],
        )
        for name in sorted(shown, key=lambda name: order.index(known[name]))
    ]


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
