#!/bin/sh
# Bundles the project, sends it to the server, follows the run's log, and exits 0 only if the run was completed.
#
#   umbel-submit EXPERIMENT [KEY=VALUE ...]
#
# EXPERIMENT is the name of a shipped experiment or the path of a YAML file, whose text then travels with the run.
#
#   UMBEL_APP       the project's folder, /umbel/app
#   UMBEL_CONTROL   the server's Control API, superlink:8000
set -eu

fail() {
    echo "umbel-submit: $1" >&2
    exit 2
}

[ $# -gt 0 ] || fail "expected EXPERIMENT [KEY=VALUE ...], such as: digits run.rounds=3"
experiment=$1
shift

app=${UMBEL_APP:-/umbel/app}
[ -f "$app/pyproject.toml" ] || fail "$app has no pyproject.toml: mount the project there, or set UMBEL_APP."

text=''
case $experiment in
    *.yaml | *.yml)
        [ -f "$experiment" ] || fail "there is no file $experiment."
        text=$(cat "$experiment")
        experiment=$(basename "$experiment")
        experiment=${experiment%.*}
        ;;
esac

overrides=''
for pair in "$@"; do
    case $pair in
        -* | =*) fail "expected KEY=VALUE, found '$pair'." ;;
        *=*) ;;
        *) fail "expected KEY=VALUE, found '$pair'." ;;
    esac
    overrides="$overrides$pair
"
done

# TOML's literal strings need no escapes; what would end one early is refused.
case $experiment$text$overrides in
    *"'''"*) fail "three single quotes in a row cannot be passed on." ;;
esac

# A Flower home of its own, so that two submissions never share one.
FLWR_HOME=$(mktemp -d)
export FLWR_HOME
trap 'rm -rf "$FLWR_HOME"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cat > "$FLWR_HOME/config.toml" << END
[superlink]
default = "federation"

[superlink.federation]
address = "${UMBEL_CONTROL:-superlink:8000}"
insecure = true
END

cat > "$FLWR_HOME/run.toml" << END
experiment = '''
$experiment'''
overrides = '''
$overrides'''
experiment-yaml = '''
$text'''
END

# `flwr run --stream` exits 0 whatever becomes of the run; and with JSON every command exits 0, even a refused one.
answer=$(flwr run "$app" federation --run-config "$FLWR_HOME/run.toml" --format json)
run=$(printf '%s\n' "$answer" | sed -n 's/^ *"run-id": "\([0-9]*\)".*/\1/p')
if [ -z "$run" ]; then
    printf '%s\n' "$answer" >&2
    exit 1
fi

flwr log "$run" federation
answer=$(flwr list federation --run-id "$run" --format json)
printf '%s\n' "$answer" | sed -n 's/^ *"\(status[a-z-]*\)": "\(.*\)",*$/\1: \2/p'
case $answer in
    *'"status": "finished:completed"'*) ;;
    *) exit 1 ;;
esac
