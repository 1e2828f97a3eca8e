// The npm package as it is published: its files, its types, Node, bundlers, and the React hook in a page. The
// package and its neighbours are installed in the folder APP, which has this folder's app/; see run.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';

import { launch_chromium, require, serve } from '../browser/support.mjs';

const app = process.env.APP;
const installed = join(app, 'node_modules/oyez');
const repository = join(import.meta.dirname, '../..');
const run = promisify(execFile);

const read = (...path) => readFile(join(...path), 'utf8');

/** Options of both bundlers: a development build has React's double effects, a production build has not. */
async function bundle_with_esbuild(options) {
  const { build } = require('esbuild');
  const { outputFiles } = await build({
    absWorkingDir: app, bundle: true, format: 'esm', write: false, logLevel: 'error', minify: true, ...options,
  });
  return outputFiles[0].text;
}

async function bundle_with_vite(entry) {
  const { build } = await import(require.resolve('vite').replace(/index\.cjs$/, 'dist/node/index.js'));
  const result = await build({
    root: app,
    configFile: false,
    logLevel: 'error',
    build: { write: false, rollupOptions: { input: join(app, entry) } },
  });
  return result.output;
}

test('the package contains the sources and nothing else', async () => {
  const files = (await readdir(installed)).sort();
  assert.deepEqual(files, [
    'LICENSE-APACHE', 'LICENSE-MIT', 'README.md', 'oyez.d.ts', 'oyez.js', 'package.json', 'react.d.ts', 'react.js',
  ]);
  assert.equal(await read(installed, 'oyez.js'), await read(repository, 'src/console/oyez.js'));
  assert.equal(await read(installed, 'LICENSE-MIT'), await read(repository, 'LICENSE-MIT'));
  const left = (await readdir(join(repository, 'src/client-js'))).filter((name) => name === 'oyez.js' || name.startsWith('LICENSE'));
  assert.deepEqual(left, [], 'packing leaves no copies');
});

test('the versions are those of the server', async () => {
  const [, version] = /^version = "(.+)"$/m.exec(await read(repository, 'Cargo.toml'));
  assert.equal(JSON.parse(await read(installed, 'package.json')).version, version);
  assert.match(await read(repository, 'src/client-py/pyproject.toml'), new RegExp(`^version = "${version}"$`, 'm'));
});

test('the types pass tsc --strict, and reject what they should', async () => {
  const flags = [
    '--noEmit', '--strict', '--exactOptionalPropertyTypes', '--noUncheckedIndexedAccess', '--target', 'es2022',
    '--module', 'nodenext', '--jsx', 'react-jsx', '--types', 'node',
  ];
  const tsc = join(app, '../node_modules/typescript/bin/tsc');
  for (const lib of ['es2022,dom', 'es2022']) {
    const files = lib.includes('dom') ? ['types.ts', 'react-types.tsx', 'names.ts'] : ['types.ts', 'names.ts'];
    await writeFile(join(app, 'names.ts'), await names());
    await run(process.execPath, [tsc, ...flags, '--lib', lib, ...files], { cwd: app }).catch(({ stdout }) => {
      throw new Error(stdout);
    });
  }
});

/** A program that compiles only if the declarations have exactly the exports, members and options of the sources. */
async function names() {
  const module = await import(join(installed, 'oyez.js'));
  const source = await read(installed, 'oyez.js');
  const record = (list) => `{ ${list.map((name) => `${name}: true`).join(', ')} }`;
  const members = Object.getOwnPropertyNames(module.Oyez.prototype).filter((name) => name !== 'constructor');
  const options = [...source.matchAll(/^   \* @param .* \[options\.(\w+)\]/gm)].map(([, name]) => name);
  assert.ok(members.length >= 6 && options.length >= 6);
  return `
    import * as oyez from 'oyez';
    import type { Options } from 'oyez';
    export const exports: Record<keyof typeof oyez, true> = ${record(Object.keys(module))};
    type Inherited = Exclude<keyof EventTarget, 'addEventListener'>;
    export const members: Record<Exclude<keyof oyez.Oyez, Inherited>, true> = ${record(members)};
    export const options: Record<keyof Options, true> = ${record(options)};
  `;
}

test('the error codes of the types are those of the manual', async () => {
  const types = await read(installed, 'oyez.d.ts');
  const python = await read(repository, 'src/client-py/oyez_client/_errors.py');
  const table = (text, title) => {
    const rows = text.split(title)[1].split('\n\n').find((part) => part.startsWith('| code |'));
    return [...rows.matchAll(/^\| (`.+?) \|/gm)].flatMap(([, cell]) => [...cell.matchAll(/`(\w+)`/g)].map(([, code]) => code));
  };
  const server = table(await read(repository, 'src/manual/protocol.md'), '### Error codes');
  const client = table(await read(repository, 'src/manual/client_library.md'), 'or one of these:');
  assert.ok(server.length > 20 && client.length > 4);
  const union = (name) => types.split(`type ${name} =`)[1].split(';')[0].match(/'\w+'/g).map((code) => code.slice(1, -1));
  assert.deepEqual(union('ServerErrorCode').sort(), server.sort());
  assert.deepEqual(union('ClientErrorCode').sort(), client.sort());
  const literal = python.split('Literal[')[1].split('\n]')[0].match(/"\w+"/g).map((code) => code.slice(1, -1));
  assert.deepEqual(literal.sort(), [...new Set([...server, ...client])].sort());
});

test('Node with its own WebSocket publishes, receives and reconnects', async (t) => {
  const server = await serve(t);
  const { stdout } = await run(process.execPath, ['node.mjs', server.url], { cwd: app, timeout: 180_000 });
  assert.deepEqual(JSON.parse(stdout), {
    received: [['text', 'text'], ['binary', [1, 2]], ['data', { x: 1 }], ['text', 'after a reconnect']],
    code: 'bad_data',
  });
});

test('the first example of the README runs', async (t) => {
  const server = await serve(t);
  const [, example] = /```js\n(.*?)```/s.exec(await read(installed, 'README.md'));
  assert.match(example, /http:\/\/127\.0\.0\.1:8080/);
  await writeFile(join(app, 'example.mjs'), example.replace('http://127.0.0.1:8080', server.url));
  const { stdout } = await run(process.execPath, ['example.mjs'], { cwd: app, timeout: 180_000 });
  assert.match(stdout, /^\S+ hear ye\n$/);
});

test('bundles have what is used, and nothing else', async (t) => {
  const unused = await bundle_with_esbuild({ entryPoints: ['unused.js'] });
  assert.equal(unused.trim(), 'console.log("nothing");');
  const [{ code: unused_by_vite }] = await bundle_with_vite('unused.js');
  assert.match(unused_by_vite.replaceAll(/[`'"]/g, '"').trim(), /^console\.log\("nothing"\);?$/);

  const client = await bundle_with_esbuild({ entryPoints: ['client.js'] });
  assert.doesNotMatch(client, /react/i);
  const raw = await readFile(join(installed, 'oyez.js'));
  const hook = await bundle_with_esbuild({ entryPoints: ['hook.js'], external: ['react'] });
  const size = (data) => `${data.length} bytes, ${gzipSync(data, { level: 9 }).length} by gzip`;
  t.diagnostic(`oyez.js: ${size(raw)}; minified: ${size(Buffer.from(client))}; react.js minified: ${size(Buffer.from(hook))}`);
  // The README says "about 4 KB".
  assert.ok(gzipSync(client, { level: 9 }).length < 4.5 * 1024);
});

/** Serves the built page from an origin of its own. */
async function serve_page(test, files) {
  const types = { '.html': 'text/html', '.js': 'text/javascript' };
  const server = createServer(({ url }, response) => {
    const path = new URL(url, 'http://host').pathname;
    if (!files.has(path)) return response.writeHead(404).end();
    response.writeHead(200, { 'Content-Type': types[extname(path)] }).end(files.get(path));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  test.after(() => server.close());
  return `http://127.0.0.1:${server.address().port}`;
}

async function built_by_vite() {
  const output = await bundle_with_vite('index.html');
  return new Map(output.map(({ fileName, code, source }) => [`/${fileName}`, code ?? source]));
}

async function built_by_esbuild() {
  const code = await bundle_with_esbuild({ entryPoints: ['main.js'], define: { 'process.env.NODE_ENV': '"development"' } });
  return new Map([['/index.html', await read(app, 'index.html')], ['/main.js', code]]);
}

for (const [name, build] of [['vite, production', built_by_vite], ['esbuild, development: effects run twice', built_by_esbuild]]) {
  test(`useChannel in strict mode (${name})`, async (t) => {
    const origin = await serve_page(t, await build());
    const server = await serve(t, { flags: ['--origin', origin, '--channels-per-client-max', '1'] });
    const subscribers = async (channel) => {
      const response = await fetch(`${server.url}/v1/channels/${channel}`);
      return response.ok ? (await response.json()).subscribers : 0;
    };
    const publish = (channel, body) => fetch(`${server.url}/v1/publish/${channel}`, { method: 'POST', body });
    for (const body of ['1', '2', '3']) await publish('a', body);

    const browser = await launch_chromium();
    t.after(() => browser.close());
    const page = await browser.newPage();
    page.setDefaultTimeout(180_000);
    const errors = [];
    page.on('pageerror', (error) => errors.push(String(error)));
    await page.goto(`${origin}/index.html?server=${encodeURIComponent(server.url)}`);
    const shows = async (what, expected) => {
      let last;
      const deadline = Date.now() + 180_000;
      do {
        last = await page.textContent('#room');
        if (last === (typeof expected === 'string' ? expected : JSON.stringify(expected))) return;
        await new Promise((resolve) => setTimeout(resolve, 10));
      } while (Date.now() < deadline);
      assert.fail(`${what}: ${last}`);
    };

    await shows('the history, once', { state: 'open', data: ['1', '2', '3'], error: null });
    assert.equal(await subscribers('a'), 1);
    await page.evaluate(() => window.page.publish('4'));
    await shows('its own message', { state: 'open', data: ['1', '2', '3', '4'], error: null });

    await page.evaluate(() => { window.page.states = []; window.page.hub.cut(200); });
    for (const body of ['5', '6']) await publish('a', body);
    await shows('what was missed, and five messages at most', { state: 'open', data: ['2', '3', '4', '5', '6'], error: null });
    const states = await page.evaluate(() => window.page.states.filter((state, at, all) => state !== all[at - 1]));
    assert.deepEqual(states, ['waiting', 'connecting', 'open'], 'each state is rendered');

    // A handler that changes needs no new subscription.
    await page.evaluate(() => window.page.setRoom({ channel: 'a', suffix: '!' }));
    await publish('a', '7');
    await shows('a message after that', { state: 'open', data: ['3', '4', '5', '6', '7'], error: null });
    const calls = await page.evaluate(() => window.page.calls);
    assert.deepEqual(calls.slice(-2), ['6', '7!']);
    assert.deepEqual(calls.filter((call) => call === '5'), ['5'], 'each message is delivered to onmessage once');

    // What an earlier subscription received is not shown with the next one.
    await page.evaluate(() => window.page.setRoom({ channel: 'a', suffix: '', since: 'latest' }));
    await shows('a new subscription', { state: 'open', data: ['7'], error: null });

    await page.evaluate(() => window.page.setRoom({ channel: 'a', suffix: '?', messages_max: 0 }));
    for (let i = 0; i < 6000 && !(await page.evaluate(() => window.page.calls.includes('7?'))); i++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await shows('no message, though they are delivered', { state: 'open', data: [], error: null });

    await publish('b', 'of b');
    await page.evaluate(() => window.page.setRoom({ channel: 'b', suffix: '' }));
    await shows('another channel', { state: 'open', data: ['of b'], error: null });
    assert.deepEqual([await subscribers('a'), await subscribers('b')], [0, 1]);

    // The limit of channels: a second subscription of the client is rejected until the first has ended.
    await page.evaluate(() => { window.page.off = window.page.hub.subscribe('b', () => {}); });
    await page.evaluate(() => window.page.setRoom({ channel: 'c', suffix: '' }));
    await shows('a rejected subscription', { state: 'open', data: [], error: 'too_many_channels' });
    await page.evaluate(() => { window.page.off(); window.page.hub.cut(1); });
    await shows('its success on the next connection', { state: 'open', data: [], error: null });

    await page.evaluate(() => window.page.setRoom(null));
    await shows('nothing', 'none');
    for (let i = 0; i < 6000 && (await subscribers('c')) > 0; i++) await new Promise((resolve) => setTimeout(resolve, 10));
    assert.equal(await subscribers('c'), 0, 'unmounting unsubscribes');
    assert.deepEqual(await page.evaluate(() => window.page.gaps), []);
    assert.equal(await page.evaluate(() => window.page.foreign), 0, 'no render shows messages of another channel');
    assert.deepEqual(errors, []);
  });
}
