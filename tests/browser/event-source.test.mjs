// Event streams as their clients in the field read them: npm's `eventsource` in node, `event-source-polyfill` and
// Chromium's own EventSource in a page. Between client and server is a TCP proxy that the test cuts: the client has to
// reconnect by itself, with the id of the last event, and to lose nothing. Wants Chromium, as pages.test.mjs does.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFile, mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';

import { WebSocket, launch_chromium, require, serve, until } from './support.mjs';

const { EventSource } = require('eventsource');

let browser;
before(async () => {
  browser = await launch_chromium();
});
after(() => browser?.close());

/** A proxy in front of a port. It records the heads of requests for event streams, and their responses. */
async function proxy(t, port) {
  const pairs = new Set();
  const streams = [];
  let isOpen = true;
  const server = net.createServer((client) => {
    if (!isOpen) {
      client.destroy();
      return;
    }
    const upstream = net.connect(port, '127.0.0.1');
    const pair = { client, upstream, stream: null, keepsUpstream: false };
    pairs.add(pair);
    client.on('data', (data) => {
      const head = data.toString('latin1');
      if (/^GET \/sse\//.test(head)) streams.push((pair.stream = { head, answer: '' }));
      upstream.write(data);
    });
    upstream.on('data', (data) => {
      if (pair.stream) pair.stream.answer += data;
      client.write(data);
    });
    const end = (other) => () => {
      if (!pair.keepsUpstream) {
        other.destroy();
        pairs.delete(pair);
      }
    };
    client.on('close', end(upstream)).on('error', () => {});
    upstream.on('close', end(client)).on('error', () => {});
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const destroyAll = () => pairs.forEach(({ client, upstream }) => [client, upstream].forEach((one) => one.destroy()));
  t.after(() => {
    server.close();
    destroyAll();
  });
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    streams,
    /** Cuts all connections and lets none through until `open`. */
    cut() {
      isOpen = false;
      destroyAll();
    },
    open() {
      isOpen = true;
    },
    /** The clients are gone, and the server does not notice. Returns what lets it notice. */
    cutClients() {
      const left = [...pairs];
      for (const pair of left) {
        pair.keepsUpstream = true;
        pair.client.destroy();
        pairs.delete(pair);
      }
      t.after(() => left.forEach(({ upstream }) => upstream.destroy()));
      return () => left.forEach(({ upstream }) => upstream.destroy());
    },
  };
}

async function publish(server, text, headers = {}) {
  const answer = await fetch(`${server.url}/v1/publish/a`, { method: 'POST', body: text, headers });
  assert.equal(answer.status, 200);
  return (await answer.json()).id;
}

/** A page of the server, loaded through the proxy, that subscribes by the expression `subscribe`. */
async function listenInPage(t, front, subscribe, script) {
  // The console's policy forbids scripts of others; this page is only an origin.
  const context = await browser.newContext({ bypassCSP: true });
  t.after(() => context.close());
  const page = await context.newPage();
  page.setDefaultTimeout(180_000);
  await page.goto(`${front.url}/healthz`);
  if (script) await page.addScriptTag({ content: script });
  const client = { got: [], opens: 0, failed: false };
  await page.exposeFunction('report', (what, data) => {
    if (what === 'message') client.got.push(data);
    if (what === 'open') client.opens++;
    if (what === 'closed') client.failed = true;
  });
  await page.evaluate(async (subscribe) => {
    const source = await (0, eval)(`(async () => ${subscribe})()`);
    source.onmessage = ({ data }) => report('message', data);
    source.onopen = () => report('open');
    source.onerror = () => source.readyState === 2 && report('closed');
  }, subscribe);
  return client;
}

function listenInNode(t, front, path = '/sse/a') {
  const client = { got: [], opens: 0, failed: false };
  const source = new EventSource(front.url + path);
  t.after(() => source.close());
  source.onmessage = ({ data }) => client.got.push(data);
  source.onopen = () => client.opens++;
  source.onerror = () => (client.failed ||= source.readyState === 2);
  return client;
}

const polyfill = async (t, front) =>
  listenInPage(
    t,
    front,
    "new EventSourcePolyfill('/sse/a')",
    await readFile(require.resolve('event-source-polyfill/src/eventsource.js'), 'utf8'),
  );
const inHeader = (id) => ({ head }) => new RegExp(`\r\nlast-event-id: ${id}\r\n`, 'i').test(head);
const CLIENTS = [
  { name: "npm's eventsource", listen: listenInNode, resumesFrom: inHeader },
  {
    name: 'event-source-polyfill',
    listen: polyfill,
    resumesFrom: (id) => ({ head }) => head.split('\r\n')[0].includes(`lastEventId=${id}`),
  },
  {
    name: "Chromium's EventSource",
    listen: (t, front) => listenInPage(t, front, "new EventSource('/sse/a')"),
    resumesFrom: inHeader,
  },
];

describe('event streams', { concurrency: 4 }, () => {
  for (const { name, listen, resumesFrom } of CLIENTS) {
    test(`${name} reconnects after a lost connection and a restart without a loss`, async (t) => {
      const folder = await mkdtemp(join(tmpdir(), 'oyez-events-'));
      t.after(() => rm(folder, { recursive: true, force: true }));
      const flags = ['--history-file', join(folder, 'history')];
      let server = await serve(t, { flags });
      const front = await proxy(t, server.port);
      const client = await listen(t, front);
      await until('a stream', () => client.opens === 1);
      await publish(server, 'one');
      await until('the first event', () => client.got.length === 1);

      front.cut();
      await publish(server, 'two');
      const last = await publish(server, 'three');
      front.open();
      await until('what it missed', () => client.got.length === 3);

      await server.stop('SIGTERM');
      server = await serve(t, { port: server.port, flags });
      await publish(server, 'four');
      await until('what came after the restart', () => client.got.length === 4);
      await publish(server, 'five');
      await until('what came last', () => client.got.length === 5);
      assert.deepEqual(client.got, ['one', 'two', 'three', 'four', 'five']);
      assert.ok(resumesFrom(last)(front.streams.at(-1)), front.streams.at(-1).head);
      assert.equal(client.failed, false);
    });
  }

  test("Chromium's EventSource reconnects with its ticket without a loss", async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'oyez-events-'));
    t.after(() => rm(folder, { recursive: true, force: true }));
    const secret = join(folder, 'secret');
    execFileSync(process.env.OYEZ, ['token', 'secret', secret]);
    const rights = ['--sub', 'alice', '--subscribe', 'a', '--publish', 'a'];
    const token = execFileSync(process.env.OYEZ, ['token', 'new', '--jwt-secret-file', secret, ...rights]).toString().trim();
    const server = await serve(t, { flags: ['--jwt-secret-file', secret] });
    const front = await proxy(t, server.port);
    const authorization = `Bearer ${token}`;
    const ticket = `(await (await fetch('/v1/tickets', { method: 'POST', headers: { authorization: '${authorization}' } })).json()).ticket`;
    const client = await listenInPage(t, front, `new EventSource('/sse/a?ticket=' + ${ticket})`);
    const send = (text) => publish(server, text, { authorization });
    await until('a stream', () => client.opens === 1);
    await send('one');
    await until('the first event', () => client.got.length === 1);

    front.cut();
    const last = await send('two');
    front.open();
    await until('what it missed', () => client.got.length === 2);

    // The server does not know that the stream is cut: its ticket is in use, and EventSource must not give up.
    const notice = front.cutClients();
    await send('three');
    const rejected = front.streams.length;
    await until('a rejection', () => front.streams[rejected]?.answer.includes('retry: '));
    assert.match(front.streams[rejected].answer, /^HTTP\/1\.1 200 [^]*\r\nretry: 3000\n\n\r\n0\r\n\r\n$/);
    notice();
    await until('what it missed again', () => client.got.length === 3);
    assert.deepEqual(client.got, ['one', 'two', 'three']);
    assert.ok(inHeader(last)(front.streams.at(-1)), front.streams.at(-1).head);
    const tickets = front.streams.map(({ head }) => /ticket=([^ &]+)/.exec(head)[1]);
    assert.equal(new Set(tickets).size, 1, 'one ticket served all of them');
    assert.equal(client.failed, false);
  });

  test('EventSource rejected by a full server reconnects when a connection is free', async (t) => {
    const server = await serve(t, { flags: ['--connections-max', '1'] });
    const occupant = new WebSocket(`${server.url}/ws`);
    await once(occupant, 'open');
    const front = await proxy(t, server.port);
    const client = listenInNode(t, front);
    await until('a rejection', () => front.streams[0]?.answer.includes('retry: '));
    occupant.terminate();
    // Each rejected attempt is a stream that was open for a moment; the last one has no end.
    await until('a stream that stays', () => /\nid: /.test(front.streams.at(-1).answer));
    assert.equal(client.failed, false);
  });
});
