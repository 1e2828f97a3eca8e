// A server for each test, and shared helpers.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';

import { Oyez } from '../../src/console/oyez.js';

/** The packages of package.json: `run` installs them elsewhere, and NODE_PATH, which imports ignore, names the place. */
export const require = createRequire(import.meta.url);
export const WebSocket = require('ws');

/** Deadlines of servers that are tested: ten times as long as `until` waits. */
export const DEADLINES = {
  OYEZ_HANDSHAKE_TIMEOUT_MS: '600000',
  OYEZ_PONG_TIMEOUT_MS: '600000',
  OYEZ_SLOW_TIMEOUT_MS: '600000',
};

/**
 * A port that nothing listens on, below the range from which the kernel gives ports to clients (32768 and up by default):
 * one of those could be taken by another test while the server is restarted.
 */
export async function free_port() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const is_free = await new Promise((resolve) => {
      const listener = createServer();
      listener.once('error', () => resolve(false));
      listener.listen({ port, host: '127.0.0.1', exclusive: true }, () => listener.close(() => resolve(true)));
    });
    if (is_free) return port;
  }
}

/** Starts the server; the test ends it, however the test ends. */
export async function serve(test, { port, flags = [] } = {}) {
  const program = process.env.OYEZ;
  if (!program) throw new Error('OYEZ has to name the program');
  port ??= await free_port();
  const child = spawn(program, ['serve', '--listen', `127.0.0.1:${port}`, ...flags], {
    stdio: ['ignore', 'pipe', 'ignore'],
    // A busy machine breaks none of these; a test that is about a deadline has a flag, which overrides the variable.
    env: { ...process.env, ...DEADLINES, RUST_LOG: 'off' },
  });
  const exited = once(child, 'exit');
  const [line] = await once(createInterface({ input: child.stdout }), 'line');
  const address = /ws:\/\/([\d.]+):(\d+)\/ws/.exec(line);
  const stop = async (signal = 'SIGKILL') => {
    child.kill(signal);
    await exited;
  };
  test.after(() => stop());
  return { url: `http://${address[1]}:${address[2]}`, port: Number(address[2]), child, stop };
}

/** Headless Chromium, without a sandbox, since a container's root has none to give, and without all that calls elsewhere. */
export function launch_chromium() {
  return require('playwright-core').chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
}

/** A hub that the test closes, however the test ends. */
export function open(test, server, options = {}) {
  const hub = new Oyez(server.url, { WebSocket, ...options });
  test.after(() => hub.close());
  return hub;
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `is()` is true; names the condition if the time runs out. */
export async function until(what, is, limit_ms = 60_000) {
  const end = Date.now() + limit_ms;
  while (!is()) {
    if (Date.now() > end) throw new Error(`waited ${limit_ms} ms for: ${what}`);
    await sleep(5);
  }
}
