#!/usr/bin/env bash
# compose.yaml, tried for real: everything up, people talking across gateways
# while gateways are killed, scaled and restarted and nats-servers stop.
#
#   tests/compose.sh                the images compose.yaml names
#   tests/compose.sh --stand-ins    local ones under the same names, where no
#                                   image registry is reachable (needs root)
#
# By hand, not part of ./test: it needs a Docker engine with compose 2.20 or
# newer, python3, and about eight minutes. EXTRA_ENV: a file of further lines
# for .env. It ends with what it found, and leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."

export COMPOSE_PROJECT_NAME=qiyu-tried
work=$(mktemp -d)
env_files=(--env-file "$work/env")
crowd_pid=

compose() { docker compose "${env_files[@]}" "$@"; }
say() { printf '\n== %s  [%s s]\n' "$*" "$SECONDS"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
ended() {
    code=$?
    [ -z "$crowd_pid" ] || kill "$crowd_pid" 2>/dev/null || true
    if [ "$code" -ne 0 ]; then
        compose ps --all || true
        compose logs --tail 20 || true
    fi
    compose --profile cluster down --volumes --timeout 5 >/dev/null 2>&1 || true
    rm -rf "$work"
    exit "$code"
}
trap ended EXIT

# until_true SECONDS WHAT COMMAND...
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "not in time: $what"
        sleep 0.5
    done
}
containers() { compose ps --quiet "$@"; }
container() { containers "$1" | sed -n "${2:-1}p"; }
healthy() {
    local id state
    for id in $(containers "$@"); do
        state=$(docker inspect -f '{{if .State.Health}}{{.State.Health.Status}}{{else}}healthy{{end}}' "$id")
        [ "$state" = healthy ] || return 1
    done
}
all_healthy() { until_true 120 "all containers are healthy" healthy "$@"; }
# Looked at from outside the container, as an operator's Prometheus would.
address() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "$1" | cut -d' ' -f1; }
metric() { # CONTAINER NAME: the sum over its labels
    python3 - "$(address "$1")" "$2" <<'TEXT'
import sys, urllib.request
text = urllib.request.urlopen(f"http://{sys.argv[1]}:8080/metrics", timeout=5).read().decode()
print(sum(int(float(l.split()[-1])) for l in text.splitlines()
          if l.startswith((sys.argv[2] + " ", sys.argv[2] + "{"))))
TEXT
}
entrance() { curl -fsS -o /dev/null "http://127.0.0.1:$http_port/healthz" 2>/dev/null; }

crowd_starts() { # PEOPLE
    touch "$work/hold" "$work/crowd"
    # Unbuffered into a file: what it said is shown when it is done.
    python3 -u tests/compose/crowd.py 127.0.0.1 "$http_port" "$1" "$work/hold" >"$work/crowd" 2>&1 &
    crowd_pid=$!
    until_true 60 "the crowd is in the room" crowd_is_in
}
crowd_is_in() {
    kill -0 "$crowd_pid" 2>/dev/null || { cat "$work/crowd"; fail "the crowd did not get in"; }
    grep -q 'people are in room' "$work/crowd"
}
crowd_ends() {
    local code=0
    rm "$work/hold"
    wait "$crowd_pid" || code=$?
    crowd_pid=
    sed 's/^/   /' "$work/crowd"
    [ "$code" -eq 0 ] || fail "somebody did not hear everything"
}
nobody_was_refused() {
    local refused
    refused=$(compose logs --no-log-prefix nats nats-2 nats-3 2>/dev/null | grep Violation || true)
    [ -z "$refused" ] || fail "NATS refused a role something: $(head -n 5 <<<"$refused")"
    echo "   NATS refused no role anything"
}
has_verified() { [ "$(metric "$1" qiyu_verify_runs_total)" -ge "$2" ]; }
everything_is_what_the_log_says() {
    local verify runs differences unchecked
    verify=$(container verify)
    runs=$(metric "$verify" qiyu_verify_runs_total)
    # Twice: the one that is under way may have begun before what is asked about.
    until_true 180 "everything is compared with the log" has_verified "$verify" $((runs + 2))
    differences=$(metric "$verify" qiyu_verify_differences)
    unchecked=$(metric "$verify" qiyu_verify_unchecked)
    [ "$differences/$unchecked" = 0/0 ] ||
        fail "$differences differences, $unchecked not checked: $(docker logs "$verify" 2>&1 | grep WARN | tail -n 5)"
    echo "   verified $((runs + 2)) times, and everything is what the log says"
}
was_restarted() { [ "$(docker inspect -f '{{.RestartCount}}' "$1")" != 0 ]; }
nobody_was_restarted() {
    local id
    for id in $(containers "$@"); do
        ! was_restarted "$id" ||
            fail "$(docker inspect -f '{{.Name}}' "$id") was restarted: $(docker logs --tail 5 "$id" 2>&1)"
    done
    echo "   no process of these has ended: $*"
}
# A death as it comes: not by Docker's hand, which would not start it again.
dies() { kill -9 "$(docker inspect -f '{{.State.Pid}}' "$1")"; }

say "images"
[ "${1:-}" != --stand-ins ] || tests/compose/stand-ins.sh
[ -x target/release/qiyu ] || cargo build --release --bin qiyu
docker build --quiet --tag qiyu:local --target outside . >/dev/null
docker run --rm --read-only qiyu:local --version

say "without a .env nothing starts"
if env -u NATS_SYS_PASSWORD docker compose --env-file /dev/null up --detach 2>"$work/refused"; then
    fail "it started without secrets"
fi
tail -n 1 "$work/refused"

http_port=18080
deploy/make-env 127.0.0.1 >"$work/env"
cat >>"$work/env" - "${EXTRA_ENV:-/dev/null}" <<TEXT
BIND=127.0.0.1
HTTP_PORT=$http_port
TCP_PORT=18085
WS_PORT=18086
DEV_LOGIN=true
VERIFY_EVERY=20s
OPEN_FILES=$(ulimit -Hn | sed s/unlimited/262144/)
TEXT

say "roles first: they wait for NATS, the streams and the database"
compose up --detach --no-build --quiet-pull --scale gateway=3 --scale fanout=2 \
    gateway fanout presence living api verify balancer >/dev/null 2>&1
sleep 8
nobody_was_restarted gateway fanout presence living api verify
compose up --detach --no-build --quiet-pull --scale gateway=3 --scale fanout=2 >/dev/null 2>&1
all_healthy
until_true 30 "the balancer has found an api" entrance
nobody_was_restarted gateway fanout presence living api verify
compose ps --all --format 'table {{.Service}}\t{{.Name}}\t{{.Status}}'

say "people talk across three gateways"
crowd_starts 12
sleep 5
for number in 1 2 3; do
    people=$(metric "$(container gateway $number)" qiyu_gateway_connections)
    echo "   gateway $number holds $people people"
    [ "$people" -gt 0 ] || fail "the balancer sends nobody to gateway $number"
done

say "one gateway is killed, and comes back by itself"
victim=$(container gateway 2)
dies "$victim"
until_true 30 "Docker starts it again" was_restarted "$victim"
sleep 12
all_healthy gateway

say "one fan-out worker is killed"
dies "$(container fanout 1)"
sleep 12
all_healthy fanout

say "scaled up to four gateways and three workers, and down to two each"
compose up --detach --no-build --no-recreate --scale gateway=4 --scale fanout=3 >/dev/null 2>&1
all_healthy
compose up --detach --no-build --no-recreate --scale gateway=2 --scale fanout=2 >/dev/null 2>&1
sleep 5
all_healthy

say "every role is replaced, as by a new version: new ones beside the old, which then stop"
for role in fanout living presence api verify gateway; do
    old=$(containers $role)
    compose up --detach --no-build --no-deps --no-recreate \
        --scale $role=$(($(wc -w <<<"$old") * 2)) $role >/dev/null 2>&1
    all_healthy $role
    for id in $old; do
        docker stop --time 30 "$id" >/dev/null
        docker rm "$id" >/dev/null
    done
    all_healthy $role
    echo "   $role: $(containers $role | wc -w) new"
done
sleep 5
crowd_ends
everything_is_what_the_log_says
nobody_was_refused

say "down"
compose down --volumes --timeout 30 2>&1 | tail -n 1
[ -z "$(docker ps --quiet --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME)" ] ||
    fail "something still runs"

say "the cluster: three nats-servers, three copies"
env_files+=(--env-file deploy/cluster.env)
compose up --detach --no-build --quiet-pull --scale gateway=2 --scale fanout=2 >/dev/null 2>&1
all_healthy
until_true 30 "the balancer has found an api" entrance
nobody_was_restarted gateway fanout presence living api verify
compose exec -T nats wget -q -O - 'http://127.0.0.1:8222/jsz?streams=1&config=1' | python3 -c '
import json, sys
streams = [s for a in json.load(sys.stdin)["account_details"] for s in a["stream_detail"]]
copies = {s["config"]["num_replicas"] for s in streams}
print(f"   {len(streams)} streams with copies: {copies}")
sys.exit(copies != {3})'
crowd_starts 10
for node in nats nats-2 nats-3; do
    say "$node stops, and comes back"
    compose stop --timeout 30 $node >/dev/null 2>&1
    sleep 15
    compose start $node >/dev/null 2>&1
    all_healthy nats nats-2 nats-3
    all_healthy gateway fanout presence living api verify
done
say "a nats-server is killed"
dies "$(container nats-2)"
sleep 15
all_healthy
crowd_ends
everything_is_what_the_log_says
nobody_was_refused
nobody_was_restarted gateway fanout presence living api verify

say "down"
compose down --volumes --timeout 30 2>&1 | tail -n 1
say "all good"
