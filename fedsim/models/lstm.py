"""LEAF's recurrent networks (Caldas et al. 2018): two layers of LSTM over embedded tokens.

- `shakespeare_lstm`: the next character; 819,920 parameters, as the field counts PyTorch's, with two biases a gate.
- `sent140_lstm`: the sentiment of a tweet.
- `reddit_lstm`: the next word at every place; 6,180,624 parameters, one bias a gate, as in TensorFlow.

Layers start from PyTorch's default initialisation. Embedded tokens start from a normal distribution of deviation 1,
as `nn.Embedding` does.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fedsim.models.checks import positive_int


class LastOutput(nn.Module):
    """`body` and `head` on the LSTM's output at the last token; (B, length) int64 tokens to logits (B, C)."""

    def __init__(self, embedding: nn.Embedding, lstm: nn.LSTM, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.embedding, self.lstm, self.body, self.head = embedding, lstm, body, head

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(tokens))
        return self.head(self.body(outputs[:, -1]))


class EveryOutput(nn.Module):
    """`head` on the LSTM's output at every token; (B, length) int64 tokens to logits (B, C, length)."""

    def __init__(self, embedding: nn.Embedding, lstm: nn.LSTM, head: nn.Linear) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = embedding, lstm, head

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(tokens))
        return self.head(outputs).transpose(1, 2)


def shakespeare_lstm(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    embedding_size: int = 8,
    hidden_size: int = 256,
    num_layers: int = 2,
) -> nn.Module:
    """The next character after a window; 819,920 parameters for LEAF's 80 characters.

    Args:
        input_shape: (length,) of a window of tokens.
        num_classes: characters, in the windows and to predict.
        embedding_size: numbers that stand for a character.
        hidden_size: units of each layer.
        num_layers: layers of LSTM.

    Raises:
        ValueError: the samples are no token sequences, or an option is not a positive integer.
    """
    _check_tokens("shakespeare_lstm", input_shape, num_classes)
    embedding, lstm = _recurrent(num_classes, embedding_size, hidden_size, num_layers)
    return LastOutput(embedding, lstm, nn.Identity(), nn.Linear(hidden_size, num_classes))


def sent140_lstm(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    vocabulary_size: int,
    embedding_size: int = 100,
    hidden_size: int = 100,
    dense_size: int = 128,
    num_layers: int = 2,
) -> nn.Module:
    """The class of a text: LEAF's LSTM, a linear layer and a linear head (nothing is between the two, as in LEAF).

    100 V + 174,786 parameters for a vocabulary of V words. LEAF starts from GloVe's embeddings where it has them; here
    they are learnt.

    Args:
        input_shape: (length,) of the token sequences.
        num_classes: size of the output.
        vocabulary_size: V, above all tokens.
        embedding_size: numbers that stand for a word.
        hidden_size: units of each layer.
        dense_size: units of the linear layer.
        num_layers: layers of LSTM.

    Raises:
        ValueError: the samples are no token sequences, or an option is not a positive integer.
    """
    _check_tokens("sent140_lstm", input_shape, num_classes)
    embedding, lstm = _recurrent(vocabulary_size, embedding_size, hidden_size, num_layers)
    dense = nn.Linear(hidden_size, positive_int("model.dense_size", dense_size))
    return LastOutput(embedding, lstm, dense, nn.Linear(dense_size, num_classes))


def reddit_lstm(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    embedding_size: int = 256,
    hidden_size: int = 256,
    num_layers: int = 2,
) -> nn.Module:
    """The next word at every place; 6,180,624 trainable parameters for a vocabulary of 10,000.

    TensorFlow's LSTM has one bias a gate: PyTorch's second one, which adds to the first, is zero and not trained.

    Args:
        input_shape: (length,) of the token sequences.
        num_classes: words, in the sequences and to predict.
        embedding_size: numbers that stand for a word.
        hidden_size: units of each layer.
        num_layers: layers of LSTM.

    Raises:
        ValueError: the samples are no token sequences, or an option is not a positive integer.
    """
    _check_tokens("reddit_lstm", input_shape, num_classes)
    embedding, lstm = _recurrent(num_classes, embedding_size, hidden_size, num_layers)
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_hh"):
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)
    return EveryOutput(embedding, lstm, nn.Linear(hidden_size, num_classes))


def _recurrent(
    vocabulary_size: int, embedding_size: int, hidden_size: int, num_layers: int
) -> tuple[nn.Embedding, nn.LSTM]:
    for key, value in (("vocabulary_size", vocabulary_size), ("embedding_size", embedding_size)):
        positive_int(f"model.{key}", value)
    hidden, layers = positive_int("model.hidden_size", hidden_size), positive_int("model.num_layers", num_layers)
    embedding = nn.Embedding(vocabulary_size, embedding_size)
    return embedding, nn.LSTM(embedding_size, hidden, layers, batch_first=True)


def _check_tokens(model: str, input_shape: Sequence[int], num_classes: int) -> None:
    positive_int(f"num_classes of model={model}", num_classes)
    if len(input_shape) != 1 or input_shape[0] < 1:
        raise ValueError(
            f"model={model} takes sequences of tokens, of shape (length,), but the data's samples have shape "
            f"{tuple(input_shape)}: choose data=shakespeare, sent140 or reddit, or another model"
        )
