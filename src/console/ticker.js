// A ticker of prices. One page publishes random walks; all pages show the prices that they receive.

import { byId, element } from './dom.js';
import { Spark } from './chart.js';

export const CHANNEL = 'demo.prices';
const GOODS = { barley: 42.5, honey: 118, copper: 87.25, salt: 19.8, tea: 64.1, wool: 33.75 };
const POINTS = 48;
const PERIOD_MS = 250;
const QUIET_AFTER_MS = 3000;

export class Ticker {
  constructor(hub) {
    this.hub = hub;
    this.rows = new Map();
    this.timer = null;
    this.receivedAt = 0;
    this.foreignAt = 0;
    for (const name of Object.keys(GOODS)) this.addRow(name);
    byId('ticker-start').addEventListener('click', () => (this.timer ? this.stop() : this.start()));
    this.showState();
  }

  addRow(name) {
    const spark = new Spark(POINTS);
    const price = element('td', { class: 'num price' }, '–');
    const change = element('td', { class: 'num change' }, '');
    const line = element(
      'tr',
      {},
      element('th', { scope: 'row' }, name),
      element('td', { class: 'spark-cell' }, spark.svg),
      price,
      change,
    );
    byId('ticker-rows').append(line);
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
    const onMessage = (message) => {
      const { good, price } = message.data ?? {};
      const row = this.rows.get(good);
      if (!row || typeof price !== 'number' || !(price > 0 && price < 1e6)) return;
      if (live) {
        this.receivedAt = Date.now();
        if (!message.own) this.foreignAt = Date.now();
      }
      this.take(row, price);
    };
    this.hub.subscribe(CHANNEL, onMessage, {
      onsubscribed: () => {
        live = false;
      },
      onlive: () => {
        live = true;
      },
      onrestart: () => {
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
    if (this.hub.state !== 'open') return;
    const names = Object.keys(GOODS);
    for (const good of names.filter(() => Math.random() < 0.4)) {
      const last = this.rows.get(good).values.at(-1) ?? GOODS[good];
      // A random walk that is drawn back to its start, so that prices stay in range.
      const next = last * (1 + (Math.random() - 0.5) * 0.012) + (GOODS[good] - last) * 0.01;
      // A lost price is outdated a moment later, so it is not sent again.
      this.hub.publish(CHANNEL, { good, price: Math.round(next * 100) / 100 }).catch(() => {});
    }
  }

  showState() {
    const now = Date.now();
    const state = this.timer
      ? now - this.foreignAt < QUIET_AFTER_MS
        ? 'This page publishes prices, and so does another.'
        : 'This page publishes the prices.'
      : now - this.receivedAt < QUIET_AFTER_MS
        ? 'Another page publishes the prices.'
        : 'No page publishes prices now.';
    byId('ticker-start').textContent = this.timer ? 'Stop the prices' : 'Start the prices';
    byId('ticker-start').classList.toggle('on', this.timer !== null);
    if (byId('ticker-state').textContent !== state) byId('ticker-state').textContent = state;
  }
}
