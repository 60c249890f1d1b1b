"""Callbacks of training loops, a net of skorch and trackers, each with the real package."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import expunge
from expunge.errors import ConfigError, DataError, ModelError
from expunge.integrations.scoring import TrainingScorer
from expunge.models import mlp
from expunge.tracking import check_trackers, log_result

pytestmark = pytest.mark.usefixtures("few_trees")

RNG = np.random.default_rng(0)
RIGHT = np.arange(150) % 3
X = (3 * np.eye(3, 4)[RIGHT] + RNG.standard_normal((150, 4))).astype(np.float32)
BAD = RNG.random(150) < 0.2
Y = np.where(BAD, (RIGHT + 1) % 3, RIGHT)


@pytest.fixture(autouse=True)
def quiet():
    """Other packages warn of their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_found(partition: expunge.Partition, folder) -> None:
    assert roc_auc_score(BAD, partition.p_noisy) > 0.8
    written = pq.read_table(folder / "partition.parquet")
    np.testing.assert_array_equal(written["p_noisy"].to_numpy(), partition.p_noisy)


def test_probabilities_of_the_epochs_are_averaged_and_used():
    model, scorer = mlp(inputs=4, classes=3, hidden=8), TrainingScorer((X, Y), keep_probs=True)
    scorer.end_epoch(model)
    scorer.end_epoch(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scorer.end_training(model)
    probs = expunge.average_checkpoint_probs(model, (X, Y), [model.state_dict()])
    np.testing.assert_allclose(scorer._sum / scorer._count, probs, rtol=1e-6)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert len(scorer.partition.ids) == 150


def test_a_loop_without_data_is_an_error_that_says_what_to_give():
    for act in (
        TrainingScorer().start_training,
        partial(TrainingScorer().end_training, nn.Linear(4, 3)),
    ):
        with pytest.raises(DataError, match=r"ScoreCallback\(data\)"):
            act()


def test_transformers_trainer_scores_at_its_end(tmp_path):
    transformers = pytest.importorskip("transformers")
    from expunge.integrations.transformers import ScoreCallback

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(inputs=4, classes=3, hidden=8)

        def forward(self, x, labels=None):
            logits = self.net(x)
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)

    data = [{"x": torch.from_numpy(x), "labels": int(y)} for x, y in zip(X, Y, strict=True)]
    callback = ScoreCallback(out=tmp_path / "scores", keep_probs=True)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, report_to=[], disable_tqdm=True, use_cpu=True
    )
    arguments.set_save(strategy="no")
    transformers.Trainer(Classifier(), arguments, train_dataset=data, callbacks=[callback]).train()
    check_found(callback.partition, tmp_path / "scores")
    assert callback._count == 2


def test_lightning_trainer_scores_at_its_end(tmp_path):
    lightning = pytest.importorskip("lightning")
    from expunge.integrations.lightning import ScoreCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(inputs=4, classes=3, hidden=8)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = ScoreCallback(out=tmp_path / "scores", keep_probs=True)
    trainer = lightning.Trainer(
        max_epochs=2,
        callbacks=[callback],
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=32)
    trainer.fit(Module(), loader)
    check_found(callback.partition, tmp_path / "scores")
    assert callback._count == 2


def test_a_net_of_skorch_goes_in_and_comes_out_repaired():
    skorch = pytest.importorskip("skorch")
    from expunge.integrations.skorch import repair_net

    torch.manual_seed(0)
    net = skorch.NeuralNetClassifier(
        mlp,
        module__inputs=4,
        module__classes=3,
        criterion=nn.CrossEntropyLoss,
        lr=0.1,
        max_epochs=5,
        verbose=0,
        train_split=None,
    )
    with pytest.raises(ModelError, match="expected a fitted skorch net, got NeuralNetClassifier"):
        repair_net(net, X, Y)
    net.fit(X, Y)
    before = net.predict(X)
    repaired, result = repair_net(net, X, Y, overrides={"tune": {"epochs": 3}})
    assert isinstance(result, expunge.RepairResult)
    np.testing.assert_array_equal(net.predict(X), before)
    assert (repaired.predict(X) == RIGHT).mean() >= 0.9
    repaired.partial_fit(X, Y)
    own = {id(p) for p in repaired.module_.parameters()}
    assert own == {id(p) for g in repaired.optimizer_.param_groups for p in g["params"]}


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    model = mlp(inputs=4, classes=3, hidden=8)
    return expunge.repair(
        model, (X, Y), (X, RIGHT), overrides={"tune": {"epochs": 1}}, baselines=()
    )


def test_tensorboard_gets_the_numbers_of_a_repair(result, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_result(result, ["tensorboard"], tmp_path)
    events = EventAccumulator(str(tmp_path / "expunge")).Reload()
    logged = events.Scalars("partition/noise_rate/value")[0].value
    assert logged == pytest.approx(result.partition.noise_rate[0])
    assert "after/accuracy/value" in events.Tags()["scalars"]


def test_mlflow_gets_the_numbers_of_a_repair(result, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log_result(result, ["mlflow"], tmp_path)
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert runs[0].data.metrics["partition/n"] == 150


def test_wandb_writes_its_files_offline(result, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_result(result, ["wandb"], tmp_path)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_trackio_gets_the_numbers_of_a_repair(result, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when the package is imported
    pytest.importorskip("trackio")
    log_result(result, ["trackio"], tmp_path)
    assert list(tmp_path.rglob("expunge*"))


def test_a_repair_logs_to_the_trackers_named(tmp_path):
    pytest.importorskip("tensorboard")
    model = mlp(inputs=4, classes=3, hidden=8)
    options = {"overrides": {"tune": {"epochs": 1}}, "trackers": ["tensorboard"]}
    expunge.repair(model, (X, Y), out=tmp_path / "run", **options)
    assert list((tmp_path / "run" / "expunge").glob("events*"))


def test_trackers_that_are_not_there_are_refused_before_any_work():
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    with pytest.raises(ConfigError, match="no tracker is called 'x'"):
        expunge.repair(mlp(inputs=4, classes=3), (X, Y), trackers=("x",))
