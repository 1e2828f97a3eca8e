// DOM helpers that every part of the page shares.
//
// Data from peers is untrusted. It becomes text nodes only, and never more than `clip` allows: this page does not use
// innerHTML.

export const byId = (id) => document.getElementById(id);

const SVG = new Set(['svg', 'path', 'line', 'circle']);

/** An element with attributes and children; a child that is a string becomes text. */
export function element(tag, attributes = {}, ...children) {
  const node = SVG.has(tag) ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** At most `max` characters of a text, and how many more there were. */
export function clip(text, max) {
  return text.length > max ? `${text.slice(0, max)} … and ${count(text.length - max)} characters more` : text;
}

const grouped = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });

/** A count as people write it: 12, 1,234, 1.23M. */
export const count = (n) => (n < 1e5 ? grouped.format(n) : short.format(n));

/** A rate: one decimal while it is small enough to matter. */
export const rate = (n) => (n > 0 && n < 10 ? n.toFixed(1) : count(n));

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** A time in seconds with a unit that suits it. */
export function duration(s) {
  if (s < 1e-3) return `${round(s * 1e6)} µs`;
  if (s < 1) return `${round(s * 1e3)} ms`;
  return `${round(s)} s`;
}

export function bytes(n) {
  if (n < 1024) return plural(n, 'byte');
  return n < 1048576 ? `${round(n / 1024)} KiB` : `${round(n / 1048576)} MiB`;
}

const round = (x) => (x < 10 ? Math.round(x * 10) / 10 : Math.round(x));

/** Keeps a list that grows at its end in view, unless its reader has scrolled away from there. */
export function following(box) {
  let atEnd = true;
  const follow = () => {
    if (atEnd) box.scrollTop = box.scrollHeight;
  };
  box.addEventListener(
    'scroll',
    () => {
      atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    },
    { passive: true },
  );
  new ResizeObserver(follow).observe(box);
  return follow;
}

const DRAW_EVERY_MS = 80;

/** Runs `work` before one of the next pictures, twelve times a second at most, however often it is asked for. */
export function eachFrame(work) {
  let waiting = false;
  let last = 0;
  return () => {
    if (waiting) return;
    waiting = true;
    const pause = Math.max(0, last + DRAW_EVERY_MS - performance.now());
    setTimeout(
      () =>
        requestAnimationFrame(() => {
          waiting = false;
          last = performance.now();
          work();
        }),
      pause,
    );
  };
}
