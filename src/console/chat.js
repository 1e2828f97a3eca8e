// A chat room. A message is { name, text }; both are the sender's claim, so both are bounded and shown as text. Where the
// sender has a token, the server adds the user, and that name is shown with a check mark.

import { byId, clip, eachFrame, following, element } from './dom.js';

export const CHANNEL = 'demo.chat';
const SHOWN = 200;
const NAME_MAX = 24;
const TEXT_MAX = 1000;

export class Chat {
  constructor(hub) {
    this.hub = hub;
    this.pending = [];
    this.follow = following(byId('talk'));
    this.draw = eachFrame(() => this.flush());
    byId('chat-name').value = `Guest ${100 + Math.floor(Math.random() * 900)}`;
    byId('chat-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.publish();
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
    const onMessage = (message) => {
      const { name, text } = message.data ?? {};
      if (typeof name !== 'string' || typeof text !== 'string' || text === '') return;
      const { user } = message;
      const verified = user && String(user.info?.name ?? user.id);
      const shown = (verified ?? name).slice(0, NAME_MAX) || 'anonymous';
      this.pending.push({ name: shown, id: user?.id, text: clip(text, TEXT_MAX), own: message.own });
      if (this.pending.length > SHOWN) this.pending.shift();
      this.draw();
    };
    this.hub.subscribe(CHANNEL, onMessage, {
      // New messages are read aloud; replayed ones are not.
      onsubscribed: () => byId('talk').setAttribute('aria-live', 'off'),
      onlive: () => setTimeout(() => byId('talk').setAttribute('aria-live', 'polite'), 500),
      onrestart: () => {
        this.pending = [];
        byId('chat-messages').replaceChildren();
      },
    });
  }

  flush() {
    const list = byId('chat-messages');
    for (const { name, id, text, own } of this.pending) {
      const speaker = own ? 'own' : `other ${id ?? ''} ${name}`;
      const goesOn = speaker === this.speaker && list.childElementCount > 0;
      this.speaker = speaker;
      const mark = id === undefined ? [] : [element('span', { class: 'verified', title: `signed in as ${id}` }, ' \u2713')];
      list.append(
        element(
          'li',
          { class: `${own ? 'own' : ''} ${goesOn ? 'goes-on' : ''}` },
          element('bdi', { class: 'who' }, own ? `${name} (you)` : name, ...mark),
          element('p', { dir: 'auto' }, text),
        ),
      );
    }
    this.pending = [];
    while (list.childElementCount > SHOWN) list.firstElementChild.remove();
    byId('talk-empty').hidden = list.childElementCount > 0;
    this.follow();
  }

  async publish() {
    const text = byId('chat-text').value.trim();
    const name = byId('chat-name').value.trim().slice(0, NAME_MAX) || 'anonymous';
    if (text === '') return;
    byId('chat-text').value = '';
    byId('chat-state').textContent = this.hub.state === 'open' ? '' : 'Sent as soon as the connection is open again.';
    try {
      await this.hub.publish(CHANNEL, { name, text: text.slice(0, TEXT_MAX) });
      byId('chat-state').textContent = '';
    } catch (error) {
      if (byId('chat-text').value === '') byId('chat-text').value = text;
      byId('chat-state').textContent = `Not sent: ${clip(String(error?.message ?? error), 200)}`;
    }
  }
}
