// The shared text: a textarea over the model of editor.js, which decides the text that all pages show.
//
// The user's edits are found by comparing the field with its previous text; edits of others are inserted around the
// caret. While an input method is composing a character the field is left unchanged, since a write would end the
// composition: edits that arrive meanwhile are held back, and the composed text is transformed past them afterwards
// (operation.js).

import { byId, clip, count, plural } from './dom.js';
import { Editor, TEXT_UNITS_MAX } from './editor.js';
import { AFTER, BEFORE, compose, difference, moveCaret, transform } from './operation.js';
import { share } from './shared-text.js';

export const CHANNEL = 'demo.text';
const WRITES_NOW_MS = 4000;

export class SharedTextView {
  constructor(hub) {
    this.hub = hub;
    this.area = byId('text');
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    this.editor = new Editor(Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(''));
    this.shared = null;
    /** The field's text when it and the editor were last equal. */
    this.agreed = '';
    /** Others' edits since an input method began to compose; null while none does. */
    this.held = null;
    /** Other pages that edited lately, with the time. */
    this.others = new Map();
    this.full = false;
    this.area.addEventListener('compositionstart', () => (this.held = []));
    this.area.addEventListener('compositionend', () => this.composed());
    this.area.addEventListener('input', () => this.held === null && this.edited([]));
  }

  show() {
    if (this.shared) return;
    this.area.disabled = false;
    this.join();
    setInterval(() => this.showState(), 500);
  }

  /** Another hub is in use: requests in flight on the previous one are lost. */
  reconnect() {
    if (!this.shared) return;
    this.shared.stop();
    this.editor.retry();
    this.join();
  }

  join() {
    const sharedHub = this.hub;
    const hub = {
      publish: (channel, value) => sharedHub.publish(channel, value),
      subscribe: (channel, receive, options) =>
        sharedHub.subscribe(
          channel,
          (message) => {
            if (!message.own && message.data?.edit) this.others.set(message.from, Date.now());
            receive(message);
          },
          options,
        ),
    };
    this.shared = share(hub, CHANNEL, this.editor, (operation) => this.changed(operation));
    this.showState();
  }

  /** The user has edited the field, while `held` has happened to the editor's text. */
  edited(held) {
    const caret = this.area.selectionEnd;
    const typed = difference(this.agreed, this.area.value, caret);
    this.full = !this.shared.edit(transform(typed, held, AFTER));
    if (this.full || held.length > 0) this.put(this.full ? [] : transform(held, typed, BEFORE));
    this.agreed = this.area.value;
    this.showState();
  }

  composed() {
    const held = this.held ?? [];
    this.held = null;
    this.edited(held);
  }

  /** The editor's text has undergone an operation. */
  changed(operation) {
    if (this.held !== null) this.held = compose(this.held, operation);
    else if (operation.length > 0) this.put(operation);
    this.showState();
  }

  /** Shows the editor's text, with the caret and the selection where they were in it. */
  put(operation) {
    const { area } = this;
    const { selectionStart, selectionEnd, selectionDirection, scrollTop } = area;
    area.value = this.editor.text;
    area.setSelectionRange(
      moveCaret(selectionStart, operation),
      moveCaret(selectionEnd, operation),
      selectionDirection,
    );
    area.scrollTop = scrollTop;
    this.agreed = area.value;
  }

  showState() {
    const { editor } = this;
    const now = Date.now();
    for (const [who, when] of this.others) if (now - when > WRITES_NOW_MS) this.others.delete(who);
    const words = [plural(editor.text.length, 'character')];
    if (!editor.isReady) words.push('loading the text from other pages');
    else if (editor.isPending)
      words.push(this.hub.state === 'open' ? 'sending' : 'waiting for the connection');
    else words.push('confirmed');
    if (this.others.size > 0)
      words.push(`${plural(this.others.size, 'other')} ${this.others.size === 1 ? 'writes' : 'write'} now`);
    if (this.full) words.push(`maximum length ${count(TEXT_UNITS_MAX)} reached`);
    const text = words.join(' · ');
    if (byId('text-state').textContent !== text) byId('text-state').textContent = text;
    if (editor.replaced !== null) {
      byId('text-replaced').hidden = false;
      byId('text-replaced').lastElementChild.textContent = clip(editor.replaced, TEXT_UNITS_MAX);
    }
  }
}
