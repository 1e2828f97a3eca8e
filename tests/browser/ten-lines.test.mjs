// The ten lines that the manual shows, unchanged: they reconnect, and no message is missing or repeated.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { randomOf } from './random.mjs';
import { WebSocket, open, serve, sleep, until } from './support.mjs';
import { follow } from './ten-lines.mjs';

test('the manual contains them unchanged', () => {
  const text = (path) => readFileSync(new URL(path, import.meta.url), 'utf8');
  assert.ok(text('../../src/manual/protocol.md').includes(text('ten-lines.mjs')));
});

test('ten lines of plain JavaScript resume after lost connections', async (t) => {
  const server = await serve(t);
  const random = randomOf(7);
  const sockets = [];
  // A browser has a global WebSocket, and no uncaught error for a connection that fails.
  globalThis.WebSocket = class extends WebSocket {
    constructor(...of) {
      super(...of);
      this.on('error', () => {});
      sockets.push(this);
    }
  };
  const whole = Math.random;
  Math.random = () => random() / 100;
  t.after(() => {
    Math.random = whole;
    globalThis.WebSocket = class {};
    for (const socket of sockets) socket.terminate();
  });

  const received = [];
  const notices = [];
  follow(`${server.url.replace('http', 'ws')}/ws/a`, (message) =>
    message.type ? notices.push(message.type) : received.push(message.data));
  await until('the first subscription', () => notices.includes('live'));

  const hub = open(t, server);
  for (let i = 0; i < 400; i++) {
    hub.publish('a', i);
    if (random() < 0.1) sockets.at(-1).terminate();
    await sleep(random() * 6);
  }
  await until('all messages', () => received.at(-1) === 399);
  assert.deepEqual(received, Array.from({ length: 400 }, (_, i) => i));
  assert.ok(sockets.length > 10, `${sockets.length} connections`);
  assert.ok(!notices.includes('gap'));

  // Messages that the history no longer holds are reported as a gap.
  sockets.at(-1).terminate();
  Math.random = () => 0.1;
  for (let i = 0; i < 150; i++) hub.publish('a', 1000 + i);
  await until('the gap and the rest', () => received.at(-1) === 1149);
  assert.ok(notices.includes('gap'));
  assert.equal(received.length, 500);
});
