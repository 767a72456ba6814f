"""Recurrent networks: published parameter counts, and what they see."""

import pytest
import torch
from torch import nn

from fedsim import models


def num_trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # 80 x 8; 4 x 256 x (8 + 256) and 4 x 256 x (256 + 256), each with 2 x 1024 biases; 256 x 80 + 80
        (models.shakespeare_lstm((80,), 80), 819_920),
        # 10,000 x 100; twice 4 x 100 x 200 + 2 x 400; 100 x 128 + 128; 128 x 2 + 2
        (models.sent140_lstm((25,), 2, vocabulary_size=10_000), 1_000_000 + 174_786),
        # 10,000 x 256; twice 4 x 256 x 512 + 1024; 256 x 10,000 + 10,000
        (models.reddit_lstm((10,), 10_000), 6_180_624),
        # 896 + 3 x 9,248 convolutions, 4 x 64 of the norms, 6 x 6 x 32 x 2 + 2 (84, 42, 21, 11, 6 pixels)
        (models.celeba_cnn((3, 84, 84), 2), 31_202),
    ],
)
def test_parameter_counts_are_leafs(model, expected):
    assert num_trained(model) == expected


def test_outputs_are_logits_and_depend_on_every_earlier_token_only():
    torch.manual_seed(0)
    tokens = torch.randint(0, 30, (3, 7))
    for model in (
        models.shakespeare_lstm((7,), 30, hidden_size=8),
        models.sent140_lstm((7,), 4, vocabulary_size=30, hidden_size=8),
    ):
        logits = model(tokens)
        assert logits.shape == (3, model.head.out_features)
        for place in range(7):
            changed = tokens.clone()
            changed[:, place] = (changed[:, place] + 1) % 30
            assert not torch.equal(model(changed), logits)
    model = models.reddit_lstm((7,), 30, hidden_size=8)
    logits = model(tokens)
    assert logits.shape == (3, 30, 7)
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 30
    assert torch.equal(model(changed)[:, :, :4], logits[:, :, :4])
    assert not torch.equal(model(changed)[:, :, 6], logits[:, :, 6])


def test_tensorflows_lstm_has_one_bias_a_gate():
    model = models.reddit_lstm((7,), 30, hidden_size=8)
    second = [p for name, p in model.lstm.named_parameters() if name.startswith("bias_hh")]
    assert len(second) == 2
    assert all(not p.requires_grad and not p.any() for p in second)


@pytest.mark.parametrize(
    ("factory", "shape", "options", "message"),
    [
        ("shakespeare_lstm", (1, 28, 28), {}, r"takes sequences of tokens, of shape \(length,\), but .* \(1, 28, 28\)"),
        ("reddit_lstm", (), {}, "choose data=shakespeare, sent140 or reddit"),
        ("sent140_lstm", (25,), {"vocabulary_size": 0}, "model.vocabulary_size must be a positive integer, got 0"),
        ("sent140_lstm", (25,), {"vocabulary_size": 9, "dense_size": 0}, "model.dense_size must be a positive"),
        ("shakespeare_lstm", (80,), {"num_layers": 1.5}, "model.num_layers must be a positive integer, got 1.5"),
        ("celeba_cnn", (3, 8, 8), {"num_blocks": 0}, "model.num_blocks must be a positive integer"),
    ],
)
def test_errors_name_the_setting(factory, shape, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(models, factory)(shape, 10, **options)
