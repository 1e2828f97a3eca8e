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
    this.say({ type: 'hello', id: '1-0', client: `c${Socket.all.length}`, ping_ms: 25_000, message_bytes_max: 200, ...fields });
  }

  fail(code = 1006, reason = '') {
    this.onclose?.({ code, reason });
  }
}

const socket = () => Socket.all.at(-1);
const types = () => socket().sent.map(({ type }) => type);
const settle = () => new Promise((resolve) => setImmediate(resolve));

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

describe('coming back', () => {
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

  check('a connection that held for 30 s begins with the first pause again', async (hub, states) => {
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

  check('the server says when', async (hub, states) => {
    socket().hello();
    socket().fail(4200, 'drain retry_ms=8350');
    assert.deepEqual(states.at(-1), ['waiting', { retry_ms: 8350, code: 4200, reason: 'drain retry_ms=8350' }]);
    mock.timers.tick(8349);
    assert.equal(hub.state, 'waiting');
    mock.timers.tick(1);
    assert.equal(hub.state, 'connecting');
  });

  check('a word of the server that no timer can hold is not taken for now', async (hub) => {
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
    check(`${code} is not`, async (hub) => {
      socket().fail(code, 'why');
      mock.timers.tick(100);
      assert.equal(Socket.all.length, 2);
    });
  }

  check('without a hello the connection is given up', async (hub, states) => {
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

  check('cut while connecting, and cut again', async (hub) => {
    hub.cut();
    hub.cut();
    assert.equal(hub.state, 'waiting');
    mock.timers.tick(100);
    assert.equal(hub.state, 'connecting');
    assert.equal(Socket.all.length, 2);
  });

  test("the browser's online event ends a pause, but not one that the server asked for", async () => {
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

describe('a server that vanished', () => {
  check('is noticed by its silence after a ping', async (hub, states) => {
    socket().hello();
    mock.timers.tick(25_000);
    assert.deepEqual(types(), ['ping']);
    mock.timers.tick(10_000);
    assert.equal(states.at(-1)[1].reason, 'no pong');
    assert.ok(socket().closed);
  });

  check('is not what a silent server is', async (hub) => {
    socket().hello();
    for (let i = 0; i < 5; i++) {
      mock.timers.tick(25_000);
      assert.equal(types().length, i + 1);
      socket().say({ type: 'pong' });
      mock.timers.tick(10_000);
      assert.equal(hub.state, 'open');
    }
  });

  check('gets no ping while it talks', async (hub) => {
    socket().hello();
    for (let i = 0; i < 10; i++) {
      socket().say({ type: 'pong' });
      mock.timers.tick(25_000);
    }
    assert.deepEqual(types(), []);
  });
});

describe('tokens', () => {
  check('a token goes beside the protocol', async () => {
    assert.equal(socket().url, 'ws://host:1/ws');
    assert.deepEqual(socket().protocols, ['oyez.v1', 'oyez.token.a.b.c']);
  }, { token: 'a.b.c' });

  let calls = 0;
  check('a function is asked anew at each connect', async () => {
    socket().fail();
    mock.timers.tick(100);
    await settle();
    assert.deepEqual(Socket.all.map(({ protocols }) => protocols[1]), ['oyez.token.t1', 'oyez.token.t2']);
  }, { token: async () => `t${++calls}` });

  check('one that fails is a failed connection', async (hub, states) => {
    assert.equal(Socket.all.length, 0);
    assert.deepEqual(states.at(-1), ['waiting', { retry_ms: 100, code: 1006, reason: 'no token' }]);
  }, { token: () => Promise.reject(new Error('no token')) });
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

  check('what was not acknowledged is sent again under its ref and key', async (hub) => {
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

  check('but not when the server has forgotten the key', async (hub) => {
    socket().hello();
    const sent = hub.publish('a', 1);
    socket().fail(4200, 'drain retry_ms=280000');
    const queued = hub.publish('a', 2);
    mock.timers.tick(280_000);
    socket().hello();
    await assert.rejects(sent, { code: 'unknown' });
    assert.deepEqual(socket().sent.map(({ data }) => data), [2]);
    socket().say({ type: 'ack', ref: 2, id: '1-2' });
    assert.equal(await queued, '1-2');
  });

  check('nor when it was started again, which knows no key of before', async (hub) => {
    socket().hello({ run: 'one' });
    const sent = hub.publish('a', 1);
    const refused = hub.publish('a', 2);
    socket().say({ type: 'error', ref: 2, code: 'drain', message: 'going' });
    socket().fail(4200, 'drain retry_ms=1');
    const queued = hub.publish('a', 3);
    mock.timers.tick(1);
    socket().hello({ run: 'two' });
    await assert.rejects(sent, { code: 'unknown' });
    assert.deepEqual(socket().sent.map(({ data }) => data), [2, 3], 'what was not published goes to the next');
    for (const ref of [2, 3]) socket().say({ type: 'ack', ref, id: `1-${ref}` });
    assert.deepEqual([await refused, await queued], ['1-2', '1-3']);
  });

  check('a refusal has a code; one because of a drain is none', async (hub) => {
    socket().hello();
    const refused = hub.publish('a', 1);
    const drained = hub.publish('a', 2);
    socket().say({ type: 'error', ref: 1, code: 'forbidden', message: 'no' });
    await assert.rejects(refused, { name: 'OyezError', code: 'forbidden', message: 'no' });
    socket().say({ type: 'error', ref: 2, code: 'drain', message: 'going' });
    socket().fail(4200, 'drain retry_ms=1');
    mock.timers.tick(1);
    socket().hello();
    assert.equal(socket().sent[0].ref, 2);
    socket().say({ type: 'ack', ref: 2, id: '1-2' });
    assert.equal(await drained, '1-2');
  });

  check('what the server would never take is not sent', async (hub) => {
    socket().hello();
    await assert.rejects(hub.publish('a', 'x'.repeat(200)), { code: 'too_big' });
    await assert.rejects(hub.publish('a', '\u{1F600}'.repeat(40)), { code: 'too_big' });
    await assert.rejects(hub.publish('a b', 1), { code: 'bad_channel' });
    await assert.rejects(hub.publish('a', undefined), { code: 'bad_data' });
    assert.deepEqual(socket().sent, []);
    hub.publish('a', '\ufeffhalf \ud800');
    assert.equal(socket().sent[0].text, '\ufeffhalf \ufffd');
  });
});

describe('hearing', () => {
  const envelope = (n, fields = {}) => ({ ch: 'a', id: `1-${n}`, n, data: n, ...fields });
  const subscribed = (id) => ({ type: 'subscribed', ch: 'a', id, members: 1 });

  /** What handlers heard, in one list. */
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

  check('comes back by its cursor, and hands nothing over twice', async (hub) => {
    const heard = listen(hub, { since: 'earliest' });
    socket().hello();
    assert.deepEqual(socket().sent, [{ type: 'subscribe', ch: 'a', since: 'earliest' }]);
    socket().say(subscribed('1-0'), envelope(1), envelope(2));
    assert.equal(comeBack(), '1-2');
    socket().say(subscribed('1-2'), envelope(1), envelope(2), envelope(3), { type: 'live', ch: 'a', id: '1-7' });
    assert.deepEqual(heard, [1, 2, 3, 'live 1-7']);
    assert.equal(comeBack(), '1-7');
  });

  check('a hole in the count is a gap that nobody announced', async (hub) => {
    const heard = listen(hub);
    socket().hello();
    socket().say(subscribed('1-0'), envelope(5), envelope(8), envelope(9));
    assert.deepEqual(heard, [5, 'gap 1-5 1-8 2 hole', 8, 9]);
  });

  check('a gap that was announced is told once', async (hub) => {
    const heard = listen(hub);
    socket().hello();
    socket().say(subscribed('1-0'), envelope(5));
    assert.equal(comeBack(), '1-5');
    socket().say(subscribed('1-10'), { type: 'gap', ch: 'a', after: '1-5', resume: '1-10', missed: 5, why: 'evicted' });
    assert.equal(comeBack(), '1-10');
    socket().say(subscribed('1-10'), envelope(11));
    assert.deepEqual(heard, [5, 'gap 1-5 1-10 5 evicted', 11]);
  });

  check('a channel that was forgotten meanwhile counts from 1 again, without a loss', async (hub) => {
    const heard = listen(hub);
    socket().hello();
    socket().say(subscribed('1-0'), envelope(5));
    comeBack();
    socket().say(subscribed('1-5'), envelope(1, { id: '1-6' }), envelope(2, { id: '1-7' }));
    assert.deepEqual(heard, [5, 1, 2]);
  });

  check("one's own messages, those of earlier connections too", async (hub) => {
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
    // Another log: whoever is called so now is somebody else.
    comeBack();
    socket().say(subscribed('2-0'), { type: 'gap', ch: 'a', after: '1-4', resume: '2-0', missed: null, why: 'epoch' });
    socket().say(envelope(1, { id: '2-1', from: 'me' }));
    assert.deepEqual(others, [2, 3, 1]);
  });

  check('the last handler ends the subscription, and a new one begins afresh', async (hub) => {
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

  check('a refused subscription is told, and tried again on the next connection', async (hub) => {
    const errors = [];
    hub.addEventListener('error', ({ detail }) => errors.push(`hub ${detail.code}`));
    hub.subscribe('a', () => {}, { onerror: ({ code }) => errors.push(code) });
    socket().hello();
    socket().say({ type: 'error', ch: 'a', code: 'forbidden', message: 'no' });
    assert.deepEqual(errors, ['forbidden', 'hub forbidden']);
    assert.equal(comeBack(), undefined);
    assert.deepEqual(types(), ['subscribe']);
  });

  check('bytes and text', async (hub) => {
    const heard = [];
    hub.subscribe('a', ({ kind, data }) => heard.push([kind, data]));
    socket().hello();
    socket().say(subscribed('1-0'), { ch: 'a', id: '1-1', n: 1, base64: 'AP8=' }, { ch: 'a', id: '1-2', n: 2, text: '' });
    assert.deepEqual(heard, [['binary', new Uint8Array([0, 255])], ['text', '']]);
  });

  check('a frame that is no JSON ends the connection', async (hub) => {
    socket().hello();
    socket().onmessage({ data: 'x' });
    assert.equal(hub.state, 'waiting');
  });
});
