// What oyez.js decides by itself, with time, chance and the socket in the test's hands.

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

  say(...said) {
    for (const one of said) this.onmessage?.({ data: JSON.stringify(one) });
  }

  hello(fields = {}) {
    this.say({ type: 'hello', id: '1-0', client: `c${Socket.all.length}`, ping_ms: 25_000, message_bytes_max: 200, key_age_ms: 300_000, ...fields });
  }

  fail(code = 1006, reason = '') {
    this.onclose?.({ code, reason });
  }
}

const socket = () => Socket.all.at(-1);
const types = () => socket().sent.map(({ type }) => type);
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
  check('pauses double up to 30 s', async (hub, states) => {
    const pauses = [];
    for (let i = 0; i < 10; i++) {
      socket().fail();
      const [state, { retry_ms }] = states.at(-1);
      assert.equal(state, 'waiting');
      pauses.push(retry_ms);
      mock.timers.tick(retry_ms - 1);
      assert.equal(hub.state, 'waiting');
      mock.timers.tick(1);
      assert.equal(hub.state, 'connecting');
    }
    // Half of the ceiling, since chance says 0.5.
    assert.deepEqual(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000]);
  });

  check('a connection open for 30 s resets the pause', async (hub, states) => {
    const lose = () => {
      socket().fail();
      const { retry_ms } = states.at(-1)[1];
      mock.timers.tick(retry_ms);
      return retry_ms;
    };
    assert.deepEqual([lose(), lose()], [100, 200]);
    socket().hello({ ping_ms: 600_000 });
    mock.timers.tick(29_999);
    assert.equal(lose(), 400);
    socket().hello({ ping_ms: 600_000 });
    mock.timers.tick(30_000);
    assert.equal(lose(), 100);
  });

  check('the server sets the delay', async (hub, states) => {
    socket().hello();
    socket().fail(4200, 'drain retry_ms=8350');
    assert.deepEqual(states.at(-1), ['waiting', { retry_ms: 8350, code: 4200, reason: 'drain retry_ms=8350' }]);
    mock.timers.tick(8349);
    assert.equal(hub.state, 'waiting');
    mock.timers.tick(1);
    assert.equal(hub.state, 'connecting');
  });

  check('a delay too long for a timer does not reconnect at once', async (hub) => {
    socket().fail(4200, 'drain retry_ms=99999999999999');
    mock.timers.tick(3_600_000);
    assert.equal(hub.state, 'waiting');
  });

  for (const code of [4000, 4001, 4003, 4010, 4099]) {
    check(`${code} is final`, async (hub, states) => {
      socket().hello();
      const publish = hub.publish('a', 1);
      socket().fail(code, 'why');
      assert.deepEqual(states.at(-1), ['closed', { code, reason: 'why' }]);
      await assert.rejects(publish, { code: 'closed' });
      await assert.rejects(hub.publish('a', 1), { code: 'closed' });
      mock.timers.tick(3_600_000);
      assert.equal(Socket.all.length, 1);
    });
  }

  for (const code of [1000, 1001, 1002, 1006, 1007, 1009, 1011, 4100, 4102, 4201, 4999]) {
    check(`${code} is retried`, async (hub) => {
      socket().fail(code, 'why');
      mock.timers.tick(100);
      assert.equal(Socket.all.length, 2);
    });
  }

  check('a connection without a hello is closed', async (hub, states) => {
    mock.timers.tick(10_000);
    assert.deepEqual(states.at(-1), ['waiting', { retry_ms: 100, code: 1006, reason: 'no hello' }]);
    assert.ok(socket().closed);
  });

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

describe('an unresponsive server', () => {
  check('is detected by a missing pong', async (hub, states) => {
    socket().hello();
    mock.timers.tick(25_000);
    assert.deepEqual(types(), ['ping']);
    mock.timers.tick(10_000);
    assert.equal(states.at(-1)[1].reason, 'no pong');
    assert.ok(socket().closed);
  });

  check('is not assumed while pongs arrive', async (hub) => {
    socket().hello();
    for (let i = 0; i < 5; i++) {
      mock.timers.tick(25_000);
      assert.equal(types().length, i + 1);
      socket().say({ type: 'pong' });
      mock.timers.tick(10_000);
      assert.equal(hub.state, 'open');
    }
  });

  check('gets no ping while it sends messages', async (hub) => {
    socket().hello();
    for (let i = 0; i < 10; i++) {
      socket().say({ type: 'pong' });
      mock.timers.tick(25_000);
    }
    assert.deepEqual(types(), []);
  });
});

describe('tokens', () => {
  check('a token is sent as a second subprotocol', async () => {
    assert.equal(socket().url, 'ws://host:1/ws');
    assert.deepEqual(socket().protocols, ['oyez.v1', 'oyez.token.a.b.c']);
  }, { token: 'a.b.c' });

  let calls = 0;
  check('a function is called for each connection', async () => {
    socket().fail();
    mock.timers.tick(100);
    await settle();
    assert.deepEqual(Socket.all.map(({ protocols }) => protocols[1]), ['oyez.token.t1', 'oyez.token.t2']);
  }, { token: async () => `t${++calls}` });

  let renewals = 0;
  const renewing = { token: async () => `t${++renewals}` };
  check('a token is renewed before it expires, on the same connection', async () => {
    socket().hello({ expires_ms: 600_000 });
    mock.timers.tick(540_000);
    await settle();
    const shown = () => socket().sent.filter(({ type }) => type === 'auth');
    assert.deepEqual(shown(), [{ type: 'auth', token: 't2' }]);
    socket().say({ type: 'authenticated', expires_ms: 10_000 });
    mock.timers.tick(8_000);
    await settle();
    assert.deepEqual(shown().map(({ token }) => token), ['t2', 't3']);
    assert.equal(Socket.all.length, 1);
  }, renewing);

  let failures = 0;
  const failing = { token: async () => (++failures === 2 ? Promise.reject(new Error('no network')) : `t${failures}`) };
  check('a failed renewal is retried', async () => {
    const warnings = await logged(async () => {
      socket().hello({ expires_ms: 100_000 });
      mock.timers.tick(80_000);
      await settle();
      assert.deepEqual(types().filter((type) => type === 'auth'), []);
      mock.timers.tick(5_000);
      await settle();
    });
    assert.deepEqual(socket().sent.filter(({ type }) => type === 'auth'), [{ type: 'auth', token: 't3' }]);
    assert.match(warnings.join(), /token function failed: no network/);
  }, failing);

  check('a function that fails is a failed connection', async (hub, states) => {
    assert.equal(Socket.all.length, 0);
    assert.deepEqual(states.at(-1), ['waiting', { retry_ms: 100, code: 1006, reason: 'no token' }]);
  }, { token: () => Promise.reject(new Error('no token')) });
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
      socket().say({ type: 'error', ch: 'a', code: 'forbidden', message: 'permission denied' });
      socket().say({ type: 'error', ref: 1, code: 'forbidden', message: 'permission denied' });
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
      socket().say({ type: 'error', ch: 'a', code: 'forbidden', message: 'no' });
      for (const ref of [1, 2]) socket().say({ type: 'error', ref, code: 'forbidden', message: 'no' });
      await awaited;
      // Rejected before the caller can attach a handler.
      await assert.rejects(async () => await hub.publish('a b', 1), { code: 'bad_channel' });
      await assert.rejects(hub.publish('a', null), { code: 'bad_data' });
      const settled = await Promise.allSettled([hub.publish('a', undefined), hub.publish('a b', 1)]);
      assert.deepEqual(settled.map(({ reason }) => reason.code), ['bad_data', 'bad_channel']);
      hub.addEventListener('error', () => {});
      hub.subscribe('d', () => {});
      socket().say({ type: 'error', ch: 'd', code: 'forbidden', message: 'no' });
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
  check('waits for the connection, in order, and up to a limit', async (hub) => {
    const first = [hub.publish('a', 1), hub.publish('a', 'two')];
    await assert.rejects(hub.publish('a', 3), { code: 'queue_full' });
    socket().hello();
    assert.deepEqual(socket().sent.map(({ data, text }) => data ?? text), [1, 'two']);
    socket().say({ type: 'ack', ref: 1, id: '1-1' }, { type: 'ack', ref: 2, id: '1-2' });
    assert.deepEqual(await Promise.all(first), ['1-1', '1-2']);
    hub.publish('a', 4);
    assert.equal(socket().sent.length, 3);
  }, { publishes_max: 2 });

  check('unacknowledged messages are sent again with their ref and key', async (hub) => {
    socket().hello();
    const one = hub.publish('a', 1);
    const two = hub.publish('a', 2);
    const before = socket().sent;
    socket().say({ type: 'ack', ref: 1, id: '1-1' });
    assert.equal(await one, '1-1');
    socket().fail();
    mock.timers.tick(100);
    socket().hello();
    assert.deepEqual(socket().sent, [before[1]]);
    assert.match(before[1].key, /^[0-9a-f]{24}-2$/);
    socket().say({ type: 'ack', ref: 2, id: '1-2' });
    assert.equal(await two, '1-2');
  });

  // [how long the server remembers keys, how long the client is away, is the publish sent again?]
  for (const [key_age_ms, away_ms, again] of [
    [300_000, 269_999, true],
    [300_000, 270_000, false],
    [1_000, 899, true],
    [1_000, 900, false],
    [0, 1, false],
    [undefined, 1, false],
  ]) {
    check(`away for ${away_ms} ms from a server that remembers keys for ${key_age_ms} ms`, async (hub) => {
      socket().hello({ key_age_ms });
      const sent = hub.publish('a', 1);
      socket().fail(4200, `drain retry_ms=${away_ms}`);
      const queued = hub.publish('a', 2);
      mock.timers.tick(away_ms);
      socket().hello({ key_age_ms });
      if (!again) await assert.rejects(sent, { code: 'unknown' });
      assert.deepEqual(socket().sent.map(({ data }) => data), again ? [1, 2] : [2]);
      for (const { ref } of socket().sent) socket().say({ type: 'ack', ref, id: `1-${ref}` });
      if (again) assert.equal(await sent, '1-1');
      assert.equal(await queued, '1-2');
    });
  }

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

  check('messages are not sent again to a restarted server, which has no keys', async (hub) => {
    socket().hello({ run: 'one' });
    const sent = hub.publish('a', 1);
    const rejected = hub.publish('a', 2);
    socket().say({ type: 'error', ref: 2, code: 'drain', message: 'going' });
    socket().fail(4200, 'drain retry_ms=1');
    const queued = hub.publish('a', 3);
    mock.timers.tick(1);
    socket().hello({ run: 'two' });
    await assert.rejects(sent, { code: 'unknown' });
    assert.deepEqual(socket().sent.map(({ data }) => data), [2, 3], 'what was not published goes to the next');
    for (const ref of [2, 3]) socket().say({ type: 'ack', ref, id: `1-${ref}` });
    assert.deepEqual([await rejected, await queued], ['1-2', '1-3']);
  });

  check('a rejection has a code; one during a drain is retried', async (hub) => {
    socket().hello();
    const rejected = hub.publish('a', 1);
    const drained = hub.publish('a', 2);
    socket().say({ type: 'error', ref: 1, code: 'forbidden', message: 'no' });
    await assert.rejects(rejected, { name: 'OyezError', code: 'forbidden', message: 'no' });
    socket().say({ type: 'error', ref: 2, code: 'drain', message: 'going' });
    socket().fail(4200, 'drain retry_ms=1');
    mock.timers.tick(1);
    socket().hello();
    assert.equal(socket().sent[0].ref, 2);
    socket().say({ type: 'ack', ref: 2, id: '1-2' });
    assert.equal(await drained, '1-2');
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

describe('receiving', () => {
  const envelope = (n, fields = {}) => ({ ch: 'a', id: `1-${n}`, n, data: n, ...fields });
  const subscribed = (id) => ({ type: 'subscribed', ch: 'a', id, subscribers: 1 });

  /** The events of all handlers, in one list. */
  function listen(hub, options = {}) {
    const heard = [];
    hub.subscribe('a', ({ data }) => heard.push(data), {
      ongap: ({ after, resume, missed, why }) => heard.push(`gap ${after} ${resume} ${missed} ${why}`),
      onlive: ({ id }) => heard.push(`live ${id}`),
      ...options,
    });
    return heard;
  }

  function comeBack() {
    socket().fail();
    mock.timers.tick(30_000);
    socket().hello();
    return socket().sent.find(({ type }) => type === 'subscribe').since;
  }

  check('resumes by its cursor and delivers no message twice', async (hub) => {
    const heard = listen(hub, { since: 'earliest' });
    socket().hello();
    assert.deepEqual(socket().sent, [{ type: 'subscribe', ch: 'a', since: 'earliest' }]);
    socket().say(subscribed('1-0'), envelope(1), envelope(2));
    assert.equal(comeBack(), '1-2');
    socket().say(subscribed('1-2'), envelope(1), envelope(2), envelope(3), { type: 'live', ch: 'a', id: '1-7' });
    assert.deepEqual(heard, [1, 2, 3, 'live 1-7']);
    assert.equal(comeBack(), '1-7');
  });

  check('a hole in the numbers is an unannounced gap', async (hub) => {
    const heard = listen(hub);
    socket().hello();
    socket().say(subscribed('1-0'), envelope(5), envelope(8), envelope(9));
    assert.deepEqual(heard, [5, 'gap 1-5 1-8 2 hole', 8, 9]);
  });

  check('an announced gap is reported once', async (hub) => {
    const heard = listen(hub);
    socket().hello();
    socket().say(subscribed('1-0'), envelope(5));
    assert.equal(comeBack(), '1-5');
    socket().say(subscribed('1-10'), { type: 'gap', ch: 'a', after: '1-5', resume: '1-10', missed: 5, why: 'evicted' });
    assert.equal(comeBack(), '1-10');
    socket().say(subscribed('1-10'), envelope(11));
    assert.deepEqual(heard, [5, 'gap 1-5 1-10 5 evicted', 11]);
  });

  check('a removed channel that counts from 1 again has no gap', async (hub) => {
    const heard = listen(hub);
    socket().hello();
    socket().say(subscribed('1-0'), envelope(5));
    comeBack();
    socket().say(subscribed('1-5'), envelope(1, { id: '1-6' }), envelope(2, { id: '1-7' }));
    assert.deepEqual(heard, [5, 1, 2]);
  });

  check("own messages are recognized, also of earlier connections", async (hub) => {
    const own = [];
    const others = [];
    hub.subscribe('a', (message) => own.push([message.data, message.own]));
    hub.subscribe('a', ({ data }) => others.push(data), { echo: false });
    socket().hello({ client: 'me' });
    socket().say(subscribed('1-0'), envelope(1, { from: 'me' }), envelope(2, { from: 'you' }), envelope(3));
    comeBack();
    socket().say(subscribed('1-3'), envelope(4, { from: 'me' }));
    assert.deepEqual(own, [[1, true], [2, false], [3, false], [4, true]]);
    assert.deepEqual(others, [2, 3]);
    // Another log: the client that is named so now is a different one.
    comeBack();
    socket().say(subscribed('2-0'), { type: 'gap', ch: 'a', after: '1-4', resume: '2-0', missed: null, why: 'epoch' });
    socket().say(envelope(1, { id: '2-1', from: 'me' }));
    assert.deepEqual(others, [2, 3, 1]);
  });

  check('removing the last handler unsubscribes, and a new one subscribes again', async (hub) => {
    const heard = [];
    const off = [hub.subscribe('a', ({ data }) => heard.push(data)), hub.subscribe('a', ({ data }) => heard.push(data))];
    socket().hello();
    socket().say(subscribed('1-0'), envelope(1));
    off[0]();
    off[0]();
    socket().say(envelope(2));
    off[1]();
    assert.deepEqual(types(), ['subscribe', 'unsubscribe']);
    hub.subscribe('a', ({ data }) => heard.push(`new ${data}`), { since: 'latest' });
    socket().say(envelope(3));
    socket().say({ type: 'unsubscribed', ch: 'a' });
    assert.deepEqual(types(), ['subscribe', 'unsubscribe', 'subscribe']);
    socket().say(subscribed('1-2'), envelope(3));
    assert.deepEqual(heard, [1, 1, 2, 'new 3']);
  });

  check('a rejected subscription is reported, and retried on the next connection', async (hub) => {
    const errors = [];
    hub.addEventListener('error', ({ detail }) => errors.push(`hub ${detail.code}`));
    hub.subscribe('a', () => {}, { onerror: ({ code }) => errors.push(code) });
    socket().hello();
    socket().say({ type: 'error', ch: 'a', code: 'forbidden', message: 'no' });
    assert.deepEqual(errors, ['forbidden', 'hub forbidden']);
    assert.equal(comeBack(), undefined);
    assert.deepEqual(types(), ['subscribe']);
  });

  check('messages have the user from the server', async (hub) => {
    const heard = [];
    hub.subscribe('a', ({ user }) => heard.push(user));
    socket().hello();
    const alice = { id: 'alice', info: { name: 'Alice' } };
    socket().say(subscribed('1-0'), envelope(1, { user: alice }), envelope(2));
    assert.deepEqual(heard, [alice, null]);
  });

  check('bytes and text', async (hub) => {
    const heard = [];
    hub.subscribe('a', ({ kind, data }) => heard.push([kind, data]));
    socket().hello();
    socket().say(subscribed('1-0'), { ch: 'a', id: '1-1', n: 1, base64: 'AP8=' }, { ch: 'a', id: '1-2', n: 2, text: '' });
    assert.deepEqual(heard, [['binary', new Uint8Array([0, 255])], ['text', '']]);
  });

  check('a frame that is not JSON ends the connection', async (hub) => {
    socket().hello();
    socket().onmessage({ data: 'x' });
    assert.equal(hub.state, 'waiting');
  });
});
