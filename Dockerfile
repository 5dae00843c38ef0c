# qiyu in a small image without a shell's worth of extras, run by nobody in particular.
#
#   docker build -t qiyu:local .                    # compiles it here
#   docker build -t qiyu:local --target outside .   # takes target/release/qiyu
#
# The same commit gives the same binary: dependencies are locked, the path is
# always /src, and nothing reads the clock. For the same image, pin RUST and
# BASE by digest, too, and set SOURCE_DATE_EPOCH to the commit's time.
ARG RUST=rust:1.95-slim-trixie
ARG BASE=debian:trixie-slim

FROM ${BASE} AS base
# Certificates are for webhooks over TLS. A number, not a name: nothing has to
# be added to /etc/passwd, and Kubernetes can see that it is not root.
RUN test -e /etc/ssl/certs/ca-certificates.crt || { \
        apt-get update && \
        apt-get install --yes --no-install-recommends ca-certificates && \
        rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*; \
    } ; \
    install -d -o 10001 -g 10001 -m 0700 /data
USER 10001:10001
WORKDIR /data
ENV QIYU_HTTP_LISTEN=0.0.0.0:8080 \
    QIYU_WS_LISTEN=0.0.0.0:8086 \
    QIYU_TCP_LISTEN=0.0.0.0:8085 \
    QIYU_DATA_DIR=/data
EXPOSE 8080 8085 8086
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["qiyu", "health"]
ENTRYPOINT ["qiyu"]

# Before the stage that compiles: builders that know no better run every stage
# up to the one they want. The binary must be made for a glibc that is no newer
# than the base's (Debian 13 has 2.41).
FROM base AS outside
ARG BINARY=target/release/qiyu
COPY ${BINARY} /usr/local/bin/qiyu

FROM ${RUST} AS build
WORKDIR /src
COPY . .
# Without the line tables of its own: they are four fifths of the binary.
RUN CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked --bin qiyu

FROM base AS built
COPY --from=build /src/target/release/qiyu /usr/local/bin/qiyu
