# What `up` and `down` share: where everything is, and whether a process is ours. Sourced, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts use the names

directory=$(realpath -m -- "${BLOBCAST_CLUSTER_DIR:-blobcast-cluster}")
unset BLOBCAST_CLUSTER_DIR # a node would take it for a key of its configuration
servers=(nats-1 nats-2 nats-3)
nodes=(a b c)

# The process of a server or node, if it runs. A number that another program has by now does not count: ours has the directory in
# its command line.
process_of() {
    local file=$directory/$1/pid pid
    [ -r "$file" ] && pid=$(<"$file") && [ -n "$pid" ] || return 1
    case $(ps -o args= -p "$pid" 2>/dev/null) in
    *"$directory/$1/"*) echo "$pid" ;;
    *) return 1 ;;
    esac
}
