// The console in a real browser, against a real server; each test starts its own.
//
//     OYEZ=path/to/oyez BROWSER_ARTEFACTS=folder node --test pages.test.mjs
//
// Requires playwright-core (in node_modules, or through NODE_PATH) and Chromium. Screenshots go to BROWSER_ARTEFACTS.
// Every page is watched while it is open: an error on its console, a violation of the content security policy, or a
// request to another server fails its test.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';

import { DEADLINES, free_port, launch_chromium } from './support.mjs';

const OYEZ = process.env.OYEZ ?? 'oyez';
const ARTEFACTS =
  process.env.BROWSER_ARTEFACTS ?? path.join(process.env.XDG_CACHE_HOME ?? tmpdir(), 'oyez-browser', 'artefacts');
const CONSOLE = new URL('../../src/console/', import.meta.url);
const PATIENCE_MS = 180_000;
const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 390, height: 844 };
const VIEWS = ['channel', 'ticker', 'chat', 'text'];

let browser;

before(async () => {
  browser = await launch_chromium();
  await mkdir(ARTEFACTS, { recursive: true });
});
after(() => browser?.close());

// The server.

async function serve(t, { port, flags = [] } = {}) {
  port ??= await free_port();
  const child = spawn(OYEZ, ['serve', '--listen', `127.0.0.1:${port}`, '--drain-seconds', '2', ...flags], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...DEADLINES },
  });
  let log = '';
  child.stderr.on('data', (data) => {
    log = (log + data).slice(-8000);
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const stop = async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM');
    const late = setTimeout(() => child.kill('SIGKILL'), PATIENCE_MS);
    await ended;
    clearTimeout(late);
  };
  // The pages go first: they would complain of a server that is gone.
  const visitors = [];
  t.after(async () => {
    const complaints = (await Promise.all(visitors.map((leave) => leave()))).flat();
    await stop();
    assert.deepEqual(complaints, []);
  });
  const origin = await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      const found = /ws:\/\/(127\.0\.0\.1:\d+)/.exec(line);
      if (found) resolve(`http://${found[1]}`);
    });
    ended.then((code) => reject(new Error(`the server ended with ${code} before it listened\n${log}`)));
  });
  const post = async (channel, body, type = 'text/plain') => {
    const answer = await fetch(`${origin}/v1/publish/${channel}`, {
      method: 'POST',
      body,
      headers: { 'content-type': type },
    });
    assert.equal(answer.status, 200);
    return (await answer.json()).id;
  };
  return {
    origin,
    port: Number(new URL(origin).port),
    visitors,
    stop,
    post,
    json: (channel, value) => post(channel, JSON.stringify(value), 'application/json'),
  };
}

// A page, watched.

async function visit(
  server,
  hash = '',
  { viewport = WIDE, colorScheme = 'light', serverGoesAway = false, serverRejects = false } = {},
) {
  const context = await browser.newContext({ viewport, colorScheme, reducedMotion: 'reduce' });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const complaints = [];
  // Browsers themselves report a server that is not there as an error.
  const lost =
    /ERR_INTERNET_DISCONNECTED|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE|WebSocket connection to/;
  const complain = (what) => {
    if (serverRejects && /status of 40[13]/.test(what)) return;
    if (!(serverGoesAway && lost.test(what))) complaints.push(what);
  };
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complain(message.text());
  });
  page.on('pageerror', (error) => complain(error.stack));
  const own = (url) => url.startsWith('data:') || new URL(url).host === new URL(server.origin).host;
  page.on('request', (request) => {
    if (!own(request.url())) complain(`request to ${request.url()}`);
  });
  page.on('websocket', (socket) => {
    if (!own(socket.url())) complain(`connection to ${socket.url()}`);
  });
  await page.addInitScript(() =>
    document.addEventListener('securitypolicyviolation', (event) =>
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`),
    ),
  );
  server.visitors.push(async () => {
    await context.close();
    return complaints;
  });
  await page.goto(`${server.origin}/${hash}`);
  await open(page);
  return page;
}

const open = (page) => page.waitForSelector('#state[data-state=open]');
const bodies = (page) => page.locator('#rows .row-body').allTextContents();

async function until(what, truth, limit = PATIENCE_MS) {
  const end = Date.now() + limit;
  for (;;) {
    const value = await truth();
    if (value) return value;
    assert.ok(Date.now() < end, `not within ${limit} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Does something again and again until the end of the test, each time after the one before is complete. */
function repeat(t, pause_ms, action) {
  let isOver = false;
  t.after(() => (isOver = true));
  (async () => {
    while (!isOver) {
      await action().catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, pause_ms));
    }
  })();
}

async function live(page) {
  // The facts name subscribers only when the server has answered the subscription.
  await until('the channel is watched', async () => /subscriber/.test(await page.textContent('#facts')));
}

// Screenshots of the whole page in both sizes and schemes, for people. The page must fit on a narrow phone.
async function takeScreenshots(page, name) {
  for (const [size, viewport] of [
    ['wide', WIDE],
    ['narrow', NARROW],
  ]) {
    for (const colorScheme of ['light', 'dark']) {
      await page.setViewportSize(viewport);
      await page.emulateMedia({ colorScheme });
      await page.waitForTimeout(150);
      await page.screenshot({ path: path.join(ARTEFACTS, `${name}-${size}-${colorScheme}.png`), fullPage: true });
    }
  }
  await page.setViewportSize({ width: 360, height: 740 });
  const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(over <= 0, `${name} is ${over} pixels wider than a phone of 360`);
}

async function publish(page, text, kind = 'text') {
  await page.locator(`input[value=${kind}]`).check();
  await page.fill('#payload', text);
  await page.press('#payload', 'Enter');
  await until('the publish is acknowledged', async () =>
    /^published as /.test(await page.textContent('#publish-result')),
  );
}

async function sendChat(page, text) {
  await page.fill('#chat-text', text);
  await page.press('#chat-text', 'Enter');
}

// Publishing and watching.

test('a message published on one page appears on the other', async (t) => {
  const server = await serve(t);
  const [one, other] = [await visit(server, '#square'), await visit(server, '#square')];
  await Promise.all([live(one), live(other)]);
  await publish(one, 'hear ye');
  await publish(one, '{"lot": 17}', 'json');
  for (const page of [one, other]) {
    await until('both are there', async () => (await bodies(page)).join('|') === 'hear ye|{"lot":17}');
  }
  assert.deepEqual(
    await other
      .locator('#rows .row-from')
      .allTextContents()
      .then((from) => from.includes('you')),
    false,
  );
  assert.deepEqual(await one.locator('#rows li.own').count(), 2);
  assert.equal(await other.locator('#rows li').last().locator('.row-kind').textContent(), 'JSON');

  await one.fill('#payload', '{"lot": ');
  await one.press('#payload', 'Enter');
  assert.match(await one.textContent('#publish-result'), /^Invalid JSON/);
  assert.equal(await one.inputValue('#payload'), '{"lot": ');
  await one.fill('#payload', 'null');
  await one.press('#payload', 'Enter');
  await until('null is rejected', async () => /null cannot be published/.test(await one.textContent('#publish-result')));
  assert.equal(await one.inputValue('#payload'), 'null', 'the text stays');
});

test('messages are shown as text, bounded', async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square');
  await live(page);
  const hostile = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
  await server.post('square', hostile);
  await server.post('square', 'x'.repeat(20_000));
  await server.post('square', new Uint8Array(100).fill(254), 'application/octet-stream');
  // Indented, this would be some hundred megabytes.
  await server.post('square', `${'['.repeat(20_000)}${']'.repeat(20_000)}`, 'text/plain');
  await server.post('square', `${'['.repeat(50)}${']'.repeat(50)}`, 'application/json');
  await until('all are there', async () => (await bodies(page)).length === 5);
  const shown = await bodies(page);
  assert.equal(shown[0], hostile);
  assert.match(shown[1], /^x{4000} … and 16,000 characters more$/);
  assert.match(shown[2], /^(fe ){64}…$/);
  assert.equal(shown[4].length, 100);
  assert.equal(await page.locator('#rows img, #rows script').count(), 0);
  assert.doesNotMatch(await page.title(), /[12]/);

  for (let i = 0; i < 500; i++) await server.post('square', `m${i}`);
  await until('the last one is there', async () => (await bodies(page)).at(-1) === 'm499');
  assert.ok((await page.locator('#rows li').count()) <= 200);
});

test('paused messages are shown later without a loss', async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square');
  await live(page);
  await page.click('#pause');
  for (const text of ['a', 'b', 'c']) await server.post('square', text);
  await until('they are counted', async () => (await page.textContent('#pause')) === 'Resume (3 new)');
  assert.deepEqual(await bodies(page), []);
  await page.click('#pause');
  await until('they are shown', async () => (await bodies(page)).join('') === 'abc');
  await page.click('#clear');
  assert.deepEqual(await bodies(page), []);
});

test('the address selects the channel, and the list links to others', async (t) => {
  const server = await serve(t);
  await server.post('scores', 'one nil');
  const page = await visit(server, '#square');
  assert.equal(await page.textContent('#watched'), 'square');
  await page.click('#chips a[data-channel=scores]');
  await until('its history is shown', async () => (await bodies(page)).join() === 'one nil');
  assert.equal(new URL(page.url()).hash, '#scores');
  await page.goBack();
  await until('back', async () => (await page.textContent('#watched')) === 'square');
  await page.fill('#channel', 'not a name');
  await page.press('#channel', 'Enter');
  assert.match(await page.textContent('#watch-error'), /1 to 255/);
});

test("the server's metrics are updated", async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square');
  await live(page);
  repeat(t, 50, () => server.post('square', 'x'));
  await until(
    'deliveries are drawn',
    async () =>
      Number(await page.textContent('#f-delivered')) > 1 &&
      /L/.test(await page.getAttribute('#chart-deliveries .line-a:not(.key path)', 'd')),
  );
  for (const [selector, expected] of [
    ['#chart-turn', /mean[\d.]+ (µs|ms).*p99[\d.]+ (µs|ms)/],
    ['#f-connections', /^\d/],
    ['#facts', /^1 subscriber · [\d.]+ messages\/s · \d+ kept/],
  ]) {
    await until(`${selector} shows ${expected}`, async () => expected.test(await page.textContent(selector)));
  }
});

// The connection.

async function redis(t) {
  const port = await free_port();
  const folder = await mkdtemp(path.join(tmpdir(), 'oyez-browser-'));
  const flags = ['--port', port, '--bind', '127.0.0.1', '--dir', folder, '--save', '', '--appendonly', 'no'];
  const child = spawn('redis-server', flags.map(String), { stdio: 'ignore' });
  const ended = new Promise((resolve, reject) => {
    child.once('exit', resolve);
    child.once('error', reject);
  });
  t.after(async () => {
    child.kill('SIGKILL');
    await ended;
    await rm(folder, { recursive: true });
  });
  return { url: `redis://127.0.0.1:${port}`, child };
}

test('nodes that share a log are shown, with their lag and what waits for the log', async (t) => {
  const log = await redis(t);
  // A publish waits for as long as this test takes.
  const flags = ['--backplane', log.url, '--backplane-publish-timeout-ms', '600000'];
  const one = await serve(t, { flags });
  const two = await serve(t, { flags });
  // A node rejects clients until it has read the log.
  for (const { origin } of [one, two]) await until('it is ready', async () => (await fetch(`${origin}/readyz`)).ok);
  const page = await visit(one, '#square');
  const other = await visit(two, '#square');
  await Promise.all([live(page), live(other)]);
  const rows = () => page.locator('#node-rows tr').allTextContents();
  await until('both nodes are listed', async () => (await rows()).length === 2);
  const name = async (server) => (await (await fetch(`${server.origin}/v1/nodes`)).json()).node;
  const [own, theirs] = [await name(one), await name(two)];
  assert.notEqual(own, theirs);
  await until('their numbers are shown', async () => {
    const [first, second] = await rows();
    // The page holds connections for its requests too.
    return new RegExp(`^${own}[1-9]\\d*1this one$`).test(first) && new RegExp(`^${theirs}[1-9]\\d*1(just now|.+ ago)$`).test(second);
  });
  await until('the link is shown', async () =>
    (await page.textContent('#log-state-word')) === 'connected' &&
    /^\d+ items?, \d/.test(await page.textContent('#log-lag')) &&
    (await page.textContent('#log-pending')) === '0 messages',
  );
  await until('subscribers of both nodes are counted', async () => /2 subscribers/.test(await page.textContent('#facts')));
  await publish(page, 'hear ye');
  await until('the other node has it', async () => (await bodies(other)).includes('hear ye'));
  await takeScreenshots(page, 'nodes');
  await page.setViewportSize(WIDE);
  // Stopped, it keeps the connections and answers nothing.
  log.child.kill('SIGSTOP');
  await page.fill('#payload', 'waits');
  await page.press('#payload', 'Enter');
  await until('the publish waits', async () => (await page.textContent('#log-pending')) === '1 message');
  await until('the link is lost', async () =>
    (await page.textContent('#log-state-word')) === 'not connected' && (await page.textContent('#log-lag')) === 'unknown',
  );
  await page.screenshot({ path: path.join(ARTEFACTS, 'nodes-lost-wide-dark.png'), fullPage: true });
  log.child.kill('SIGCONT');
  await until('the link is back', async () => (await page.textContent('#log-state-word')) === 'connected');
});

test('a server without a backplane shows no nodes', async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square');
  await live(page);
  await until('it was polled', async () => /^\d/.test(await page.textContent('#f-connections')));
  assert.equal(await page.isVisible('#nodes'), false);
});

test('a page reconnects after a lost connection without a loss', async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square');
  await live(page);
  await page.evaluate(() => {
    window.states = [];
    new MutationObserver(() => window.states.push(document.getElementById('state').dataset.state)).observe(
      document.getElementById('state'),
      { attributes: true },
    );
  });
  await server.post('square', 'm0');
  await until('the first is there', async () => (await bodies(page)).length === 1);
  await page.click('#cut');
  for (let i = 1; i < 20; i++) await server.post('square', `m${i}`);
  await until('it waits', () => page.evaluate(() => window.states.includes('waiting')));
  await open(page);
  const id = await server.post('square', 'm20');
  await until('the last one is there', async () => (await bodies(page)).at(-1) === 'm20');
  await until('the cursor is the message', async () => (await page.textContent('#cursor')) === id);
  assert.deepEqual(
    await bodies(page),
    Array.from({ length: 21 }, (_, i) => `m${i}`),
  );
  await until('the reconnection is counted', async () => /^once, last after/.test(await page.textContent('#returns')));
  assert.equal(await page.textContent('#gaps'), 'none');
  await until('both are noted', async () =>
    /connection cut.*reconnected: /.test((await page.locator('#rows .note').allTextContents()).join()),
  );
});

test('messages missed beyond the history are shown as a gap', async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square', { serverGoesAway: true });
  await live(page);
  await server.post('square', 'first');
  await until('the first is there', async () => (await bodies(page)).length === 1);
  await page.context().setOffline(true);
  await page.click('#cut');
  await Promise.all(Array.from({ length: 150 }, (_, i) => server.post('square', `m${i}`)));
  await page.context().setOffline(false);
  await open(page);
  const gap = await until('the gap is shown', async () =>
    (await page.locator('#rows .note').allTextContents()).find((text) => text.startsWith('gap')),
  );
  assert.match(gap, /missing/);
  await until('the gap is counted', async () => (await page.textContent('#gaps')) !== 'none');
});

test('a page reconnects to the next server by itself', async (t) => {
  const first = await serve(t);
  const page = await visit(first, '#square', { serverGoesAway: true });
  await live(page);
  await first.post('square', 'before');
  await until('messages of the first server', async () => (await bodies(page)).at(-1) === 'before');
  await first.stop();
  await page.waitForSelector('#state:not([data-state=open])');
  const second = await serve(t, { port: first.port });
  await page.waitForSelector('#state[data-state=open]');
  await second.post('square', 'after');
  await until('messages of the second server', async () => (await bodies(page)).at(-1) === 'after');
  // A new server has a new log: the number of missed messages is unknown, and the page shows that.
  assert.match((await page.locator('#rows .note').allTextContents()).join(), /gap/);
});

// What people build.

test('the chat shows the user that the server verified', async (t) => {
  const folder = await mkdtemp(path.join(tmpdir(), 'oyez-user-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const secret = path.join(folder, 'secret');
  execFileSync(OYEZ, ['token', 'secret', secret]);
  const key = ['--jwt-secret-file', secret];
  const who = ['--sub', 'matilda', '--info', '{"name":"Matilda"}', '--publish', '*'];
  const token = execFileSync(OYEZ, ['token', 'new', ...key, ...who]).toString().trim();
  const server = await serve(t, { flags: [...key, '--anonymous', 'subscribe=* publish=*'] });
  const page = await visit(server, '#/chat');
  const publish = (headers, name, text) =>
    fetch(`${server.origin}/v1/publish/demo.chat`, {
      method: 'POST',
      body: JSON.stringify({ name, text }),
      headers: { 'content-type': 'application/json', ...headers },
    });
  await publish({ authorization: `Bearer ${token}` }, 'ignored', 'It is me.');
  await publish({}, 'Matilda', 'No, it is me.');
  await until('both are shown', async () => (await page.locator('#chat-messages li').count()) === 2);
  assert.deepEqual(await page.locator('#chat-messages .who').allTextContents(), ['Matilda \u2713', 'Matilda']);
  assert.equal(await page.locator('#chat-messages .verified').getAttribute('title'), 'signed in as matilda');
  await page.screenshot({ path: path.join(ARTEFACTS, 'chat-users.png') });
});

test('two pages exchange chat messages', async (t) => {
  const server = await serve(t);
  const [one, other] = [await visit(server, '#/chat'), await visit(server, '#/chat')];
  await one.fill('#chat-name', 'Matilda');
  await other.fill('#chat-name', 'Anselm');
  await sendChat(one, 'Is the market open?');
  await until('the other shows it', async () => /Matilda.*Is the market open\?/.test(await other.textContent('#chat-messages')));
  await sendChat(other, 'Since the bell.');
  await until('the first shows it', async () => /Anselm.*Since the bell\./.test(await one.textContent('#chat-messages')));
  assert.equal(await one.locator('#chat-messages li.own').count(), 1);
  const late = await visit(server, '#/chat');
  await until('a later page shows all', async () => (await late.locator('#chat-messages li').count()) === 2);
  assert.equal(await late.locator('#chat-messages li.own').count(), 0);

  // Two views of one page subscribe to the same channel, and each gets all of its messages.
  await late.click('#panel-chat a');
  await until('the channel view has both', async () => (await bodies(late)).length === 2);
  await late.click('#tab-chat');
  await sendChat(one, 'Good.');
  await until('the chat goes on', async () => (await late.locator('#chat-messages li').count()) === 3);
  await until('and so does the channel', async () => (await bodies(late)).length === 3);
});

test('prices are updated on every page, whichever started them', async (t) => {
  const server = await serve(t);
  const [one, other] = [await visit(server, '#/ticker'), await visit(server, '#/ticker')];
  await one.click('#ticker-start');
  const prices = () => other.locator('.price').allTextContents();
  await until('all have a price', async () => (await prices()).every((price) => /^\d+\.\d\d$/.test(price)));
  const then = (await prices()).join();
  await until('they move', async () => (await prices()).join() !== then);
  await until(
    'both name the publisher',
    async () =>
      (await one.textContent('#ticker-state')) === 'This page publishes the prices.' &&
      (await other.textContent('#ticker-state')) === 'Another page publishes the prices.',
  );
  assert.ok(
    (await other.locator('.change').allTextContents()).every((text) => /^[▲▼•]/.test(text)),
    'up and down have a sign, not only a colour',
  );
  await one.click('#ticker-start');
  await until(
    'it is noticed that they stopped',
    async () => (await other.textContent('#ticker-state')) === 'No page publishes prices now.',
  );
});

test('two pages that edit one text converge', async (t) => {
  const server = await serve(t);
  const [one, other] = [await visit(server, '#/text'), await visit(server, '#/text')];
  const text = (page) => page.inputValue('#text');
  await Promise.all([one, other].map((page) => page.waitForSelector('#text:enabled')));
  await one.click('#text');
  await one.keyboard.type('Oyez. ');
  await until('the other reads it', async () => (await text(other)) === 'Oyez. ');
  await other.click('#text');
  await other.keyboard.press('Control+Home');
  await Promise.all([
    one.keyboard.type('The quick brown fox jumps over the lazy dog.', { delay: 15 }),
    other.keyboard.type('Five dozen jugs. ', { delay: 30 }),
  ]);
  await until('they are the same', async () => (await text(one)) === (await text(other)));
  assert.equal(await text(one), 'Five dozen jugs. Oyez. The quick brown fox jumps over the lazy dog.');

  await other.click('#cut');
  await other.focus('#text');
  await other.keyboard.press('Control+Home');
  await Promise.all([one.keyboard.type(' One.', { delay: 15 }), other.keyboard.type('Two. ', { delay: 15 })]);
  await open(other);
  await until(
    'they are the same again',
    async () =>
      (await text(one)) === (await text(other)) && /One\./.test(await text(one)) && /Two\. /.test(await text(one)),
  );
  const late = await visit(server, '#/text');
  await until('a newcomer reads the same', async () => (await text(late)) === (await text(one)));
});

test('an input method is not disturbed by edits of others', async (t) => {
  const server = await serve(t);
  const [one, other] = [await visit(server, '#/text'), await visit(server, '#/text')];
  const text = (page) => page.inputValue('#text');
  await one.click('#text');
  await one.keyboard.type('ab');
  await until('the other reads it', async () => (await text(other)) === 'ab');
  await one.keyboard.press('ArrowLeft');
  const input = await one.context().newCDPSession(one);
  await input.send('Input.imeSetComposition', { text: 'か', selectionStart: 1, selectionEnd: 1 });
  await other.click('#text');
  await other.keyboard.press('Control+Home');
  await other.keyboard.type('12');
  await input.send('Input.imeSetComposition', { text: 'かん', selectionStart: 2, selectionEnd: 2 });
  await until('the others edits are confirmed', async () => /confirmed/.test(await other.textContent('#text-state')));
  assert.equal(await text(one), 'aかんb');
  await input.send('Input.insertText', { text: '漢' });
  await until('both have all of it', async () => (await text(one)) === '12a漢b' && (await text(other)) === '12a漢b');
  assert.equal(await one.evaluate(() => document.getElementById('text').selectionStart), 4);
});

// For all pages.

test('a message can be published by keyboard alone', async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square');
  await live(page);
  const focus = () =>
    page.evaluate(
      () =>
        document.activeElement.id ||
        document.activeElement.name ||
        document.activeElement.dataset.channel ||
        document.activeElement.tagName,
    );
  const seen = [];
  while (seen.at(-1) !== 'payload') {
    await page.keyboard.press('Tab');
    seen.push(await focus());
    assert.ok(seen.length < 20, `the message field is not reached: ${seen}`);
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(outline, 'none', `focus is seen on ${seen.at(-1)}`);
  }
  assert.deepEqual(
    seen.filter((id) => id !== 'square'),
    ['cut', 'tab-channel', 'channel', 'BUTTON', 'pause', 'clear', 'stream', 'payload'],
  );
  await page.keyboard.type('by hand');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Publish');
  await page.keyboard.press('Enter');
  await until('it is published', async () => (await bodies(page)).join() === 'by hand');

  await page.focus('#tab-channel');
  await page.keyboard.press('ArrowRight');
  assert.equal(await focus(), 'tab-ticker');
  await until('its panel is shown', () => page.isVisible('#panel-ticker'));
  await page.keyboard.press('End');
  assert.equal(await focus(), 'tab-text');
  await page.keyboard.press('ArrowRight');
  assert.equal(await focus(), 'tab-channel');
  await until('its panel is shown', () => page.isVisible('#panel-channel'));
});

test('every control has an accessible name', async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square');
  await live(page);
  for (const view of VIEWS) {
    await page.click(`#tab-${view}`);
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll('button, input, textarea, a, [tabindex="0"], [role=tabpanel]')]
        .filter((node) => node.checkVisibility())
        .filter(
          (node) =>
            !(
              node.getAttribute('aria-label') ||
              node.getAttribute('aria-labelledby') ||
              node.textContent.trim() ||
              [...(node.labels ?? [])].some((label) => label.textContent.trim())
            ),
        )
        .map((node) => node.outerHTML.slice(0, 100)),
    );
    assert.deepEqual(nameless, []);
  }
});

test('text has enough contrast, in light and in dark mode', async () => {
  const css = await readFile(new URL('console.css', CONSOLE), 'utf8');
  const [light, dark] = css
    .split('prefers-color-scheme: dark')
    .map((part) =>
      Object.fromEntries([...part.matchAll(/--([a-z-]+): (#[0-9a-f]{3,6});/g)].map(([, name, value]) => [name, value])),
    );
  const luminance = (hex) => {
    const full = hex.length === 4 ? hex.replace(/[0-9a-f]/g, '$&$&') : hex;
    const [r, g, b] = [1, 3, 5]
      .map((i) => parseInt(full.slice(i, i + 2), 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  for (const [scheme, colour] of [
    ['light', light],
    ['dark', dark],
  ]) {
    for (const [front, back, least] of [
      ['ink', 'page', 7],
      ['ink', 'paper', 7],
      ['ink', 'wash', 7],
      ['soft', 'page', 4.5],
      ['soft', 'paper', 4.5],
      ['soft', 'wash', 4.5],
      ['mark', 'page', 4.5],
      ['mark', 'paper', 4.5],
      ['mark', 'wash', 4.5],
      ['mark-ink', 'mark', 4.5],
      ['second', 'page', 4.5],
      ['second', 'paper', 4.5],
      ['bad', 'page', 4.5],
      ['ink', 'bad-wash', 7],
      ['good', 'paper', 3],
      ['edge', 'paper', 3],
      ['edge', 'page', 2.8],
    ]) {
      const found = contrast(colour[front], colour[back]);
      assert.ok(found >= least, `${scheme}: ${front} on ${back} is ${found.toFixed(2)}, wanted ${least}`);
    }
  }
});

test('screenshots, wide and narrow, light and dark', async (t) => {
  const server = await serve(t);
  const pages = { channel: await visit(server, '#square') };
  for (const view of VIEWS.slice(1)) pages[view] = await visit(server, `#/${view}`);
  await live(pages.channel);
  await pages.ticker.click('#ticker-start');
  const { json, post } = server;
  await post('square', 'The gates are open.');
  await json('square', { lot: 17, good: 'wool', bales: 12 });
  await post('square', new Uint8Array([0, 1, 2, 254, 255]), 'application/octet-stream');
  await json('square', {
    lot: 18,
    good: 'copper',
    weight: { amount: 420, unit: 'lb' },
    seller: 'Anselm of the Bridge',
  });
  await publish(pages.channel, 'Hear ye, hear ye!');
  await json('demo.chat', { name: 'Matilda', text: 'Good morning. Is the market open yet?' });
  await pages.chat.fill('#chat-name', 'Anselm');
  await until('it is shown', async () => (await pages.chat.locator('#chat-messages li').count()) === 1);
  await sendChat(pages.chat, 'Since the bell. Wool is up, copper fell a little.');
  await sendChat(pages.chat, 'I would wait with the tea until noon.');
  await until('both are shown', async () => (await pages.chat.locator('#chat-messages li').count()) === 3);
  await json('demo.chat', {
    name: 'Matilda',
    text: 'Thank you, that is what I thought. I shall bring the long list, and we go through it line by line before anybody else is awake.',
  });
  await pages.text.waitForSelector('#text:enabled');
  await pages.text.click('#text');
  await pages.text.keyboard.type(
    'Oyez, oyez, oyez!\n\nThe market is open from the bell until noon.\nWool by the north gate, copper by the bridge.\n',
  );
  repeat(t, 150, () => Promise.all(Array.from({ length: 1 + Math.random() * 6 }, () => post('scores', 'x'))));
  const scores = await visit(server, '#scores');
  await live(scores);
  await new Promise((resolve) => setTimeout(resolve, 14_000));
  // The page may wait for less time than the publish takes.
  await Promise.all([pages.channel.waitForSelector('#state[data-state=waiting]'), pages.channel.click('#cut')]);
  await post('square', 'Said while the connection was down.');
  await pages.channel.screenshot({ path: path.join(ARTEFACTS, 'waiting-wide-light.png') });
  await open(pages.channel);
  await new Promise((resolve) => setTimeout(resolve, 2500));
  for (const view of VIEWS) {
    const page = pages[view];
    await takeScreenshots(page, view);
  }
});

// The server's side of it.

test('a server with keys rejects the page until a token is entered', async (t) => {
  const folder = await mkdtemp(path.join(tmpdir(), 'oyez-key-'));
  t.after(() => rm(folder, { recursive: true }));
  const file = path.join(folder, 'secret');
  await writeFile(file, '0123456789abcdef0123456789abcdef', { mode: 0o600 });
  const token = (rights) =>
    execFileSync(OYEZ, ['token', 'new', '--sub', 'alice', '--jwt-secret-file', file, ...rights]).toString().trim();
  const server = await serve(t, { flags: ['--jwt-secret-file', file] });
  const page = await visit(server, '#room', { serverRejects: true });
  const show = async (text) => {
    await page.fill('#token', text);
    await page.press('#token', 'Enter');
  };
  await page.waitForSelector('#access[open]');
  await page.waitForSelector('#notice:has-text("requires an access token")');
  await show('a.b.c');
  await page.waitForSelector('#notice:has-text("bad_token why=token_malformed")');
  // Polls are rejected too, and do not replace the reason. The second begins when the first is over.
  for (let i = 0; i < 2; i++) await page.waitForResponse((response) => response.url().endsWith('/metrics'));
  assert.match(await page.textContent('#notice'), /bad_token why=token_malformed/);
  await show(token(['--subscribe', 'room', '--publish', 'room']));
  await open(page);
  await page.fill('#payload', 'with a token');
  await page.press('#payload', 'Enter');
  await until('its own message', async () => (await bodies(page)).some((body) => body.includes('with a token')));
  // Not in the address, not on the page.
  assert.ok(!page.url().includes('ey') && !(await page.content()).includes('eyJ'));
});

test('--no-console serves the client module without the page', async (t) => {
  const server = await serve(t, { flags: ['--no-console'] });
  for (const missing of ['/', '/console.js', '/console.css', '/editor.js'])
    assert.equal((await fetch(server.origin + missing)).status, 404, missing);
  const module = await fetch(`${server.origin}/oyez.js`);
  assert.equal(module.status, 200);
  assert.match(module.headers.get('content-type'), /^text\/javascript/);
  assert.match(await module.text(), /export class Oyez/);
});

test('an EventSource receives published messages', async (t) => {
  const server = await serve(t);
  const page = await visit(server, '#square');
  await page.evaluate(
    () =>
      new Promise((resolve, reject) => {
        window.heard = [];
        const source = new EventSource('/sse/square');
        source.onopen = resolve;
        source.onerror = reject;
        source.onmessage = (event) => window.heard.push([event.lastEventId, event.data]);
        source.addEventListener('binary', (event) => window.heard.push([event.lastEventId, atob(event.data)]));
      }),
  );
  const ids = [
    await server.post('square', 'one\ntwo'),
    await server.json('square', { lot: 17 }),
    await server.post('square', new Uint8Array([104, 105]), 'application/octet-stream'),
  ];
  await publish(page, 'from the page');
  const heard = await until('all four are heard', () => page.evaluate(() => window.heard.length === 4 && window.heard));
  assert.deepEqual(
    heard.map(([, data]) => data),
    ['one\ntwo', '{"lot":17}', 'hi', 'from the page'],
  );
  assert.deepEqual(
    heard.slice(0, 3).map(([id]) => id),
    ids,
  );
});

// The arithmetic of the charts needs no browser.

describe('two scrapes', async () => {
  const { growth, mean, parse, quantile } = await import(new URL('scrape.js', CONSOLE));
  const histogram = (counts, sum) =>
    ['0.001', '0.002', '0.004', '+Inf'].map((le, i) => `t_bucket{le="${le}"} ${counts[i]}\n`).join('') +
    `t_sum ${sum}\nt_count ${counts[3]}\n`;

  test('labels are summed, comments and unknown lines ignored', () => {
    const { sums } = parse('# HELP a b\n# TYPE a counter\na{x="1"} 3\na{x="2",y="}"} 4\n\nb 1.5e3\nnonsense\n');
    assert.equal(sums.get('a'), 7);
    assert.equal(sums.get('b'), 1500);
  });
  test('a counter that decreased is of another process', () => {
    assert.equal(growth(parse('a 5\n'), parse('a 7\n'), 'a'), 2);
    assert.equal(growth(parse('a 5\n'), parse('a 3\n'), 'a'), 3);
  });
  test('mean and quantile are of the time between', () => {
    const before = parse(histogram([100, 100, 100, 100], 0.05));
    const now = parse(histogram([150, 190, 200, 200], 0.15));
    assert.ok(Math.abs(mean(before, now, 't') - 0.001) < 1e-12);
    assert.ok(Math.abs(quantile(before, now, 't', 0.5) - 0.001) < 1e-12);
    assert.ok(Math.abs(quantile(before, now, 't', 0.95) - 0.003) < 1e-12);
    assert.equal(quantile(before, before, 't', 0.99), null);
    assert.equal(mean(before, before, 't'), null);
  });
  test('a quantile beyond the last bound is the bound', () => {
    assert.equal(quantile(parse(histogram([0, 0, 0, 0], 0)), parse(histogram([0, 0, 0, 10], 1)), 't', 0.99), 0.004);
  });
});
