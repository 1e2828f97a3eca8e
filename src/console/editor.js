// The document model of the shared text: one text, edited on many pages at once, over a channel that only orders messages.
//
// There is no authority: every page applies the same rules to the same messages in the same order, and so has the same
// document. Edits that the channel has not yet confirmed are kept separately from the document, and are transformed
// whenever another page's edit arrives first (operation.js). One edit is in flight at a time; later typing is merged
// into the next one.
//
// The model is pure: no channel, no page, no clock. Messages go in (`receive`) and come out (`next`, `ask`, `answer`,
// `begin`); shared-text.js connects it to oyez.js and decides when. The messages between pages:
//
//     {edit: {page, number, base, operation}}    made for the document as the message `base` left it
//     {ask: page}                                this page has no document and requests it
//     {state: {...document}, at, for: [...]}     the document after the message `at`; answers those questions
//     {start: {...document}, for}                the question was not answered: this is the document from now on
//
// Four rules make that safe:
// - **An edit counts once.** The document has the last number of each page, and an edit that is not newer is ignored.
//   So an edit may be sent again at any time, as oyez.js and this model do.
// - **An edit counts on all pages or on none.** Whether it is well-formed, fits its base, and its base is still known
//   is decided from the document alone, and the document is the same everywhere.
// - **A start counts only while its question is open**, and it closes all others. A page that has a document accepts it
//   too: its answer was too late, and the order of the channel decides.
// - **A loss ends the document.** A page that has missed a message, or may have, asks as a new page does, and rebases
//   its pending edits over the difference.
//
// Pages trust each other: a page that answers with another text than the document's deceives the one that asked.

import { AFTER, BEFORE } from './operation.js';
import { apply, compose, difference, isShape, isText, measure, parseOperation, shapeOf, transform } from './operation.js';

// A state has to fit into one message of 64 KiB, however its text is escaped: at most 6 bytes for each unit.
export const TEXT_UNITS_MAX = 8192;
// An edit is rebased on one of this many last edits. If more arrive while it is in flight, it is sent again.
const EDITS_MAX = 64;
// The spans of all of them together, for the same limit of a message.
const SPANS_MAX = 512;
// As many pages as edits: a page whose last edit is not among the last 64 can send no duplicate that has a base.
const PAGES_MAX = EDITS_MAX;
const QUESTIONS_MAX = 16;
// Messages received without a document. The answer to a question arrives within a second or two.
const RECEIVED_MAX = 1000;
const NAME_UNITS_MAX = 64;

const isName = (value) => isText(value) && value.length > 0 && value.length <= NAME_UNITS_MAX;
const isNumber = (value) => Number.isSafeInteger(value) && value > 0;
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/** The state that all pages share: the text, and the data to validate and rebase the next message. */
class Document {
  text = '';
  /** The id of the message after which `edits` begin. */
  origin = '';
  /** The last edits: [message id, shape]. */
  edits = [];
  /** The number of the last edit of each page that has made one lately. */
  numbers = new Map();
  /** Unanswered questions, by their messages' ids. */
  questions = [];
  /** False after a loss: then text, edits and numbers are the last known ones. */
  isKnown = false;

  /** Parses a document that another page has sent; null if it is invalid. */
  static parse(value) {
    if (!isObject(value)) return null;
    const { text, origin, edits, numbers, questions } = value;
    const isList = (list, lengthMax, isGood) => Array.isArray(list) && list.length <= lengthMax && list.every(isGood);
    const isPair = (pair) => Array.isArray(pair) && pair.length === 2 && isName(pair[0]);
    if (!isText(text) || text.length > TEXT_UNITS_MAX || typeof origin !== 'string') return null;
    if (!isName(origin) && origin !== '') return null;
    if (!isList(edits, EDITS_MAX, (pair) => isPair(pair) && isShape(pair[1], SPANS_MAX))) return null;
    if (!isList(numbers, PAGES_MAX, (pair) => isPair(pair) && isNumber(pair[1]))) return null;
    if (!isList(questions, QUESTIONS_MAX, isName)) return null;
    let { length } = text;
    for (const [, shape] of edits.toReversed()) {
      const { reach, growth } = measure(shape);
      length -= growth;
      if (reach > length) return null;
    }
    // Copies, since the message may be read again and has to be unchanged.
    const own = { edits: [...edits], numbers: new Map(numbers), questions: [...questions] };
    return Object.assign(new Document(), { text, origin, ...own, isKnown: true });
  }

  toJSON() {
    const { text, origin, edits, numbers, questions } = this;
    return { text, origin, edits: [...edits], numbers: [...numbers], questions: [...questions] };
  }

  /** The id of the message that a new edit is based on. */
  get base() {
    return this.edits.at(-1)?.[0] ?? this.origin;
  }

  /** Applies an edit. Returns the rebased operation, or the reason why the edit does not count. */
  edit(id, edit) {
    if (!isObject(edit) || !isName(edit.page) || !isNumber(edit.number)) return 'malformed';
    const { page, number, base } = edit;
    let operation = parseOperation(edit.operation, SPANS_MAX);
    if (!operation) return 'malformed';
    if (number <= (this.numbers.get(page) ?? 0)) return 'double';
    const at = base === this.origin ? 0 : this.edits.findIndex(([id]) => id === base) + 1;
    if (at === 0 && base !== this.origin) return 'stale';

    const since = this.edits.slice(at).map(([, shape]) => shape);
    const units = since.reduce((units, shape) => units - measure(shape).growth, this.text.length);
    if (measure(operation).reach > units) return 'malformed';
    for (const shape of since) operation = transform(operation, shape, AFTER);
    const text = apply(this.text, operation);
    if (text.length > TEXT_UNITS_MAX) return 'too_long';
    // The edit split a surrogate pair.
    if (!isText(text)) return 'malformed';

    this.text = text;
    this.numbers.delete(page);
    this.numbers.set(page, number);
    if (this.numbers.size > PAGES_MAX) this.numbers.delete(this.numbers.keys().next().value);
    this.#append(id, shapeOf(operation));
    return operation;
  }

  #append(id, shape) {
    this.edits.push([id, shape]);
    const spans = () => this.edits.reduce((spans, [, shape]) => spans + shape.length, 0);
    while (this.edits.length > EDITS_MAX || spans() > SPANS_MAX) [this.origin] = this.edits.shift();
  }

  asked(id) {
    this.questions.push(id);
    if (this.questions.length > QUESTIONS_MAX) this.questions.shift();
  }

  answered(questions) {
    this.questions = this.questions.filter((question) => !questions.includes(question));
  }

  /** Replaces the document by that of a start, if the start counts. */
  start(id, question, document) {
    if (!this.questions.includes(question)) {
      // For pages that know more questions it may have counted, and closed the questions that are open here.
      if (!this.isKnown) this.questions = [];
      return false;
    }
    Object.assign(this, document, { questions: [] });
    // From here on there is something that edits can be based on.
    this.#append(id, []);
    return true;
  }
}

/** One page's view of the document. */
export class Editor {
  /** The text that the page shows: the document with all pending edits. */
  text = '';
  /** The text shown before an unrelated document replaced it; null if that never happened. */
  replaced = null;

  #page;
  #document = new Document();
  /** The edit under way, rebased to the document: {number, operation}. */
  #sent = null;
  #isDue = false;
  /** Edits typed after that edit was sent. */
  #unsent = [];
  #number = 0;
  /** The last message: its id, and its number in the channel. */
  #last = { id: null, n: null };
  /** Messages since the loss, until there is a document. */
  #received = [];
  #question = null;

  /** @param {string} page a name that no other page has, of at most 48 characters */
  constructor(page) {
    this.#page = page;
  }

  /** True if there is a document. The user may type before that, too. */
  get isReady() {
    return this.#document.isKnown;
  }

  /** True if there are edits that the channel has not confirmed. */
  get isPending() {
    return this.#sent !== null || this.#unsent.length > 0;
  }

  /** The document alone, for comparisons. */
  get confirmed() {
    return this.#document.text;
  }

  /**
   * The user has edited the text that is shown.
   *
   * @returns {boolean} false: the text would become too long, and it is not done
   */
  edit(operation) {
    const text = apply(this.text, operation);
    if (text.length > TEXT_UNITS_MAX || !isText(text)) return false;
    this.#unsent = compose(this.#unsent, operation);
    this.text = text;
    return true;
  }

  /** The next edit to be published, or null. */
  next() {
    if (!this.isReady) return null;
    if (!this.#sent && this.#unsent.length > 0) {
      this.#sent = { number: ++this.#number, operation: this.#compact(this.#unsent) };
      this.#unsent = [];
      this.#isDue = true;
    }
    if (!this.#isDue) return null;
    this.#isDue = false;
    return { edit: { page: this.#page, base: this.#document.base, ...this.#sent } };
  }

  /** An operation of more spans than others take becomes one that replaces all between its first and its last. */
  #compact(operation) {
    if (operation.length <= SPANS_MAX) return operation;
    const { text } = this.#document;
    return difference(text, apply(text, operation));
  }

  /** The edit under way could not be published: `next` gives it again. */
  retry() {
    this.#isDue = this.#sent !== null;
  }

  /** The question of a page that has no document. */
  ask() {
    return { ask: this.#page };
  }

  /** The answer to the open questions, or null without any. */
  answer() {
    const { isKnown, questions } = this.#document;
    if (!isKnown || questions.length === 0) return null;
    return { state: this.#document.toJSON(), at: this.#last.id, for: [...questions] };
  }

  /** The start of a document, from the last state known to this page; null if its question is no longer open. */
  begin() {
    if (this.isReady || !this.#document.questions.includes(this.#question)) return null;
    return { start: { ...this.#document.toJSON(), questions: [] }, for: this.#question };
  }

  /** Messages have been lost, or may have been. */
  lose() {
    this.#document.isKnown = false;
    this.#document.questions = [];
    this.#received = [];
    this.#question = null;
    this.#last = { id: null, n: null };
  }

  /**
   * Takes the channel's next message.
   *
   * @returns {Array} the operation that the shown text has undergone: `[]` if it is as it was
   */
  receive({ id, n, data }) {
    // A jump of the count means the same as a gap notice.
    if (this.#last.n !== null && n !== this.#last.n + 1) this.lose();
    this.#last = { id, n };
    const command = isObject(data) ? data : {};
    if (!this.isReady) {
      this.#received.push({ id, command });
      if (this.#received.length > RECEIVED_MAX) this.#received.shift();
    }
    return this.#fold(id, command);
  }

  #fold(id, command) {
    const document = this.#document;
    if ('edit' in command) return document.isKnown ? this.#edited(id, command.edit) : [];
    if ('ask' in command) {
      document.asked(id);
      if (command.ask === this.#page && !document.isKnown) this.#question = id;
    } else if ('state' in command) {
      return this.#answered(command);
    } else if ('start' in command) {
      const start = Document.parse(command.start);
      const before = document.text;
      if (start && document.start(id, command.for, start)) return this.#adopt(before, start.text, true);
    }
    return [];
  }

  #edited(id, edit) {
    const before = this.#document.text;
    const operation = this.#document.edit(id, edit);
    const isOwn = this.#sent !== null && edit?.page === this.#page && edit.number === this.#sent.number;
    if (Array.isArray(operation)) return isOwn ? this.#confirm(before, operation) : this.#rebase(operation);
    if (!isOwn) return [];
    switch (operation) {
      case 'double':
        // Another page has the same name.
        this.#page += '+';
        this.#number = this.#sent.number = 1;
        this.#isDue = true;
        return [];
      case 'stale':
        this.#isDue = true;
        return [];
      default:
        // The edit will never be applied.
        return this.#forget();
    }
  }

  /** This page's edit was ordered. It has the expected effect, unless it is an earlier copy of the edit. */
  #confirm(before, operation) {
    const expected = apply(before, this.#sent.operation);
    this.#sent = null;
    this.#isDue = false;
    return this.#rebase(difference(expected, this.#document.text));
  }

  /** Applies another page's operation before the pending edits. */
  #rebase(operation) {
    if (this.#sent) {
      const { operation: sent } = this.#sent;
      this.#sent.operation = transform(sent, operation, AFTER);
      operation = transform(operation, sent, BEFORE);
    }
    const unsent = this.#unsent;
    this.#unsent = transform(unsent, operation, AFTER);
    operation = transform(operation, unsent, BEFORE);
    this.text = apply(this.text, operation);
    return operation;
  }

  #forget() {
    const operation = difference(this.text, this.#document.text);
    this.#sent = null;
    this.#isDue = false;
    this.#unsent = [];
    this.text = this.#document.text;
    return operation;
  }

  #answered({ state, at, for: questions }) {
    const document = Document.parse(state);
    if (!document || !Array.isArray(questions)) return [];
    this.#document.answered(questions);
    const index = this.#received.findIndex(({ id }) => id === at);
    if (this.isReady || index === -1) return [];

    const before = this.#document.text;
    const since = this.#received.slice(index + 1);
    this.#document = document;
    let change = this.#adopt(before, document.text, false);
    for (const { id, command } of since) change = compose(change, this.#fold(id, command));
    return change;
  }

  /** Switches to another document. */
  #adopt(before, after, isStart) {
    const { numbers } = this.#document;
    this.#received = [];
    this.#question = null;
    if (isStart && before !== after && before !== '') this.replaced = this.text;
    this.#number = Math.max(this.#number, numbers.get(this.#page) ?? 0);
    if (this.#sent && this.#sent.number <= (numbers.get(this.#page) ?? 0)) {
      before = apply(before, this.#sent.operation);
      this.#sent = null;
    }
    this.#isDue = this.#sent !== null;
    return this.#rebase(difference(before, after));
  }
}
