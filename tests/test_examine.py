"""The examiner: which split speaks for the clients, and no split twice in a round."""

import dataclasses

import numpy as np
import pytest
import torch

from fedsim.config import EvaluateConfig
from fedsim.data.federated import Split
from fedsim.evaluate import Evaluator
from fedsim.examine import Examiner
from fedsim.models import logistic
from fedsim.vector import FlatModel


@pytest.fixture
def counted(monkeypatch):
    """The splits that are evaluated, in order."""
    seen, real = [], Evaluator.per_sample

    def per_sample(self, *arguments):
        seen.append(self.split)
        return real(self, *arguments)

    monkeypatch.setattr(Evaluator, "per_sample", per_sample)
    return seen


def examiner_of(dataset):
    return Examiner(dataset, FlatModel(logistic((12,), 4)), EvaluateConfig(max_samples=10), seed=0)


def owned(split):
    """The 200 test samples as two clients'."""
    return Split(inputs=split.inputs, targets=split.targets, offsets=np.array([0, 90, 200]))


def test_the_test_samples_of_clients_are_evaluated_once_a_round(make_dataset, counted):
    dataset = make_dataset([6, 9])
    dataset = dataclasses.replace(dataset, test=owned(dataset.test), validation=owned(dataset.test))
    examiner = examiner_of(dataset)
    one = torch.randn(examiner.model.layout.size)
    found = examiner.central(one, 1, whole=True)
    first = examiner.clients(one, 1)
    assert counted == [dataset.test]
    assert first["split"].tolist() == ["test", "test"]
    assert np.average(first["loss"], weights=first["samples"]) == pytest.approx(found["test_loss"])
    later = examiner.clients(-one, 2)
    assert counted == [dataset.test] * 2, "another round has another model"
    assert (later["loss"] != first["loss"]).all()


def test_a_quick_look_does_not_stand_for_the_whole_split(make_dataset, counted):
    dataset = make_dataset([6, 9])
    dataset = dataclasses.replace(dataset, test=owned(dataset.test))
    examiner = examiner_of(dataset)
    vector = torch.randn(examiner.model.layout.size)
    examiner.central(vector, 1, whole=False)
    assert examiner.clients(vector, 1)["samples"].tolist() == [90, 110]
    assert counted == [dataset.test] * 2


def test_clients_without_test_samples_show_their_validation_samples_then_those_of_training(make_dataset):
    dataset = make_dataset([6, 9])
    vector = torch.randn(FlatModel(logistic((12,), 4)).layout.size)
    for validation, split in ((owned(dataset.test), "validation"), (None, "train")):
        examiner = examiner_of(dataclasses.replace(dataset, validation=validation))
        examiner.central(vector, 1, whole=True)  # of the test set, which nobody owns
        frame = examiner.clients(vector, 1)
        assert frame["split"].tolist() == [split, split]
        assert frame["samples"].tolist() == np.diff((validation or dataset.train).offsets).tolist()
