// transcripts.json with oyez.js. Time, chance and the socket are the test's; test_transcripts.py does the same with the
// Python client.
//
// A transcript is a list of steps. `connects`: the client opens a connection with these subprotocols (null: none).
// `hello`, `server`, `frame`, `closes`: what the server sends, and its close code and reason. `client`: exactly the frames
// that the client has sent since the last such step; a string with `$` is any value, the same wherever it is repeated.
// `app`: a call of the application. `sees`, `states`: exactly what the application got since the last such step, and of
// each entry the fields that are named. Entries of one subscription, and those of each publish, are in order.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mock, test } from 'node:test';

import { Oyez } from '../../src/console/oyez.js';

const { hello, transcripts } = JSON.parse(readFileSync(new URL('transcripts.json', import.meta.url)));

class Socket {
  static all = [];
  sent = [];
  closed = false;

  constructor(url, protocols) {
    this.protocols = protocols;
    Socket.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.closed = true;
  }
}

const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Replaces the names of an `each` by their values. */
function substitute(value, values) {
  if (typeof value === 'string') {
    if (Object.hasOwn(values, value)) return values[value];
    return Object.entries(values).reduce((text, [name, by]) => text.replaceAll(name, String(by)), value);
  }
  if (Array.isArray(value)) return value.map((each) => substitute(each, values));
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, substitute(each, values)]));
}

const subject = ({ message, gap, live, subscribed, rejected, published, failed }) =>
  message ?? gap ?? live ?? subscribed ?? rejected ?? published ?? failed;

class Play {
  seen = [];
  states = [];
  bound = {};
  ends = {};
  connected = 0;

  constructor(options) {
    const { tokens, ...rest } = options;
    let calls = 0;
    const token = async () => {
      const next = tokens[calls++];
      if (next === null) throw new Error('no token');
      assert.ok(next !== undefined, 'no further token');
      return next;
    };
    this.hub = new Oyez('http://host:1/', {
      WebSocket: Socket,
      random: () => 0.5,
      onstate: (state, detail) => this.states.push({ state, ...detail }),
      ...(tokens ? { token } : {}),
      ...rest,
    });
  }

  get socket() {
    return Socket.all.at(-1);
  }

  async step(step) {
    const [[kind, value], ...others] = Object.entries(step);
    assert.deepEqual(others, []);
    assert.ok(Object.hasOwn(Play.prototype, kind), `a step ${kind}`);
    await this[kind](value);
    await settle();
  }

  connects(protocols) {
    assert.equal(Socket.all.length, this.connected + (protocols ? 1 : 0), 'connections');
    if (!protocols) return;
    this.connected++;
    assert.deepEqual(this.socket.protocols, protocols);
  }

  hello(fields) {
    this.server({ ...hello, client: `c${Socket.all.length}`, ...fields });
  }

  server(message) {
    this.frame(JSON.stringify(message));
  }

  frame(text) {
    this.socket.onmessage?.({ data: text });
  }

  closes([code, reason]) {
    this.socket.onclose?.({ code, reason });
  }

  closed() {
    assert.ok(this.socket.closed);
  }

  wait_ms(ms) {
    mock.timers.tick(ms);
  }

  client(frames) {
    const sent = this.socket.sent.splice(0);
    const bind = (want, got) => {
      if (typeof want !== 'string' || !want.startsWith('$')) return want;
      return (this.bound[want] ??= got);
    };
    const wanted = frames.map((frame, at) =>
      Object.fromEntries(Object.entries(frame).map(([name, value]) => [name, bind(value, sent[at]?.[name])])));
    assert.deepEqual(sent, wanted);
    const keys = Object.entries(this.bound).filter(([name]) => name.startsWith('$key')).map(([, key]) => key);
    assert.equal(new Set(keys).size, keys.length, 'each publish has a key of its own');
  }

  app({ subscribe, unsubscribe, publish, as, bytes, data, close, ...options }) {
    const see = (kind) => (detail) => this.seen.push({ [kind]: as, ...detail });
    if (subscribe !== undefined) {
      const rejected = ({ code, message }) => this.seen.push({ rejected: as, code, text: message });
      try {
        this.ends[as] = this.hub.subscribe(subscribe, ({ from = null, ...message }) => see('message')({ from, ...message }), {
          ...options,
          ongap: see('gap'),
          onlive: see('live'),
          onsubscribed: see('subscribed'),
          onerror: rejected,
        });
      } catch (error) {
        rejected(error);
      }
    } else if (unsubscribe !== undefined) {
      this.ends[unsubscribe]();
    } else if (publish !== undefined) {
      this.hub.publish(publish, bytes ? new Uint8Array(bytes) : data).then(
        (id) => this.seen.push({ published: as, id }),
        ({ code, message }) => this.seen.push({ failed: as, code, text: message }),
      );
    } else {
      assert.ok(close);
      this.hub.close();
    }
  }

  sees(wanted) {
    const bySubject = (entries) => Object.groupBy
      ? Object.groupBy(entries, subject)
      : entries.reduce((groups, entry) => ({ ...groups, [subject(entry)]: [...(groups[subject(entry)] ?? []), entry] }), {});
    const [got, want] = [bySubject(this.seen.splice(0)), bySubject(wanted)];
    assert.deepEqual(Object.keys(got).sort(), Object.keys(want).sort());
    for (const name of Object.keys(want)) compare(got[name], want[name]);
  }

  states_(wanted) {
    compare(this.states.splice(0), wanted);
  }
}

/** Compares the fields that are named. */
function compare(got, want) {
  const picked = got.map((entry, at) => {
    const named = want[at] ?? entry;
    return Object.fromEntries(Object.keys(named).map((name) => [name, name === 'bytes' ? [...entry.data] : entry[name]]));
  });
  assert.deepEqual(picked, want);
}

for (const { name, each = [{}], options = {}, steps } of transcripts) {
  for (const values of each) {
    test(substitute(name, values), async () => {
      Socket.all = [];
      mock.timers.enable({ apis: ['setTimeout', 'Date'] });
      const warn = console.warn;
      console.warn = () => {};
      const play = new Play(options);
      try {
        await settle();
        for (const [at, step] of substitute(steps, values).entries()) {
          try {
            await play.step(step.states ? { states_: step.states } : step);
          } catch (error) {
            error.message = `step ${at + 1}, ${JSON.stringify(step)}: ${error.message}`;
            throw error;
          }
        }
        assert.deepEqual(play.seen, [], 'events that no step names');
        assert.deepEqual(play.socket?.sent ?? [], [], 'frames that no step names');
      } finally {
        play.hub.close();
        await settle();
        mock.timers.reset();
        console.warn = warn;
      }
    });
  }
}
