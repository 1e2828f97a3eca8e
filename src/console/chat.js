// A chat room. A message is { name, text }; both are the sender's claim, so both are bounded and shown as text. Where the
// sender has a token, the server says who it is, and that name is shown with a mark.

import { at, clip, eachFrame, following, make } from './dom.js';

export const CHANNEL = 'demo.chat';
const SHOWN = 200;
const NAME_MAX = 24;
const TEXT_MAX = 1000;

export class Chat {
  constructor(line) {
    this.line = line;
    this.pending = [];
    this.follow = following(at('talk'));
    this.draw = eachFrame(() => this.flush());
    at('chat-name').value = `Guest ${100 + Math.floor(Math.random() * 900)}`;
    at('chat-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.say();
    });
  }

  show() {
    if (!this.shown) {
      this.shown = true;
      this.subscribe();
    }
    this.follow();
  }

  subscribe() {
    const hear = (message) => {
      const { name, text } = message.data ?? {};
      if (typeof name !== 'string' || typeof text !== 'string' || text === '') return;
      const { user } = message;
      const verified = user && String(user.info?.name ?? user.id);
      const shown = (verified ?? name).slice(0, NAME_MAX) || 'nobody';
      this.pending.push({ name: shown, id: user?.id, text: clip(text, TEXT_MAX), own: message.own });
      if (this.pending.length > SHOWN) this.pending.shift();
      this.draw();
    };
    this.line.subscribe(CHANNEL, hear, {
      // What is said from now on is read aloud; what is replayed is not.
      onsubscribed: () => at('talk').setAttribute('aria-live', 'off'),
      onlive: () => setTimeout(() => at('talk').setAttribute('aria-live', 'polite'), 500),
      onagain: () => {
        this.pending = [];
        at('said').replaceChildren();
      },
    });
  }

  flush() {
    const said = at('said');
    for (const { name, id, text, own } of this.pending) {
      const speaker = own ? 'own' : `other ${id ?? ''} ${name}`;
      const goesOn = speaker === this.speaker && said.childElementCount > 0;
      this.speaker = speaker;
      const mark = id === undefined ? [] : [make('span', { class: 'verified', title: `signed in as ${id}` }, ' \u2713')];
      said.append(
        make(
          'li',
          { class: `${own ? 'own' : ''} ${goesOn ? 'goes-on' : ''}` },
          make('bdi', { class: 'who' }, own ? `${name} (you)` : name, ...mark),
          make('p', { dir: 'auto' }, text),
        ),
      );
    }
    this.pending = [];
    while (said.childElementCount > SHOWN) said.firstElementChild.remove();
    at('talk-empty').hidden = said.childElementCount > 0;
    this.follow();
  }

  async say() {
    const text = at('chat-text').value.trim();
    const name = at('chat-name').value.trim().slice(0, NAME_MAX) || 'nobody';
    if (text === '') return;
    at('chat-text').value = '';
    at('chat-state').textContent = this.line.state === 'open' ? '' : 'It is said as soon as the connection is back.';
    try {
      await this.line.publish(CHANNEL, { name, text: text.slice(0, TEXT_MAX) });
      at('chat-state').textContent = '';
    } catch (error) {
      if (at('chat-text').value === '') at('chat-text').value = text;
      at('chat-state').textContent = `Not said: ${clip(String(error?.message ?? error), 200)}`;
    }
  }
}
