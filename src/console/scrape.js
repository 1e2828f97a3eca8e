// Rates and quantiles over the time between two scrapes of /metrics.

/** Prometheus text -> { sums: name -> value over all labels, buckets: name -> [[upper bound, count]] }. */
export function parse(text) {
  const sums = new Map();
  const buckets = new Map();
  for (const line of text.split('\n')) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const [, name, labels = '', value] = found;
    const bound = /(?:^|,)le="([^"]*)"/.exec(labels);
    if (name.endsWith('_bucket') && bound) {
      const base = name.slice(0, -'_bucket'.length);
      if (!buckets.has(base)) buckets.set(base, []);
      // Some client libraries write the +Inf bucket twice, once under the largest number.
      const upper = bound[1] === '+Inf' ? Infinity : Number(bound[1]);
      buckets.get(base).push([upper === Number.MAX_VALUE ? Infinity : upper, Number(value)]);
    } else {
      sums.set(name, (sums.get(name) ?? 0) + Number(value));
    }
  }
  return { sums, buckets };
}

/** How much a counter grew. A server that started again counts from nothing. */
export function growth(before, after, name) {
  const now = after.sums.get(name) ?? 0;
  const then = before.sums.get(name) ?? 0;
  return now < then ? now : now - then;
}

/** The mean of a histogram's samples between two scrapes, or null without samples. */
export function mean(before, after, name) {
  const n = growth(before, after, `${name}_count`);
  return n > 0 ? growth(before, after, `${name}_sum`) / n : null;
}

/**
 * The quantile of what a histogram saw between two scrapes, or null. A histogram knows buckets, not
 * values: within its bucket the value is taken to lie where an even spread would put it, and in the last,
 * endless one at its lower bound.
 */
export function quantile(before, after, name, q) {
  const now = after.buckets.get(name) ?? [];
  const then = new Map(before.buckets.get(name) ?? []);
  const restarted = now.some(([bound, n]) => n < (then.get(bound) ?? 0));
  const seen = now.map(([bound, n]) => [bound, restarted ? n : n - (then.get(bound) ?? 0)]);
  const total = seen.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const rank = q * total;
  let lower = 0;
  let below = 0;
  for (const [bound, n] of seen) {
    if (n >= rank) return bound === Infinity ? lower : lower + (bound - lower) * ((rank - below) / (n - below || 1));
    lower = bound;
    below = n;
  }
  return lower;
}
