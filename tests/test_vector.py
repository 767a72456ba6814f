"""FlatModel: the module and its vector are one storage."""

import pytest
import torch
from torch import nn

from fedsim.vector import FlatModel


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def with_norm():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_the_vector_holds_parameters_first_then_float_buffers():
    module = with_norm()
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    model = FlatModel(module)
    assert model.num_parameters == 4 * 3 + 3 + 3 + 3 + 3 * 2 + 2
    assert torch.equal(model.vector[: model.num_parameters], expected)
    assert [e.name for e in model.layout.buffers] == ["1.running_mean", "1.running_var"]
    assert model.vector[model.num_parameters :].tolist() == [0, 0, 0, 1, 1, 1]


def test_loading_is_one_copy_that_the_module_sees_and_training_writes_the_vector():
    model = FlatModel(with_norm())
    model.load(torch.arange(model.layout.size, dtype=torch.float32))
    assert model.module[0].bias.tolist() == [12, 13, 14]
    assert model.module[1].running_mean.tolist() == [29, 30, 31]
    model.module[1].running_mean.fill_(7)
    with torch.no_grad():
        model.module[2].bias.fill_(-1)
    assert model.vector[-6:-3].tolist() == [7, 7, 7]
    assert model.vector[27:29].tolist() == [-1, -1]


def test_a_state_dict_counts_no_calls():
    """Two trainers, and a run that was resumed, call the module differently often."""
    model = FlatModel(with_norm())
    model.module.train()(torch.randn(5, 4))
    assert model.module[1].num_batches_tracked == 1
    assert model.state_dict(model.vector)["1.num_batches_tracked"] == 0


def test_counters_that_are_assigned_anew_are_known_by_name():
    """A tensor that is gone leaves its identity to the next one."""

    class Counts(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
            self.register_buffer("table", torch.arange(5))

        def forward(self, input):
            self.steps = self.steps + 1
            return super().forward(input)

    model = FlatModel(Counts())
    for _ in range(8):
        model.module(torch.randn(2, 4))
        state = model.state_dict(model.vector)
        assert (state["steps"].item(), state["table"].tolist()) == (0, [0, 1, 2, 3, 4])
    assert model.module.steps == 8


def test_a_model_that_rests_is_the_vector_itself_until_it_loads_another():
    model, lent = FlatModel(nn.Linear(4, 3)), torch.arange(15.0)
    model.rest_on(lent)
    model.load(lent)
    assert model.module.weight.data_ptr() == lent.data_ptr()
    lent[0] = 5.0
    assert model.module.weight[0, 0] == 5.0
    model.load(torch.zeros(15))
    assert lent[1] == 1.0
    assert model.module.weight.abs().sum() == 0.0
    model.rest_on(lent)
    model.own()
    with torch.no_grad():
        model.module.bias.fill_(7.0)
    assert lent[-3:].tolist() == [12.0, 13.0, 14.0]
    assert torch.equal(model.vector[:-3], lent[:-3])


def test_tied_weights_stay_tied_and_count_once():
    model = FlatModel(Tied())
    assert model.num_parameters == 9 + 3 + 3
    assert model.module.second.weight is model.module.first.weight
    model.load(torch.ones(15))
    assert model.module(torch.ones(1, 3)).tolist() == [[13, 13, 13]]


def test_frozen_parameters_stay_out_of_the_vector():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    model = FlatModel(module)
    assert model.num_parameters == 3
    assert set(model.state_dict(model.vector)) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_state_dict_loads_into_a_plain_module():
    model, plain = FlatModel(with_norm()), with_norm()
    vector = torch.randn(model.layout.size).abs()
    plain.load_state_dict(model.state_dict(vector))
    model.load(vector)
    x = torch.randn(5, 4)
    assert torch.equal(plain.eval()(x), model.module.eval()(x))


def test_the_layout_of_what_a_mask_leaves():
    """Of Linear(4, 3) the bias and one weight are left out; BatchNorm's bias too: what follows moves up."""
    layout = FlatModel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))).layout
    left_out = torch.zeros(layout.size, dtype=torch.bool)
    left_out[5], left_out[12:15], left_out[18:21] = True, True, True
    left = layout.without(left_out)
    found = {e.name: (tuple(e.shape), e.start, e.stop) for e in (*left.parameters, *left.buffers)}
    assert found == {
        "0.weight": ((11,), 0, 11),
        "0.bias": ((0,), 11, 11),
        "1.weight": ((3,), 11, 14),
        "1.bias": ((0,), 14, 14),
        "1.running_mean": ((3,), 14, 17),
        "1.running_var": ((3,), 17, 20),
    }
    assert (left.num_parameters, left.size) == (14, 20)


class Masked(Tied):
    """With a constant that is no part of its state, as masks and positions are kept."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(3), persistent=False)


def test_state_dict_has_the_modules_keys_and_the_vector_under_each_name_of_a_tied_weight():
    """The module itself holds another model: the last client's, after a round."""
    model, plain = FlatModel(Masked()), Masked()
    vector = torch.randn(model.layout.size)
    model.load(torch.zeros(model.layout.size))
    plain.load_state_dict(model.state_dict(vector))
    assert torch.equal(plain.second.weight, vector[:9].view(3, 3))
    assert torch.equal(plain.second.bias, vector[12:15])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), "no trainable parameter"),
        (nn.Linear(2, 2, dtype=torch.complex64), "weight is torch.complex64, and only real"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "share one dtype"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=None)), "1: BatchNorm with momentum=None"),
    ],
)
def test_what_cannot_be_a_vector_is_refused(module, message):
    with pytest.raises(ValueError, match=message):
        FlatModel(module)
