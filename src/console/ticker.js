// A ticker of prices. Whoever starts it publishes random walks; all pages show what they hear.

import { at, make } from './dom.js';
import { Spark } from './chart.js';

export const CHANNEL = 'demo.prices';
const GOODS = { barley: 42.5, honey: 118, copper: 87.25, salt: 19.8, tea: 64.1, wool: 33.75 };
const POINTS = 48;
const PERIOD_MS = 250;
const QUIET_AFTER_MS = 3000;

export class Ticker {
  constructor(line) {
    this.line = line;
    this.rows = new Map();
    this.timer = null;
    this.heard = 0;
    this.foreign = 0;
    for (const name of Object.keys(GOODS)) this.addRow(name);
    at('ticker-start').addEventListener('click', () => (this.timer ? this.stop() : this.start()));
    this.showState();
  }

  addRow(name) {
    const spark = new Spark(POINTS);
    const price = make('td', { class: 'num price' }, '–');
    const change = make('td', { class: 'num change' }, '');
    const line = make(
      'tr',
      {},
      make('th', { scope: 'row' }, name),
      make('td', { class: 'spark-cell' }, spark.svg),
      price,
      change,
    );
    at('ticker-rows').append(line);
    this.rows.set(name, { spark, price, change, line, values: [] });
  }

  show() {
    if (this.shown) return;
    this.shown = true;
    this.subscribe();
    setInterval(() => this.showState(), 1000);
  }

  subscribe() {
    let live = false;
    const hear = (message) => {
      const { good, price } = message.data ?? {};
      const row = this.rows.get(good);
      if (!row || typeof price !== 'number' || !(price > 0 && price < 1e6)) return;
      if (live) {
        this.heard = Date.now();
        if (!message.own) this.foreign = Date.now();
      }
      this.take(row, price);
    };
    this.line.subscribe(CHANNEL, hear, {
      onsubscribed: () => {
        live = false;
      },
      onlive: () => {
        live = true;
      },
      onagain: () => {
        for (const row of this.rows.values()) row.values = [];
      },
    });
  }

  take(row, price) {
    row.values.push(price);
    if (row.values.length > POINTS) row.values.shift();
    const first = row.values[0];
    const percent = ((price - first) / first) * 100;
    const way = percent > 0.005 ? 'up' : percent < -0.005 ? 'down' : 'flat';
    row.price.textContent = price.toFixed(2);
    row.change.textContent = {
      up: `▲ +${percent.toFixed(2)} %`,
      down: `▼ −${Math.abs(percent).toFixed(2)} %`,
      flat: '• 0.00 %',
    }[way];
    row.line.dataset.way = way;
    row.spark.draw(row.values);
  }

  start() {
    this.timer = setInterval(() => this.publish(), PERIOD_MS);
    this.publish();
    this.showState();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.showState();
  }

  publish() {
    if (this.line.state !== 'open') return;
    const names = Object.keys(GOODS);
    for (const good of names.filter(() => Math.random() < 0.4)) {
      const last = this.rows.get(good).values.at(-1) ?? GOODS[good];
      // A walk that is drawn back to where it began, so that no price runs away overnight.
      const next = last * (1 + (Math.random() - 0.5) * 0.012) + (GOODS[good] - last) * 0.01;
      // A price that is not heard is stale a moment later: nobody waits for it.
      this.line.publish(CHANNEL, { good, price: Math.round(next * 100) / 100 }).catch(() => {});
    }
  }

  showState() {
    const now = Date.now();
    const state = this.timer
      ? now - this.foreign < QUIET_AFTER_MS
        ? 'This page publishes prices, and so does another.'
        : 'This page publishes the prices.'
      : now - this.heard < QUIET_AFTER_MS
        ? 'Another page publishes the prices.'
        : 'Nobody publishes prices now.';
    at('ticker-start').textContent = this.timer ? 'Stop the prices' : 'Start the prices';
    at('ticker-start').classList.toggle('on', this.timer !== null);
    if (at('ticker-state').textContent !== state) at('ticker-state').textContent = state;
  }
}
