"""Models: plain nn.Module classes, and a factory for each with one signature.

`factory(input_shape, num_classes, **options) -> nn.Module`: the shape of one preprocessed sample without the
batch dimension, the size of the output, and the model's own options (`model.*` in the configuration). A
configuration names a factory by this package, for example `fedsim.models.mlp`. The last layer is called
`head` in every model, so that personalisation can name it. A factory draws its initial parameters from
torch's global generator: seed that before, or overwrite the parameters.
"""

from fedsim.models.cnn import celeba_cnn, cifar_cnn, convnet2, fedavg_cnn, leaf_cnn
from fedsim.models.logistic import logistic
from fedsim.models.lstm import reddit_lstm, sent140_lstm, shakespeare_lstm
from fedsim.models.mlp import mlp
from fedsim.models.resnet import resnet18
from fedsim.models.vgg import vgg11

__all__ = [
    "celeba_cnn",
    "cifar_cnn",
    "convnet2",
    "fedavg_cnn",
    "leaf_cnn",
    "logistic",
    "mlp",
    "reddit_lstm",
    "resnet18",
    "sent140_lstm",
    "shakespeare_lstm",
    "vgg11",
]
