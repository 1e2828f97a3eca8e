// A peer for the side-by-side benchmark: ws on node, every message to every connection.
//
// Lean and idiomatic: the loop over `clients` of the library's own documentation, without compression, or with the
// library's defaults for it (`--deflate`). Each `send` is a frame and a write of its own; the documented interface has
// nothing to gather several.
'use strict';

const { WebSocketServer } = require('ws');

const perMessageDeflate = process.argv.includes('--deflate');
const server = new WebSocketServer({ host: '127.0.0.1', port: 0, backlog: 4096, perMessageDeflate });
server.on('listening', () => console.log(`listening on ws://127.0.0.1:${server.address().port}/ws`));
server.on('connection', (socket) => {
  socket.on('message', (data, isBinary) => {
    for (const client of server.clients) client.send(data, { binary: isBinary });
  });
  // A close event follows, and takes it out of `clients`.
  socket.on('error', () => {});
});
