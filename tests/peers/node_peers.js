// The node side of scenario.py and deflate_scenario.py: any number of clients of ws and undici, driven over standard input
// and output.
//
// A line of JSON in is a command, a line of JSON out is an event of a client. All checks are in the scenarios.
'use strict';

const { createHash } = require('node:crypto');
const { createInterface } = require('node:readline');
const undici = require('undici');
const WebSocket = require('ws');

const clients = new Map();

function emit(client, event, fields) {
  process.stdout.write(`${JSON.stringify({ client, event, ...fields })}\n`);
}

// A client whose events carry the text of its messages; `library` is one of these names.
const libraries = { ws: WebSocket, undici: undici.WebSocket };

function text_of(data) {
  return typeof data === 'string' ? data : `base64:${Buffer.from(data).toString('base64')}`;
}

const commands = {
  read({ client, library, url, protocols }) {
    const socket = new libraries[library](url, protocols);
    socket.binaryType = 'arraybuffer';
    clients.set(client, socket);
    socket.addEventListener('open', () => emit(client, 'open', { extensions: socket.extensions }));
    socket.addEventListener('message', ({ data }) => emit(client, 'text', { text: text_of(data) }));
    socket.addEventListener('close', ({ code, reason }) => emit(client, 'close', { code, reason }));
    // A close event follows each error, so this handler only logs.
    socket.addEventListener('error', ({ message }) => console.error(`node ${client}: ${message}`));
  },
  write({ client, text }) {
    clients.get(client).send(text);
  },
  open({ client, url }) {
    const socket = new WebSocket(url);
    clients.set(client, socket);
    socket.on('open', () => emit(client, 'open'));
    socket.on('message', (data, isBinary) => emit(client, 'message', {
      kind: isBinary ? 'binary' : 'text',
      bytes: data.length,
      sha256: createHash('sha256').update(data).digest('hex'),
    }));
    socket.on('pong', (data) => emit(client, 'pong', { hex: data.toString('hex') }));
    socket.on('close', (code, reason) => emit(client, 'close', { code, reason: reason.toString() }));
    // A close event follows each error, so this handler only logs.
    socket.on('error', (error) => console.error(`node ${client}: ${error.message}`));
  },
  send({ client, kind, parts }) {
    parts.forEach((part, i) => clients.get(client).send(Buffer.from(part, 'base64'), {
      binary: kind === 'binary',
      fin: i === parts.length - 1,
    }));
  },
  ping({ client, hex }) {
    clients.get(client).ping(Buffer.from(hex, 'hex'));
  },
  close({ client, code }) {
    clients.get(client).close(code);
  },
};

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const command = JSON.parse(line);
  commands[command.do](command);
});
// The scenario has ended: no client may outlive it.
lines.on('close', () => process.exit(0));
