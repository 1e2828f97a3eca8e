// The view of one channel: its messages, its state on the server, and a form to publish.
//
// Messages are drawn many at a time, and only the last ROWS of them: a channel of ten
// thousand messages a second costs this page no more than one of a hundred.

import { byId, bytes, clip, count, eachFrame, following, element, plural, rate } from './dom.js';

const NAME = /^[A-Za-z0-9_.:-]{1,255}$/;
const ROWS = 200;
const BODY_MAX = 4000;
const BINARY_SHOWN = 64;
const CHIPS = 8;
const RATE_WINDOW_S = 5;

/** What a message says, as text that is safe to show. */
export function readable({ kind, data }) {
  if (data instanceof Uint8Array) {
    const hex = Array.from(data.subarray(0, BINARY_SHOWN), (byte) => byte.toString(16).padStart(2, '0')).join(' ');
    return { label: bytes(data.length), body: data.length > BINARY_SHOWN ? `${hex} …` : hex };
  }
  if (kind === 'text') return { label: '', body: clip(String(data), BODY_MAX) };
  const flat = JSON.stringify(data) ?? '';
  // Indentation grows with the square of the depth: a small message could ask for a gigabyte of blanks.
  const pretty = flat.length > 72 && flat.length < BODY_MAX && depth(flat) <= 12;
  return { label: 'JSON', body: clip(pretty ? JSON.stringify(data, null, 2) : flat, BODY_MAX) };
}

function depth(json) {
  let now = 0;
  let most = 0;
  for (const c of json) {
    if (c === '{' || c === '[') most = Math.max(most, ++now);
    else if (c === '}' || c === ']') now--;
  }
  return most;
}

export class ChannelView {
  constructor(hub) {
    this.hub = hub;
    this.channel = null;
    this.off = () => {};
    this.pending = [];
    this.paused = false;
    this.held = 0;
    this.seconds = new Array(RATE_WINDOW_S).fill(0);
    this.subscribers = null;
    this.follow = following(byId('stream'));
    this.draw = eachFrame(() => this.flush());
    this.listen();
  }

  listen() {
    byId('watch-form').addEventListener('submit', (event) => {
      event.preventDefault();
      const name = byId('channel').value.trim();
      const good = NAME.test(name);
      byId('watch-error').hidden = good;
      byId('channel').setAttribute('aria-invalid', String(!good));
      byId('watch-error').textContent = good ? '' : 'A channel is 1 to 255 of A-Z a-z 0-9 _ . : -';
      if (good) location.hash = name;
    });
    byId('pause').addEventListener('click', () => {
      this.paused = !this.paused;
      if (!this.paused) this.held = 0;
      this.showPause();
      this.draw();
    });
    byId('clear').addEventListener('click', () => {
      this.pending = [];
      this.held = 0;
      this.showPause();
      byId('rows').replaceChildren();
    });
    byId('publish-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.publish();
    });
    byId('payload').addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.publish();
    });
  }

  open(channel) {
    this.off();
    this.restart();
    byId('publish-result').textContent = '';
    this.channel = channel;
    byId('channel').value = channel;
    byId('watched').textContent = channel;
    this.setMembers(null);
    this.showElsewhere();
    this.showPause();
    for (const chip of byId('chips').children) mark(chip, channel);
    let live = false;
    const onMessage = (message) => {
      if (live) this.seconds[0]++;
      this.push(message);
    };
    this.off = this.hub.subscribe(channel, onMessage, {
      onsubscribed: ({ subscribers }) => {
        live = false;
        this.setMembers(subscribers);
      },
      ongap: ({ missed, why }) => {
        const what = Number.isFinite(missed) ? plural(missed, 'message') : 'an unknown number of messages';
        this.note(`gap: ${what} missing (${clip(String(why), 40)})`);
      },
      onlive: ({ replayed, again }) => {
        live = true;
        if (again) this.note(replayed ? `reconnected: ${plural(replayed, 'message')} replayed` : 'reconnected: no messages missed');
        else if (replayed) this.note(`${plural(replayed, 'message')} from history; live from here`);
      },
      onrestart: () => this.restart(),
      onerror: (error) => this.note(`rejected: ${clip(error.message, 100)}`),
    });
  }

  restart() {
    this.pending = [];
    this.held = 0;
    this.seconds.fill(0);
    byId('rows').replaceChildren();
  }

  /** A line between the messages that reports a change of the connection. */
  note(text) {
    this.push({ note: text });
  }

  push(item) {
    this.pending.push(item);
    if (this.paused && !item.note) {
      this.held++;
      this.showPause();
    }
    if (this.pending.length > ROWS) this.pending.splice(0, this.pending.length - ROWS);
    this.draw();
  }

  flush() {
    const rows = byId('rows');
    if (!this.paused && this.pending.length) {
      rows.append(...this.pending.map(row));
      this.pending = [];
      while (rows.childElementCount > ROWS) rows.firstElementChild.remove();
      this.follow();
    }
    if (this.paused) this.showPause();
    byId('empty').hidden = rows.childElementCount > 0;
  }

  showPause() {
    byId('pause').classList.toggle('on', this.paused);
    byId('pause').textContent = this.paused ? `Resume${this.held ? ` (${count(this.held)} new)` : ''}` : 'Pause';
    byId('empty').textContent = `Nothing on ${this.channel} yet. Publish the first message below.`;
  }

  setMembers(n) {
    this.subscribers = n;
    this.showFacts();
  }

  showFacts() {
    const perSecond = this.seconds.reduce((sum, n) => sum + n, 0) / RATE_WINDOW_S;
    const parts = [`${rate(perSecond)} messages/s`];
    if (this.subscribers !== null) parts.unshift(plural(this.subscribers, 'subscriber'));
    if (this.kept) parts.push(this.kept);
    byId('facts').textContent = parts.join(' · ');
  }

  /** Called once a second with the response of GET /v1/channels/{channel}, or null. */
  tick(info) {
    this.kept = Number.isFinite(info?.messages) ? `${count(info.messages)} kept, ${bytes(info.bytes ?? 0)}` : '';
    if (Number.isFinite(info?.subscribers)) {
      this.subscribers = info.subscribers;
      for (const chip of byId('chips').children)
        if (chip.dataset.channel === info.channel) chip.lastChild.textContent = count(info.subscribers);
    }
    this.showFacts();
    this.seconds.pop();
    this.seconds.unshift(0);
  }

  /** The response to GET /v1/channels: suggestions for the field, and the largest channels as links. */
  list(channels) {
    const known = channels.filter(({ channel }) => NAME.test(channel));
    byId('channels').replaceChildren(...known.slice(0, 100).map(({ channel }) => element('option', { value: channel })));
    const largest = known.sort((a, b) => b.subscribers - a.subscribers || (a.channel < b.channel ? -1 : 1)).slice(0, CHIPS);
    largest.sort((a, b) => (a.channel < b.channel ? -1 : 1));
    const old = [...byId('chips').children];
    // Links are kept while they point to the same channel, so that keyboard focus stays.
    const chips = largest.map(({ channel, subscribers }) => {
      const chip =
        old.find((one) => one.dataset.channel === channel) ??
        element('a', { href: `#${channel}`, 'data-channel': channel }, element('bdi', {}, channel), element('span', {}));
      chip.lastChild.textContent = count(subscribers);
      chip.lastChild.title = plural(subscribers, 'subscriber');
      mark(chip, this.channel);
      return chip;
    });
    if (chips.length !== old.length || chips.some((chip, i) => chip !== old[i])) byId('chips').replaceChildren(...chips);
  }

  async publish() {
    const text = byId('payload').value;
    const result = byId('publish-result');
    const showResult = (words, bad = false) => {
      result.textContent = words;
      result.classList.toggle('error', bad);
    };
    if (text === '') return showResult('The message is empty.', true);
    let value = text;
    if (document.querySelector('input[name=kind]:checked').value === 'json') {
      try {
        value = JSON.parse(text);
        // A string is published as text, and this one is JSON.
        if (typeof value === 'string') value = Object(value);
      } catch (error) {
        return showResult(`Invalid JSON: ${clip(error.message, 120)}`, true);
      }
    }
    showResult('publishing');
    byId('payload').value = '';
    try {
      const id = await this.hub.publish(this.channel, value);
      showResult(`published as ${id}`);
    } catch (error) {
      // Restores the text, unless the user has typed a new one.
      if (byId('payload').value === '') byId('payload').value = text;
      showResult(`Not published: ${clip(String(error?.message ?? error), 200)}`, true);
    }
  }

  showElsewhere() {
    const { origin } = location;
    const ws = origin.replace(/^http/, 'ws');
    byId('elsewhere').textContent = [
      `oyez pub ${this.channel} 'hear ye' --url ${ws}`,
      `curl ${origin}/v1/publish/${this.channel} --data 'hear ye'`,
      `curl -N ${origin}/sse/${this.channel}`,
      '',
      `import { Oyez } from '${origin}/oyez.js'`,
      `const hub = new Oyez('${origin}')`,
      `hub.subscribe('${this.channel}', (message) => console.log(message.id, message.data))`,
    ].join('\n');
  }
}

function mark(chip, channel) {
  if (chip.dataset.channel === channel) chip.setAttribute('aria-current', 'true');
  else chip.removeAttribute('aria-current');
}

function row(item) {
  if (item.note) return element('li', { class: 'note' }, element('span', {}, item.note));
  const { label, body } = readable(item);
  const from = item.own ? 'you' : item.from ? clip(String(item.from), 16) : 'HTTP';
  return element(
    'li',
    item.own ? { class: 'own' } : {},
    element('span', { class: 'row-n', title: 'number in this channel' }, String(item.n)),
    element('bdi', { class: 'row-from' }, from),
    element('div', { class: 'row-body', dir: 'auto' }, body),
    element('span', { class: 'row-kind' }, label),
    element('span', { class: 'row-id', title: 'id: the cursor after this message' }, String(item.id)),
  );
}
