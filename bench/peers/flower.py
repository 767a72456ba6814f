"""Flower: its simulation runtime on Ray with FedAvg, as many workers as cores, each with one thread.

Its start, with Ray's, is over when the first round begins: the memory of Ray's processes then counts as start.
"""

import os
import time
from importlib.metadata import version

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peers import flower_client
from peers.common import Rounds, load, model, values


def main() -> None:
    work, rounds = load(mapped=True), Rounds()
    net, app = model(work), ServerApp()
    size = work.cohorts.shape[1]

    class Scheduled(FedAvg):
        """Tells each node whose samples to train on, so that every system trains the same clients."""

        def configure_train(self, server_round, arrays, config, grid):
            while len(nodes := sorted(grid.get_node_ids())) < work.num_clients:  # they are still starting
                time.sleep(0.1)
            if server_round == 1:
                rounds.ready()
            return [
                Message(
                    RecordDict(
                        {
                            "arrays": arrays,
                            "config": ConfigRecord(
                                {"folder": str(work.folder), "client": client, "shuffle": work.shuffle}
                            ),
                        }
                    ),
                    dst_node_id=node,
                    message_type=MessageType.TRAIN,
                )
                for node, client in zip(nodes[:size], work.cohorts[server_round - 1].tolist(), strict=True)
            ]

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            failed = [reply.error for reply in replies if reply.has_error()]
            if failed or len(replies) != size:
                raise RuntimeError(f"round {server_round}: {len(replies)} of {size} replies, errors {failed}")
            result = super().aggregate_train(server_round, replies)
            rounds.done()
            return result

    @app.main()
    def _main(grid, context):
        strategy = Scheduled(fraction_evaluate=0.0, min_available_nodes=work.num_clients)
        arrays = ArrayRecord(net.state_dict())
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=len(work.cohorts))
        net.load_state_dict(result.arrays.to_torch_state_dict())
        rounds.finish(work, values(net), version=f"{version('flwr')}, torch {torch.__version__}")

    run_simulation(
        app,
        flower_client.app,
        num_supernodes=work.num_clients,
        backend_config={
            "init_args": {"num_cpus": work.threads},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    main()
