// permessage-deflate in Chromium and Firefox, which offer it by themselves: their sockets join at different moments, and
// each receives the texts that a subscriber without compression receives.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { WebSocket, launch_chromium, launch_firefox, serve, sleep, until } from './support.mjs';

const LAST = 'the last message';
const MESSAGES = 400;

const BROWSERS = { Chromium: launch_chromium, Firefox: launch_firefox };
const MODES = ['context', 'fresh'];
const browsers = {};
for (const [name, launch] of Object.entries(BROWSERS)) {
  before(async () => (browsers[name] = await launch()));
  after(() => browsers[name]?.close());
}

function price(number) {
  // Below 64 bytes a message is not compressed.
  if (number % 16 === 7) return `short ${number}`;
  const rows = number % 8 === 3 ? Array.from({ length: 40 }, (_, row) => ({ row, points: (number * row) % 97 })) : [];
  return JSON.stringify({ symbol: 'ACME', bid: 100 + ((number * 37) % 100) / 100, volume: (number * 1009) % 100_000, number, rows });
}

/** Runs in the page: opens a socket whose texts the page keeps until the last message. Returns once it subscribes. */
function join({ url, protocols, commands, last }) {
  const socket = new WebSocket(url, protocols);
  const texts = [];
  const subscribed = Promise.withResolvers();
  const ended = Promise.withResolvers();
  socket.onopen = () => {
    commands.forEach((command) => socket.send(JSON.stringify(command)));
    if (!commands.length) subscribed.resolve();
  };
  socket.onmessage = ({ data }) => {
    const { type, text } = protocols.length ? JSON.parse(data) : { text: data };
    if (!type) texts.push(data);
    if (type === 'subscribed') subscribed.resolve();
    if (text === last) ended.resolve();
  };
  socket.onclose = ({ code, reason }) => {
    texts.push(`closed with ${code} ${reason}`);
    subscribed.resolve();
    ended.resolve();
  };
  globalThis.ended ??= [];
  globalThis.ended.push(ended.promise.then(() => ({ url, commands, extensions: socket.extensions, texts })));
  return subscribed.promise;
}

for (const [name, mode] of Object.keys(BROWSERS).flatMap((name) => MODES.map((mode) => [name, mode]))) {
  test(`${name} receives the plain subscriber's texts with --deflate ${mode}`, async (t) => {
    const flags = ['--deflate', mode, '--history-messages-max', '100000', '--history-bytes-max', '64MiB'];
    const server = await serve(t, { flags });
    const root = `${server.url.replace('http', 'ws')}/ws`;
    const plain = (url, protocols = []) => {
      const socket = new WebSocket(url, protocols, { perMessageDeflate: false });
      const texts = [];
      socket.on('message', (data) => texts.push(data.toString()));
      t.after(() => socket.terminate());
      return { socket, texts };
    };
    const raw = plain(`${root}/prices`);
    const enveloped = plain(root, ['oyez.v1']);
    await until('they are open', () => [raw, enveloped].every(({ socket }) => socket.readyState === WebSocket.OPEN));
    enveloped.socket.send(JSON.stringify({ type: 'subscribe', ch: 'prices' }));
    await until('it subscribes', () => enveloped.texts.some((text) => text.startsWith('{"type":"subscribed"')));

    const page = await browsers[name].newPage();
    t.after(() => page.close());
    // The Firefox of support.mjs has no time limits.
    page.setDefaultTimeout?.(180_000);
    await page.goto(server.url);
    const subscribe = (more) => ({ protocols: ['oyez.v1'], commands: [{ type: 'subscribe', ch: 'prices', ...more }] });
    const ways = [
      { url: `${root}/prices`, protocols: [], commands: [] },
      { url: `${root}/prices?since=earliest`, protocols: [], commands: [] },
      { url: root, ...subscribe({}) },
      { url: root, ...subscribe({ since: 'earliest' }) },
    ];
    const joins = [...ways, ...ways];
    const joining = [];
    for (let number = 0; number < MESSAGES; number += 1) {
      if (number % 40 === 20 && joins.length) joining.push(page.evaluate(join, { ...joins.pop(), last: LAST }));
      raw.socket.send(price(number));
      await sleep(number % 50 < 10 ? 0 : 2);
    }
    await Promise.all(joining);
    for (let number = 0; number < 50; number += 1) raw.socket.send(price(MESSAGES + number));
    raw.socket.send(LAST);
    const found = await page.evaluate(() => Promise.all(globalThis.ended));
    await until('the plain ones have all', () => [raw, enveloped].every(({ texts }) => texts.at(-1).includes(LAST)));

    assert.equal(found.length, ways.length * 2);
    for (const { url, commands, extensions, texts } of found) {
      assert.match(extensions, /^permessage-deflate/);
      const is_replayed = url.includes('since') || commands.some(({ since }) => since);
      const all = commands.length ? enveloped.texts.filter((text) => text.startsWith('{"ch"')) : raw.texts;
      assert.deepEqual(texts, is_replayed ? all : all.slice(all.indexOf(texts[0])));
      assert.ok(texts.length > 50);
    }
    const metrics = await (await fetch(`${server.url}/metrics`)).text();
    const deflated = (context) => Number(new RegExp(`^oyez_deflated_messages_total\\{context="${context}"\\} (\\d+)$`, 'm').exec(metrics)[1]);
    assert.ok(deflated('none') > 0);
    assert.equal(deflated('previous') > 0, mode === 'context');
  });
}
