// An editor (editor.js) on a channel (oyez.js): when to ask for the document, when to answer, when to begin one.
//
// The times are guesses about people and networks, and none of them is needed for pages to agree; they only decide
// how often a page asks twice, two answer at once, or a text is begun anew although somebody still had it.

// Longer than a question and its answer take, even to a page in the background, whose timers fire once a second.
const PATIENCE_MS = 2500;
// Who still has a text asks for less long, and so is the first to begin after all have lost the document at once.
const PATIENCE_WITH_TEXT_MS = 1000;
// One answer is enough: who sees that of another in the meantime gives none.
const ANSWER_WITHIN_MS = 200;
const AGAIN_MS = 1000;

/**
 * Connects the editor to the channel. `onchange(operation)` follows each message that may have changed what is to be
 * shown: the operation is what `editor.text` has undergone.
 *
 * @returns {{edit: (operation) => boolean, stop: () => void}} `edit` takes the user's edits, as `editor.edit` does
 */
export function share(hub, channel, editor, onchange = () => {}) {
  const timers = new Set();
  let [is_stopped, is_seeking, is_answering, has_received] = [false, false, false, false];

  function after(ms, then) {
    const timer = setTimeout(() => {
      timers.delete(timer);
      then();
    }, ms);
    timers.add(timer);
  }

  const pause = (ms) => new Promise((resolve) => after(ms, resolve));

  /** Publishes; false if that failed and may succeed later. */
  async function publish(message) {
    try {
      await hub.publish(channel, message);
      return true;
    } catch (error) {
      if (error.code === 'closed') stop();
      return false;
    }
  }

  async function flush() {
    const message = is_stopped ? null : editor.next();
    if (!message || (await publish(message)) || is_stopped) return;
    after(AGAIN_MS, () => {
      editor.retry();
      flush();
    });
  }

  async function seek() {
    if (is_seeking) return;
    is_seeking = true;
    while (!editor.isReady && !is_stopped) {
      const is_asked = await publish(editor.ask());
      await pause(editor.confirmed === '' ? PATIENCE_MS : PATIENCE_WITH_TEXT_MS);
      const start = is_asked ? editor.begin() : null;
      if (start && !is_stopped && (await publish(start))) await pause(AGAIN_MS);
    }
    is_seeking = false;
  }

  function answer() {
    if (is_answering || !editor.answer()) return;
    is_answering = true;
    after(Math.random() * ANSWER_WITHIN_MS, () => {
      is_answering = false;
      const message = editor.answer();
      if (message) publish(message);
    });
  }

  function receive(message) {
    has_received = true;
    const was_ready = editor.isReady;
    onchange(editor.receive(message));
    if (was_ready && !editor.isReady) seek();
    answer();
    flush();
  }

  // The history has lost its beginning before anything of it arrived: there is nothing to lose, and its end is near.
  function lose() {
    if (!has_received) return;
    editor.lose();
    onchange([]);
    seek();
  }

  function stop() {
    is_stopped = true;
    off();
    for (const timer of timers) clearTimeout(timer);
    timers.clear();
  }

  // The history may have the document: only who is still without one at its end asks.
  const off = hub.subscribe(channel, receive, { since: 'earliest', ongap: lose, onlive: seek });
  return {
    edit(operation) {
      const is_done = editor.edit(operation);
      flush();
      return is_done;
    },
    stop,
  };
}
