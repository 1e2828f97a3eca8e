// Yjs through the server, with y-websocket's unmodified client: a raw channel carries the messages that its own
// server would relay.
//
// Only the readers keep the document, so a later reader asks for it periodically (resyncInterval). disableBc:
// documents in one process would otherwise connect without a server.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { WebSocket, require, serve, sleep, until } from './support.mjs';

const Y = require('yjs');
const { WebsocketProvider } = require('y-websocket');
// The constants it takes from the global one, whichever it is given.
globalThis.WebSocket ??= WebSocket;

function join(t, server, room) {
  const doc = new Y.Doc();
  const options = { WebSocketPolyfill: WebSocket, disableBc: true, resyncInterval: 200, maxBackoffTime: 100 };
  const provider = new WebsocketProvider(`${server.url.replace('http', 'ws')}/ws`, room, doc, options);
  t.after(() => {
    provider.destroy();
    doc.destroy();
  });
  return { doc, provider, text: doc.getText('t') };
}

test("y-websocket's documents converge", async (t) => {
  const server = await serve(t);
  const [one, two] = [join(t, server, 'room'), join(t, server, 'room')];
  await until('both are connected', () => one.provider.wsconnected && two.provider.wsconnected);
  assert.match(one.provider.ws.extensions, /^permessage-deflate/);

  for (let i = 0; i < 50; i++) {
    one.text.insert(0, `a${i} `);
    two.text.insert(two.text.length, `b${i} `);
    // ws compresses messages above 1 KiB.
    if (i === 25) one.text.insert(0, 'a paragraph that repeats itself; '.repeat(100));
    if (i % 10 === 0) await sleep(10);
  }
  await until('both have all', () => {
    const [a, b] = [one.text.toString(), two.text.toString()];
    return a === b && a.includes('a49 ') && a.includes('b49 ');
  });

  // A later page gets the document, and a lost connection is recovered.
  const three = join(t, server, 'room');
  await until('the third has all', () => three.text.toString() === one.text.toString());
  two.provider.ws.terminate();
  one.text.insert(0, 'while two was away ');
  two.text.insert(0, 'while it was away, two ');
  await until('all have both', () => new Set([one, two, three].map(({ text }) => text.toString())).size === 1);
  assert.ok(three.text.toString().includes('while two was away '));
  assert.ok(three.text.toString().includes('while it was away, two '));

  // Awareness of the connected pages is shared as well.
  one.provider.awareness.setLocalStateField('name', 'one');
  await until('two sees one', () => [...two.provider.awareness.getStates().values()].some(({ name }) => name === 'one'));
});
