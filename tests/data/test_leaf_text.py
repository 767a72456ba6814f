"""LEAF's sets of text and of image files: what becomes of x and y, vocabularies, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.data.leaf_celeba import leaf_celeba
from fedsim.data.shakespeare import shakespeare
from fedsim.data.text import CHARACTERS, build_vocabulary, encode_characters, split_words
from fedsim.data.words import reddit, sent140
from fedsim.objective import IGNORED


def write(folder: Path, **splits: dict[str, Any]) -> Path:
    """{"train": {user: (x, y)}} as LEAF's files."""
    for split, users in splits.items():
        data = {user: {"x": x, "y": y} for user, (x, y) in users.items()}
        sizes = [len(d["y"]) for d in data.values()]
        (folder / split).mkdir(parents=True, exist_ok=True)
        content = {"users": list(data), "num_samples": sizes, "user_data": data}
        (folder / split / "all_data.json").write_text(json.dumps(content))
    return folder


def own(dataset, split, client):
    split = getattr(dataset, split)
    rows = torch.from_numpy(split.rows(client))
    return split.inputs[rows].tolist(), split.targets[rows].tolist()


def test_the_characters_are_leafs():
    # 52 letters, 10 digits, 18 others, each once, in the order of their codes but for a few
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 80
    assert sum(c.isalpha() for c in CHARACTERS) == 52
    assert sum(c.isdigit() for c in CHARACTERS) == 10
    assert list(CHARACTERS) == sorted(CHARACTERS)
    tokens, unknown = encode_characters(CHARACTERS + "é{\U0001f600")
    assert tokens.tolist() == [*range(80), 1, 1, 1]  # a space is the second
    assert unknown == 3


def test_shakespeares_windows_become_places_in_the_vocabulary(tmp_path):
    text = "To be, or not to be: that is the question; whether 'tis nobler in the mind to suffer the slings"
    samples = ([text[:80], text[1:81]], [text[80], "%"])
    root = write(tmp_path / "shakespeare" / "data", train={"HAMLET": samples}, test={"HAMLET": samples})
    dataset = shakespeare(root=str(tmp_path))
    assert (dataset.source, dataset.num_classes, dataset.input_shape) == ("leaf", 80, (80,))
    assert dataset.train.inputs.dtype == torch.uint8
    for split in ("train", "test"):
        inputs, targets = own(dataset, split, 0)
        assert ["".join(CHARACTERS[i] for i in row) for row in inputs] == samples[0]
        assert [CHARACTERS[i] for i in targets] == [text[80], " "]
    assert dataset.preprocess(dataset.train.inputs).dtype == torch.int64
    assert dataset.notes == ("for 2 characters outside LEAF's 80 a space stands",)
    write(root, test={"HAMLET": ([text[:79]], ["a"])})
    with pytest.raises(ValueError, match=r"all_data.json: user 'HAMLET' has .To be.* where a string of 80 characters"):
        shakespeare(root=str(tmp_path))
    write(root, test={"HAMLET": ([text[:80]], ["ab"])})
    with pytest.raises(ValueError, match="user 'HAMLET' has 'ab' where a string of 1 characters is expected"):
        shakespeare(root=str(tmp_path))


def test_words_and_vocabulary():
    assert split_words("I can't, CAN'T you?? @you #tag <UNK>") == [
        *("i", "can't", ",", "can't", "you", "?", "?", "you", "tag", "<UNK>")
    ]
    from collections import Counter

    counts = Counter({"b": 2, "a": 2, "c": 5, "<PAD>": 9, "d": 1})
    assert build_vocabulary(counts, 5) == ("<PAD>", "<UNK>", "c", "a", "b")
    assert build_vocabulary(counts, 100) == ("<PAD>", "<UNK>", "c", "a", "b", "d")
    with pytest.raises(ValueError, match=r"data.vocabulary_size must be at least 3, two of which stand for no word"):
        build_vocabulary(counts, 2)


def tweet(text: str) -> list[str]:
    return ["1467810369", "Mon Apr 06", "NO_QUERY", "user", text]


def test_tweets_are_tokens_of_a_vocabulary_of_the_training_samples_alone(tmp_path):
    write(
        tmp_path,
        train={"ann": ([tweet("so so good!"), tweet("a b c d e f")], [1, 0]), "bob": ([tweet("so")], [1])},
        test={"ann": ([tweet("so secret secret secret good")], [1])},
    )
    dataset = sent140(root=str(tmp_path), length=4)
    words = dataset.preprocess.vocabulary
    assert words == ("<PAD>", "<UNK>", "so", "!", "a", "b", "c", "d", "e", "f", "good")
    assert own(dataset, "train", 0) == ([[2, 2, 10, 3], [4, 5, 6, 7]], [1, 0])  # cut behind four words
    assert own(dataset, "train", 1) == ([[0, 0, 0, 2]], [1])  # padded in front
    assert own(dataset, "test", 0) == ([[2, 1, 1, 1]], [1])
    assert sent140(root=str(tmp_path), vocabulary_size=3).preprocess.vocabulary == words[:3]
    assert dataset.num_classes == 2
    write(tmp_path, test={"ann": ([["only", "three", "columns"]], [1])})
    with pytest.raises(ValueError, match=r"user 'ann' has \['only', 'three', 'columns'\] where a tweet is expected"):
        sent140(root=str(tmp_path))


def comment(*words: str) -> tuple[list[list[str]], dict[str, Any]]:
    """A comment as LEAF writes it, in sequences of four."""

    def sequences(tokens: list[str]) -> list[list[str]]:
        tokens = tokens + ["<PAD>"] * (-len(tokens) % 4)
        return [tokens[i : i + 4] for i in range(0, len(tokens), 4)]

    return sequences(["<BOS>", *words, "<EOS>"]), {"target_tokens": sequences([*words, "<EOS>", "<PAD>"]), "score": 1}


def test_comments_become_sequences_whose_padding_does_not_count(tmp_path):
    short, exact = comment("yes"), comment("a", "b", "yes")
    other = comment("unseen", "yes")
    train = {"ann": ([short[0], exact[0]], [short[1], exact[1]]), "bob": ([short[0]], [short[1]])}
    write(tmp_path, train=train, test={"ann": ([other[0]], [other[1]])}, val={"bob": ([other[0]], [other[1]])})
    dataset = reddit(root=str(tmp_path), vocabulary_size=7, length=4)
    words = dataset.preprocess.vocabulary
    assert words == ("<PAD>", "<UNK>", "<BOS>", "yes", "<EOS>", "a", "b")
    pad = IGNORED
    inputs, targets = own(dataset, "train", 0)
    # the second comment's second sequence would be <EOS> alone, with nothing to predict: it is left out
    assert inputs == [[2, 3, 4, 0], [2, 5, 6, 3]]
    assert targets == [[3, 4, pad, pad], [5, 6, 3, 4]]
    assert own(dataset, "test", 0) == ([[2, 1, 3, 4]], [[1, 3, 4, pad]])
    assert own(dataset, "validation", 1) == own(dataset, "test", 0)
    assert dataset.num_classes == 7
    with pytest.raises(ValueError, match=r"user 'ann' has \['<BOS>', 'yes', .*\] where 10 words are expected"):
        reddit(root=str(tmp_path), vocabulary_size=7)
    write(tmp_path, test={"ann": ([short[0]], [{"score": 1}])})
    with pytest.raises(ValueError, match="user 'ann' has a comment without as many target_tokens as sequences"):
        reddit(root=str(tmp_path), vocabulary_size=7, length=4)


def test_celebrities_own_images_by_name(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("1.png", "2.png"):
        (tmp_path / "celeba" / "raw" / "img_align_celeba").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (10, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "celeba" / "raw" / "img_align_celeba" / name)
    users = {"17": (["2.png", "1.png"], [1.0, 0])}  # LEAF computes labels by a division
    write(tmp_path / "celeba", train=users, test={"17": (["2.png"], [1])})
    dataset = leaf_celeba(root=str(tmp_path), size=8)
    assert dataset.train.inputs.shape == (2, 3, 8, 8)
    assert dataset.train.targets.tolist() == [1, 0]
    path = tmp_path / "celeba" / "raw" / "img_align_celeba" / "2.png"
    expected = np.asarray(Image.open(path).resize((8, 8)))
    assert torch.equal(dataset.train.inputs[0], torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert torch.equal(dataset.test.inputs[0], dataset.train.inputs[0])
    assert dataset.preprocess(dataset.train.inputs).max() <= 1
    path.unlink()
    with pytest.raises(ValueError, match=r"the image .*2.png of user '17' does not exist: set data.images"):
        leaf_celeba(root=str(tmp_path), size=9)
    with pytest.raises(FileNotFoundError, match=r"no folder .*elsewhere: set data.images"):
        leaf_celeba(root=str(tmp_path), images=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(("factory", "name"), [(sent140, "sent140"), (reddit, "reddit"), (leaf_celeba, "leaf_celeba")])
def test_what_is_missing_is_named(tmp_path, factory, name):
    with pytest.raises(ValueError, match=rf"data={name} needs data.root=<folder with LEAF's .* train/ and test/>"):
        factory()
    with pytest.raises(FileNotFoundError, match=r"no train/ of LEAF's .* in .*: set data.root to the folder that has"):
        factory(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"data.root=.*nowhere does not exist"):
        factory(root=str(tmp_path / "nowhere"))
