// A restart of the server, as its clients see it: SIGTERM, the end of the process, a new one on the same port and the
// same history file, while a publisher goes on. Nothing may be lost, repeated or announced as a gap.
//
// RESTART_CLIENTS is the number of clients; times are printed and not checked.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { open, serve, sleep, until } from './support.mjs';

const CLIENTS = Number(process.env.RESTART_CLIENTS ?? 200);
const WAIT_MS = 180_000;

test(`${CLIENTS} clients reconnect after a restart without a loss`, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'oyez-restart-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const flags = ['--history-file', join(folder, 'history'), '--history-messages-max', '10000'];
  let server = await serve(t, { flags });

  const clients = [];
  for (let i = 0; i < CLIENTS; i++) {
    const client = { got: [], gaps: 0, lives: 0, opened_at: null };
    client.hub = open(t, server, { onstate: (state) => state === 'open' && (client.opened_at = Date.now()) });
    client.hub.subscribe('a', ({ data }) => client.got.push(data), {
      since: 'earliest',
      ongap: () => client.gaps++,
      onlive: () => client.lives++,
    });
    clients.push(client);
    // Not more handshakes at a time than the backlog holds.
    if (i % 500 === 499) await until('handshakes', () => clients.every(({ lives }) => lives > 0), WAIT_MS);
  }
  await until('all subscriptions', () => clients.every(({ lives }) => lives > 0), WAIT_MS);

  const publisher = open(t, server);
  const published = [];
  let publishing = true;
  const publish = (async () => {
    for (let n = 0; publishing; n++) {
      published.push(publisher.publish('a', n));
      await sleep(50);
    }
  })();
  await sleep(300);

  const { port } = server;
  const start = Date.now();
  for (const client of clients) client.opened_at = null;
  await server.stop('SIGTERM');
  const ended_ms = Date.now() - start;
  server = await serve(t, { port, flags });
  const up_ms = Date.now() - start;
  await until('all clients', () => clients.every(({ opened_at }) => opened_at !== null), WAIT_MS);
  await sleep(200);
  publishing = false;
  await publish;

  // A publish whose acknowledgement was lost with the old process is sent again under its key, which the new one knows.
  const outcomes = await Promise.allSettled(published);
  assert.deepEqual(outcomes.filter(({ status }) => status === 'rejected'), []);
  const acknowledged = outcomes.map((_, n) => n);
  const last = acknowledged.at(-1);
  await until('the last message', () => clients.every(({ got }) => got.includes(last)), WAIT_MS);

  const lost = clients.map(({ got }) => acknowledged.filter((n) => !got.includes(n)).length);
  const repeated = clients.map(({ got }) => got.length - new Set(got).size);
  const sum = (numbers) => numbers.reduce((one, other) => one + other, 0);
  assert.deepEqual({ lost: sum(lost), repeated: sum(repeated) }, { lost: 0, repeated: 0 });
  assert.equal(sum(clients.map(({ gaps }) => gaps)), 0, 'gaps');

  const away = clients.map(({ opened_at }) => opened_at - start).sort((one, other) => one - other);
  t.diagnostic(
    `${CLIENTS} clients: old process ended after ${ended_ms} ms, new one listened after ${up_ms} ms; ` +
      `connected again: half after ${away[CLIENTS >> 1]} ms, last after ${away.at(-1)} ms; ` +
      `${acknowledged.length} messages to each, none lost, none repeated, no gap`,
  );
});
