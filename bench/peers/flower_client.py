"""Flower's ClientApp, in a module of its own, so that Ray's workers import it once."""

from functools import lru_cache

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peers.common import batches, model, read
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

app = ClientApp()
work = lru_cache(read)


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    mine = work(config["folder"], mapped=True, shuffle=config["shuffle"])
    torch.set_num_threads(1)
    span = mine.spans[config["client"]]
    samples = TensorDataset(torch.from_numpy(np.array(mine.inputs[span])), torch.from_numpy(mine.targets[span]))
    net = model(mine).train()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=mine.rate)
    for x, y in batches(mine, samples):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(samples)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
