// The ten lines that the manual shows, unchanged: they reconnect, and no message is missing or repeated.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { randomOf } from './random.mjs';
import { gated, open, serve, sleep, until } from './support.mjs';
import { follow } from './ten-lines.mjs';

test('the manual contains them unchanged', () => {
  const text = (path) => readFileSync(new URL(path, import.meta.url), 'utf8');
  assert.ok(text('../../src/manual/protocol.md').includes(text('ten-lines.mjs')));
});

/** Follows the channel by the ten lines, in a global WebSocket as a browser has it, and with short pauses. */
async function following(t, server, random) {
  const gate = gated();
  const [sockets, received, notices] = [[], [], []];
  globalThis.WebSocket = class extends gate.WebSocket {
    constructor(...of) {
      super(...of);
      sockets.push(this);
    }
  };
  const whole = Math.random;
  Math.random = () => random() / 100;
  // They have no end: their next socket is one that does nothing. Before that, no other test may begin.
  t.after(() => new Promise((ended) => {
    globalThis.WebSocket = class {
      constructor() {
        Math.random = whole;
        ended();
      }
    };
    for (const socket of sockets) socket.terminate();
  }));
  follow(`${server.url.replace('http', 'ws')}/ws/a`, (message) =>
    message.type ? notices.push(message.type) : received.push(message.data));
  await until('the first subscription', () => notices.includes('live'));
  return { gate, sockets, received, notices };
}

test('ten lines of plain JavaScript resume after lost connections', async (t) => {
  const server = await serve(t, { flags: ['--history-messages-max', '100000'] });
  const random = randomOf(7);
  const { sockets, received, notices } = await following(t, server, random);
  const hub = open(t, server);
  let count = 0;
  while (count < 400 || sockets.length <= 10) {
    const published = hub.publish('a', count++);
    // A slow server must not get more than the publisher may have unacknowledged.
    if (count % 100 === 0) await published;
    if (random() < 0.1) sockets.at(-1).terminate();
    await sleep(random() * 6);
  }
  await until('all messages', () => received.at(-1) === count - 1);
  assert.deepEqual(received, Array.from({ length: count }, (_, i) => i));
  assert.ok(!notices.includes('gap'));
});

test('ten lines of plain JavaScript report evicted messages as a gap', async (t) => {
  const server = await serve(t, { flags: ['--history-messages-max', '100'] });
  const { gate, sockets, received, notices } = await following(t, server, randomOf(7));
  const hub = open(t, server);
  await hub.publish('a', 0);
  await until('the first message', () => received.length === 1);
  gate.close();
  sockets.at(-1).terminate();
  await Promise.all(Array.from({ length: 150 }, (_, i) => hub.publish('a', 1 + i)));
  gate.open();
  await until('the rest', () => received.at(-1) === 150);
  assert.ok(notices.includes('gap'));
  assert.deepEqual(received, [0, ...Array.from({ length: 100 }, (_, i) => 51 + i)]);
});
