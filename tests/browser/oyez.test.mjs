// oyez.js against the real server.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { test } from 'node:test';

import { randomOf } from './random.mjs';
import { gated, open, serve, sleep, until } from './support.mjs';

/** Subscribes, and collects all events. */
function listen(hub, channel, options = {}) {
  const heard = { messages: [], gaps: [], lives: 0, subscribed: 0 };
  heard.off = hub.subscribe(channel, (message) => heard.messages.push(message), {
    ongap: (gap) => heard.gaps.push(gap),
    onlive: () => heard.lives++,
    onsubscribed: () => heard.subscribed++,
    ...options,
  });
  return heard;
}

const values = (heard) => heard.messages.map(({ data }) => data);
const count = (length, from = 0) => Array.from({ length }, (_, i) => from + i);

test('subscribe, publish, acknowledge', async (t) => {
  const server = await serve(t);
  const [one, two] = [open(t, server), open(t, server)];
  const [ones, twos] = [listen(one, 'a'), listen(two, 'a')];
  await until('both subscriptions', () => ones.subscribed && twos.subscribed);
  const sent = ['text \u{1F600}', new Uint8Array([0, 1, 255]), { x: [1, null] }, [null], 7, ''];
  const ids = [];
  for (const value of sent) ids.push(await one.publish('a', value));
  await until('all of them', () => ones.messages.length === sent.length && twos.messages.length === sent.length);
  assert.deepEqual(values(twos), sent);
  assert.deepEqual(twos.messages.map(({ id }) => id), ids);
  assert.deepEqual(twos.messages.map(({ kind }) => kind), ['text', 'binary', 'data', 'data', 'data', 'text']);
  assert.deepEqual(twos.messages.map(({ n }) => n), count(sent.length, 1));
  assert.ok(ones.messages.every(({ own, from }) => own && from === one.client));
  assert.ok(twos.messages.every(({ own, channel }) => !own && channel === 'a'));
});

test('messages from raw WebSockets and HTTP are received', async (t) => {
  const server = await serve(t);
  const hub = open(t, server);
  const heard = listen(hub, 'a');
  await until('the subscription', () => heard.subscribed);
  await fetch(`${server.url}/v1/publish/a`, { method: 'POST', body: 'text' });
  const headers = { 'Content-Type': 'application/json' };
  await fetch(`${server.url}/v1/publish/a`, { method: 'POST', body: '{"x":1}', headers });
  // A JSON body is a value of its own, null too.
  await fetch(`${server.url}/v1/publish/a`, { method: 'POST', body: 'null', headers });
  await until('all of them', () => heard.messages.length === 3);
  assert.deepEqual(values(heard), ['text', { x: 1 }, null]);
  assert.deepEqual(heard.messages.map(({ kind }) => kind), ['text', 'data', 'data']);
  assert.ok(heard.messages.every(({ own, from }) => !own && from === undefined));
});

test('several handlers share a subscription, which ends with the last and can begin again', async (t) => {
  const server = await serve(t);
  const hub = open(t, server);
  const [one, two] = [listen(hub, 'a'), listen(hub, 'a', { echo: false })];
  await until('the subscription', () => one.subscribed && two.subscribed);
  const subscribers = async () => (await (await fetch(`${server.url}/v1/channels/a`)).json()).subscribers;
  assert.equal(await subscribers(), 1);
  await hub.publish('a', 1);
  await until('it', () => one.messages.length === 1);
  assert.deepEqual(values(two), []);
  one.off();
  assert.equal(await subscribers(), 1);
  two.off();
  await hub.publish('a', 2);
  const three = listen(hub, 'a', { since: 'latest' });
  await until('the new one', () => three.lives === 1);
  assert.equal(await subscribers(), 1);
  assert.deepEqual([values(one), values(three)], [[1], [2]]);
});

test('rejections have a code', async (t) => {
  const server = await serve(t, { flags: ['--channels-per-client-max', '1', '--message-bytes-max', '300'] });
  const hub = open(t, server);
  const codes = [];
  hub.subscribe('a', () => {});
  hub.subscribe('b', () => {}, { onerror: ({ code }) => codes.push(code) });
  await until('the rejection', () => codes.length === 1);
  assert.deepEqual(codes, ['too_many_channels']);
  let deep = 1;
  for (let i = 0; i < 65; i++) deep = [deep];
  await assert.rejects(hub.publish('a', deep), { code: 'too_deep' });
  await assert.rejects(hub.publish('a', 'x'.repeat(300)), { code: 'too_big' });
  assert.match(await hub.publish('a', 'half a pair: \ud800'), /./);
  assert.equal(hub.state, 'open');
});

test('reconnects after a restart on the same port, and reports its states', async (t) => {
  const server = await serve(t);
  const states = [];
  const hub = open(t, server, { onstate: (state) => states.push(state) });
  const events = [];
  hub.addEventListener('state', ({ detail: { state } }) => events.push(state));
  const heard = listen(hub, 'a');
  await until('the subscription', () => heard.subscribed === 1);
  await server.stop();
  await until('the loss', () => hub.state === 'waiting');
  const early = hub.publish('a', 'while it was away');
  await serve(t, { port: server.port });
  await until('the return', () => heard.subscribed === 2);
  assert.deepEqual([...states.slice(0, 4), states.at(-1)], ['connecting', 'open', 'waiting', 'connecting', 'open']);
  assert.match(await early, /./);
  // A new server has a new log: messages published in between are unknown.
  await until('the message', () => heard.messages.length === 1);
  assert.deepEqual(heard.gaps.map(({ why }) => why), ['epoch']);
  hub.close();
  assert.equal(states.at(-1), 'closed');
  assert.deepEqual(events, states);
});

test('a drain sets the reconnect delay', async (t) => {
  const server = await serve(t, { flags: ['--drain-seconds', '4'] });
  const waits = [];
  const started = [];
  const hubs = count(4).map(() => open(t, server, {
    // A pause by chance would be nothing at all.
    random: () => 0,
    onstate: (state, detail) => {
      if (state === 'waiting' && waits.length < 4) waits.push({ ...detail, at: Date.now() });
      if (state === 'connecting' && waits.length === 4) started.push(Date.now());
    },
  }));
  await until('all to be open', () => hubs.every(({ state }) => state === 'open'));
  server.child.kill('SIGTERM');
  await until('all to have a delay', () => waits.length === 4);
  for (const { code, reason, retry_ms } of waits) {
    assert.equal(code, 4200);
    assert.equal(reason, `drain retry_ms=${retry_ms}`);
  }
  const longest_ms = Math.max(...waits.map(({ retry_ms }) => retry_ms));
  assert.ok(longest_ms > 500, `${longest_ms}`);
  await until('the first return', () => started.length > 0);
  const first = Math.min(...waits.map(({ at, retry_ms }) => at + retry_ms));
  // A timer may fire a millisecond early; how late it fires is up to the machine.
  assert.ok(started[0] - first > -20, `${started[0] - first} ms from the notice`);
});

test('an unresponsive server is detected', async (t) => {
  const server = await serve(t, { flags: ['--ping-interval-ms', '200', '--pong-timeout-ms', '60000'] });
  const reasons = [];
  const onstate = (state, { reason }) => state === 'waiting' && reasons.push(reason);
  const hub = open(t, server, { pong_timeout_ms: 8000, onstate });
  await until('the connection', () => hub.state === 'open');
  await sleep(1000);
  assert.deepEqual(reasons, []);
  server.child.kill('SIGSTOP');
  await until('the silence', () => reasons.length === 1);
  server.child.kill('SIGCONT');
  assert.deepEqual(reasons, ['no pong']);
  await until('the return', () => hub.state === 'open');
});

test('resumes without a loss or a duplicate while connections are lost repeatedly', async (t) => {
  const server = await serve(t, { flags: ['--history-messages-max', '10000'] });
  const seed = Date.now() & 0xffff;
  const random = randomOf(seed);
  t.diagnostic(`seed ${seed}`);
  // Pauses grow while connections are cut early; here they stay below a third of a second.
  const quick = { random: () => random() / 100 };
  const [publisher, ...hearers] = count(4).map(() => open(t, server, quick));
  const heard = hearers.map((hub) => ['a', 'b'].map((channel) => listen(hub, channel)));
  await until('all subscriptions', () => heard.flat().every(({ subscribed }) => subscribed));
  let cuts = 0;
  const cutting = hearers.map(async (hub) => {
    for (let own = 0; own < 20; ) {
      await sleep(random() * 60);
      if (hub.state === 'open') own++;
      hub.cut();
    }
    cuts += 20;
  });
  let total = 0;
  while (cuts < 60) {
    const published = publisher.publish(total % 2 ? 'a' : 'b', total++);
    // A slow server must not get more than the publisher may have unacknowledged.
    if (total % 100 === 0) await published;
    if (random() < 0.5) await sleep(random() * 5);
  }
  await Promise.all(cutting);
  const last = await publisher.publish('a', 'end');
  await publisher.publish('b', 'end');
  await until('the end', () => heard.flat().every(({ messages }) => messages.at(-1)?.data === 'end'));
  for (const [a, b] of heard) {
    assert.deepEqual(values(a), [...count(total).filter((i) => i % 2), 'end']);
    assert.deepEqual(values(b), [...count(total).filter((i) => i % 2 === 0), 'end']);
    assert.deepEqual([a.gaps, b.gaps], [[], []]);
    assert.equal(a.messages.at(-1).id, last);
  }
  t.diagnostic(`${cuts} cuts, ${total} messages`);
});

test('publishes each message once while connections are lost repeatedly', async (t) => {
  const server = await serve(t, { flags: ['--history-messages-max', '10000'] });
  const seed = Date.now() & 0xffff;
  const random = randomOf(seed);
  t.diagnostic(`seed ${seed}`);
  const hearer = open(t, server);
  const heard = listen(hearer, 'a');
  await until('the subscription', () => heard.subscribed);
  const publisher = open(t, server, { random: () => random() / 100 });
  const ids = [];
  for (let cuts = 0; cuts < 30; ) {
    ids.push(publisher.publish('a', ids.length));
    // A slow server must not get more than the publisher may have unacknowledged.
    if (ids.length >= 500) await ids.at(-500);
    if (random() < 0.03 && publisher.state === 'open') {
      cuts++;
      publisher.cut();
    }
    if (random() < 0.3) await sleep(random() * 5);
  }
  const acknowledged = await Promise.all(ids);
  const heardOf = () => `${heard.messages.length} of ${ids.length} messages; ${hearer.state}, gaps ${JSON.stringify(heard.gaps)}`;
  await until(heardOf, () => heard.messages.length >= ids.length);
  assert.deepEqual(values(heard), count(ids.length));
  assert.deepEqual(heard.messages.map(({ id }) => id), acknowledged);
  t.diagnostic(`30 cuts, ${ids.length} messages`);
});

test('a gap is reported before the remaining messages', async (t) => {
  const server = await serve(t, { flags: ['--history-messages-max', '10'] });
  const gate = gated();
  const [publisher, hub] = [open(t, server), open(t, server, { WebSocket: gate.WebSocket, random: () => 0.001 })];
  const heard = listen(hub, 'a');
  await until('the subscription', () => heard.subscribed);
  const before = await publisher.publish('a', 0);
  await until('it', () => heard.messages.length === 1);
  gate.close();
  hub.cut();
  const ids = await Promise.all(count(30, 1).map((i) => publisher.publish('a', i)));
  gate.open();
  await until('the rest', () => heard.messages.at(-1).data === 30);
  assert.deepEqual(values(heard), [0, ...count(10, 21)]);
  assert.equal(heard.gaps.length, 1);
  const [{ channel, after, resume, missed, why }] = heard.gaps;
  assert.deepEqual([channel, after, resume, why], ['a', before, ids[19], 'evicted']);
  assert.ok(missed === 20 || missed === null, `${missed}`);
  assert.equal(heard.lives, 1);
});

test('close() stops all timers, so that the process exits', async (t) => {
  const server = await serve(t);
  const oyez = new URL('../../src/console/oyez.js', import.meta.url);
  const program = `
    import { createRequire } from 'node:module';
    import { Oyez } from '${oyez}';
    const WebSocket = createRequire('${fileURLToPath(import.meta.url)}')('ws');
    const left = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
    const hub = (url) => new Oyez(url, { WebSocket });
    // One that is open, one that waits, one that has not begun, one that is connecting.
    const [open, waiting] = [hub('${server.url}'), hub('http://127.0.0.1:9')];
    open.subscribe('a', () => open.publish('a', 2));
    await open.publish('a', 1);
    while (waiting.state !== 'waiting') await new Promise((resolve) => setTimeout(resolve, 1));
    const [fresh, connecting] = [hub('${server.url}'), hub('${server.url}')];
    const timers = left();
    fresh.close();
    await null;
    for (const each of [open, waiting, connecting]) each.close();
    // The server may take its time to answer the closes.
    for (let i = 0; i < 6000 && left() > 0; i++) await new Promise((resolve) => setTimeout(resolve, 5));
    console.log(timers, left());
  `;
  const [flags, options] = [['--input-type=module', '--no-warnings', '--eval', program], { timeout: 180_000 }];
  const { stdout } = await promisify(execFile)(process.execPath, flags, options);
  const [timers, left] = stdout.trim().split(' ').map(Number);
  assert.ok(timers > 0);
  assert.equal(left, 0);
});
