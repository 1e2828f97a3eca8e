// Compiled with `tsc --strict`; each line after an expected error must be one.

import { Oyez } from 'oyez';
import { useChannel } from 'oyez/react';
import type { Channel, ChannelOptions } from 'oyez/react';

const hub = new Oyez('http://127.0.0.1:8080');

export function Prices() {
  const { state, messages, error, publish } = useChannel<{ price: number }>(hub, 'prices', {
    since: 'latest',
    echo: false,
    messages_max: 10,
    onmessage: (message) => message.kind === 'data' && message.data.price.toFixed(),
    ongap: ({ missed }) => missed,
  });
  const id: Promise<string> = publish({ price: 1 });
  // @ts-expect-error: null is an absent payload
  publish(null);
  // @ts-expect-error: no such state
  if (state === 'offline') return null;
  return <p title={error?.code}>{state} {messages.map(({ id, n }) => `${id} ${n}`)} {String(id)}</p>;
}

export function Wrong() {
  // @ts-expect-error: a channel is required
  useChannel(hub);
  // @ts-expect-error: no such option
  return useChannel(hub, 'prices', { limit: 3 }).state;
}

export type All = [Channel, ChannelOptions];
