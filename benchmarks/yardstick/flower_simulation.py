"""Stock Flower: its own simulation with its own FedAvg, two workers; data and model are kept in each worker."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from yardstick import training
from yardstick.marks import Clock, assignment, outcome
from yardstick.workload import Workload


def client_app(folder: Path) -> ClientApp:
    """Return the app of the clients."""
    app, place = ClientApp(), str(folder)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        workload, data, model = training.at_hand(place)
        images, labels = data[int(context.node_config["partition-id"])]
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        training.train(model, images, labels, workload, torch.Generator().manual_seed(torch.seed()))
        content = RecordDict(
            {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(labels)})}
        )
        return Message(content, reply_to=message)

    return app


def main() -> None:
    """Run as a contender."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    options, folder = assignment()
    clock, workload = Clock(), Workload.read(folder)
    num_clients, num_workers = len(workload.sizes), int(options["workers"])
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=workload.clients_per_round / num_clients,
            fraction_evaluate=0.0,
            min_available_nodes=num_clients,
        )
        arrays = ArrayRecord(training.build(workload, folder).state_dict())
        warm = strategy.start(grid, arrays, num_rounds=workload.warm_rounds)
        clock.begin()
        result = strategy.start(grid, warm.arrays, num_rounds=workload.rounds)
        clock.end()
        torch.save(result.arrays.to_torch_state_dict(), outcome())

    run_simulation(
        server_app,
        client_app(folder),
        num_supernodes=num_clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": num_workers},
        },
    )


if __name__ == "__main__":
    main()
