// The shared editor's model, over a simulated server: whatever happens on the way, all pages end with one text.
//
//     SEED=7 ROUNDS=1 node --test editor.test.mjs      repeats one round; the seed is in each failure

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { Editor, TEXT_UNITS_MAX } from '../../src/console/editor.js';
import * as operations from '../../src/console/operation.js';
import { randomOf } from './random.mjs';

const { AFTER, BEFORE, apply, compose, difference, moveCaret, parseOperation, shapeOf, transform } = operations;
const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const ROUNDS = Number(process.env.ROUNDS ?? 150);

/** Random things that are the same for the same seed. */
class Chance {
  constructor(seed) {
    this.next = randomOf(seed);
  }

  is(probability) {
    return this.next() < probability;
  }

  below(limit) {
    return Math.floor(this.next() * limit);
  }

  of(list) {
    return list[this.below(list.length)];
  }

  // What looks like a number is a trap for code that compares texts with numbers.
  text(units_max) {
    return Array.from({ length: 1 + this.below(units_max) }, () => this.of(['a', 'b', '-', '7', '\u{1F600}', 'é'])).join('');
  }

  /** An edit of the text that parts no surrogate pair, in several places now and then. */
  operation(text) {
    let edited = text;
    let operation = [];
    do {
      const letters = [...edited];
      const at = this.below(letters.length + 1);
      letters.splice(at, this.below(Math.min(5, letters.length - at + 1)), this.is(0.7) ? this.text(4) : '');
      operation = compose(operation, difference(edited, letters.join('')));
      edited = letters.join('');
    } while (this.is(0.3));
    return operation;
  }
}

describe('operations', () => {
  test('transform (TP1), compose, and report their lengths', () => {
    for (let seed = SEED; seed < SEED + 5000; seed++) {
      const chance = new Chance(seed);
      const text = chance.is(0.1) ? '' : chance.text(12);
      const [a, b] = [chance.operation(text), chance.operation(text)];
      const [behind_a, behind_b] = [transform(b, a, AFTER), transform(a, b, BEFORE)];
      const both = apply(apply(text, a), behind_a);
      const what = JSON.stringify({ seed, text, a, b });
      assert.equal(both, apply(apply(text, b), behind_b), what);
      assert.equal(apply(text, compose(a, behind_a)), both, what);
      assert.deepEqual(transform(b, shapeOf(a), AFTER), behind_a, what);
      assert.deepEqual(parseOperation(compose(a, behind_a), 1000), compose(a, behind_a), what);
      assert.deepEqual(parseOperation(JSON.parse(JSON.stringify(a)), 1000), a, what);
      const c = chance.operation(both);
      const ab = compose(a, behind_a);
      assert.deepEqual(compose(ab, c), compose(a, compose(behind_a, c)), what);
    }
  });

  test('transform written examples', () => {
    for (const [operation, other, order, expected] of [
      [['x'], ['y'], BEFORE, ['x']],
      [['x'], ['y'], AFTER, [1, 'x']],
      [[2, 'x'], [1, -3], AFTER, [1, 'x']],
      [[1, -3], [2, 'x'], AFTER, [1, -1, 1, -2]],
      [[1, -3], [2, -3], AFTER, [1, -1]],
      [[-2], [-2], AFTER, []],
      [[3, 'x'], [[5]], AFTER, [8, 'x']],
      [['-1'], ['-1'], AFTER, [2, '-1']],
    ]) {
      assert.deepEqual(transform(operation, other, order), expected, JSON.stringify([operation, other, order]));
    }
  });

  test('move carets', () => {
    for (const [caret, operation, expected] of [
      [3, ['ab'], 5],
      [3, [3, 'ab'], 3],
      [3, [1, -1], 2],
      [3, [1, -5], 1],
      [3, [3, -5], 3],
      [0, [-1, 'x'], 0],
      [4, [1, 'xy', -2, 3, 'z'], 4],
    ]) {
      assert.equal(moveCaret(caret, operation), expected, JSON.stringify([caret, operation]));
    }
  });

  test('are recovered from the text before and after', () => {
    for (const [before, after, caret, expected] of [
      ['', 'a', 1, ['a']],
      ['abc', 'abc', 2, []],
      ['aaa', 'aaaa', 2, [1, 'a']],
      ['aaa', 'aa', 1, [1, -1]],
      ['ab', 'ba', 1, ['b', 1, -1]],
      ['abcdef', 'aXf', 2, [1, 'X', -4]],
      ['\u{1F600}', '\u{1F601}', 2, ['\u{1F601}', -2]],
      ['a\u{1F600}', 'a\u{1F900}', undefined, [1, '\u{1F900}', -2]],
    ]) {
      const found = difference(before, after, caret);
      assert.equal(apply(before, found), after);
      if (before !== 'ab') assert.deepEqual(found, expected, JSON.stringify([before, after]));
    }
    for (let seed = SEED; seed < SEED + 2000; seed++) {
      const chance = new Chance(seed);
      const [before, after] = [chance.text(8), chance.text(8)];
      const found = difference(before, after, chance.below(after.length + 1));
      assert.equal(apply(before, found), after, `seed ${seed}`);
      assert.deepEqual(parseOperation(found, 10), found, `seed ${seed}: it parts a pair`);
    }
  });
});

/** A server and its pages, in a time of their own. */
class World {
  now = 0;
  #events = [];
  #order = 0;
  pages = [];
  epoch = 1;
  log = [];
  keys = new Map();
  floor = 0;
  written = [];

  constructor(chance, { kept = 60, knows_keys = true, delay_max = 150, is_calm = false } = {}) {
    Object.assign(this, { chance, kept, knows_keys, delay_max, is_calm });
  }

  after(ms, then) {
    this.#events.push({ at: this.now + ms, order: this.#order++, then });
  }

  run(ms) {
    const end = this.now + ms;
    for (;;) {
      let next = -1;
      this.#events.forEach(({ at, order }, i) => {
        const best = this.#events[next];
        if (at <= end && (!best || at < best.at || (at === best.at && order < best.order))) next = i;
      });
      if (next === -1) break;
      const [{ at, then }] = this.#events.splice(next, 1);
      this.now = at;
      then();
    }
    this.now = end;
  }

  /** A message has arrived at the server. */
  publish(data, key) {
    if (this.knows_keys && this.keys.has(key)) return;
    this.keys.set(key, true);
    // Copies the message as the wire does: no object is shared.
    const message = { id: `${this.epoch}-${this.log.length + 1}`, n: this.log.length + 1, data: JSON.stringify(data) };
    this.log.push(message);
    this.floor = Math.max(this.floor, this.log.length - this.kept);
    for (const page of this.pages) page.send(message);
  }

  /** Another server takes the first one's place, and knows nothing. */
  restart() {
    this.epoch++;
    Object.assign(this, { log: [], floor: 0 });
    this.keys.clear();
    for (const page of this.pages) page.cut(true);
  }
}

class Page {
  #connection = 0;
  #is_connected = false;
  #cursor = { epoch: null, n: 0 };
  #unacknowledged = [];
  #keys = 0;
  #arrives_at = { up: 0, down: 0 };
  #is_seeking = false;
  #is_answering = false;
  #loses_next = false;

  constructor(world, name) {
    Object.assign(this, { world, name, editor: new Editor(name) });
    this.shown = '';
    world.pages.push(this);
    this.connect();
  }

  /** One direction of a connection: things take their time, and never overtake each other. */
  #travel(way, then) {
    const { world } = this;
    const connection = this.#connection;
    this.#arrives_at[way] = Math.max(this.#arrives_at[way], world.now + world.chance.below(world.delay_max));
    world.after(this.#arrives_at[way] - world.now, () => then(connection === this.#connection));
  }

  connect() {
    if (this.#is_connected) return;
    this.#is_connected = true;
    this.#connection++;
    const { world } = this;
    const { epoch, n } = this.#cursor;
    const is_gap = epoch !== null && (epoch !== world.epoch || n < world.floor);
    const from = epoch === world.epoch ? Math.max(n, world.floor) : world.floor;
    const cursor = { epoch: world.epoch, n: from };
    // A page that loses its connection before the gap arrives resumes at its old cursor, and then gets the gap.
    this.#travel('down', (is_now) => {
      if (!is_now || !this.#is_connected) return;
      this.#cursor = cursor;
      if (is_gap) this.editor.lose();
    });
    for (const message of world.log.slice(from)) this.send(message);
    this.#travel('down', (is_now) => is_now && this.#seek());
    for (const publish of this.#unacknowledged) this.#upload(publish);
  }

  cut(is_lost = false) {
    if (!this.#is_connected) return;
    this.#is_connected = false;
    // Messages in flight to the server may or may not arrive.
    if (is_lost || this.world.chance.is(0.5)) this.#connection++;
    this.world.after(this.world.chance.below(3000), () => this.connect());
  }

  loseNext(is_wanted = true) {
    this.#loses_next = is_wanted;
  }

  send(message) {
    if (!this.#is_connected) return;
    if (this.#loses_next) {
      this.#loses_next = false;
      return;
    }
    this.#travel('down', (is_now) => {
      if (!is_now || !this.#is_connected) return;
      this.#cursor.n = message.n;
      const data = JSON.parse(message.data);
      const change = this.editor.receive({ ...message, data });
      // Where nothing was lost, an edit gets exactly the place in which its author already shows it.
      if (this.world.is_calm && data.edit?.page === this.name) assert.deepEqual(change, []);
      this.#change(change);
      if (!this.editor.isReady) this.#seek();
    });
  }

  publish(data, then = () => {}) {
    const publish = { data: JSON.parse(JSON.stringify(data)), key: `${this.name}-${this.#keys++}`, then };
    this.#unacknowledged.push(publish);
    if (this.#is_connected) this.#upload(publish);
  }

  #upload(publish) {
    this.#travel('up', (is_now) => {
      if (!is_now) return;
      this.world.publish(publish.data, publish.key);
      this.#travel('down', (is_now) => {
        if (!is_now || !this.#unacknowledged.includes(publish)) return;
        this.#unacknowledged = this.#unacknowledged.filter((other) => other !== publish);
        publish.then();
      });
    });
  }

  #change(operation) {
    this.shown = apply(this.shown, operation);
    assert.equal(this.shown, this.editor.text, 'the change that is told is the one that was made');
    if (!this.#is_answering && this.editor.answer()) {
      this.#is_answering = true;
      this.world.after(this.world.chance.below(200), () => {
        this.#is_answering = false;
        const answer = this.editor.answer();
        if (answer) this.publish(answer);
      });
    }
    this.#flush();
  }

  #flush() {
    const message = this.editor.next();
    if (message) this.publish(message);
  }

  #seek() {
    if (this.editor.isReady || this.#is_seeking) return;
    this.#is_seeking = true;
    this.publish(this.editor.ask(), () => {
      this.world.after(this.editor.confirmed === '' ? 2500 : 1000, () => {
        const start = this.editor.begin();
        if (start) this.publish(start);
        this.world.after(1000, () => {
          this.#is_seeking = false;
          this.#seek();
        });
      });
    });
  }

  write(operation) {
    if (!this.editor.edit(operation)) return;
    this.shown = apply(this.shown, operation);
    this.#flush();
  }

  /** Inserts a letter that is nowhere else. */
  mark() {
    const mark = String.fromCharCode(0x4e00 + this.world.written.length);
    const at = this.world.chance.below(this.shown.length + 1);
    this.world.written.push(mark);
    this.write(at ? [at, mark] : [mark]);
  }
}

/** Messages that no correct page sends. */
function junk(chance, world) {
  const base = chance.of([...world.log.map(({ id }) => id), '', 'x', null, 7]);
  const page = chance.of(['p0', 'p1', 'p2', 'x', '', null, {}, 'p'.repeat(100)]);
  const operation = chance.of([
    [-1], [1e9, 'x'], [-1e9], [0], [''], ['\ud800'], [1.5], [NaN], [null], [{}], [[3]], [['-1']], [[-1]], ['-1'], 'x', null,
    {}, [1, -1], [2 ** 53], Array(10_000).fill('x'), ['x'.repeat(TEXT_UNITS_MAX)], [['x']], [true],
  ]);
  const number = chance.of([1, 0, -1, 1.5, '1', null, chance.below(50), 2 ** 53]);
  const state = { text: 'x', origin: '', edits: [], numbers: [], questions: [] };
  const broken = { ...state, ...chance.of([
    { text: 7 }, { text: '\ud800' }, { text: 'x'.repeat(TEXT_UNITS_MAX + 1) }, { origin: null }, { edits: [['a', [5]]] },
    { edits: [['a', [['x']]]] }, { edits: [['a', [[5]]]] }, { edits: {} }, { numbers: [['p', 0]] }, { numbers: [null] },
    { questions: [null] }, { questions: 'x' }, { edits: Array(1000).fill(['a', []]) }, { numbers: undefined },
  ]) };
  return chance.of([
    null, 7, 'x', [], {}, { edit: null }, { edit: [] }, { ask: null }, { start: null }, { state: null },
    { edit: { page, number, base, operation } }, { edit: { page, number, base, operation } },
    { edit: { page, number, base, operation } },
    { start: broken, for: base }, { state: broken, at: base, for: [base] },
    { start: state, for: 'x' }, { state, at: 'x', for: ['x'] }, { state, at: base, for: null },
  ]);
}

function settle(world) {
  world.pages.forEach((page) => page.connect());
  for (let i = 0; i < 40; i++) {
    world.run(1000);
    world.pages.forEach((page) => page.connect());
  }
  for (const { name, editor } of world.pages) {
    assert.ok(editor.isReady, `${name} has a document`);
    assert.ok(!editor.isPending, `${name} has nothing pending`);
  }
  const texts = new Set(world.pages.flatMap(({ editor }) => [editor.text, editor.confirmed]));
  assert.equal(texts.size, 1, `one text for all: ${JSON.stringify([...texts])}`);
  return [...texts][0];
}

const counts = { edits: 0, messages: 0 };

/** Runs many rounds; a failure names its seed. */
function rounds(what, options, round) {
  test(what, (t) => {
    for (let seed = SEED; seed < SEED + ROUNDS; seed++) {
      const chance = new Chance(seed);
      const world = new World(chance, options(chance));
      try {
        round(world, chance);
      } catch (error) {
        throw new Error(`SEED=${seed} ROUNDS=1 repeats it`, { cause: error });
      }
      counts.messages += world.log.length;
    }
    t.diagnostic(`${ROUNDS} rounds from seed ${SEED}; so far ${counts.edits} edits, ${counts.messages} messages`);
  });
}

function join(world, pages) {
  for (let i = 0; i < pages; i++) new Page(world, `p${i}`);
}

function live(world, chance, { steps, calamity }) {
  for (let i = 0; i < steps; i++) {
    world.run(chance.below(120));
    const page = chance.of(world.pages);
    page.write(chance.operation(page.shown));
    counts.edits++;
    calamity?.();
  }
}

describe('pages converge', () => {
  rounds('after any edits', () => ({ is_calm: true }), (world, chance) => {
    join(world, 2 + chance.below(7));
    live(world, chance, { steps: 60 });
    settle(world);
  });

  rounds('while they join, disconnect and lose messages', (chance) => ({ kept: chance.of([0, 5, 30, 1000]), knows_keys: chance.is(0.5) }), (world, chance) => {
    join(world, 2);
    const calamity = () => {
      if (world.pages.length < 8 && chance.is(0.08)) new Page(world, `p${world.pages.length}`);
      if (chance.is(0.1)) chance.of(world.pages).cut();
      if (chance.is(0.03)) chance.of(world.pages).loseNext();
    };
    live(world, chance, { steps: 80, calamity });
    // The loss of the last message is only visible by another one.
    world.run(10_000);
    world.pages.forEach((page) => page.loseNext(false));
    world.pages[0].write(['.']);
    settle(world);
  });

  rounds('after a restart of the server without history', () => ({ kept: 20 }), (world, chance) => {
    join(world, 2 + chance.below(4));
    const calamity = () => {
      if (chance.is(0.05)) world.restart();
      if (chance.is(0.05)) chance.of(world.pages).cut();
    };
    live(world, chance, { steps: 60, calamity });
    settle(world);
  });

  rounds('when a publisher sends malformed messages', () => ({}), (world, chance) => {
    join(world, 2 + chance.below(3));
    let key = 0;
    const calamity = () => {
      while (chance.is(0.5)) world.publish(junk(chance, world), `junk-${key++}`);
      if (chance.is(0.05)) chance.of(world.pages).cut();
      if (world.pages.length < 6 && chance.is(0.05)) new Page(world, `p${world.pages.length}`);
    };
    live(world, chance, { steps: 60, calamity });
    settle(world);
  });

  rounds('when edits are faster than the channel', () => ({ delay_max: 5000 }), (world, chance) => {
    join(world, 3);
    live(world, chance, { steps: 150 });
    settle(world);
  });
});

describe('no edit is lost or applied twice', () => {
  const options = (chance) => ({ kept: chance.of([0, 5, 30]), knows_keys: chance.is(0.5) });
  rounds('while one page stays', options, (world, chance) => {
    join(world, 2 + chance.below(5));
    const [, ...others] = world.pages;
    world.run(10_000);
    for (let i = 0; i < 60; i++) {
      world.run(chance.below(200));
      chance.of(world.pages).mark();
      counts.edits++;
      if (chance.is(0.2)) chance.of(others).cut();
    }
    const text = settle(world);
    assert.deepEqual([...text].sort(), world.written.toSorted());
  });
});

describe('one page', () => {
  let n = 0;
  const deliver = (editor, data) => editor.receive({ id: `1-${++n}`, n, data: JSON.parse(JSON.stringify(data)) });

  /** A page that was the first. */
  function first(name = 'me') {
    n = 0;
    const editor = new Editor(name);
    deliver(editor, editor.ask());
    deliver(editor, editor.begin());
    return editor;
  }

  test('requests the document, and begins an empty one without an answer', () => {
    const editor = new Editor('me');
    n = 0;
    assert.ok(!editor.isReady);
    assert.equal(editor.begin(), null, 'the question is not out yet');
    assert.ok(editor.edit(['early']));
    assert.equal(editor.next(), null);
    deliver(editor, editor.ask());
    deliver(editor, editor.begin());
    assert.ok(editor.isReady);
    assert.equal(editor.text, 'early');
    deliver(editor, editor.next());
    assert.equal(editor.confirmed, 'early');
  });

  test('applies the answer and the edits published since', () => {
    const one = first();
    one.edit(['abc']);
    const edit = one.next();
    const two = new Editor('you');
    const both = (data) => {
      const message = { id: `1-${++n}`, n, data: JSON.parse(JSON.stringify(data)) };
      return [one.receive(message), two.receive(message)];
    };
    both(edit);
    both(two.ask());
    const answer = one.answer();
    one.edit([3, 'd']);
    both(one.next());
    assert.ok(!two.isReady);
    assert.deepEqual(both(answer)[1], ['abcd']);
    assert.equal(two.text, 'abcd');
    assert.equal(one.answer(), null, 'once is enough');
    assert.equal(two.answer(), null, 'whoever has asked knows that the question is answered');
    assert.deepEqual(both(answer), [[], []], 'and twice does no harm');
  });

  test('ignores the start that follows an answer', () => {
    const one = first();
    one.edit(['abc']);
    deliver(one, one.next());
    const question = n + 1;
    deliver(one, { ask: 'you' });
    const answer = one.answer();
    const start = { start: { text: '', origin: '', edits: [], numbers: [], questions: [] }, for: `1-${question}` };
    deliver(one, answer);
    assert.deepEqual(deliver(one, start), []);
    assert.equal(one.text, 'abc');
    // Without a document it counts, also for a page with a text, which is not dropped silently.
    deliver(one, { ask: 'you' });
    assert.deepEqual(deliver(one, { ...start, for: `1-${n}` }), [-3]);
    assert.deepEqual([one.text, one.replaced], ['', 'abc']);
  });

  test('has one edit in flight and merges the others into the next', () => {
    const editor = first();
    editor.edit(['a']);
    const one = editor.next();
    editor.edit([1, 'b']);
    editor.edit([2, 'c']);
    assert.equal(editor.next(), null);
    deliver(editor, one);
    const two = editor.next();
    assert.deepEqual(two.edit.operation, [1, 'bc']);
    assert.equal(two.edit.base, `1-${n}`);
    assert.deepEqual(deliver(editor, two), []);
    assert.deepEqual(deliver(editor, two), [], 'a double is nothing');
    assert.equal(editor.text, 'abc');
    assert.ok(!editor.isPending);
  });

  test('publishes pending edits once after a loss', () => {
    for (const has_arrived of [true, false]) {
      const editor = first();
      editor.edit(['a']);
      const sent = editor.next();
      editor.edit([1, 'b']);
      editor.lose();
      deliver(editor, editor.ask());
      const text = has_arrived ? 'xa' : 'x';
      const numbers = has_arrived ? [['me', 1]] : [];
      const state = { text, origin: '1-9', edits: [], numbers, questions: [] };
      deliver(editor, { state, at: `1-${n}`, for: [`1-${n}`] });
      assert.equal(editor.confirmed, text);
      assert.equal([...editor.text].sort().join(''), 'abx');
      if (!has_arrived) {
        const again = editor.next();
        assert.equal(again.edit.number, sent.edit.number);
        deliver(editor, again);
      }
      deliver(editor, sent);
      deliver(editor, editor.next());
      assert.equal([...editor.confirmed].sort().join(''), 'abx');
    }
  });

  test('rebases an edit whose base was evicted', () => {
    const editor = first();
    editor.edit(['mine']);
    const edit = editor.next();
    for (let i = 1; i <= 70; i++) {
      deliver(editor, { edit: { page: 'you', number: i, base: `1-${n}`, operation: ['x'] } });
    }
    deliver(editor, edit);
    deliver(editor, { edit: { page: 'x', number: 1, base: '', operation: ['y'] } });
    assert.equal(editor.confirmed, 'x'.repeat(70));
    const again = editor.next();
    assert.deepEqual(again.edit.operation, [70, 'mine']);
    deliver(editor, again);
    assert.equal(editor.confirmed, `${'x'.repeat(70)}mine`);
  });

  test('ignores malformed messages', () => {
    const editor = first();
    editor.edit(['\u{1F600}ab']);
    deliver(editor, editor.next());
    deliver(editor, { ask: 'you' });
    const good = { page: 'you', number: 1, base: `1-${n - 1}`, operation: [4, 'x'] };
    const before = JSON.stringify(editor.answer().state);
    for (const bad of [
      { operation: [5, 'x'] }, { operation: [-5] }, { operation: [3, -2] }, { operation: [1, -1] }, { operation: [1, 'x'] },
      { operation: ['\ud800'] }, { operation: [0] }, { operation: [''] }, { operation: [1.5] }, { operation: [[3]] },
      { operation: [['-1']] }, { operation: [null] }, { operation: [2 ** 53] }, { operation: [-(2 ** 53)] }, { operation: {} },
      { operation: null }, { operation: 'x' }, { operation: ['x'.repeat(TEXT_UNITS_MAX)] }, { operation: Array(600).fill(1) },
      { page: '' }, { page: 7 }, { page: 'p'.repeat(65) }, { page: '\ud800' }, { number: 0 }, { number: '1' },
      { number: 2 ** 53 }, { number: null }, { base: 'x' }, { base: null }, { base: 7 }, { base: '' },
    ]) {
      assert.deepEqual(deliver(editor, { edit: { ...good, ...bad } }), [], JSON.stringify(bad).slice(0, 80));
      // A base of '' is good for as long as it is remembered, but not for this operation.
      assert.equal(JSON.stringify(editor.answer().state), before, JSON.stringify(bad).slice(0, 80));
    }
    assert.deepEqual(deliver(editor, { edit: good }), [4, 'x']);
  });

  test('publishes although another page uses its name', () => {
    const editor = first();
    deliver(editor, { edit: { page: 'me', number: 1000, base: `1-${n}`, operation: ['x'] } });
    editor.edit(['mine']);
    deliver(editor, editor.next());
    assert.ok(editor.isPending);
    deliver(editor, editor.next());
    assert.ok(!editor.isPending);
    assert.match(editor.confirmed, /mine/);
  });

  test('undoes an edit that exceeds the maximum length', () => {
    const editor = first();
    assert.ok(!editor.edit(['x'.repeat(TEXT_UNITS_MAX + 1)]));
    assert.ok(editor.edit(['x'.repeat(TEXT_UNITS_MAX)]));
    const edit = editor.next();
    deliver(editor, { edit: { page: 'you', number: 1, base: edit.edit.base, operation: ['y'] } });
    const change = deliver(editor, edit);
    assert.equal(editor.text, 'y');
    assert.deepEqual(change, [1, -TEXT_UNITS_MAX]);
    assert.equal(editor.next(), null);
  });

  test('merges an edit in too many places into one range', () => {
    const editor = first();
    editor.edit(['.'.repeat(1500)]);
    deliver(editor, editor.next());
    for (let i = 1; i <= 700; i++) editor.edit([2 * i, 'x']);
    const edit = editor.next();
    assert.ok(edit.edit.operation.length < 10);
    deliver(editor, edit);
    assert.equal(editor.confirmed, editor.text);
    assert.ok(!editor.isPending);
  });

  test('sends any state in one message', () => {
    const editor = first();
    editor.edit(['\u0001'.repeat(TEXT_UNITS_MAX)]);
    deliver(editor, editor.next());
    for (let i = 1; i <= 64; i++) {
      const operation = Array.from({ length: 8 }, (_, i) => (i % 2 ? -1 : 1000));
      const base = `1-${n}`;
      deliver(editor, { edit: { page: String(i).padStart(64, 'p'), number: 2 ** 52 + i, base, operation: [1, '\u0001', -1] } });
      deliver(editor, { edit: { page: String(i).padStart(64, 'q'), number: 2 ** 52 + i, base, operation } });
    }
    for (let i = 0; i < 20; i++) deliver(editor, { ask: 'you' });
    assert.ok(JSON.stringify(editor.answer()).length < 64 * 1024 - 400);
  });
});
