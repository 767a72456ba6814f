"""Text as integers: vocabularies, and what turns stored tokens into a model's input."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from torch import Tensor

# LEAF's characters for Shakespeare, in its order, so that its models' embeddings and ours have the same rows.
CHARACTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
PAD, UNKNOWN = "<PAD>", "<UNK>"
PAD_ID, UNKNOWN_ID = 0, 1

_WORD = re.compile(rf"{UNKNOWN.lower()}|[\w']+|[.,!?;]")
_SPACE = CHARACTERS.index(" ")
_TABLE = np.full(128, len(CHARACTERS), dtype=np.uint8)
_TABLE[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Stored tokens (B, ...) of any integer type to int64, as embeddings take them.

    Attributes:
        vocabulary: what each token stands for.
    """

    vocabulary: tuple[str, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs.long()


def encode_characters(text: str) -> tuple[np.ndarray, int]:
    """(n,) uint8 places in `CHARACTERS`, and how many characters are not there, for which a space stands."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    tokens = _TABLE[np.minimum(codes, 127)]
    unknown = (tokens == len(CHARACTERS)) | (codes > 127)
    return np.where(unknown, np.uint8(_SPACE), tokens), int(unknown.sum())


def split_words(text: str) -> list[str]:
    """Lower-case words (letters, digits, apostrophes) and the marks . , ! ? ; of a text; `UNKNOWN` stays itself."""
    return [UNKNOWN if word == UNKNOWN.lower() else word for word in _WORD.findall(text.lower())]


def build_vocabulary(counts: Counter[str], size: int) -> tuple[str, ...]:
    """PAD, UNKNOWN and the size - 2 most frequent words; of equally frequent ones the alphabet's first.

    Raises:
        ValueError: there is no room for a word.
    """
    if size < 3:
        raise ValueError(f"data.vocabulary_size must be at least 3, two of which stand for no word, got {size}")
    words = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = [word for word, _ in words if word not in (PAD, UNKNOWN)][: size - 2]
    return (PAD, UNKNOWN, *kept)
