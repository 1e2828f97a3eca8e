// Operational transformation of text edits: the algebra under editor.js.
//
// An operation traverses a text from its beginning. It is an array of spans: a positive number keeps that many units
// (UTF-16 code units, as in all of JavaScript), a negative number deletes that many, and a string is inserted. Text
// after the last span is kept. `[3, 'x', -2]` on 'abcdef' is 'abcxf'. Every function here returns operations in
// canonical form (neighbours merged, insertions before deletions, no kept span at the end), so that equal ones look equal.
//
// Given two concurrent edits, `transform` rewrites each so that it applies after the other:
//
//     apply(apply(text, a), transform(b, a, AFTER)) === apply(apply(text, b), transform(a, b, BEFORE))
//
// This property is called TP1, and it is sufficient here. (TP2, the same for three edits, which most published
// transforms violate, is needed only where edits may arrive in different orders. The server gives all edits one order,
// so no page ever transforms along two different paths.)
//
// A shape is an operation without the text of its insertions: `[3, [1], -2]`. Transforming against an edit needs only
// its shape.

/** The order of two insertions at one position: the one that the server ordered first comes first. */
export const BEFORE = true;
export const AFTER = false;

/** Gathers spans into the one form. */
class Builder {
  spans = [];

  keep(units) {
    if (units > 0) this.#count(units, isKept);
  }

  delete(units) {
    if (units > 0) this.#count(-units, isDeleted);
  }

  insert(text) {
    if (text.length === 0) return;
    const { spans } = this;
    // An insertion at a deletion's end and one at its beginning are the same.
    const at = isDeleted(spans.at(-1)) ? spans.length - 1 : spans.length;
    if (typeof spans[at - 1] === 'string') spans[at - 1] += text;
    else spans.splice(at, 0, text);
  }

  #count(count, isAlike) {
    const { spans } = this;
    if (isAlike(spans.at(-1))) spans[spans.length - 1] += count;
    else spans.push(count);
  }

  end() {
    if (isKept(this.spans.at(-1))) this.spans.pop();
    return this.spans;
  }
}

/** Takes an operation apart, as little at a time as wanted. */
class Reader {
  #spans;
  #at = 0;
  #taken = 0;

  constructor(spans) {
    this.#spans = spans;
  }

  get #span() {
    return this.#spans[this.#at];
  }

  /** 'insert', 'delete' or 'keep'; after the last span everything is kept. */
  get kind() {
    if (this.isAtEnd) return 'keep';
    if (isDeleted(this.#span)) return 'delete';
    return isKept(this.#span) ? 'keep' : 'insert';
  }

  get isAtEnd() {
    return this.#at === this.#spans.length;
  }

  /** Units that are left in the span. */
  get left() {
    return this.isAtEnd ? Infinity : unitsOf(this.#span) - this.#taken;
  }

  /** The next units of the span: the text of an insertion, `units` itself otherwise. */
  take(units) {
    const part = this.kind === 'insert' ? this.#span.slice(this.#taken, this.#taken + units) : units;
    const isWhole = units === this.left;
    if (!this.isAtEnd) {
      this.#at += isWhole ? 1 : 0;
      this.#taken = isWhole ? 0 : this.#taken + units;
    }
    return part;
  }
}

// A text must not be compared with a number: '-1' < 0.
const isKept = (span) => typeof span === 'number' && span > 0;
const isDeleted = (span) => typeof span === 'number' && span < 0;

function unitsOf(span) {
  if (typeof span === 'number') return Math.abs(span);
  return typeof span === 'string' ? span.length : span[0];
}

/** The units of the text before the edit that it walks over, and by how many the text grows. */
export function measure(operation) {
  let reach = 0;
  let growth = 0;
  for (const span of operation) {
    const units = unitsOf(span);
    if (isKept(span) || isDeleted(span)) reach += units;
    else growth += units;
    if (isDeleted(span)) growth -= units;
  }
  return { reach, growth };
}

export function apply(text, operation) {
  let result = '';
  let at = 0;
  for (const span of operation) {
    if (isKept(span)) result += text.slice(at, (at += span));
    else if (isDeleted(span)) at -= span;
    else result += span;
  }
  return result + text.slice(at);
}

/** One operation with the effect of `first` followed by `second`. */
export function compose(first, second) {
  const [a, b, out] = [new Reader(first), new Reader(second), new Builder()];
  while (!a.isAtEnd || !b.isAtEnd) {
    if (a.kind === 'delete') {
      out.delete(a.take(a.left));
    } else if (b.kind === 'insert') {
      out.insert(b.take(b.left));
    } else {
      const units = Math.min(a.left, b.left);
      const [kind, part] = [a.kind, a.take(units)];
      const isGone = b.kind === 'delete';
      b.take(units);
      if (kind === 'insert' && !isGone) out.insert(part);
      if (kind === 'keep') isGone ? out.delete(units) : out.keep(units);
    }
  }
  return out.end();
}

/** Rewrites `operation` to apply after `other` (which may be a shape); both were made for the same text. */
export function transform(operation, other, order) {
  const [a, b, out] = [new Reader(operation), new Reader(other), new Builder()];
  while (!a.isAtEnd) {
    if (a.kind === 'insert' && (order === BEFORE || b.kind !== 'insert')) {
      out.insert(a.take(a.left));
    } else if (b.kind === 'insert') {
      const units = b.left;
      b.take(units);
      out.keep(units);
    } else {
      const units = Math.min(a.left, b.left);
      if (b.kind === 'keep') a.kind === 'delete' ? out.delete(units) : out.keep(units);
      a.take(units);
      b.take(units);
    }
  }
  return out.end();
}

/** The position of a caret after another user's edit. Text inserted right at the caret goes after it. */
export function moveCaret(caret, operation) {
  let at = 0;
  for (const span of operation) {
    if (at >= caret) break;
    if (isKept(span)) at += span;
    else if (isDeleted(span)) caret -= Math.min(-span, caret - at);
    else [at, caret] = [at + span.length, caret + span.length];
  }
  return caret;
}

/**
* The smallest single edit that leads from one text to another: the common prefix and suffix are kept. Never splits a
 * surrogate pair. Where the same edit could have been made in several places ('aa' to 'aaa'), the caret after it, if
 * given, says where.
 */
export function difference(before, after, caret = after.length) {
  const shorter = Math.min(before.length, after.length);
  // Text after the caret has not just been typed.
  const suffixMax = Math.min(shorter, Math.max(0, after.length - caret));
  let suffix = 0;
  while (suffix < suffixMax && before.at(-1 - suffix) === after.at(-1 - suffix)) suffix++;
  let prefix = 0;
  while (prefix < shorter - suffix && before[prefix] === after[prefix]) prefix++;
  while (suffix < shorter - prefix && before.at(-1 - suffix) === after.at(-1 - suffix)) suffix++;
  if (isHigh(before[prefix - 1])) prefix--;
  if (isLow(before[before.length - suffix])) suffix--;
  const out = new Builder();
  out.keep(prefix);
  out.insert(after.slice(prefix, after.length - suffix));
  out.delete(before.length - suffix - prefix);
  return out.end();
}

const isHigh = (unit) => unit >= '\ud800' && unit <= '\udbff';
const isLow = (unit) => unit >= '\udc00' && unit <= '\udfff';

/** The edit without its texts. */
export function shapeOf(operation) {
  return operation.map((span) => (typeof span === 'string' ? [span.length] : span));
}

/** Validates an untrusted operation. Returns it in canonical form, or null. */
export function parseOperation(value, spansMax) {
  if (!Array.isArray(value) || value.length > spansMax) return null;
  const out = new Builder();
  for (const span of value) {
    if (isText(span) && span.length > 0) out.insert(span);
    else if (isKept(span) && isCount(span)) out.keep(span);
    else if (isDeleted(span) && isCount(-span)) out.delete(-span);
    else return null;
  }
  return out.end();
}

/** Returns true if the value is a shape. */
export function isShape(value, spansMax) {
  const isInserted = (span) => Array.isArray(span) && span.length === 1 && isCount(span[0]);
  const isSpan = (span) => (typeof span === 'number' ? isCount(Math.abs(span)) : isInserted(span));
  return Array.isArray(value) && value.length <= spansMax && value.every(isSpan);
}

/** Returns true if the value is a string without unpaired surrogates. */
export function isText(value) {
  return typeof value === 'string' && !/\p{Surrogate}/u.test(value);
}

// Sums of counts below this size are exact.
function isCount(value) {
  return Number.isSafeInteger(value) && value > 0 && value < 2 ** 31;
}
