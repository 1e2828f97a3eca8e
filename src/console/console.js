// The console: one page, one connection, four views of it.
//
// This module owns the connection and everything around the views: the tabs, the address, the connection's panel, the
// token, and the clock that polls the server once a second while the page is visible. The views know only the
// SharedHub, which outlives a connection.

import { Oyez } from './oyez.js';
import { ChannelView } from './channel.js';
import { Chart, linear, logarithmic } from './chart.js';
import { Chat } from './chat.js';
import { byId, clip, count, duration, eachFrame, plural, rate } from './dom.js';
import { drawNodes } from './nodes.js';
import { SharedHub } from './shared-hub.js';
import { growth, mean, parse, quantile } from './scrape.js';
import { Ticker } from './ticker.js';
import { SharedTextView } from './shared-text-view.js';

const FIRST_CHANNEL = 'main';
// Long enough to see how the page behaves without a connection.
const CUT_MS = 3000;
const POLL_MS = 1000;
const LIST_EVERY_POLLS = 3;
const LOST_EVERY_POLLS = 5;
// If two scrapes are further apart, the chart has a gap, not their mean.
const SCRAPE_GAP_MS = 3000;

let hub = null;
let token = '';
let back = null;
const totals = { returns: 0, replayed: 0, gaps: 0, missed: 0, unknown: false };

const sharedHub = new SharedHub({
  cursor(id) {
    cursor = clip(String(id), 48);
    drawCursor();
  },
  replayed(n) {
    totals.replayed += n;
    byId('replayed').textContent = plural(totals.replayed, 'message');
  },
  gap({ missed }) {
    totals.gaps++;
    if (Number.isFinite(missed)) totals.missed += missed;
    else totals.unknown = true;
    const known = totals.missed ? `, ${totals.unknown ? 'at least ' : ''}${plural(totals.missed, 'message')}` : '';
    byId('gaps').textContent = `${count(totals.gaps)}${known}`;
    byId('gaps').classList.add('warn');
  },
  rejected(channel, error) {
    notice(`The server rejected the subscription to ${channel}: ${clip(error.message, 200)}`);
  },
});
const channelView = new ChannelView(sharedHub);
const views = { channel: channelView, ticker: new Ticker(sharedHub), chat: new Chat(sharedHub), text: new SharedTextView(sharedHub) };

// The connection.

function connect() {
  const mine = new Oyez(new URL('.', document.baseURI).href, {
    ...(token ? { token } : {}),
    // States of a replaced hub are ignored.
    onstate: (next, detail) => {
      if (hub === mine) showState(next, detail);
    },
  });
  const old = hub;
  hub = mine;
  old?.close();
  sharedHub.use(hub);
  views.text.reconnect();
}

let state = 'connecting';
let lostAt = null;
let cutting = false;

function showState(next, detail) {
  const was = state;
  state = next;
  byId('state').dataset.state = next;
  byId('state-word').textContent = next;
  // Not `disabled`, which would remove the keyboard focus from the button just pressed.
  byId('cut').setAttribute('aria-disabled', String(next !== 'open' && next !== 'closed'));
  byId('cut').firstChild.textContent = next === 'closed' ? 'Open ' : 'Cut ';
  back = next === 'waiting' && Number.isFinite(detail?.retry_ms) ? Date.now() + detail.retry_ms : null;
  showCountdown();
  if (next === 'open') {
    if (lostAt !== null) {
      totals.returns++;
      byId('returns').textContent =
        `${totals.returns === 1 ? 'once' : `${count(totals.returns)} times`}, last after ${duration((Date.now() - lostAt) / 1000)}`;
      lostAt = null;
    }
    notice('');
  } else if (was === 'open') {
    lostAt = Date.now();
    const why = [detail?.code, detail?.reason].filter(Boolean).join(' ');
    channelView.note(cutting ? 'connection cut' : `connection lost (${clip(why, 60)})`);
    cutting = false;
  }
  if (next === 'closed') {
    const why = [detail?.code, detail?.reason].filter(Boolean).join(' ');
    const rejected = detail?.code === 4001 || detail?.code === 4003;
    if (rejected) byId('access').open = true;
    notice(
      `The server ${rejected ? 'rejected' : 'closed'} the connection${why ? `: ${clip(why, 120)}` : ''}.${rejected ? ' It may require another access token.' : ''}`,
    );
  }
}

function showCountdown() {
  const ms = back === null ? 0 : back - Date.now();
  byId('countdown').textContent = ms > 0 ? `${(ms / 1000).toFixed(1)} s` : '';
  if (ms > 0) setTimeout(showCountdown, 100);
}

let cursor = '';
const drawCursor = eachFrame(() => {
  byId('cursor').textContent = cursor;
});

function notice(text) {
  byId('notice').textContent = text;
  byId('notice').hidden = text === '';
}

byId('cut').addEventListener('click', () => {
  if (state === 'closed') connect();
  else if (state === 'open') {
    cutting = true;
    hub.cut(CUT_MS);
  }
});
byId('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const typed = byId('token').value.trim();
  // The token is sent as a subprotocol's name, which may have no other characters (RFC 9110 5.6.2).
  if (!/^[\w!#$%&'*+.^`|~-]*$/.test(typed)) {
    byId('token-hint').textContent = 'A token has letters, digits and . - _ ~ only.';
    return;
  }
  token = typed;
  byId('token').value = '';
  byId('token-hint').textContent = token ? "In use. It is kept in this page's memory only." : 'No token is in use.';
  notice('');
  connect();
});

// Tabs, and the address: #main is the channel, #/chat a view.

const tabs = [...document.querySelectorAll('[role=tab]')];

function select(name) {
  for (const tab of tabs) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute('aria-selected', String(on));
    tab.tabIndex = on ? 0 : -1;
    byId(tab.getAttribute('aria-controls')).hidden = !on;
  }
  views[name].show?.();
}

tabs.forEach((tab, i) => {
  const name = tab.id.slice('tab-'.length);
  tab.addEventListener('click', () => {
    const hash = name === 'channel' ? `#${channelView.channel}` : `#/${name}`;
    if (location.hash === hash) select(name);
    else location.hash = hash;
  });
  tab.addEventListener('keydown', (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs[(to + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
});

function followAddress() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.startsWith('/') && Object.hasOwn(views, hash.slice(1))) return select(hash.slice(1));
  const channel = /^[A-Za-z0-9_.:-]{1,255}$/.test(hash) ? hash : (channelView.channel ?? FIRST_CHANNEL);
  if (channel !== channelView.channel) {
    channelView.open(channel);
    document.title = channel === FIRST_CHANNEL ? 'Oyez' : `${clip(channel, 40)} · Oyez`;
  }
  select('channel');
}

// Figures of the server.

const deliveries = new Chart(byId('chart-deliveries'), {
  title: 'Deliveries per second',
  lines: [{ name: '', kind: 'line-a' }],
  format: rate,
  scale: linear(10),
});
const turns = new Chart(byId('chart-turn'), {
  title: 'Turn time',
  lines: [
    { name: 'mean', kind: 'line-a' },
    { name: 'p99', kind: 'line-b' },
  ],
  format: duration,
  scale: logarithmic(1e-5, 1e-2),
});
let last = null;
let polls = 0;
let unreachable = false;

async function ask(path) {
  const answer = await fetch(new URL(path, document.baseURI), {
    headers: token ? { authorization: `Bearer ${token}` } : {},
    signal: AbortSignal.timeout(5000),
  });
  if (!answer.ok) throw Object.assign(new Error(`${answer.status}`), { status: answer.status });
  return answer;
}

const askJson = async (path) => (await ask(path)).json();

async function scrape() {
  const scraped = parse(await (await ask('metrics')).text());
  const when = performance.now();
  byId('f-connections').textContent = count(scraped.sums.get('oyez_connections') ?? 0);
  byId('f-channels').textContent = count(scraped.sums.get('oyez_channels') ?? 0);
  if (last && when - last.when < SCRAPE_GAP_MS) {
    const seconds = (when - last.when) / 1000;
    const delivered = growth(last.scraped, scraped, 'oyez_messages_delivered_total') / seconds;
    byId('f-delivered').textContent = rate(delivered);
    byId('f-published').textContent = rate(growth(last.scraped, scraped, 'oyez_messages_published_total') / seconds);
    deliveries.add([delivered]);
    turns.add([
      mean(last.scraped, scraped, 'oyez_turn_seconds'),
      quantile(last.scraped, scraped, 'oyez_turn_seconds', 0.99),
    ]);
  } else if (last) {
    deliveries.add([null]);
    turns.add([null, null]);
  }
  last = { scraped, when };
}

async function poll() {
  const n = polls++;
  if (document.visibilityState !== 'visible' || (unreachable && n % LOST_EVERY_POLLS !== 0)) return;
  const channel = channelView.channel ?? FIRST_CHANNEL;
  const listed = n % LIST_EVERY_POLLS === 0;
  // Sequentially: several requests at once would hold as many connections of the server.
  const [metrics] = await Promise.allSettled([scrape()]);
  const [info] = await Promise.allSettled([askJson(`v1/channels/${channel}`)]);
  const hasNodes = last?.scraped.sums.has('oyez_backplane_up') && metrics.status === 'fulfilled';
  const [nodes] = await Promise.allSettled([hasNodes ? askJson('v1/nodes') : null]);
  drawNodes(nodes.status === 'fulfilled' ? nodes.value : null);
  const [list] = await Promise.allSettled([listed ? askJson('v1/channels?limit=100') : null]);
  unreachable = metrics.status === 'rejected' && metrics.reason.status === undefined;
  channelView.tick(info.status === 'fulfilled' ? info.value : null);
  if (listed && list.status === 'fulfilled' && Array.isArray(list.value?.channels))
    channelView.list(list.value.channels);
  byId('server-state').textContent = metrics.status === 'fulfilled' ? '' : rejection('metrics', metrics.reason);
  const rejected = [info, list].find(({ reason }) => reason?.status === 401 || reason?.status === 403);
  // A server that requires a token sends its hello anyway, and waits for the token. Why it closed a connection with another
  // token is shown already.
  if (rejected && (token === '' || (state !== 'open' && state !== 'closed'))) {
    byId('access').open = true;
    notice(`The server requires an access token (${rejected.reason.status}).`);
  }
}

function rejection(what, error) {
  if (error.status === 401 || error.status === 403)
    return `Permission denied for ${what} (${error.status}): a token with more rights is required.`;
  return error.status ? `The server returned ${error.status} for ${what}.` : 'The server is unreachable.';
}

// A poll that takes long delays the next one, so polls do not overlap.
async function clock() {
  const began = performance.now();
  await poll();
  setTimeout(clock, Math.max(100, POLL_MS - (performance.now() - began)));
}

connect();
addEventListener('hashchange', followAddress);
followAddress();
clock();
