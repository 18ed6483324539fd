#!/usr/bin/env bash
# A cluster on this machine: Postgres, a bucket, the sandbox provider, a load balancer, two brokers and two workers.
#   scripts/cluster.sh up             run it until Ctrl-C
#   scripts/cluster.sh trial [2000]   send orders while two processes are killed and one is suspended; print the numbers
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${CLUSTER_IS_SET_UP:-}" ] || make --silent .venv/dev
exec .venv/bin/python -m tests.support.cluster "${@:-trial}"
