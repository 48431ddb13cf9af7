"""What a campaign comes to, in words: the headline, what it was, and the commands that go on from it."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.campaign.reading import Campaign
from pipeline.campaign.scores import Score, ranked
from pipeline.drawing.page import duration, moment
from pipeline.evaluation.yardsticks import skill
from pipeline.search.records import FAILED, RUNNING, STOPPED, TrialRecord
from pipeline.storage import is_local, join

_BADGES = {
    "better": "Better than one fixed hand",
    "worse": "No better than one fixed hand",
    "unclear": "Not surely better than one fixed hand",
}


_FLATTERED = (
    "It was chosen by these frames, so its score flatters it, the more so the more trials there were. What it is worth, a test split "
    "says that the search never saw."
)


@dataclass(frozen=True)
class Headline:
    """The first thing that is read."""

    outcome: str
    """better, worse or unclear."""
    badge: str
    sentences: list[str]
    caveat: str = ""


def headline(campaign: Campaign, score: Score) -> Headline:
    """What the winner's test says; without one, what the best trial reached beside one fixed hand."""
    order = ranked(score, campaign.records)
    if campaign.winner:
        return _of_winner(campaign.winner, order)
    if not order:
        return Headline("unclear", "No score yet", [_no_score(campaign.records)])
    best, value = order[0], score.of(order[0])
    assert value is not None
    which = f"the best of {len(order)} trials with a score" if len(order) > 1 else "the only trial with a score"
    reached = f"Trial {best.name}, {which}, reaches {score.text(value)} {score.label} on the validation frames"
    if score.constant is None:
        said = f"{reached}. What one fixed hand reaches on them is not known."
        return Headline("unclear", "Not judged", [said], _FLATTERED)
    beside = f"{reached}, where always answering one fixed hand gives {score.text(score.constant)}"
    if value >= score.constant:
        return Headline("worse", _BADGES["worse"], [f"{beside}. So even the best is no better than one fixed hand."])
    removed = 100 * skill(value, score.constant)
    return Headline("unclear", "Not tested yet", [f"{beside}: it removes {removed:.0f} % of that error."], _FLATTERED)


def _of_winner(winner: Mapping[str, Any], order: Sequence[TrialRecord]) -> Headline:
    """order: trials with a score, the best first."""
    error, mean = winner["verdict"]["error"], winner["arms"]["winner"]["mean"]
    constant = mean.get(f"constant_{error}")
    outcome = "worse" if constant is not None and mean[error] >= constant else "unclear"
    if winner["beats_constant"]:
        outcome = "better"
    trial, caveat = winner["best_trial"], ""
    if order and order[0].name != trial:
        caveat = (
            f"This was said of trial {trial}. By now trial {order[0].name} is the best; the search's command tests it."
        )
    return Headline(outcome, _BADGES[outcome], winner["conclusions"], caveat)


def _no_score(records: Sequence[TrialRecord]) -> str:
    if not records:
        return "No trial has begun yet."
    all_failed = all(record.state == FAILED for record in records)
    return f"None of {len(records)} {_trials(len(records))} has a score{', as all have failed' if all_failed else ''}."


def _trials(num: int) -> str:
    return "trial" if num == 1 else "trials"


def progress(campaign: Campaign) -> str:
    """How far a search is that is not over; empty for one that is."""
    if campaign.result and not any(record.state == RUNNING for record in campaign.records):
        return ""
    running = sum(record.state == RUNNING for record in campaign.records)
    over = len(campaign.records) - running
    text = f"{over} of {campaign.num_trials} trials are over" if campaign.num_trials else f"{over} trials are over"
    if running:
        text += f", {running} {'has' if running == 1 else 'have'} begun and not ended"
    times = [
        record.history[-1]["reported_at"]
        for record in campaign.records
        if "reported_at" in (record.history or [{}])[-1]
    ]
    if times:
        text += f"; the last score is of {moment(datetime.fromtimestamp(max(times), UTC).isoformat())}"
    return f"{text}."


def failures(records: Sequence[TrialRecord]) -> list[tuple[str, list[str]]]:
    """(reason, trials) of those that failed, the most frequent reason first."""
    reasons: dict[str, list[str]] = {}
    for record in records:
        if record.state == FAILED:
            reasons.setdefault(record.error or "no reason given", []).append(record.name)
    return sorted(reasons.items(), key=lambda item: -len(item[1]))


def facts(campaign: Campaign, score: Score) -> list[tuple[str, Any]]:
    """What the campaign was; those that are not known are none."""
    settings, result, records = campaign.settings, campaign.result, campaign.records
    work = sum(record.seconds for record in records)
    counts = Counter(record.state for record in records)
    return [
        ("run", campaign.run_id),
        ("trials", len(records)),
        ("stopped early", counts[STOPPED] or None),
        ("failed", counts[FAILED] or None),
        ("judged by", score.title),
        ("searcher", settings.get("searcher")),
        ("scheduler", settings.get("scheduler")),
        ("seed", _text(settings.get("seed"))),
        ("labels", result.get("num_labels")),
        (
            "started from",
            "pretrainings of its own"
            if settings.get("pretrain")
            else campaign.finetune.get("init") or "random weights",
        ),
        ("wall time of the last start", duration(result["wall_s"]) if "wall_s" in result else None),
        ("training time of all trials", duration(work) if work else None),
        ("starts", len(campaign.starts) or None),
        ("first start", moment(str(campaign.starts[0].get("time"))) if campaign.starts else None),
        ("frame set", campaign.finetune.get("frame_set")),
        ("digest", result.get("frame_set_digest")),
    ]


def machine(campaign: Campaign) -> list[tuple[str, Any]]:
    """Where and with what it ran: as the result tells it, else the driver's last log."""
    last = campaign.starts[-1] if campaign.starts else {}
    versions = last.get("versions")
    return [
        ("git commit", _first(campaign.result, "git_commit", "mlflow.source.git.commit")),
        ("machine", _first(campaign.result, "machine", "equihand.machine")),
        ("driver's host", last.get("host")),
        ("its CPU cores", last.get("cores")),
        *(((name, _text(version)) for name, version in versions.items()) if isinstance(versions, Mapping) else ()),
        ("MLflow run", campaign.result.get("mlflow_run_id")),
    ]


def _first(result: Mapping[str, Any], *names: str) -> Any:
    """Of the result, or of what it records of the code and the machine (provenance.py)."""
    told = result.get("provenance")
    places = [result, *([told] if isinstance(told, Mapping) else [])]
    return next((place[name] for place in places for name in names if place.get(name)), None)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True)
class Command:
    """A line for the terminal."""

    what: str
    text: str
    note: str = ""


def commands(campaign: Campaign) -> list[Command]:
    """Those that go on with the search, do it again, and draw this page anew."""
    storage, _, run_id = campaign.folder.rpartition("/")
    wanted = campaign.num_trials
    go_on = {"run.storage": storage, "run.run_id": run_id}
    if wanted is not None:
        go_on["num_trials"] = str(2 * wanted if campaign.result else wanted)
    config = join(campaign.folder, "settings.yaml") if is_local(campaign.folder) else "settings.yaml"
    options = "".join(f" \\\n  --{name} {shlex.quote(value)}" for name, value in {"config": config, **go_on}.items())
    what = "Go on, with more trials" if campaign.result and wanted is not None else "Go on"
    note = (
        ""
        if is_local(campaign.folder)
        else "settings.yaml is a copy of the file in the search's folder, which ends this page."
    )
    found = [Command(what, f"python -m jobs.search{options}", note)]
    if campaign.result:
        found.append(Command("Do it again, and compare", f"python -m jobs.reproduce {shlex.quote(campaign.folder)}"))
    return [*found, Command("Draw this page anew", f"python -m jobs.campaign_report {shlex.quote(campaign.folder)}")]
