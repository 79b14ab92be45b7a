#!/bin/sh
# A node of a federation: Flower's SuperNode. Further flags of flower-supernode may follow.
#
#   UMBEL_SUPERLINK        the server's Fleet API, host:port
#   UMBEL_PARTITION_ID     which share of the clients this node holds, from 0,
#   UMBEL_NUM_PARTITIONS   out of so many shares;
#   UMBEL_PARTITIONS       or the clients themselves, such as 0-24,30: wins over the two above
#   UMBEL_NODE_CONFIG      further key=value pairs for the ClientApp
#   UMBEL_RUNTIME_PORT     HTTP, on 127.0.0.1 only, for the node's own processes, 9094
#   UMBEL_HEALTH_PORT      gRPC health check, on 127.0.0.1 only, 9095
#   UMBEL_STATE            folder for the memory of this node's clients (read by the ClientApp)
#   UMBEL_DATA             folder of this site's data (read by the ClientApp)
set -eu

fail() {
    echo "umbel-client: $1" >&2
    exit 2
}

number() {
    case $2 in
        '' | *[!0-9]*) fail "$1 must be a whole number, found '$2'." ;;
    esac
}

if [ -n "$UMBEL_PARTITIONS" ]; then
    case $UMBEL_PARTITIONS in
        *[!0-9,-]*) fail "UMBEL_PARTITIONS must look like 0-24,30, found '$UMBEL_PARTITIONS'." ;;
    esac
    node_config="partitions=\"$UMBEL_PARTITIONS\""
else
    number UMBEL_PARTITION_ID "$UMBEL_PARTITION_ID"
    number UMBEL_NUM_PARTITIONS "$UMBEL_NUM_PARTITIONS"
    [ "$UMBEL_PARTITION_ID" -lt "$UMBEL_NUM_PARTITIONS" ] ||
        fail "UMBEL_PARTITION_ID=$UMBEL_PARTITION_ID must be below UMBEL_NUM_PARTITIONS=$UMBEL_NUM_PARTITIONS."
    node_config="partition-id=$UMBEL_PARTITION_ID num-partitions=$UMBEL_NUM_PARTITIONS"
fi

exec flower-supernode \
    --insecure \
    --grpc-rere \
    --superlink "$UMBEL_SUPERLINK" \
    --host 127.0.0.1 \
    --port "$UMBEL_RUNTIME_PORT" \
    --health-server-address "127.0.0.1:$UMBEL_HEALTH_PORT" \
    --node-config "$node_config${UMBEL_NODE_CONFIG:+ $UMBEL_NODE_CONFIG}" \
    "$@"
