"""The recipe of a repair by `refine`."""

from __future__ import annotations

import math
from dataclasses import replace

from expunge.config import PruneConfig, RoundsConfig
from expunge.recipes import Recipe, recipes


@recipes.register("ssl-refine", role="peer")
def ssl_refine(recipe: Recipe) -> Recipe:
    """Pre-train on the images alone, then refine the labels in rounds (arXiv 2412.04898).

    It starts from the weights given and does not use the partition, not even to decide whether
    there is noise: the partition finds little of the noise that this method is made for.

    Parameters
    ----------
    recipe
        The recipe to change.

    Returns
    -------
    Recipe
        All samples with their given labels, the trainer ``"ssl-refine"``, 10.5 times the epochs,
        no pruning.

    References
    ----------
    arXiv:2412.04898.

    Examples
    --------
    >>> ssl_refine(Recipe()).trainer
    'ssl-refine'
    """
    epochs = math.ceil(10.5 * recipe.tune.n_epochs)
    return replace(
        recipe,
        trainer="ssl-refine",
        prune=PruneConfig(fraction=0.0),
        tune=replace(recipe.tune, targets="all", lr=0.1, epochs=epochs),
        rounds=RoundsConfig(),
        min_flagged_fraction=0.0,
    )
