"""Clients whose data others hold: their numbers, and what a server knows of them."""

import numpy as np
import torch

from fedsim.data.remote import among, held_elsewhere


def test_numbering_moves_no_sample(make_dataset):
    """Client c of three becomes client index[c] of six, with the samples that it had."""
    dataset = make_dataset([4, 2, 3])
    index = np.array([5, 0, 3])
    moved = among(dataset, index, 6)
    assert moved.train.sizes.tolist() == [2, 0, 0, 3, 0, 4]
    for client, at in enumerate(index.tolist()):
        assert moved.train.rows(at).tolist() == dataset.train.rows(client).tolist()
        assert moved.client_ids[at] == dataset.client_ids[client]
    assert moved.test is dataset.test


def test_other_clients_of_equal_sizes_are_other_data():
    """All that is known of their samples is their number: a checkpoint of theirs must not continue another run."""
    about = {"input_shape": [3], "num_classes": 5}
    theirs = [held_elsewhere(names, np.array([3, 3]), **about) for names in (["ann", "bob"], ["ann", "eve"])]
    assert theirs[0].fingerprint() != theirs[1].fingerprint()
    assert theirs[0].fingerprint() == held_elsewhere(["ann", "bob"], np.array([3, 3]), **about).fingerprint()


def test_the_server_has_names_and_sizes_and_no_sample():
    dataset = held_elsewhere(["ann", "bob"], np.array([3, 0]), input_shape=[1, 8, 8], num_classes=5)
    assert (dataset.num_clients, dataset.train.num_samples, dataset.input_shape) == (2, 3, (1, 8, 8))
    assert dataset.train.inputs.numel() == 64
    tokens = held_elsewhere([], np.zeros(0, int), input_shape=[7], num_classes=5, tokens=True)
    assert (tokens.num_clients, tokens.train.inputs.dtype) == (0, torch.int64)
