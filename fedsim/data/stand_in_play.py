"""A made-up play, for runs without a download: sentences from a small grammar, each role with tastes of its own.

It is no Shakespeare. It has what the pipeline needs to be seen at work: roles of unequal length whose habits differ,
words that a model of characters can learn to spell, and an order of speeches.
"""

import numpy as np

from fedsim.rng import stream

_KINDS = {
    "person": "king, queen, fool, captain, widow, stranger, brother, daughter, soldier, merchant, priest, shepherd",
    "thing": "crown, candle, letter, sword, garden, river, window, promise, ring, mirror, harvest, song, ship",
    "quality": "bitter, golden, silent, broken, gentle, distant, honest, winter, hollow, stolen, patient, burning",
    "deed": "carry, follow, remember, betray, forgive, seek, bury, mend, question, praise, abandon, guard",
    "place": "the harbour, the tower, the northern road, the orchard, the empty hall, the mill, the sea",
    "call": "Alas, Come, Peace, Hark, Nay, Good friend, My lord, Look, Enough, Listen",
    "first": "Old, Young, Tall, Grey, Lame, Merry, Proud, Quiet, First, Second, Third, Blind",
    "last": "Miller, Sailor, Duke, Nurse, Gaoler, Piper, Clerk, Lady, Knight, Farmer, Herald, Weaver",
}
_WORDS = {kind: words.split(", ") for kind, words in _KINDS.items()}
_FIRST, _LAST = _WORDS.pop("first"), _WORDS.pop("last")
_SENTENCES = [
    "{call}, the {quality} {thing} is gone from {place}.",
    "Who will {deed} the {quality} {thing} when the {person} sleeps?",
    "I saw the {person} {deed} a {thing} by {place}, and I wept.",
    "{call}! The {person} has come to {place}; shall we {deed} her?",
    "No {person} may {deed} what the {quality} {person} has sworn.",
    "Give me the {thing}, and I will {deed} thee in {place}.",
    "'Tis a {quality} night, and every {thing} is {quality}.",
    "If the {person} should {deed} us, then let {place} be our grave.",
    "My {thing} is {quality}, my {person} is {quality}, and I am old.",
    "{call}, {call}: a {thing} for the {person}, a {thing} for me.",
    "Let the {person} {deed}; I shall {deed} no more.",
    "What {thing} is this? So {quality}, so {quality}!",
]
MAX_ROLES = len(_FIRST) * len(_LAST)

_ENOUGH = (500, 900)  # characters that a role says, at least and about at most
_TASTE = 0.6  # concentration of a role's preferences: lower is more of its own
_SPEECH = 3  # sentences of a speech, at most


def stand_in_play(num_roles: int, seed: int) -> str:
    """The text of a play with `num_roles` roles, as `plays.read_play` reads it; fewer roles say the same.

    Raises:
        ValueError: there are no names for so many roles.
    """
    if not 1 <= num_roles <= MAX_ROLES:
        raise ValueError(f"data.num_clients={num_roles}: the made-up play has from 1 to {MAX_ROLES} roles")
    names = [f"{first} {last}" for last in _LAST for first in _FIRST][:num_roles]
    speeches = [_speeches(stream(seed, "stand_in_play", client=role)) for role in range(num_roles)]
    # the roles speak in turn, until each has said what it has to say
    rounds = max(map(len, speeches))
    lines = [
        f"{name}:\n{own[turn]}\n"
        for turn in range(rounds)
        for name, own in zip(names, speeches, strict=True)
        if turn < len(own)
    ]
    return "\n".join(lines)


def _speeches(rng: np.random.Generator) -> list[str]:
    """What one role says: speeches of one to a few sentences, until it has said enough."""
    enough = rng.integers(*_ENOUGH)
    taste = rng.dirichlet(np.full(len(_SENTENCES), _TASTE))
    liking = {kind: rng.dirichlet(np.full(len(words), _TASTE)) for kind, words in _WORDS.items()}
    speeches: list[str] = []
    said = 0
    while said < enough:
        sentences = []
        for _ in range(rng.integers(1, _SPEECH + 1)):
            sentence = _SENTENCES[rng.choice(len(_SENTENCES), p=taste)]
            for kind, words in _WORDS.items():
                while f"{{{kind}}}" in sentence:
                    sentence = sentence.replace(f"{{{kind}}}", str(rng.choice(words, p=liking[kind])), 1)
            sentences.append(sentence)
        speeches.append("\n".join(sentences))
        said += len(speeches[-1]) + 1
    return speeches
