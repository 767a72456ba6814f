"""Plays in plain text: who says what, windows split in time, and the made-up play."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fedsim.data.plays import WINDOW, read_play, read_plays, split_in_time
from fedsim.data.shakespeare import shakespeare
from fedsim.data.stand_in_play import MAX_ROLES, stand_in_play
from fedsim.data.text import CHARACTERS

PLAY = """THE TRAGEDY OF NOBODY, by nobody.

ACT I.
SCENE I. A heath.

First Citizen:
Before we proceed any further,
hear me   speak: it is late.

Second Citizen:
Speak.
[Exit
two murderers]
ACT II.
 What nobody says.

HAMLET. To be, or not
to be.

FIRST CITIZEN: Again
I speak.

KING O'NEILL.
Give me some light.
"""


def test_a_speech_starts_with_its_role_in_any_of_three_ways():
    roles = {role.name: role.text for role in read_play(PLAY, "nobody")}
    assert roles == {
        "FIRST CITIZEN": "Before we proceed any further, hear me speak: it is late. Again I speak.",
        "SECOND CITIZEN": "Speak.",
        "HAMLET": "To be, or not to be.",
        "KING O'NEILL": "Give me some light.",
    }


def test_a_folder_of_plays_and_what_is_none(tmp_path):
    (tmp_path / "b.txt").write_text("ANN: Well.\n")
    (tmp_path / "a.txt").write_text("\ufeffANN: Yes.\n")
    assert [(r.play, r.name, r.text) for r in read_plays(tmp_path)] == [("a", "ANN", "Yes."), ("b", "ANN", "Well.")]
    (tmp_path / "c.txt").write_text("no play at all\n")
    with pytest.raises(ValueError, match=r"c.txt has no roles: a speech starts with a line NAME: alone"):
        read_plays(tmp_path)
    (tmp_path / "c.txt").write_bytes(b"ANN: \xff\n")
    with pytest.raises(ValueError, match=r"c.txt is not UTF-8 text \(invalid start byte at byte 5\)"):
        read_plays(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no .txt file in .*empty"):
        read_plays(tmp_path / "empty")


@pytest.mark.parametrize("num_samples", [1, 395, 396, 1000])
def test_testing_starts_where_no_target_of_training_is_left(num_samples):
    num_train, start = split_in_time(num_samples, Fraction("0.8"), WINDOW)
    assert num_train == max(1, num_samples * 8 // 10)
    assert start == num_train + 79
    # the last target of training stands at num_train - 1 + 80, where testing's first window starts
    assert start == num_train - 1 + WINDOW


def test_roles_become_clients_split_in_time(tmp_path):
    alphabet = [c for c in CHARACTERS if c.isalnum()]
    letters = "".join(alphabet[i * i % 61] for i in range(1000))
    text = f"ANN: {letters}\nBOB: {letters[:475]}\nCY: {letters[:476]}\n"
    (tmp_path / "my play.txt").write_text(text)
    dataset = shakespeare(root=str(tmp_path / "my play.txt"), cache_dir=str(tmp_path / "cache"))
    assert (dataset.source, list(dataset.client_ids)) == ("plays", ["my_play_ANN", "my_play_CY"])
    assert list(dataset.groups) == ["my play", "my play"]
    assert dataset.notes == ("1 of 3 roles say too little to train and test on and are left out",)
    assert dataset.train.sizes.tolist() == [736, 316]
    assert dataset.test.sizes.tolist() == [1000 - 80 - 736 - 79, 1]
    said = np.array([CHARACTERS.index(c) for c in letters])
    for split, first in ((dataset.train, 0), (dataset.test, 815)):
        for row, place in zip(split.rows(0), range(first, 1000), strict=False):
            assert split.inputs[row].tolist() == said[place : place + 80].tolist()
            assert split.targets[row] == said[place + 80]
    assert dataset.test.targets[dataset.test.rows(0)[-1]] == said[-1]
    # a folder of plays, and some of its roles
    some = shakespeare(root=str(tmp_path), num_clients=1, seed=1, cache_dir=str(tmp_path / "cache"))
    assert some.num_clients == 1
    with pytest.raises(ValueError, match=r"none of 3 roles is long enough .* 1000 characters, .* more than 1660"):
        shakespeare(root=str(tmp_path), test_fraction=0.05)


def test_the_smallest_length_that_is_named_is_the_smallest(tmp_path):
    for fraction in (Fraction("0.8"), Fraction("0.95"), Fraction("0.5")):
        least = WINDOW + int((WINDOW - 1) / (1 - fraction)) + 1
        long_enough = [n for n in range(81, 2000) if split_in_time(n - WINDOW, fraction, WINDOW)[1] < n - WINDOW]
        assert long_enough[0] == least


def test_without_a_root_the_made_up_play_stands_in_and_says_so(tmp_path):
    dataset = shakespeare(cache_dir=str(tmp_path))
    assert (dataset.source, dataset.num_clients, dataset.num_classes) == ("stand_in", 100, 80)
    assert "made-up play from a small grammar, not Shakespeare" in dataset.notes[0]
    assert len(dataset.notes) == 1, "a role is too short, or says a character outside of LEAF's"
    again = shakespeare(cache_dir=str(tmp_path / "other"))
    assert torch.equal(dataset.train.inputs, again.train.inputs)
    assert dataset.fingerprint() == again.fingerprint() != shakespeare(seed=1).fingerprint()
    few = shakespeare(num_clients=3, source="stand_in", root="/nowhere")
    assert few.notes[1] == "data.root=/nowhere is ignored: data.source=stand_in"
    for client in range(3):
        assert few.client_ids[client] == dataset.client_ids[client]
        assert torch.equal(few.train.inputs[few.train.rows(client)], dataset.train.inputs[dataset.train.rows(client)])


def test_the_made_up_play_is_a_play():
    roles = read_play(stand_in_play(12, 0), "x")
    assert len(roles) == 12
    assert all(500 <= len(role.text) < 1200 for role in roles)
    words = [set(role.text.split()) for role in roles]
    assert len({frozenset(w) for w in words}) == 12
    with pytest.raises(ValueError, match=rf"the made-up play has from 1 to {MAX_ROLES} roles"):
        stand_in_play(MAX_ROLES + 1, 0)
    assert len(read_play(stand_in_play(MAX_ROLES, 0), "x")) == MAX_ROLES


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data.source='play' is unknown: set it to one of auto, leaf, plays, stand"):
        shakespeare(source="play")
    with pytest.raises(ValueError, match=r"data.source=leaf needs data.root="):
        shakespeare(source="leaf")
    with pytest.raises(FileNotFoundError, match=r"no train/ of LEAF's shakespeare in .* or to plays in plain text"):
        shakespeare(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"data.root=.*no.txt does not exist"):
        shakespeare(root=str(tmp_path / "no.txt"), source="plays")
    with pytest.raises(ValueError, match=r"data.test_fraction must be between 0 and 1, got 1"):
        shakespeare(test_fraction=1)
