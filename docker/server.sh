#!/bin/sh
# The server of a federation: Flower's SuperLink. Further flags of flower-superlink may follow.
#
#   UMBEL_LISTEN         address to listen on, 0.0.0.0
#   UMBEL_FLEET_PORT     gRPC, for the nodes, 9092
#   UMBEL_CONTROL_PORT   HTTP, for `flwr run`, 8000
#   UMBEL_HEALTH_PORT    gRPC health check, on 127.0.0.1 only, 9095
set -eu

exec flower-superlink \
    --insecure \
    --disable-runtime-dependency-installation \
    --fleet-api-type grpc-rere \
    --fleet-api-address "$UMBEL_LISTEN:$UMBEL_FLEET_PORT" \
    --host "$UMBEL_LISTEN" \
    --port "$UMBEL_CONTROL_PORT" \
    --health-server-address "127.0.0.1:$UMBEL_HEALTH_PORT" \
    "$@"
