"""LEAF's Sent140 and Reddit: words, with a vocabulary made of the training samples."""

from dataclasses import replace
from typing import Any

from fedsim.data.federated import FederatedDataset
from fedsim.data.leaf import leaf_folder, open_leaf
from fedsim.data.leaf_pack import Recipe
from fedsim.data.leaf_text import Comments, Tweets
from fedsim.data.text import Tokens


def sent140(
    *,
    root: str | None = None,
    vocabulary_size: int = 10_000,
    length: int = 25,
    num_clients: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
) -> FederatedDataset:
    """Sent140, one client a user of Twitter: inputs (N, length) int32 tokens, targets (N,): 1 for a happy tweet.

    Args:
        root: folder of LEAF's files: train/ and test/ in it, or in its data/, sent140/ or sent140/data/.
        vocabulary_size: tokens; the most frequent words of the training samples, one for padding, one for the rest.
        length: words of a tweet; what is behind is cut, shorter ones are padded in front.
        num_clients, seed, cache_dir: as for `open_leaf`; the vocabulary is that of all clients.

    Raises:
        FileNotFoundError: LEAF's files are not in `root`.
        ValueError: `root` is missing, an argument is out of range, or a file is damaged.
    """
    recipe = Tweets(vocabulary_size=vocabulary_size, length=length)
    rest = {"num_clients": num_clients, "seed": seed, "cache_dir": cache_dir}
    return _words("sent140", "data/sent140/preprocess.sh makes", root, recipe, num_classes=2, **rest)


def reddit(
    *,
    root: str | None = None,
    vocabulary_size: int = 10_000,
    length: int = 10,
    num_clients: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
) -> FederatedDataset:
    """Reddit, one client an author: inputs (N, length) int32 tokens, targets (N, length) the next ones.

    What only fills a sequence up is no target (`fedsim.objective.IGNORED`). A word outside the vocabulary is one, and
    predicting that it is unknown counts as right, where LEAF counts it as wrong.

    Args:
        root: folder of LEAF's files: train/, test/ and val/ in it, or in its data/, reddit/ or reddit/data/.
        vocabulary_size: tokens; the most frequent words of the training samples, one for padding, one for the rest.
        length: words of a sequence, as the files have it.
        num_clients, seed, cache_dir: as for `open_leaf`; the vocabulary is that of all clients.

    Raises:
        FileNotFoundError: LEAF's files are not in `root`.
        ValueError: `root` is missing, an argument is out of range, or a file is damaged.
    """
    recipe = Comments(vocabulary_size=vocabulary_size, length=length)
    rest = {"num_clients": num_clients, "seed": seed, "cache_dir": cache_dir}
    return _words("reddit", "data/reddit/README.md links to", root, recipe, num_classes=vocabulary_size, **rest)


def _words(name: str, origin: str, root: str | None, recipe: Recipe, **rest: Any) -> FederatedDataset:
    if root is None:
        raise ValueError(
            f"data={name} needs data.root=<folder with LEAF's {name} train/ and test/>, which LEAF's {origin}"
        )
    dataset, facts = open_leaf(leaf_folder(root, name, ""), recipe, name=name, **rest)
    return replace(dataset, preprocess=Tokens(vocabulary=tuple(facts["vocabulary"])))
