// One text, edited on many pages at once, over a channel that does nothing but give all messages one order.
//
// There is no authority: every page applies the same rules to the same messages in the same order, and so has the same
// document. What a page's user has typed and the channel has not yet confirmed stands behind the document, and is
// rewritten whenever somebody else's edit arrives first (operation.js). One edit is under way at a time; what is typed
// meanwhile waits and becomes the next one.
//
// The model is pure: no channel, no page, no clock. Messages go in (`receive`) and come out (`next`, `ask`, `answer`,
// `begin`); shared-text.js connects it to oyez.js, and says when. What pages say to each other:
//
//     {edit: {page, number, base, operation}}    made for the document as the message `base` left it
//     {ask: page}                                I have no document: who has?
//     {state: {...document}, at, for: [...]}     this is what it was behind the message `at`; answers those questions
//     {start: {...document}, for}                nobody has answered my question, so this is it from now on
//
// Four rules make that safe:
// - **An edit counts once.** The document knows the last number of each page, and an edit that is not newer is nothing.
//   So anybody may send an edit again at any time, as oyez.js and this model do.
// - **An edit counts on all pages or on none.** Whether it is well-formed, fits its base, and its base is still known
//   is decided from the document alone, and the document is the same everywhere.
// - **A start counts only while its question is open**, and it closes all others. A page that has a document takes it
//   too: it answered too late, and what counts is the order of the channel.
// - **A loss ends the document.** Whoever has missed a message, or cannot know, asks as a newcomer does, and rebases
//   what is pending over the difference.
//
// Pages trust each other: one that answers with another text than the document's deceives the one that asked.

import { AFTER, BEFORE } from './operation.js';
import { apply, compose, difference, isShape, isText, measure, parseOperation, shapeOf, transform } from './operation.js';

// A state has to fit into one message of 64 KiB, however its text is escaped: at most 6 bytes for each unit.
export const TEXT_UNITS_MAX = 8192;
// An edit finds its base among the last so many. One more than that while it is under way, and it is sent again.
const EDITS_MAX = 64;
// The spans of all of them together, for the same limit of a message.
const SPANS_MAX = 512;
// As many pages as edits: whose last edit is not among the last 64 has no base for a double of it either.
const PAGES_MAX = EDITS_MAX;
const QUESTIONS_MAX = 16;
// What is heard while there is no document. The answer to a question comes within a second or two.
const HEARD_MAX = 1000;
const NAME_UNITS_MAX = 64;

const isName = (value) => isText(value) && value.length > 0 && value.length <= NAME_UNITS_MAX;
const isNumber = (value) => Number.isSafeInteger(value) && value > 0;
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/** What all pages have in common: the text, and what is needed to judge and to place the next message. */
class Document {
  text = '';
  /** The message behind which `edits` begin. */
  origin = '';
  /** The last edits: [message id, shape]. */
  edits = [];
  /** The number of the last edit of each page that has made one lately. */
  numbers = new Map();
  /** Questions that nobody has answered, by their messages' ids. */
  questions = [];
  /** Is it known? Otherwise text, edits and numbers are what they were when it was. */
  isKnown = false;

  /** Reads what another page has sent; null if it is nothing that a page would send. */
  static parse(value) {
    if (!isObject(value)) return null;
    const { text, origin, edits, numbers, questions } = value;
    const isList = (list, length_max, isGood) => Array.isArray(list) && list.length <= length_max && list.every(isGood);
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
    // Copies: what was said may be read once more, and has to be as it was.
    const own = { edits: [...edits], numbers: new Map(numbers), questions: [...questions] };
    return Object.assign(new Document(), { text, origin, ...own, isKnown: true });
  }

  toJSON() {
    const { text, origin, edits, numbers, questions } = this;
    return { text, origin, edits: [...edits], numbers: [...numbers], questions: [...questions] };
  }

  /** The message that an edit made now is made behind. */
  get base() {
    return this.edits.at(-1)?.[0] ?? this.origin;
  }

  /** Applies an edit: the operation as it fits the text, or a word that says why it does not count. */
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
    // It parted a surrogate pair.
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

  /** Takes a start's document for its own, if the start counts. */
  start(id, question, document) {
    if (!this.questions.includes(question)) {
      // To those who know more questions it may have counted, and closed what is open here.
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
  /** What the page shows: the document with all that is pending. */
  text = '';
  /** What was shown before the document was replaced by one that does not come from it; null if that never happened. */
  replaced = null;

  #page;
  #document = new Document();
  /** The edit under way, rebased to the document: {number, operation}. */
  #sent = null;
  #is_due = false;
  /** What has been typed since, behind that edit. */
  #unsent = [];
  #number = 0;
  /** The last message: its id, and its number in the channel. */
  #last = { id: null, n: null };
  /** Messages since the loss, for as long as there is no document. */
  #heard = [];
  #question = null;

  /** @param {string} page a name that no other page has, of at most 48 characters */
  constructor(page) {
    this.#page = page;
  }

  /** Is there a document? The user may type before that, too. */
  get isReady() {
    return this.#document.isKnown;
  }

  /** Is there something that the channel has not confirmed? */
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
      this.#is_due = true;
    }
    if (!this.#is_due) return null;
    this.#is_due = false;
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
    this.#is_due = this.#sent !== null;
  }

  /** The question of a page that has no document. */
  ask() {
    return { ask: this.#page };
  }

  /** The answer to whoever has asked, or null if nobody waits for one. */
  answer() {
    const { isKnown, questions } = this.#document;
    if (!isKnown || questions.length === 0) return null;
    return { state: this.#document.toJSON(), at: this.#last.id, for: [...questions] };
  }

  /** The start of a document, from what this page last knew of it; null if its question is not open (any more). */
  begin() {
    if (this.isReady || !this.#document.questions.includes(this.#question)) return null;
    return { start: { ...this.#document.toJSON(), questions: [] }, for: this.#question };
  }

  /** Messages have been lost, or may have been. */
  lose() {
    this.#document.isKnown = false;
    this.#document.questions = [];
    this.#heard = [];
    this.#question = null;
    this.#last = { id: null, n: null };
  }

  /**
   * Takes the channel's next message.
   *
   * @returns {Array} the operation that the shown text has undergone: `[]` if it is as it was
   */
  receive({ id, n, data }) {
    // A count that does not go on says the same as a gap.
    if (this.#last.n !== null && n !== this.#last.n + 1) this.lose();
    this.#last = { id, n };
    const said = isObject(data) ? data : {};
    if (!this.isReady) {
      this.#heard.push({ id, said });
      if (this.#heard.length > HEARD_MAX) this.#heard.shift();
    }
    return this.#fold(id, said);
  }

  #fold(id, said) {
    const document = this.#document;
    if ('edit' in said) return document.isKnown ? this.#edited(id, said.edit) : [];
    if ('ask' in said) {
      document.asked(id);
      if (said.ask === this.#page && !document.isKnown) this.#question = id;
    } else if ('state' in said) {
      return this.#answered(said);
    } else if ('start' in said) {
      const start = Document.parse(said.start);
      const before = document.text;
      if (start && document.start(id, said.for, start)) return this.#adopt(before, start.text, true);
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
        // Somebody else has our name.
        this.#page += '+';
        this.#number = this.#sent.number = 1;
        this.#is_due = true;
        return [];
      case 'stale':
        this.#is_due = true;
        return [];
      default:
        // It will never count.
        return this.#forget();
    }
  }

  /** Our edit has got its place. As a rule it is there what we think it is; not if it is an earlier copy of it. */
  #confirm(before, operation) {
    const expected = apply(before, this.#sent.operation);
    this.#sent = null;
    this.#is_due = false;
    return this.#rebase(difference(expected, this.#document.text));
  }

  /** Puts an operation on the document before what is pending. */
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
    this.#is_due = false;
    this.#unsent = [];
    this.text = this.#document.text;
    return operation;
  }

  #answered({ state, at, for: questions }) {
    const document = Document.parse(state);
    if (!document || !Array.isArray(questions)) return [];
    this.#document.answered(questions);
    const index = this.#heard.findIndex(({ id }) => id === at);
    if (this.isReady || index === -1) return [];

    const before = this.#document.text;
    const since = this.#heard.slice(index + 1);
    this.#document = document;
    let change = this.#adopt(before, document.text, false);
    for (const { id, said } of since) change = compose(change, this.#fold(id, said));
    return change;
  }

  /** Goes over to another document. */
  #adopt(before, after, is_start) {
    const { numbers } = this.#document;
    this.#heard = [];
    this.#question = null;
    if (is_start && before !== after && before !== '') this.replaced = this.text;
    this.#number = Math.max(this.#number, numbers.get(this.#page) ?? 0);
    if (this.#sent && this.#sent.number <= (numbers.get(this.#page) ?? 0)) {
      before = apply(before, this.#sent.operation);
      this.#sent = null;
    }
    this.#is_due = this.#sent !== null;
    return this.#rebase(difference(before, after));
  }
}
