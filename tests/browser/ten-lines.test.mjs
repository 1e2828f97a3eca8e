// The ten lines that the README shows, as they are: do they come back by themselves, without a hole or a double?

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { randomOf } from './random.mjs';
import { WebSocket, open, serve, sleep, until } from './support.mjs';
import { hear } from './ten-lines.mjs';

test('the README shows them as they are', () => {
  const text = (path) => readFileSync(new URL(path, import.meta.url), 'utf8');
  assert.ok(text('../../README.md').includes(text('ten-lines.mjs')));
});

test('ten lines of plain JavaScript resume across cuts', async (t) => {
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

  const heard = [];
  const other = [];
  hear(`${server.url.replace('http', 'ws')}/ws/a`, (said) => (said.type ? other.push(said.type) : heard.push(said.data)));
  await until('the first subscription', () => other.includes('live'));

  const hub = open(t, server);
  for (let i = 0; i < 400; i++) {
    hub.publish('a', i);
    if (random() < 0.1) sockets.at(-1).terminate();
    await sleep(random() * 6);
  }
  await until('all messages', () => heard.at(-1) === 399);
  assert.deepEqual(heard, Array.from({ length: 400 }, (_, i) => i));
  assert.ok(sockets.length > 10, `${sockets.length} connections`);
  assert.ok(!other.includes('gap'));

  // What cannot be had any more is told.
  sockets.at(-1).terminate();
  Math.random = () => 0.1;
  for (let i = 0; i < 150; i++) hub.publish('a', 1000 + i);
  await until('the gap and the rest', () => heard.at(-1) === 1149);
  assert.ok(other.includes('gap'));
  assert.equal(heard.length, 500);
});
