// A peer for the comparison of compression: uWebSockets, every message to every connection.
//
// Lean and idiomatic: one topic, to which the library publishes. It gathers the messages of a turn of its loop, and compresses
// each of them for each connection: with the compressor that all connections share, without context, or with a compressor of
// 256 KB for each connection (its largest), which keeps the context.
//
//   uwebsockets shared|dedicated|disabled
#include "App.h"

#include <iostream>

struct Nothing {};

int main(int, char **arguments) {
    std::string_view mode = arguments[1] ? arguments[1] : "disabled";
    uWS::CompressOptions compression = uWS::DISABLED;
    if (mode == "shared") {
        compression = uWS::CompressOptions(uWS::SHARED_COMPRESSOR | uWS::SHARED_DECOMPRESSOR);
    } else if (mode == "dedicated") {
        compression = uWS::CompressOptions(uWS::DEDICATED_COMPRESSOR | uWS::SHARED_DECOMPRESSOR);
    }
    uWS::App app;
    app.ws<Nothing>("/ws", {
        .compression = compression,
        .maxPayloadLength = 1 << 20,
        .idleTimeout = 120,
        .maxBackpressure = 64 << 20,
        .open = [](auto *socket) { socket->subscribe("main"); },
        .message = [&app](auto *, std::string_view message, uWS::OpCode kind) { app.publish("main", message, kind, true); },
    });
    app.listen("127.0.0.1", 0, [](auto *socket) {
        if (!socket) {
            std::cerr << "cannot listen" << std::endl;
            std::exit(1);
        }
        std::cout << "listening on ws://127.0.0.1:" << us_socket_local_port(0, (us_socket_t *) socket) << "/ws" << std::endl;
    });
    app.run();
}
