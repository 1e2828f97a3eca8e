# An image with the static program and nothing else.
#
#   docker build -t oyez .
#   docker run -p 8080:8080 -v ./secret.key:/etc/oyez/secret.key:ro -v oyez:/var/lib/oyez oyez
#
# secret.key signs the tokens (oyez token secret secret.key); user 65532 has to be able to read it.

FROM rust:1.90-bookworm AS build
# Within a Debian release, versions change for fixes only.
# hadolint ignore=DL3008
RUN apt-get -q update \
  && apt-get -q install -y --no-install-recommends musl-tools \
  && rm -rf /var/lib/apt/lists/* \
  && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /source
COPY . .
RUN target=$(uname -m)-unknown-linux-musl \
  && cargo build --release --locked --target "$target" \
  && cp "target/$target/release/oyez" oyez \
  && mkdir -p state

FROM scratch
COPY --from=build /source/oyez /oyez
COPY --from=build --chown=65532:65532 /source/state /var/lib/oyez
USER 65532:65532
ENV OYEZ_LISTEN=0.0.0.0:8080 OYEZ_HISTORY_FILE=/var/lib/oyez/history
EXPOSE 8080
VOLUME /var/lib/oyez
HEALTHCHECK --interval=10s --timeout=5s CMD ["/oyez", "health", "--ready"]
ENTRYPOINT ["/oyez"]
CMD ["serve", "--jwt-secret-file", "/etc/oyez/secret.key"]
