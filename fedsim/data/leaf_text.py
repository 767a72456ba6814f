"""LEAF sets of text: windows of characters (Shakespeare), tweets (Sent140) and comments (Reddit).

Vocabularies of words are made of the training samples alone, so that nothing of the test samples leaks into them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.data.leaf_json import LeafUser, read_split
from fedsim.data.leaf_numbers import class_targets
from fedsim.data.leaf_pack import Encoding, Files
from fedsim.data.plays import WINDOW
from fedsim.data.text import PAD, PAD_ID, UNKNOWN_ID, build_vocabulary, encode_characters, split_words
from fedsim.objective import IGNORED

_TWEET_TEXT = 4  # LEAF keeps the columns of Sent140's table: id, date, query, user, text


@dataclass(frozen=True, kw_only=True)
class CharacterWindows:
    """x: strings of `window` characters; y: the character after each. uint8 inputs (n, window), targets (n,).

    Attributes:
        window: characters of an input.
    """

    window: int = WINDOW

    @property
    def key(self) -> list[Any]:
        return ["character windows", self.window]

    def encodings(self, files: Files) -> Iterator[Encoding]:
        facts = {"unknown": 0}

        def encode(user: LeafUser) -> tuple[np.ndarray, np.ndarray]:
            for texts, length in ((user.x, self.window), (user.y, 1)):
                for text in texts:
                    if not isinstance(text, str) or len(text) != length:
                        raise ValueError(
                            f"{user.file}: user {user.name!r} has {text!r} where a string of {length} characters is "
                            "expected: repair the file, or check that it is LEAF's shakespeare"
                        )
            inputs, _ = encode_characters("".join(user.x))
            targets, unknown = encode_characters("".join(user.y))
            facts["unknown"] += unknown
            return inputs.reshape(-1, self.window), targets.astype(np.int64)

        yield Encoding(dtype=np.uint8, input_shape=(self.window,), encode=encode, facts=facts)


@dataclass(frozen=True, kw_only=True)
class Tweets:
    """x: Sent140's columns, of which the last is the text, or the text; y: the class. int32 inputs (n, length).

    Texts are cut behind `length` words, and shorter ones are filled up in front, so that a recurrent network has just
    read the last word. LEAF fills them up behind, with the token for unknown words.

    Attributes:
        vocabulary_size: tokens, two of which stand for no word.
        length: words of an input.
        num_classes: targets are integers in [0, num_classes).
    """

    vocabulary_size: int
    length: int
    num_classes: int = 2

    @property
    def key(self) -> list[Any]:
        return ["tweets", self.vocabulary_size, self.length, self.num_classes]

    def encodings(self, files: Files) -> Iterator[Encoding]:
        counts: Counter[str] = Counter()
        for user in read_split(files["train"]):
            for tweet in user.x:
                counts.update(self._words(user, tweet))
        vocabulary = build_vocabulary(counts, self.vocabulary_size)
        ids = {word: i for i, word in enumerate(vocabulary)}

        def encode(user: LeafUser) -> tuple[np.ndarray, np.ndarray]:
            inputs = np.full((len(user.x), self.length), PAD_ID, dtype=np.int32)
            for row, tweet in zip(inputs, user.x, strict=True):
                words = self._words(user, tweet)[: self.length]
                row[self.length - len(words) :] = [ids.get(word, UNKNOWN_ID) for word in words]
            return inputs, class_targets(user, self.num_classes)

        facts = {"vocabulary": vocabulary}
        yield Encoding(dtype=np.int32, input_shape=(self.length,), encode=encode, facts=facts)

    def _words(self, user: LeafUser, tweet: Any) -> list[str]:
        text = tweet[_TWEET_TEXT] if isinstance(tweet, list) and len(tweet) > _TWEET_TEXT else tweet
        if not isinstance(text, str):
            raise ValueError(
                f"{user.file}: user {user.name!r} has {text!r} where a tweet is expected (its text, or Sent140's five "
                "columns): repair the file, or check that it is LEAF's sent140"
            )
        return split_words(text)


@dataclass(frozen=True, kw_only=True)
class Comments:
    """x: comments of sequences of words; y: {"target_tokens": the next words}. int32 inputs and targets (n, length).

    A sample is a sequence, of which a comment has one or more. A target that only fills a sequence up is `IGNORED`,
    and a sequence without any other target is left out: LEAF counts one such target for each comment.

    Attributes:
        vocabulary_size: tokens, two of which stand for no word.
        length: words of a sequence.
    """

    vocabulary_size: int
    length: int

    @property
    def key(self) -> list[Any]:
        return ["comments", self.vocabulary_size, self.length]

    def encodings(self, files: Files) -> Iterator[Encoding]:
        counts: Counter[str] = Counter()
        for user in read_split(files["train"]):
            for sequence, _ in self._sequences(user):
                counts.update(sequence)
        vocabulary = build_vocabulary(counts, self.vocabulary_size)
        ids = {word: i for i, word in enumerate(vocabulary)}

        def encode(user: LeafUser) -> tuple[np.ndarray, np.ndarray]:
            inputs, targets = [], []
            for sequence, following in self._sequences(user):
                inputs.append([ids.get(word, UNKNOWN_ID) for word in sequence])
                targets.append([IGNORED if word == PAD else ids.get(word, UNKNOWN_ID) for word in following])
            shape = (-1, self.length)
            return np.array(inputs, dtype=np.int32).reshape(shape), np.array(targets, dtype=np.int64).reshape(shape)

        facts = {"vocabulary": vocabulary}
        shape = (self.length,)
        yield Encoding(dtype=np.int32, input_shape=shape, target_shape=shape, encode=encode, facts=facts)

    def _sequences(self, user: LeafUser) -> Iterator[tuple[list[str], list[str]]]:
        """The words of each sequence and those that follow them, where at least one does."""
        for comment, label in zip(user.x, user.y, strict=True):
            following = label.get("target_tokens") if isinstance(label, dict) else None
            if not isinstance(comment, list) or not isinstance(following, list) or len(comment) != len(following):
                raise self._unusable(user, "a comment without as many target_tokens as sequences")
            for sequence, targets in zip(comment, following, strict=True):
                for words in (sequence, targets):
                    if not isinstance(words, list) or len(words) != self.length:
                        raise self._unusable(user, f"{words!r} where {self.length} words are expected")
                    if not all(isinstance(word, str) for word in words):
                        raise self._unusable(user, f"{words!r}, which is no list of words")
                if any(word != PAD for word in targets):
                    yield sequence, targets

    def _unusable(self, user: LeafUser, found: str) -> ValueError:
        return ValueError(
            f"{user.file}: user {user.name!r} has {found}: repair the file, or check that it is LEAF's reddit"
        )
