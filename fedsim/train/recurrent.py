"""The twin of nn.LSTM for K clients side by side.

The kernels behind nn.LSTM (oneDNN's on a CPU, cuDNN's on a GPU) take one set of weights, and functorch has no rule to
batch them. Written out, every operation has one, and the products with all clients' weights are batched products.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, Tensor]


class UnrolledLSTM(nn.Module):
    """nn.LSTM (Hochreiter and Schmidhuber 1997, with forget gates), one place after another.

    Parameters have nn.LSTM's names. The products with the inputs are one product for all places; only those with the
    state before have to wait for it.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.num_layers, self.hidden_size, self.dropout = lstm.num_layers, lstm.hidden_size, lstm.dropout
        self.bias, self.batch_first = lstm.bias, lstm.batch_first
        for name, parameter in lstm.named_parameters():
            self.register_parameter(name, parameter)

    @staticmethod
    def replaces(module: nn.Module) -> bool:
        """Whether `module` is an LSTM that this twin can stand for: in one direction and without a projection."""
        return type(module) is nn.LSTM and not module.bidirectional and not module.proj_size

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As nn.LSTM: (B, length, in) if batch_first, else (length, B, in), to outputs of `hidden_size`."""
        time = 1 if self.batch_first else 0
        last_hidden, last_cell = [], []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            projected = x @ getattr(self, f"weight_ih_l{layer}").T
            if self.bias:
                projected = projected + getattr(self, f"bias_ih_l{layer}") + getattr(self, f"bias_hh_l{layer}")
            recurrent = getattr(self, f"weight_hh_l{layer}").T
            if state is None:
                hidden = cell = x.new_zeros((x.shape[1 - time], self.hidden_size))
            else:
                hidden, cell = state[0][layer], state[1][layer]
            outputs = []
            for gates in projected.unbind(time):
                keep_in, forget, new, keep_out = (gates + hidden @ recurrent).chunk(4, dim=1)
                cell = forget.sigmoid() * cell + keep_in.sigmoid() * new.tanh()
                hidden = keep_out.sigmoid() * cell.tanh()
                outputs.append(hidden)
            x = torch.stack(outputs, dim=time)
            last_hidden.append(hidden)
            last_cell.append(cell)
        return x, (torch.stack(last_hidden), torch.stack(last_cell))
