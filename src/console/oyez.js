// A client for Oyez in one file, for browsers and Node.
//
// A plain WebSocket loses the messages that are published while it is disconnected. This client guarantees three
// properties across any number of lost connections:
//
// - **No unannounced loss.** Each channel has a cursor: the id of the last delivered message. A new connection resumes
//   there, no message is delivered twice, and messages that are no longer available are reported to `ongap`.
// - **Published once.** An unacknowledged publish is sent again with the same idempotency key for as long as the
//   server remembers keys (`key_age_ms` of its hello, and `run` while they are the same). After that it could be
//   published twice, so the promise is rejected instead (`unknown`).
// - **Reconnects with backoff.** Pauses are random and grow, so that a restarted server is not overloaded; the server's
//   own `retry_ms` has priority; and a rejection that would only be repeated (4000-4099) ends the client.
//
// The client deliberately does not send `echo: false`. A message that is not received leaves a hole in the channel's
// count, and the count is how a loss is detected; so the client's own messages are filtered out here.

const PROTOCOL = 'oyez.v1';

// The first pause is for a connection that was lost by chance, the last for a server that is down for longer.
const RETRY_FIRST_MS = 200;
const RETRY_MAX_MS = 30_000;
// After a connection that lasted this long, the next pause is the shortest again.
const GOOD_AFTER_MS = 30_000;
// Browsers wait for minutes for a connection that is never established.
const HELLO_TIMEOUT_MS = 10_000;
const PONG_TIMEOUT_MS = 10_000;
// For servers that ask for no pings: proxies and routers forget a silent connection after a minute or less.
const PING_MS = 25_000;
// A key is not used during the last tenth of the time for which the server remembers it, at most half a minute: the
// publish still has to arrive.
const KEY_MARGIN_MAX_MS = 30_000;
// A token is renewed when a fifth of its time is left, and at most a minute before it expires.
const RENEW_BEFORE_MAX_MS = 60_000;
// A token function that failed is called again after this.
const RENEW_RETRY_MS = 5_000;
// A page that is rejected sees only code 1006, so after this many failures before any hello the console gets a hint.
const HINT_AFTER_FAILURES = 3;
// A timer that is set for longer fires at once.
const TIMER_MAX_MS = 2 ** 31 - 1;
// Number of messages that a resumed channel could send twice: a little more than a server keeps by default.
const RECENT_IDS_MAX = 128;
// Earlier client ids of this object; messages that it published under them may still be replayed.
const CLIENTS_MAX = 64;

// `ignoreBOM` leaves a byte order mark in the text.
const TEXT = new TextDecoder('utf-8', { ignoreBOM: true });

/** A rejected request or a failed publish; `code` is machine-readable. */
export class OyezError extends Error {
  constructor(code, message) {
    super(message ?? code);
    this.name = 'OyezError';
    this.code = code;
  }
}

/** The promise of a publish. It knows whether its rejection is handled, so that others can be logged. */
class Publication extends Promise {
  isHandled = false;

  static get [Symbol.species]() {
    return Promise;
  }

  then(fulfilled, rejected) {
    this.isHandled = true;
    return super.then(fulfilled, rejected);
  }
}

/**
 * A connection that reconnects. Emits `state` (an Event; its `detail` has the state too) and `error` (its detail is
 * an OyezError that belongs to no publish).
 */
export class Oyez extends EventTarget {
  #url;
  #options;
  #state = 'connecting';
  #socket = null;
  #client = null;
  #run = null;
  #node;
  #clients = new Set();
  #messageBytesMax = Infinity;
  #keyAgeMs = 0;
  #greetings = 0;
  #hinted = false;
  #hasErrorListener = false;
  #renewTimer = null;
  #openSince = null;
  #failures = 0;
  #serverRequestedWait = false;
  #hasReceived = false;
  #pingMs = PING_MS;
  #retryTimer = null;
  #lifeTimer = null;
  #attempt = 0;
  #channels = new Map();
  // Every unacknowledged publish, sent or not, in the order of the calls.
  #publishes = new Map();
  #nextRef = 1;
  #key;

  /**
   * @param {string} [url] ws://, wss://, http:// or https://, with the server's path prefix if it has one; relative to
   *   the page; the page's own origin if absent
   * @param {object} [options]
   * @param {string | (() => string | Promise<string>)} [options.token] a function is called at each connect,
   *   and before the token expires
   * @param {(state: string, detail: object) => void} [options.onstate]
   * @param {number} [options.publishes_max] unacknowledged publishes; one more is rejected (`queue_full`)
   * @param {number} [options.pong_timeout_ms] silence after a ping that means the connection is dead
   * @param {typeof WebSocket} [options.WebSocket]
   * @param {() => number} [options.random] from 0 to below 1
   */
  constructor(url, options = {}) {
    super();
    this.#url = endpoint(url);
    this.#options = {
      WebSocket: globalThis.WebSocket,
      random: Math.random,
      publishes_max: 1000,
      pong_timeout_ms: PONG_TIMEOUT_MS,
      ...options,
    };
    if (!this.#options.WebSocket) throw new TypeError('there is no WebSocket here: pass one as options.WebSocket');
    this.#key = randomHex(12, this.#options.random);
    globalThis.addEventListener?.('online', this.#online);
    // The caller has the object before its first state event.
    queueMicrotask(() => this.#state === 'connecting' && this.#connect());
  }

  addEventListener(type, ...rest) {
    if (type === 'error') this.#hasErrorListener = true;
    super.addEventListener(type, ...rest);
  }

  /** 'connecting', 'open', 'waiting' or 'closed'. */
  get state() {
    return this.#state;
  }

  /** The id of this connection, which other clients see as `from`; null while it is not open. */
  get client() {
    return this.#client;
  }

  /**
   * Subscribes to a channel. Handlers of one channel share one subscription, and `since` counts for the first of them.
   *
   * @param {string} name
   * @param {(message: {channel, id, n, from, user, own, kind, data}) => void} onmessage
   * @param {object} [options] since ('latest', 'earliest' or an id), echo (false: not one's own), ongap, onlive,
   *   onsubscribed, onerror
   * @returns {() => void} ends it
   */
  subscribe(name, onmessage, options = {}) {
    checkName(name);
    const handler = { ...options, echo: options.echo ?? true, onmessage };
    let channel = this.#channels.get(name);
    if (!channel) {
      channel = { name, stage: 'unsubscribed', handlers: new Set() };
      this.#channels.set(name, channel);
    }
    if (channel.handlers.size === 0) {
      Object.assign(channel, { since: options.since, cursor: null, n: null, recent: new Set(), resumed: false });
    }
    channel.handlers.add(handler);
    if (this.#state === 'open' && channel.stage === 'unsubscribed') this.#requestSubscription(channel);
    return () => {
      if (!channel.handlers.delete(handler) || channel.handlers.size > 0) return;
      if (channel.stage === 'unsubscribed') {
        this.#channels.delete(name);
      } else if (channel.stage !== 'unsubscribing') {
        channel.stage = 'unsubscribing';
        this.#send({ type: 'unsubscribe', ch: name });
      }
    };
  }

  /**
   * Publishes a string as text, bytes (an ArrayBuffer or a view of one) as binary, anything else as JSON. A value whose
   * JSON is null, or which has no JSON, is rejected (`bad_data`).
   *
   * @returns {Promise<string>} the message's id; rejected with an OyezError, which is logged if it is not handled
   */
  publish(name, value) {
    const promise = new Publication((resolve, reject) => {
      checkName(name);
      if (this.#state === 'closed') throw new OyezError('closed', 'the connection has been closed');
      if (this.#publishes.size >= this.#options.publishes_max) {
        throw new OyezError('queue_full', `${this.#options.publishes_max} publishes wait for an acknowledgement`);
      }
      const ref = this.#nextRef++;
      const frame = JSON.stringify({ type: 'publish', ch: name, ...payload(value), ref, key: `${this.#key}-${ref}` });
      const publish = { ref, frame, sent: null, resolve, reject };
      this.#publishes.set(ref, publish);
      if (this.#state === 'open') this.#sendPublish(publish);
    });
    Promise.prototype.then.call(promise, undefined, (error) => {
      const isOwnClose = error.code === 'closed' && this.#state === 'closed';
      // `await` and Promise.all call `then` in a separate microtask, which runs after this one if the promise is
      // rejected already.
      queueMicrotask(() => {
        if (!promise.isHandled && !isOwnClose) warn(`publish to ${name} failed: ${error.code}: ${error.message}`);
      });
    });
    return promise;
  }

  /** Drops the connection as if the network had failed; it comes back by itself, after `retry_ms` if that is given. */
  cut(retry_ms) {
    if (this.#state !== 'connecting' && this.#state !== 'open') return;
    this.#lost(1006, retry_ms === undefined ? 'cut' : `cut retry_ms=${retry_ms}`);
  }

  /** Closes the client for good. No timer, listener or promise remains. */
  close() {
    if (this.#state === 'closed') return;
    const socket = this.#release();
    socket?.close(1000);
    this.#end(1000, 'close');
  }

  // The connection

  async #connect() {
    this.#enter('connecting', {});
    const attempt = ++this.#attempt;
    this.#lifeTimer = setTimeout(() => this.#lost(1006, 'no hello'), HELLO_TIMEOUT_MS);
    const { token, WebSocket } = this.#options;
    let socket;
    try {
      const protocols = [PROTOCOL];
      if (token !== undefined) protocols.push(`oyez.token.${typeof token === 'function' ? await token() : token}`);
      // While the token was fetched, the connection may have been closed.
      if (attempt !== this.#attempt) return;
      socket = new WebSocket(this.#url, protocols);
    } catch (error) {
      if (attempt === this.#attempt) this.#lost(1006, String(error?.message ?? error));
      return;
    }
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    // A close event follows each error, and has the details.
    socket.onerror = () => {};
  }

  /** Takes the socket and its timers out of service. */
  #release() {
    const socket = this.#socket;
    clearTimeout(this.#lifeTimer);
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#renewTimer);
    this.#attempt++;
    this.#socket = null;
    this.#client = null;
    if (socket) socket.onmessage = socket.onclose = null;
    for (const channel of this.#channels.values()) {
      channel.stage = 'unsubscribed';
      if (channel.handlers.size === 0) this.#channels.delete(channel.name);
    }
    return socket;
  }

  #lost(code, reason) {
    const socket = this.#release();
    // A close handshake with a peer that has vanished takes long; npm's ws can end the socket without one.
    if (socket?.terminate) socket.terminate();
    else socket?.close();

    if (code >= 4000 && code <= 4099) return this.#end(code, reason);
    if (this.#greetings === 0 && this.#failures + 1 >= HINT_AFTER_FAILURES && !this.#hinted) {
      this.#hinted = true;
      const page = globalThis.location?.origin;
      warn(
        `no connection to ${this.#url} after ${HINT_AFTER_FAILURES} attempts (${code} ${reason}). ` +
          'Check that the server runs at this address and speaks the same protocol (ws:// or wss://), that a proxy in ' +
          `front passes Upgrade and Host, and that the server allows this origin${page ? ` (--origin ${page})` : ''}; ` +
          'the log of the server names the reason.',
      );
    }
    if (this.#openSince !== null && Date.now() - this.#openSince >= GOOD_AFTER_MS) this.#failures = 0;
    this.#openSince = null;

    const requested = /\bretry_ms=(\d+)/.exec(reason);
    const ceilingMs = Math.min(RETRY_MAX_MS, RETRY_FIRST_MS * 2 ** this.#failures++);
    const retry_ms = Math.floor(requested ? Math.min(Number(requested[1]), TIMER_MAX_MS) : this.#options.random() * ceilingMs);
    this.#serverRequestedWait = requested !== null;
    this.#retryTimer = setTimeout(() => this.#connect(), retry_ms);
    this.#enter('waiting', { retry_ms, code, reason });
  }

  #end(code, reason) {
    globalThis.removeEventListener?.('online', this.#online);
    for (const { reject } of this.#publishes.values()) reject(new OyezError('closed', `closed: ${code} ${reason}`));
    this.#publishes.clear();
    this.#enter('closed', { code, reason });
  }

  /** Called when the network is available again: ends a random pause, and checks whether an open connection is dead. */
  #online = () => {
    if (this.#state === 'waiting' && !this.#serverRequestedWait) {
      clearTimeout(this.#retryTimer);
      this.#connect();
    } else if (this.#state === 'open') {
      this.#ping();
    }
  };

  #enter(state, detail) {
    this.#state = state;
    call(this.#options.onstate, state, detail);
    this.dispatchEvent(event('state', { state, ...detail }));
  }

  #send(command) {
    this.#socket.send(JSON.stringify(command));
  }

  // A connection is alive as long as messages arrive, so a ping is sent only after a silence.

  #listen() {
    this.#hasReceived = false;
    this.#lifeTimer = setTimeout(() => (this.#hasReceived ? this.#listen() : this.#ping()), this.#pingMs);
  }

  #ping() {
    clearTimeout(this.#lifeTimer);
    this.#hasReceived = false;
    this.#send({ type: 'ping' });
    this.#lifeTimer = setTimeout(() => {
      if (this.#hasReceived) this.#listen();
      else this.#lost(1006, 'no pong');
    }, this.#options.pong_timeout_ms);
  }

  // Messages of the server

  #receive(text) {
    this.#hasReceived = true;
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return this.#lost(1002, 'not JSON');
    }
    const channel = this.#channels.get(message.ch);
    switch (message.type) {
      case undefined:
        return this.#onMessage(channel, message);
      case 'hello':
        return this.#onHello(message);
      case 'subscribed':
        return this.#onSubscribed(channel, message);
      case 'unsubscribed':
        return this.#onUnsubscribed(channel);
      case 'live':
        if (channel?.stage !== 'subscribed') return;
        channel.cursor = message.id;
        return notify(channel, 'onlive', { channel: channel.name, id: message.id });
      case 'gap':
        if (channel?.stage !== 'subscribed') return;
        channel.cursor = message.resume;
        // The channel's count continues somewhere after the gap.
        channel.n = null;
        // Another log is another server, which may have assigned this client's earlier ids to other clients.
        if (message.why === 'epoch') this.#clients = new Set([this.#client]);
        return this.#gap(channel, message.after, message.resume, message.missed, message.why);
      case 'authenticated':
        return this.#renewLater(message.expires_ms);
      case 'ack':
        return this.#settlePublish(message.ref, ({ resolve }) => resolve(message.id));
      case 'error':
        return this.#onError(channel, message);
      // Any other message is a pong, or one of a newer server.
    }
  }

  #onHello({ client, run, node, ping_ms, message_bytes_max, key_age_ms, expires_ms }) {
    clearTimeout(this.#lifeTimer);
    // Another process does not know earlier keys, and no process knows those of a client that has changed its network.
    if (this.#run !== null && run !== this.#run) {
      for (const publish of this.#publishes.values()) if (publish.sent !== null) publish.sent = LONG_AGO;
    }
    this.#run = run;
    // Each of several nodes that share a log counts the messages of a channel by itself.
    if (node !== this.#node) for (const channel of this.#channels.values()) channel.n = null;
    this.#node = node;
    this.#greetings++;
    this.#keyAgeMs = key_age_ms ?? 0;
    this.#renewLater(expires_ms);
    this.#client = client;
    keepNewest(this.#clients, client, CLIENTS_MAX);
    this.#messageBytesMax = message_bytes_max ?? Infinity;
    this.#openSince = Date.now();
    this.#pingMs = ping_ms || PING_MS;
    this.#listen();
    for (const channel of this.#channels.values()) this.#requestSubscription(channel);
    for (const publish of this.#publishes.values()) this.#sendPublish(publish);
    this.#enter('open', { client });
  }

  /** The connection's rights end with its token, so the next token is sent before that. */
  #renewLater(expires_ms) {
    clearTimeout(this.#renewTimer);
    if (typeof this.#options.token !== 'function' || !(expires_ms > 0)) return;
    const waitMs = expires_ms - Math.min(RENEW_BEFORE_MAX_MS, expires_ms / 5);
    this.#renewTimer = setTimeout(() => this.#renew(), Math.min(waitMs, TIMER_MAX_MS));
  }

  async #renew() {
    const attempt = this.#attempt;
    try {
      const token = await this.#options.token();
      if (attempt === this.#attempt) this.#send({ type: 'auth', token });
    } catch (error) {
      if (attempt !== this.#attempt) return;
      warn(`the token function failed: ${error?.message ?? error}`);
      this.#renewTimer = setTimeout(() => this.#renew(), RENEW_RETRY_MS);
    }
  }

  #requestSubscription(channel) {
    channel.stage = 'subscribing';
    const since = channel.cursor ?? channel.since;
    this.#send({ type: 'subscribe', ch: channel.name, since });
  }

  #onSubscribed(channel, { id, subscribers }) {
    if (channel?.stage !== 'subscribing') return;
    channel.stage = 'subscribed';
    channel.cursor = id;
    channel.resumed = true;
    notify(channel, 'onsubscribed', { channel: channel.name, id, subscribers });
  }

  /** Subscribes again to a channel that got new handlers meanwhile: messages in flight are not for them. */
  #onUnsubscribed(channel) {
    if (channel?.stage !== 'unsubscribing') return;
    channel.stage = 'unsubscribed';
    if (channel.handlers.size > 0) this.#requestSubscription(channel);
    else this.#channels.delete(channel.name);
  }

  #onMessage(channel, { id, n, from, user, ...body }) {
    if (channel?.stage !== 'subscribed' || channel.recent.has(id)) return;
    const { name, cursor: after, n: last, resumed } = channel;
    // The server removes an unused channel after a while, and its count starts again.
    const continues = last === null || n === last + 1 || (resumed && n === 1);
    Object.assign(channel, { cursor: id, n, resumed: false });
    keepNewest(channel.recent, id, RECENT_IDS_MAX);
    if (!continues) this.#gap(channel, after, id, n > last ? n - last - 1 : null, 'hole');

    const own = this.#clients.has(from);
    // Set by the server, from the sender's token.
    const message = { channel: name, id, n, from, user: user ?? null, own, ...content(body) };
    for (const handler of [...channel.handlers]) {
      if (channel.handlers.has(handler) && (handler.echo || !own)) call(handler.onmessage, message);
    }
  }

  #gap({ name, handlers }, after, resume, missed, why) {
    notify({ handlers }, 'ongap', { channel: name, after, resume, missed, why });
  }

  #onError(channel, { ref, code, message }) {
    const error = new OyezError(code, message);
    if (ref !== undefined) {
      // The connection is about to close. The message was not published, and is sent again on the next one.
      if (code !== 'drain') this.#settlePublish(ref, ({ reject }) => reject(error));
      else if (this.#publishes.has(ref)) this.#publishes.get(ref).sent = null;
      return;
    }
    // The subscription that was to be ended had been rejected.
    if (code === 'not_subscribed') this.#onUnsubscribed(channel);
    const isHandled = this.#hasErrorListener || (channel && [...channel.handlers].some(({ onerror }) => onerror));
    if (!isHandled) warn(`${channel ? `channel ${channel.name}: ` : ''}${code}: ${message}`);
    if (channel?.stage === 'subscribing') {
      channel.stage = 'unsubscribed';
      notify(channel, 'onerror', error);
      if (channel.handlers.size === 0) this.#channels.delete(channel.name);
    }
    this.dispatchEvent(event('error', error));
  }

  #settlePublish(ref, settle) {
    const publish = this.#publishes.get(ref);
    this.#publishes.delete(ref);
    if (publish) settle(publish);
  }

  #sendPublish(publish) {
    const { ref, frame, sent, reject } = publish;
    const rejectWith = (code, why) => this.#settlePublish(ref, () => reject(new OyezError(code, why)));
    const usableMs = this.#keyAgeMs - Math.min(KEY_MARGIN_MAX_MS, this.#keyAgeMs / 10);
    if (sent !== null && elapsed(sent) >= usableMs) {
      rejectWith('unknown', 'it was sent, its acknowledgement was lost, and the server no longer remembers its key');
    } else if (isLonger(frame, this.#messageBytesMax)) {
      // The server would close the connection, and again after each reconnect.
      rejectWith('too_big', `with its envelope the message is over ${this.#messageBytesMax} bytes, the maximum of the server`);
    } else {
      publish.sent ??= clocks();
      this.#socket.send(frame);
    }
  }
}

function endpoint(text) {
  const page = globalThis.location;
  const url = new URL(text ?? page.origin, page?.href);
  url.protocol = url.protocol.replace(/^http/, 'ws');
  // The path in front of `/ws` is the prefix under which a proxy serves Oyez; the whole address is accepted too.
  url.pathname = `${url.pathname.replace(/\/+$/, '').replace(/\/ws$/, '')}/ws`;
  // A WebSocket's address has no fragment (RFC 6455 3).
  url.hash = '';
  return url.href;
}

// The wall clock can be set back, and the monotonic one may stop while a machine sleeps: the larger of the two ages is
// never too small.
function clocks() {
  return { wall: Date.now(), monotonic: globalThis.performance?.now() ?? 0 };
}

const LONG_AGO = { wall: -Infinity, monotonic: -Infinity };

function elapsed(since) {
  const now = clocks();
  return Math.max(now.wall - since.wall, now.monotonic - since.monotonic);
}

// Keys have to be unique, not secret, so without `crypto` (Node 18) any random numbers suffice.
function randomHex(bytes, random) {
  const array = new Uint8Array(bytes);
  if (globalThis.crypto?.getRandomValues) globalThis.crypto.getRandomValues(array);
  else array.forEach((_, at) => (array[at] = Math.floor(random() * 256)));
  return Array.from(array, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// Node 18 has no CustomEvent.
function event(type, detail) {
  return Object.assign(new Event(type), { detail });
}

function warn(text) {
  globalThis.console?.warn(`oyez: ${text}`);
}

function checkName(name) {
  if (typeof name !== 'string' || !/^[A-Za-z0-9_.:-]{1,255}$/.test(name)) {
    throw new OyezError('bad_channel', 'a channel has a name of 1 to 255 characters of A-Z a-z 0-9 _ . : -');
  }
}

function payload(value) {
  // Like WebSocket.send(): an unpaired surrogate is sent as U+FFFD.
  if (typeof value === 'string') return { text: TEXT.decode(new TextEncoder().encode(value)) };
  if (value instanceof ArrayBuffer) return { base64: toBase64(new Uint8Array(value)) };
  if (ArrayBuffer.isView(value)) {
    return { base64: toBase64(new Uint8Array(value.buffer, value.byteOffset, value.byteLength)) };
  }
  const json = JSON.stringify(value);
  if (json === undefined) throw new OyezError('bad_data', `a value of type ${typeof value} has no JSON`);
  // In `oyez.v1` null is an absent field. NaN and invalid dates are null in JSON too.
  if (json === 'null') throw new OyezError('bad_data', 'null cannot be published: put it in an object or an array');
  return { data: value };
}

function content({ data, text, base64 }) {
  if (text !== undefined) return { kind: 'text', data: text };
  if (base64 !== undefined) return { kind: 'binary', data: Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)) };
  return { kind: 'data', data };
}

function toBase64(bytes) {
  let characters = '';
  for (const byte of bytes) characters += String.fromCharCode(byte);
  return btoa(characters);
}

/** Returns true if the text is longer in UTF-8. A UTF-16 unit makes at most three bytes, so most texts need not be encoded. */
function isLonger(text, bytesMax) {
  return text.length * 3 > bytesMax && new TextEncoder().encode(text).length > bytesMax;
}

function keepNewest(set, value, valuesMax) {
  set.delete(value);
  set.add(value);
  if (set.size > valuesMax) set.delete(set.values().next().value);
}

function notify({ handlers }, event, detail) {
  for (const handler of [...handlers]) call(handler[event], detail);
}

/** Calls a handler. Its error is reported as an uncaught one, and the other handlers are still called. */
function call(handler, ...details) {
  try {
    handler?.(...details);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
