#!/usr/bin/env python
"""Exit 0 when the Flower process of this container serves, else 1 with a line that says what does not.

Both processes answer gRPC's standard health check on UMBEL_HEALTH_PORT. A SuperLink answers before its other ports are
open, so those that the image's environment names are tried too.
"""

from __future__ import annotations

import os
import socket
import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

TIMEOUT_SECONDS = 4.0
PORTS = ("UMBEL_FLEET_PORT", "UMBEL_CONTROL_PORT", "UMBEL_RUNTIME_PORT")


def problem() -> str:
    """Return what is wrong, or nothing."""
    address = f"127.0.0.1:{os.environ['UMBEL_HEALTH_PORT']}"
    with grpc.insecure_channel(address) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            return f"{address} does not answer a health check: {error.code()}"
    if answer.status != HealthCheckResponse.SERVING:
        return f"{address} answers {HealthCheckResponse.ServingStatus.Name(answer.status)}, not SERVING"
    for name in PORTS:
        if name in os.environ:
            try:
                socket.create_connection(("127.0.0.1", int(os.environ[name])), TIMEOUT_SECONDS).close()
            except OSError as error:
                return f"{name}={os.environ[name]} is not open: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(problem() or 0)
