"""Links between runs of MLflow: which runs made what a run begins with, and what was made from a run. They are tags, so both can be
searched by.

    equihand.pretrain_run_id = pretrain-1           of a fine-tuning or an evaluation: our ids of the pretrainings that it began with
    equihand.pretrain_mlflow_run_id = 5f0c...       MLflow's ids of them, as soon as this MLflow has them
    equihand.used_by.finetune-1 = finetune          of the pretraining: one tag for each run, so that no two writers meet in one

Weights of fine-tunings, searches and studies are linked alike (equihand.finetune_run_id, ...). Setting them again changes nothing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_ID_TAG, KIND_TAG = "equihand.run_id", "equihand.kind"
_BETWEEN = ", "


class Source(NamedTuple):
    """A run whose weights another one takes."""

    kind: str
    run_id: str
    mlflow_run_id: str | None = None
    """MLflow's id of it, where it was tracked; perhaps another MLflow's."""


def link(client: "MlflowClient", mlflow_run_id: str, kind: str, run_id: str, sources: Sequence[Source]) -> None:
    """Set the tags of a run (`mlflow_run_id`, our kind and id of it), and of those sources that MLflow has."""
    found = {source: _found(client, source) for source in dict.fromkeys(sources)}
    for of_kind in dict.fromkeys(source.kind for source in found):
        each = {source.run_id: there for source, there in found.items() if source.kind == of_kind}
        client.set_tag(mlflow_run_id, _ids_tag(of_kind), _BETWEEN.join(each))
        if ids := [there for there in each.values() if there is not None]:
            client.set_tag(mlflow_run_id, _mlflow_ids_tag(of_kind), _BETWEEN.join(ids))
    for there in found.values():
        if there is not None:
            client.set_tag(there, f"equihand.used_by.{run_id}", kind)


def link_users(client: "MlflowClient", mlflow_run_id: str, kind: str, run_id: str) -> None:
    """Link a run that MLflow has just got with those that began with its weights, and were there first."""
    # In this filter _ and % stand for anything.
    query = f"tags.`{_ids_tag(kind)}` LIKE '%{run_id}%'"
    for user in client.search_runs(_all_experiments(client), query):
        tags = user.data.tags
        ids, there = (_listed(tags.get(name(kind), "")) for name in (_ids_tag, _mlflow_ids_tag))
        is_complete = len(there) == len(ids)  # with another run of this name, perhaps
        if run_id in ids and mlflow_run_id not in there and not is_complete:
            sources = [Source(kind, each, mlflow_run_id if each == run_id else None) for each in ids]
            link(client, user.info.run_id, tags[KIND_TAG], tags[RUN_ID_TAG], sources)


def find_run(client: "MlflowClient", experiment_ids: Sequence[str], kind: str, run_id: str) -> str | None:
    """MLflow's id of a run of ours; None where it has none."""
    return _first(client, experiment_ids, f"tags.`{RUN_ID_TAG}` = '{run_id}' and tags.`{KIND_TAG}` = '{kind}'")


def _found(client: "MlflowClient", source: Source) -> str | None:
    """MLflow's id of a source, if this MLflow has it: by the id that it gave, as several runs may be called alike; else by ours."""
    everywhere = _all_experiments(client)
    if source.mlflow_run_id is not None:
        named = f"attributes.run_id = '{source.mlflow_run_id}' and tags.`{RUN_ID_TAG}` = '{source.run_id}'"
        if (found := _first(client, everywhere, named)) is not None:
            return found
    return find_run(client, everywhere, source.kind, source.run_id)


def _first(client: "MlflowClient", experiment_ids: Sequence[str], query: str) -> str | None:
    runs: Sequence[Run] = client.search_runs([*experiment_ids], query, max_results=1)
    return runs[0].info.run_id if runs else None


def _all_experiments(client: "MlflowClient") -> list[str]:
    return [experiment.experiment_id for experiment in client.search_experiments()]


def _ids_tag(kind: str) -> str:
    return f"equihand.{kind}_run_id"


def _mlflow_ids_tag(kind: str) -> str:
    return f"equihand.{kind}_mlflow_run_id"


def _listed(text: str) -> list[str]:
    return text.split(_BETWEEN) if text else []
