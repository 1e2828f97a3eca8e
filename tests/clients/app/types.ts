// Compiled with `tsc --strict`; each line after an expected error must be one.

import { Oyez, OyezError } from 'oyez';
import type {
  BinaryMessage, ClientErrorCode, ClosedDetail, DataMessage, ErrorCode, Gap, Live, Message, OpenDetail, Options,
  OyezErrorEvent, OyezEventMap, ServerErrorCode, State, StateChange, StateEvent, Subscribed, SubscribeOptions, TextMessage,
  User, WaitingDetail, WebSocketLike,
} from 'oyez';
import WebSocket from 'ws';

const hub = new Oyez('http://127.0.0.1:8080', {
  token: async () => 'a.b.c',
  onstate: (state, detail) => {
    if (state === 'waiting') detail.retry_ms.toFixed();
    if (state === 'open') detail.client.at(0);
    // @ts-expect-error: an open connection has no code
    if (state === 'open') detail.code;
  },
  publishes_max: 10,
  pong_timeout_ms: 1000,
  random: Math.random,
});
new Oyez();
new Oyez('/live', { WebSocket });
new Oyez(undefined, { token: 'a.b.c' });
// @ts-expect-error: no such option
new Oyez('/live', { retries: 3 });
// @ts-expect-error: not a token
new Oyez('/live', { token: 7 });

const off: () => void = hub.subscribe('a', (message) => {
  const { channel, id, n, from, user, own } = message;
  const fields: [string, string, number, string | undefined, User | null, boolean] = [channel, id, n, from, user, own];
  switch (message.kind) {
    case 'text':
      return message.data.toUpperCase();
    case 'binary':
      return message.data.byteLength;
    case 'data':
      // @ts-expect-error: JSON data is unknown without a type
      message.data.price;
      return fields;
  }
}, {
  since: 'earliest',
  echo: false,
  ongap: ({ missed, why, after, resume }: Gap) => {
    const number: number | null = missed;
    // @ts-expect-error: no such reason
    if (why === 'because') return;
    console.log(number, why, after, resume);
  },
  onlive: ({ id }: Live) => console.log(id),
  onsubscribed: ({ subscribers }: Subscribed) => console.log(subscribers.toFixed()),
  onerror: ({ code }) => code === 'forbidden',
});
off();
hub.subscribe<{ price: number }>('a', (message) => message.kind === 'data' && message.data.price.toFixed());
hub.subscribe('a', () => {}, { since: '1-7' });
// @ts-expect-error: a handler is required
hub.subscribe('a');
// @ts-expect-error: not a cursor
hub.subscribe('a', () => {}, { since: 7 });

interface Tick { price: number }
const tick: Tick = { price: 1 };
const ids: Promise<string>[] = [hub.publish('a', tick), hub.publish('a', 'text'), hub.publish('a', new Uint8Array(2)), hub.publish('a', [null])];
// @ts-expect-error: null is an absent payload
hub.publish('a', null);
// @ts-expect-error: so is undefined
hub.publish('a', undefined);
// @ts-expect-error: a value is required
hub.publish('a');

hub.addEventListener('state', ({ detail }: StateEvent) => {
  if (detail.state === 'closed') console.log(detail.code, detail.reason);
  // @ts-expect-error: only a waiting client has a pause
  if (detail.state === 'closed') console.log(detail.retry_ms);
});
hub.addEventListener('error', ({ detail }) => console.log(detail.code, detail.message));
// @ts-expect-error: no such event
hub.addEventListener('message', () => {});

const state: State = hub.state;
const client: string | null = hub.client;
// @ts-expect-error: read only
hub.state = 'open';
hub.cut();
hub.cut(500);
hub.close();

const error = new OyezError('forbidden', 'permission denied');
const code: ErrorCode | string = error.code;
const known: ErrorCode = 'unconfirmed';
// @ts-expect-error: no such code
const unknown: ErrorCode = 'no_such_code';
// @ts-expect-error: a code of the server
const own: ClientErrorCode = 'forbidden';

export type All = [
  BinaryMessage, ClosedDetail, DataMessage<Tick>, Message, OpenDetail, Options, OyezErrorEvent, OyezEventMap, ServerErrorCode,
  StateChange, SubscribeOptions, TextMessage, WaitingDetail, WebSocketLike,
];
console.log(ids, state, client, code, known, unknown, own);
