// Publishes that are in flight while a server with a history file restarts: the client sends them again under their
// keys, which the next process knows too. Every promise must be fulfilled, and every message arrive once, in order.
//
// The server restarts ten times, by SIGUSR2 and as another process on the same port, while a client publishes 100
// messages a second. Before each restart the acknowledgements of the last messages are lost.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { Oyez } from '../../src/console/oyez.js';
import { serve, sleep, until } from '../browser/support.mjs';

const RESTARTS = 10;
const INTERVAL_MS = 10;
/** Before each restart, at least. */
const UNACKNOWLEDGED = 10;
const WAIT_MS = 120_000;

const manners = {
  SIGUSR2: async (t, server) => {
    server.child.kill('SIGUSR2');
    return server;
  },
  'another process': async (t, { port, flags, stop }) => {
    await stop('SIGTERM');
    return { ...(await serve(t, { port, flags })), flags };
  },
};

describe('restarts', { concurrency: true }, () => {
  for (const [name, restart] of Object.entries(manners)) {
    test(`publishes in flight during ${RESTARTS} restarts (${name}) arrive once`, async (t) => {
      const folder = await mkdtemp(join(tmpdir(), 'oyez-restart-'));
      t.after(() => rm(folder, { recursive: true, force: true }));
      // The publisher is never ahead of the history, however slow the machine is.
      const limits = ['--history-messages-max', '1000000', '--history-bytes-max', '1GiB'];
      const flags = ['--history-file', join(folder, 'history'), ...limits];
      let server = { ...(await serve(t, { flags })), flags };

      const opened = { publisher: 0, subscriber: 0 };
      const client = (which, options) => {
        const onstate = (state) => (opened[which] += state === 'open');
        // Short pauses, since a server that is not back refuses connections.
        const hub = new Oyez(server.url, { random: () => 0.05, publishes_max: Infinity, onstate, ...options });
        t.after(() => hub.close());
        return hub;
      };
      // How often each publish is sent, and the connection that may lose its acknowledgements.
      const sent = new Map();
      let connection;
      class Lossy extends WebSocket {
        loses_acks = false;

        constructor(...options) {
          super(...options);
          connection = this;
        }

        send(text) {
          const { ref } = JSON.parse(text);
          if (ref !== undefined) sent.set(ref, (sent.get(ref) ?? 0) + 1);
          super.send(text);
        }

        set onmessage(handler) {
          super.onmessage = handler && ((event) => {
            if (!this.loses_acks || JSON.parse(event.data).type !== 'ack') handler(event);
          });
        }
      }
      const [publisher, subscriber] = [client('publisher', { WebSocket: Lossy }), client('subscriber')];
      const received = [];
      let gaps = 0;
      let lives = 0;
      subscriber.subscribe('a', ({ data, id }) => received.push({ data, id }), {
        since: 'earliest',
        onlive: () => lives++,
        ongap: () => gaps++,
      });
      await until('the subscription', () => lives > 0, WAIT_MS);

      const published = [];
      const interval = setInterval(() => {
        const promise = publisher.publish('a', published.length);
        published.push(promise);
        // It is judged at the end.
        promise.catch(() => {});
      }, INTERVAL_MS);
      t.after(() => clearInterval(interval));
      for (let at = 1; at <= RESTARTS; at++) {
        // Published, and the client does not know it.
        connection.loses_acks = true;
        const count = published.length;
        await until('messages before the restart', () => received.length >= count + UNACKNOWLEDGED, WAIT_MS);
        server = await restart(t, server);
        await until('both clients', () => opened.publisher > at && opened.subscriber > at, WAIT_MS);
      }
      clearInterval(interval);
      const outcomes = await Promise.allSettled(published);
      await until('the last message', () => received.some(({ data }) => data === published.length - 1), WAIT_MS);
      await sleep(100);

      const failed = outcomes.flatMap(({ reason }) => (reason ? [reason.code] : []));
      const counts = new Map();
      for (const { data } of received) counts.set(data, (counts.get(data) ?? 0) + 1);
      const lost = published.filter((_, n) => !counts.has(n)).length;
      const repeated = [...counts.values()].filter((count) => count > 1).length;
      const again = [...sent.values()].filter((count) => count > 1).length;
      t.diagnostic(
        `${name}: ${published.length} messages, ${again} of them sent again: ` +
          `${failed.length} failed, ${lost} lost, ${repeated} repeated, ${gaps} gaps`,
      );
      assert.ok(again >= RESTARTS * UNACKNOWLEDGED);
      assert.deepEqual({ failed, lost, repeated, gaps }, { failed: [], lost: 0, repeated: 0, gaps: 0 });
      assert.deepEqual(received.map(({ data }) => data), published.map((_, n) => n), 'the order');
      assert.deepEqual(received.map(({ id }) => id), outcomes.map(({ value }) => value), 'the ids');
    });
  }
});
