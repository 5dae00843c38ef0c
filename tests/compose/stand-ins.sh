#!/usr/bin/env bash
# Builds local images under the names compose.yaml and the Dockerfile ask for,
# out of Debian packages and our own nats-server: for machines that reach no
# image registry. An image that is there already is left alone.
#
# They are stand-ins: the same programs, of Debian's versions, with as much of
# the real images' behaviour as compose.yaml uses (users, variables, health
# checks). Needs root, docker, debootstrap, and a Debian mirror.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=trixie
debian=debian:$release-slim
parts=qiyu-stand-in:parts

has() { docker image inspect "$1" >/dev/null 2>&1; }
say() { printf -- '-- %s\n' "$*"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As docker's own images name it, and with what Debian's lack for us: certificates.
if ! has "$debian" || ! has "$parts"; then
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
    say "a Debian $release from packages"
    debootstrap --variant=minbase --include=ca-certificates "$release" "$work/tree" \
        "${mirror:-http://deb.debian.org/debian}" >"$work/log" 2>&1 || { tail "$work/log"; exit 1; }
    chroot "$work/tree" apt-get clean
    tar -C "$work/tree" -c . | docker import - "$debian" >/dev/null
    say "haproxy, redis, mariadb from packages"
    cp /etc/resolv.conf "$work/tree/etc/resolv.conf"
    # Nothing starts while it is installed.
    printf '#!/bin/sh\nexit 101\n' >"$work/tree/usr/sbin/policy-rc.d"
    chmod +x "$work/tree/usr/sbin/policy-rc.d"
    {
        DEBIAN_FRONTEND=noninteractive chroot "$work/tree" apt-get update
        DEBIAN_FRONTEND=noninteractive chroot "$work/tree" apt-get install --yes \
            --no-install-recommends haproxy redis-server mariadb-server wget
    } >"$work/log" 2>&1 || { tail "$work/log"; exit 1; }
    chroot "$work/tree" apt-get clean
    rm -f "$work/tree/usr/sbin/policy-rc.d" "$work/tree/etc/resolv.conf"
    tar -C "$work/tree" -c . | docker import - "$parts" >/dev/null
fi

# build NAME: the Dockerfile on standard input, the context in $work/context.
context=$work/context
mkdir -p "$context"
build() {
    has "$1" && return
    say "$1"
    cat >"$context/Dockerfile"
    docker build --quiet --tag "$1" "$context" >/dev/null
}

cp "${NATS_SERVER:-$(cargo run --quiet --release -- fetch-nats)}" "$context/nats-server"
cat >"$context/nats-entrypoint" <<'TEXT'
#!/bin/sh
# As the official image: flags alone are flags of nats-server.
case "${1:-}" in -*) set -- nats-server "$@" ;; esac
exec "$@"
TEXT
cat >"$context/mariadb-entrypoint" <<'TEXT'
#!/bin/bash
# As the official image, as far as compose.yaml goes: the database and its user
# are made once, before anybody can connect.
set -eu
data=/var/lib/mysql
if [ ! -d "$data/mysql" ]; then
    mariadb-install-db --user=mysql --datadir="$data" --skip-test-db >/dev/null
    {
        echo "FLUSH PRIVILEGES;"
        echo "CREATE DATABASE \`$MARIADB_DATABASE\`;"
        echo "CREATE USER '$MARIADB_USER'@'%' IDENTIFIED BY '$MARIADB_PASSWORD';"
        echo "GRANT ALL ON \`$MARIADB_DATABASE\`.* TO '$MARIADB_USER'@'%';"
    } | mariadbd --user=mysql --datadir="$data" --bootstrap
fi
mkdir -p /run/mysqld && chown mysql:mysql /run/mysqld
exec mariadbd --user=mysql --datadir="$data" --bind-address=0.0.0.0
TEXT
printf '#!/bin/sh\nexec mariadb-admin ping --silent\n' >"$context/healthcheck.sh"
chmod +x "$context"/*

build nats:2.15.1-alpine <<TEXT
FROM $parts
COPY nats-server nats-entrypoint /usr/local/bin/
ENTRYPOINT ["nats-entrypoint"]
TEXT
build mariadb:11.8 <<TEXT
FROM $parts
RUN rm -rf /var/lib/mysql/* /etc/mysql/conf.d/* /etc/mysql/mariadb.conf.d/*
COPY mariadb-entrypoint healthcheck.sh /usr/local/bin/
ENTRYPOINT ["mariadb-entrypoint"]
TEXT
build redis:8-alpine <<TEXT
FROM $parts
USER redis
CMD ["redis-server"]
TEXT
build haproxy:3.0-alpine <<TEXT
FROM $parts
USER haproxy
STOPSIGNAL SIGUSR1
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
TEXT
