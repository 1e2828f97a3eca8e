// The shared editor over oyez.js and the real server, in real time.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Editor } from '../../src/console/editor.js';
import { apply, difference } from '../../src/console/operation.js';
import { share } from '../../src/console/shared-text.js';
import { randomOf } from './random.mjs';
import { open, serve, sleep, until } from './support.mjs';

function join(t, server, name, random = Math.random) {
  const hub = open(t, server, { random: () => random() / 50 });
  const editor = new Editor(name);
  const page = { hub, editor, shown: '' };
  const shared = share(hub, 'text', editor, (operation) => {
    page.shown = apply(page.shown, operation);
    assert.equal(page.shown, editor.text);
  });
  t.after(shared.stop);
  page.type = (text) => {
    const operation = difference(page.shown, text);
    page.shown = text;
    return shared.edit(operation);
  };
  return page;
}

const settled = (pages) => () =>
  new Set(pages.map(({ shown }) => shown)).size === 1 && pages.every(({ editor }) => editor.isReady && !editor.isPending);

test('pages that edit one text converge while connections are lost', async (t) => {
  const server = await serve(t, { flags: ['--history-messages-max', '20'] });
  const seed = Date.now() & 0xffff;
  t.diagnostic(`seed ${seed}`);
  const random = randomOf(seed);
  const pages = [join(t, server, 'one', random), join(t, server, 'two', random)];
  await until('a document', () => pages.every(({ editor }) => editor.isReady));
  pages.push(join(t, server, 'three', random));
  let written = 0;
  for (let i = 0; i < 400; i++) {
    const page = pages[i % pages.length];
    const at = Math.floor(random() * (page.shown.length + 1));
    page.type(`${page.shown.slice(0, at)}${String.fromCharCode(0x4e00 + written++)}${page.shown.slice(at)}`);
    // The first page stays, so that there is always one with the document.
    if (random() < 0.1) pages[1 + (i % 2)].hub.cut();
    await sleep(random() * 8);
  }
  await until('one text', settled(pages));
  const letters = Array.from({ length: written }, (_, i) => String.fromCharCode(0x4e00 + i));
  assert.deepEqual([...pages[0].shown].sort(), letters);
  const late = join(t, server, 'late', random);
  await until('the same for one who comes late', settled([...pages, late]));
});

test('the text survives a restart of the server', async (t) => {
  const server = await serve(t);
  const pages = [join(t, server, 'one'), join(t, server, 'two')];
  await until('a document', settled(pages));
  pages[0].type('one ');
  pages[1].type('two ');
  await until('one text', settled(pages));
  const text = pages[0].shown;
  await server.stop();
  await until('the loss', () => pages.every(({ hub }) => hub.state !== 'open'));
  pages[0].type(`${text}written meanwhile `);
  await serve(t, { port: server.port });
  await until('one text again', () => settled(pages)() && pages[0].shown !== text);
  assert.equal(pages[1].shown, `${text}written meanwhile `);
});
