// Node as a runtime: the package by its name, with the WebSocket that Node has. Prints the received messages.

import { Oyez, OyezError } from 'oyez';

const hub = new Oyez(process.argv[2]);
const received = [];
const isLive = new Promise((resolve) => {
  hub.subscribe('main', ({ data, kind }) => received.push([kind, data]), { since: 'earliest', onlive: resolve });
});
await isLive;
await hub.publish('main', 'text');
await hub.publish('main', new Uint8Array([1, 2]));
await hub.publish('main', { x: 1 });
const code = await hub.publish('main', null).catch((error) => error instanceof OyezError && error.code);
hub.cut(0);
await hub.publish('main', 'after a reconnect');
while (received.length < 4) await new Promise((resolve) => setTimeout(resolve, 1));
console.log(JSON.stringify({ received: received.map(([kind, data]) => [kind, kind === 'binary' ? [...data] : data]), code }));
hub.close();
