// A server for each test, and shared helpers.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { Oyez } from '../../src/console/oyez.js';

/** The packages of package.json: `run` installs them elsewhere, and NODE_PATH, which imports ignore, names the place. */
export const require = createRequire(import.meta.url);
export const WebSocket = require('ws');

/** Deadlines of servers that are tested: longer than `until` waits. */
export const DEADLINES = {
  OYEZ_HANDSHAKE_TIMEOUT_MS: '600000',
  OYEZ_PONG_TIMEOUT_MS: '600000',
  OYEZ_SLOW_TIMEOUT_MS: '600000',
};

let nextPort = process.pid * 97;

/**
 * A port that nothing listens on, below the range from which the kernel gives ports to clients (32768 and up by default):
 * one of those could be taken by another test while the server is restarted. Files of tests run side by side, each with
 * ports of its own, and so do other checks, with ports below 20,000.
 */
export async function free_port() {
  for (;;) {
    const port = 20_000 + (nextPort++ % 10_000);
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
  const failed = exited.then(([code]) => Promise.reject(new Error(`the server exited with ${code} before it listened`)));
  const [line] = await Promise.race([once(createInterface({ input: child.stdout }), 'line'), failed]);
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

/** Preferences of Firefox: all requests to other machines go to a port that nothing listens on. */
const FIREFOX_PREFERENCES = {
  'network.proxy.type': 1,
  ...Object.fromEntries(['http', 'ssl'].flatMap((kind) => [
    [`network.proxy.${kind}`, '127.0.0.1'],
    [`network.proxy.${kind}_port`, 9],
  ])),
  'network.proxy.allow_hijacking_localhost': false,
};

/**
 * Headless Firefox by WebDriver BiDi, which it speaks itself: Playwright drives only builds of its own. It has as much of
 * the interface of Playwright's browsers as tests use.
 */
export async function launch_firefox() {
  const profile = await mkdtemp(join(tmpdir(), 'oyez-firefox-'));
  const lines = Object.entries(FIREFOX_PREFERENCES).map(([name, value]) => `user_pref("${name}", ${JSON.stringify(value)});`);
  await writeFile(join(profile, 'user.js'), lines.join('\n'));
  const program = process.env.FIREFOX ?? '/usr/bin/firefox-esr';
  const child = spawn(program, ['--headless', '--no-remote', '--profile', profile, '--remote-debugging-port', '0'], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, HOME: profile },
  });
  const exited = once(child, 'exit');
  process.once('exit', () => child.kill('SIGKILL'));
  const address = await new Promise((resolve, reject) => {
    exited.then(([code]) => reject(new Error(`Firefox exited with ${code}`)), reject);
    createInterface({ input: child.stderr }).on('line', (line) => {
      const found = /WebDriver BiDi listening on (ws:\S+)/.exec(line);
      if (found) resolve(found[1]);
    });
  });
  const socket = new WebSocket(`${address}/session`, { perMessageDeflate: false });
  await once(socket, 'open');
  const waiting = new Map();
  socket.on('message', (data) => {
    const { id, type, result, error, message } = JSON.parse(data);
    const { resolve, reject } = waiting.get(id) ?? {};
    waiting.delete(id);
    if (type === 'success') resolve?.(result);
    if (type === 'error') reject?.(new Error(`${error}: ${message}`));
  });
  let last = 0;
  const command = (method, params) => new Promise((resolve, reject) => {
    last += 1;
    waiting.set(last, { resolve, reject });
    socket.send(JSON.stringify({ id: last, method, params }));
  });
  await command('session.new', { capabilities: {} });
  return {
    async newPage() {
      const { context } = await command('browsingContext.create', { type: 'tab' });
      return {
        goto: (url) => command('browsingContext.navigate', { context, url, wait: 'complete' }),
        async evaluate(run, argument = null) {
          const { result, exceptionDetails } = await command('script.callFunction', {
            functionDeclaration: `async (text) => JSON.stringify(await (${run})(JSON.parse(text)))`,
            arguments: [{ type: 'string', value: JSON.stringify(argument) }],
            awaitPromise: true,
            target: { context },
          });
          if (exceptionDetails) throw new Error(exceptionDetails.text);
          return result.value && JSON.parse(result.value);
        },
        close: () => command('browsingContext.close', { context }),
      };
    },
    async close() {
      child.kill('SIGKILL');
      await exited;
      await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

/** A hub that the test closes, however the test ends. */
export function open(test, server, options = {}) {
  const hub = new Oyez(server.url, { WebSocket, ...options });
  test.after(() => hub.close());
  return hub;
}

/** A WebSocket class whose connections fail while it is closed, however long that is. */
export function gated() {
  let isOpen = true;
  return {
    close: () => (isOpen = false),
    open: () => (isOpen = true),
    WebSocket: class extends WebSocket {
      constructor(url, ...rest) {
        // Nothing listens on port 9.
        super(isOpen ? url : 'ws://127.0.0.1:9/', ...rest);
        // A browser has no uncaught error for a connection that fails.
        this.on('error', () => {});
      }
    },
  };
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `is()` is true; names the condition, a text or a function that returns one, if the time runs out. */
export async function until(what, is, limit_ms = 180_000) {
  const end = Date.now() + limit_ms;
  while (!is()) {
    if (Date.now() > end) throw new Error(`waited ${limit_ms} ms for: ${typeof what === 'function' ? what() : what}`);
    await sleep(5);
  }
}
