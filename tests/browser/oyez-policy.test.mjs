// The decisions of oyez.js, with a clock, random numbers and a socket that the test controls, and the duties of a client
// in JavaScript. The rules for all clients are in ../clients/transcripts.json.

import assert from 'node:assert/strict';
import { describe, mock, test } from 'node:test';

import { Oyez } from '../../src/console/oyez.js';

/** A WebSocket that does what the test says. */
class Socket {
  static all = [];
  sent = [];
  closed = false;

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    Socket.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.closed = true;
  }

  serverSends(...messages) {
    for (const one of messages) this.onmessage?.({ data: JSON.stringify(one) });
  }

  hello(fields = {}) {
    this.serverSends({ type: 'hello', id: '1-0', client: `c${Socket.all.length}`, ping_ms: 25_000, message_bytes_max: 200, key_age_ms: 300_000, ...fields });
  }

  fail(code = 1006, reason = '') {
    this.onclose?.({ code, reason });
  }
}

const socket = () => Socket.all.at(-1);
const settle = () => new Promise((resolve) => setImmediate(resolve));

/** What the body writes to the console as warnings. */
async function logged(body) {
  const warnings = [];
  const before = console.warn;
  console.warn = (text) => warnings.push(text);
  try {
    await body();
  } finally {
    console.warn = before;
  }
  return warnings;
}

/** Runs the body with a hub over such sockets; afterwards no timer may be left. */
function check(what, body, options = {}) {
  test(what, async () => {
    Socket.all = [];
    mock.timers.enable({ apis: ['setTimeout', 'Date'] });
    const states = [];
    const hub = new Oyez('http://host:1/', {
      WebSocket: Socket,
      random: () => 0.5,
      onstate: (state, detail) => states.push([state, detail]),
      ...options,
    });
    try {
      await settle();
      await body(hub, states);
    } finally {
      hub.close();
      const sockets = Socket.all.length;
      mock.timers.tick(3_600_000);
      await settle();
      mock.timers.reset();
      assert.equal(Socket.all.length, sockets, 'nothing happens after close()');
    }
  });
}

describe('reconnecting', () => {
  check('states, in order', async (hub, states) => {
    socket().hello();
    hub.cut();
    mock.timers.tick(100);
    socket().hello();
    hub.close();
    const order = ['connecting', 'open', 'waiting', 'connecting', 'open', 'closed'];
    assert.deepEqual(states.map(([state]) => state), order);
    assert.deepEqual(states.at(-1)[1], { code: 1000, reason: 'close' });
  });

  check('a connection lost while connecting is retried, again and again', async (hub) => {
    hub.cut();
    hub.cut();
    assert.equal(hub.state, 'waiting');
    mock.timers.tick(100);
    assert.equal(hub.state, 'connecting');
    assert.equal(Socket.all.length, 2);
  });

  test("the browser's online event ends a pause, but not a delay set by the server", async () => {
    const page = new EventTarget();
    const before = { add: globalThis.addEventListener, remove: globalThis.removeEventListener };
    let listeners = 0;
    globalThis.addEventListener = (...of) => (listeners++, page.addEventListener(...of));
    globalThis.removeEventListener = (...of) => (listeners--, page.removeEventListener(...of));
    const hub = new Oyez('ws://host:1', { WebSocket: Socket, random: () => 0.999 });
    try {
      await settle();
      socket().fail();
      page.dispatchEvent(new Event('online'));
      await settle();
      assert.equal(hub.state, 'connecting');
      socket().fail(4200, 'drain retry_ms=60000');
      page.dispatchEvent(new Event('online'));
      assert.equal(hub.state, 'waiting');
    } finally {
      hub.close();
      Object.assign(globalThis, { addEventListener: before.add, removeEventListener: before.remove });
    }
    assert.equal(listeners, 0);
  });
});

describe('addresses', () => {
  const addresses = [
    ['http://host:1', 'ws://host:1/ws'],
    ['https://host/live/', 'wss://host/live/ws'],
    ['ws://host:1/ws', 'ws://host:1/ws'],
    ['wss://host/a/b/ws/', 'wss://host/a/b/ws'],
    ['http://host/?x=1#part', 'ws://host/ws?x=1'],
  ];
  for (const [given, used] of addresses) {
    test(given, async () => {
      Socket.all = [];
      const hub = new Oyez(given, { WebSocket: Socket });
      await settle();
      hub.close();
      assert.equal(socket().url, used);
    });
  }

  test('a path is on the server of the page', async () => {
    Socket.all = [];
    globalThis.location = { href: 'https://page/chat/index.html', origin: 'https://page' };
    try {
      for (const path of ['/live', undefined]) {
        const hub = new Oyez(path, { WebSocket: Socket });
        await settle();
        hub.close();
      }
    } finally {
      delete globalThis.location;
    }
    assert.deepEqual(Socket.all.map(({ url }) => url), ['wss://page/live/ws', 'wss://page/ws']);
  });
});

describe('the console', () => {
  check('gets one hint when no connection was ever opened', async () => {
    const warnings = await logged(async () => {
      for (let i = 0; i < 6; i++) {
        socket().fail();
        mock.timers.tick(30_000);
      }
    });
    assert.equal(warnings.length, 1);
    assert.match(warnings[0], /ws:\/\/host:1\/ws after 3 attempts.*origin.*the log of the server/);
  });

  check('gets none after a hello', async () => {
    const warnings = await logged(async () => {
      socket().hello();
      for (let i = 0; i < 6; i++) {
        socket().fail();
        mock.timers.tick(30_000);
      }
    });
    assert.deepEqual(warnings, []);
  });

  check('gets errors that have no handler', async (hub) => {
    const warnings = await logged(async () => {
      socket().hello();
      hub.subscribe('a', () => {});
      hub.publish('b', 1);
      hub.publish('a', null);
      socket().serverSends({ type: 'error', ch: 'a', code: 'forbidden', message: 'permission denied' });
      socket().serverSends({ type: 'error', ref: 1, code: 'forbidden', message: 'permission denied' });
      await settle();
    });
    assert.deepEqual(warnings.toSorted(), [
      'oyez: channel a: forbidden: permission denied',
      'oyez: publish to a failed: bad_data: null cannot be published: put it in an object or an array',
      'oyez: publish to b failed: forbidden: permission denied',
    ]);
  });

  check('gets no error that has a handler', async (hub) => {
    const warnings = await logged(async () => {
      socket().hello();
      hub.subscribe('a', () => {}, { onerror: () => {} });
      hub.publish('b', 1).catch(() => {});
      const awaited = (async () => {
        await assert.rejects(async () => await hub.publish('c', 1), { code: 'forbidden' });
      })();
      socket().serverSends({ type: 'error', ch: 'a', code: 'forbidden', message: 'no' });
      for (const ref of [1, 2]) socket().serverSends({ type: 'error', ref, code: 'forbidden', message: 'no' });
      await awaited;
      // Rejected before the caller can attach a handler.
      await assert.rejects(async () => await hub.publish('a b', 1), { code: 'bad_channel' });
      await assert.rejects(hub.publish('a', null), { code: 'bad_data' });
      const settled = await Promise.allSettled([hub.publish('a', undefined), hub.publish('a b', 1)]);
      assert.deepEqual(settled.map(({ reason }) => reason.code), ['bad_data', 'bad_channel']);
      hub.addEventListener('error', () => {});
      hub.subscribe('d', () => {});
      socket().serverSends({ type: 'error', ch: 'd', code: 'forbidden', message: 'no' });
      hub.publish('e', 1);
      hub.close();
      await settle();
    });
    assert.deepEqual(warnings, []);
  });
});

test('works where neither crypto nor CustomEvent is global', async () => {
  Socket.all = [];
  const names = ['crypto', 'CustomEvent', 'performance'];
  const before = names.map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]);
  const details = [];
  try {
    for (const name of names) Object.defineProperty(globalThis, name, { value: undefined, configurable: true });
    const hub = new Oyez('http://host', { WebSocket: Socket });
    hub.addEventListener('state', ({ detail }) => details.push(detail.state));
    await settle();
    socket().hello();
    hub.publish('a', 1);
    assert.match(socket().sent[0].key, /^[0-9a-f]{24}-1$/);
    hub.close();
    await settle();
  } finally {
    for (const [name, descriptor] of before) Object.defineProperty(globalThis, name, descriptor);
  }
  assert.deepEqual(details, ['connecting', 'open', 'closed']);
});

describe('publishing', () => {
  check('a wall clock set back makes no key younger', async (hub) => {
    const real = performance.now.bind(performance);
    let monotonic = 0;
    performance.now = () => monotonic;
    try {
      socket().hello();
      const sent = hub.publish('a', 1);
      monotonic = 270_000;
      mock.timers.setTime(0);
      socket().fail();
      mock.timers.tick(100);
      socket().hello();
      await assert.rejects(sent, { code: 'unknown' });
    } finally {
      performance.now = real;
    }
  });

  check('invalid messages are rejected without being sent', async (hub) => {
    socket().hello();
    await assert.rejects(hub.publish('a', 'x'.repeat(200)), { code: 'too_big' });
    await assert.rejects(hub.publish('a', '\u{1F600}'.repeat(40)), { code: 'too_big' });
    await assert.rejects(hub.publish('a b', 1), { code: 'bad_channel' });
    for (const value of [undefined, () => {}, Symbol('a')]) {
      await assert.rejects(hub.publish('a', value), { code: 'bad_data', message: /has no JSON/ });
    }
    // In JSON all of these are null, which is an absent field.
    for (const value of [null, NaN, Infinity, new Date(NaN), { toJSON: () => null }]) {
      await assert.rejects(hub.publish('a', value), { code: 'bad_data', message: /null cannot be published/ });
    }
    assert.deepEqual(socket().sent, []);
    hub.publish('a', '\ufeffhalf \ud800');
    assert.equal(socket().sent[0].text, '\ufeffhalf \ufffd');
  });
});

test('an option echo that is undefined is absent', async () => {
  Socket.all = [];
  const hub = new Oyez('http://host', { WebSocket: Socket });
  const received = [];
  hub.subscribe('a', ({ data }) => received.push(data), { echo: undefined });
  await settle();
  socket().hello({ client: 'me' });
  socket().serverSends({ type: 'subscribed', ch: 'a', id: '1-0', subscribers: 1 }, { ch: 'a', id: '1-1', n: 1, from: 'me', data: 1 });
  hub.close();
  assert.deepEqual(received, [1]);
});
