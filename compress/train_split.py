"""A train split for the steps that train, where the source has none. It needs no torch: every run asks."""

from __future__ import annotations

from ..artifact.recipe import Recipe
from ..errors import DataError
from ..train.data_source import open_source
from ..train.sources.cut import DEFAULT
from .plan_training import trains


def with_train_split(recipe: Recipe, will_train: bool | None = None) -> Recipe:
    """The recipe with a train split in its data: a source without one is cut, and the words say so.

    What is trained on must be neither validated nor tested on.

    Args:
        will_train: whether weights are trained; None: where one of its steps does.

    Raises:
        DataError: the source names splits, and no train split among them.
    """
    if recipe.data is None or not (trains(recipe) if will_train is None else will_train):
        return recipe
    source = open_source(recipe.data)
    if source.labels is None or (source.splits is not None and "train" in source.splits):
        return recipe
    if source.splits is not None and len(set(source.splits)) > 1:
        raise DataError(
            f"{recipe.data} has no train split, and pruning and distillation train; add one"
        )
    return recipe.model_copy(update={"data": f"cut:{DEFAULT}:{recipe.data}"})
