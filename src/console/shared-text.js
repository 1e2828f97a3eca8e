// Connects an editor (editor.js) to a channel (oyez.js): when to ask for the document, when to answer, when to start
// one.
//
// The timeouts are guesses about people and networks. Pages converge with any values; these only decide how often a
// page asks twice, two pages answer at once, or a text is started again although another page still had it.

// Longer than a question and its answer take, even to a page in the background, whose timers fire once a second.
const ANSWER_TIMEOUT_MS = 2500;
// A page with a text waits less, so that it starts the document first after all pages have lost it at once.
const ANSWER_TIMEOUT_WITH_TEXT_MS = 1000;
// One answer is enough: a page that receives another's answer meanwhile sends none.
const ANSWER_WITHIN_MS = 200;
const RETRY_MS = 1000;

/**
 * Connects the editor to the channel. `onchange(operation)` follows each message that may have changed the text to
 * show: the operation is the change of `editor.text`.
 *
 * @returns {{edit: (operation) => boolean, stop: () => void}} `edit` takes the user's edits, as `editor.edit` does
 */
export function share(hub, channel, editor, onchange = () => {}) {
  const timers = new Set();
  let [isStopped, isSeeking, isAnswering, hasReceived] = [false, false, false, false];

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
    const message = isStopped ? null : editor.next();
    if (!message || (await publish(message)) || isStopped) return;
    after(RETRY_MS, () => {
      editor.retry();
      flush();
    });
  }

  async function seek() {
    if (isSeeking) return;
    isSeeking = true;
    while (!editor.isReady && !isStopped) {
      const isAsked = await publish(editor.ask());
      await pause(editor.confirmed === '' ? ANSWER_TIMEOUT_MS : ANSWER_TIMEOUT_WITH_TEXT_MS);
      const start = isAsked ? editor.begin() : null;
      if (start && !isStopped && (await publish(start))) await pause(RETRY_MS);
    }
    isSeeking = false;
  }

  function answer() {
    if (isAnswering || !editor.answer()) return;
    isAnswering = true;
    after(Math.random() * ANSWER_WITHIN_MS, () => {
      isAnswering = false;
      const message = editor.answer();
      if (message) publish(message);
    });
  }

  function receive(message) {
    hasReceived = true;
    const wasReady = editor.isReady;
    onchange(editor.receive(message));
    if (wasReady && !editor.isReady) seek();
    answer();
    flush();
  }

  // The history has lost its beginning before anything of it arrived: there is nothing to lose, and its end is near.
  function lose() {
    if (!hasReceived) return;
    editor.lose();
    onchange([]);
    seek();
  }

  function stop() {
    isStopped = true;
    off();
    for (const timer of timers) clearTimeout(timer);
    timers.clear();
  }

  // The history may contain the document: a page without one at the end of the replay asks for it.
  const off = hub.subscribe(channel, receive, { since: 'earliest', ongap: lose, onlive: seek });
  return {
    edit(operation) {
      const isDone = editor.edit(operation);
      flush();
      return isDone;
    },
    stop,
  };
}
