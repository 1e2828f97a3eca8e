// Line charts of the last minute, and sparklines: one SVG path for each line, redrawn once a second.
//
// The lines differ by dash pattern and are labeled with their value and a sample of the line, so that color is not
// needed to distinguish them. The SVG is stretched to its box, strokes are not; numbers are HTML around it.

import { element } from './dom.js';

const SECONDS = 60;
const W = 300;
const H = 72;

/** The first of 1, 2, 5, 10, 20, ... times 10^k that is not below `max`. */
export function ceiling(max) {
  if (!(max > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(max));
  return unit * [1, 2, 5, 10].find((step) => step * unit >= max * 0.999999);
}

/** From zero to a round number, at least `least`. */
export const linear = (least) => (max) => {
  const top = ceiling(Math.max(least, max));
  return { marks: [0, top / 2, top], part: (value) => value / top };
};

/** By powers of ten, from `low`: for values that are mostly small, with peaks a thousand times as large. */
export const logarithmic = (low, least) => (max) => {
  const decades = Math.max(1, Math.ceil(Math.log10(Math.max(least, max) / low) - 1e-9));
  const marks = Array.from({ length: decades + 1 }, (_, i) => low * 10 ** i);
  return { marks, part: (value) => Math.log10(value / low) / decades };
};

/** An SVG path through points, broken where a value is missing. */
function path(values, x, y) {
  let d = '';
  let pen = 'M';
  values.forEach((value, i) => {
    if (value === null) {
      pen = 'M';
      return;
    }
    d += `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    // A point with no neighbour would not be seen.
    if (pen === 'M' && (values[i + 1] ?? null) === null) d += 'h0.1';
    pen = 'L';
  });
  return d;
}

export class Chart {
  /**
   * `lines`: [{ name, kind }] where kind is a class of the style sheet; `format`: value -> text; `scale`:
   * returns, for the greatest value, the function that positions the others.
   */
  constructor(figure, { title, lines, format, scale }) {
    this.format = format;
    this.scale = scale;
    this.samples = [];
    this.picked = null;
    this.max = element('span', { class: 'chart-max', 'aria-hidden': 'true' });
    this.min = element('span', { class: 'chart-min', 'aria-hidden': 'true' });
    this.when = element('span', { class: 'chart-when' }, 'now');
    this.paths = lines.map(({ kind }) => element('path', { class: kind, 'vector-effect': 'non-scaling-stroke' }));
    this.values = lines.map(() => element('b', {}, '–'));
    this.cross = element('path', { class: 'cross', 'vector-effect': 'non-scaling-stroke' });
    this.grid = element('path', { class: 'grid', 'vector-effect': 'non-scaling-stroke' });
    this.svg = element(
      'svg',
      { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': title },
      this.grid,
      this.cross,
      ...this.paths,
    );
    const keys = lines.map(({ name, kind }, i) =>
      element(
        'span',
        { class: 'key' },
        element('svg', { viewBox: '0 0 20 8', 'aria-hidden': 'true' }, element('path', { class: kind, d: 'M0 4H20' })),
        name,
        this.values[i],
      ),
    );
    figure.append(
      element('figcaption', {}, element('span', { class: 'chart-title' }, title), element('span', { class: 'keys' }, ...keys)),
      element('div', { class: 'plot' }, this.max, this.min, this.svg),
      element('div', { class: 'axis' }, element('span', { 'aria-hidden': 'true' }, '60 s ago'), this.when),
    );
    this.svg.addEventListener('pointermove', (event) => {
      const box = this.svg.getBoundingClientRect();
      this.picked = Math.round((1 - (event.clientX - box.left) / box.width) * (SECONDS - 1));
      this.draw();
    });
    this.svg.addEventListener('pointerleave', () => {
      this.picked = null;
      this.draw();
    });
  }

  /** Adds the current value of each line; null if it is unknown. */
  add(sample) {
    this.samples.push(sample);
    if (this.samples.length > SECONDS) this.samples.shift();
    this.draw();
  }

  draw() {
    const known = this.samples.flat().filter((value) => value !== null);
    const { marks, part } = this.scale(Math.max(0, ...known));
    const step = W / (SECONDS - 1);
    const x = (i) => W - (this.samples.length - 1 - i) * step;
    const y = (value) => H - 1 - Math.max(0, Math.min(part(value), 1)) * (H - 2);
    this.grid.setAttribute('d', marks.map((value) => `M0 ${y(value).toFixed(1)}H${W}`).join(''));
    this.paths.forEach((line, k) =>
      line.setAttribute(
        'd',
        path(
          this.samples.map((sample) => sample[k]),
          x,
          y,
        ),
      ),
    );
    this.max.textContent = this.format(marks.at(-1));
    this.min.textContent = marks[0] === 0 ? '' : this.format(marks[0]);
    const ago = this.picked === null ? 0 : Math.max(0, Math.min(this.picked, this.samples.length - 1));
    const sample = this.samples[this.samples.length - 1 - ago];
    this.values.forEach((value, k) => {
      value.textContent = (sample?.[k] ?? null) === null ? '–' : this.format(sample[k]);
    });
    this.when.textContent = ago === 0 ? 'now' : `${ago} s ago`;
    this.cross.setAttribute('d', this.picked === null ? '' : `M${(W - ago * step).toFixed(1)} 0V${H}`);
  }
}

/** A small line without axes, for a table's cell. */
export class Spark {
  constructor(points) {
    this.points = points;
    this.line = element('path', { 'vector-effect': 'non-scaling-stroke' });
    this.grid = element('path', { class: 'grid', 'vector-effect': 'non-scaling-stroke' });
    this.svg = element(
      'svg',
      { class: 'spark', viewBox: '0 0 100 24', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      this.line,
    );
  }

  draw(values) {
    const low = Math.min(...values);
    const span = Math.max(...values) - low || 1;
    this.line.setAttribute(
      'd',
      path(
        values,
        (i) => 100 - (values.length - 1 - i) * (100 / (this.points - 1)),
        (value) => 22 - ((value - low) / span) * 20,
      ),
    );
  }
}
