"""Models to compare the repair with: oracles, which know the true noise, and peers' retraining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from expunge import stages
from expunge._core.arrays import Bools
from expunge._core.registry import NoMetadata, Registry
from expunge.demo.noise import NoisyDataset
from expunge.models.initialisation import reinitialise
from expunge.recipes import resolve
from expunge.records import Partition, RepairResult
from expunge_bench.peers import BenchmarkCase, peers

# Retrains from scratch on the truly clean samples: 100 % of the oracle gap.
ORACLE = "oracle-retrain"


@dataclass(frozen=True)
class OracleInput:
    """What an oracle or a peer starts from.

    Parameters
    ----------
    case
        The noisy model and its data, with the ground truth.
    result
        The repair of that model.
    """

    case: BenchmarkCase
    result: RepairResult


oracles_and_peers: Registry[Callable[[OracleInput], nn.Module], NoMetadata] = Registry(
    "oracle or peer", NoMetadata
)


@oracles_and_peers.register("oracle-finetune")
def oracle_finetune(given: OracleInput) -> nn.Module:
    """Oracle: the repair's fine-tuning, on the truly clean samples."""
    case, config = given.case, replace(resolve("default").tune, targets="filter")
    # The learning rate depends on whether the model has memorised its labels.
    memorised = given.result.partition.memorised
    partition = replace(true_partition(case.data), memorised=memorised)
    return stages.tune(case.model, case.data.train, partition, config, seed=case.setting.seed)


@oracles_and_peers.register(ORACLE)
def oracle_retrain(given: OracleInput) -> nn.Module:
    """Oracle: a new network, regularised training, the truly clean samples."""
    return retrain_filtered(given.case, true_partition(given.case.data))


@oracles_and_peers.register("cleanlab-retrain")
def cleanlab_retrain(given: OracleInput) -> nn.Module:
    """Peer: a new network, regularised training, the samples that cleanlab does not flag."""
    return _retrain_unflagged(given.case, "cleanlab")


@oracles_and_peers.register("cleanlab-folds-retrain")
def cleanlab_folds_retrain(given: OracleInput) -> nn.Module:
    """Do as `cleanlab_retrain` on out-of-sample probabilities: five more trainings."""
    return _retrain_unflagged(given.case, "cleanlab-folds")


def _retrain_unflagged(case: BenchmarkCase, peer: str) -> nn.Module:
    flagged = peers.get(peer)(case).flagged
    return retrain_filtered(case, partition_of_mask(case.data, flagged))


def true_partition(data: NoisyDataset) -> Partition:
    """The ground truth as a partition."""
    truth = data.truth
    return replace(
        partition_of_mask(data, truth.noisy),
        p_label_fault=truth.label_fault.astype(np.float64),
        p_input_fault=truth.input_fault.astype(np.float64),
        suggested_label=truth.labels,
    )


def partition_of_mask(data: NoisyDataset, flagged: Bools) -> Partition:
    """A hard decision as a partition that suggests no label."""
    train, rate = data.train, float(flagged.mean())
    p, zeros = flagged.astype(np.float64), np.zeros(len(flagged))
    ones = np.ones(len(flagged))
    return Partition(
        train.ids, train.labels, p, p, zeros, train.labels, ones, 0.5, (rate, rate, rate)
    )


def retrain_filtered(case: BenchmarkCase, partition: Partition) -> nn.Module:
    """Train a new network on the samples that a partition does not flag."""
    config = replace(case.dataset.training["regularised"], targets="filter")
    return stages.tune(
        reinitialise(case.model, case.setting.seed),
        case.data.train,
        partition,
        config,
        seed=case.setting.seed,
        progress=case.progress,
    )
