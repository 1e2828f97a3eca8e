// The panel of the nodes that share a log: the link of this node to the log, and the connections of all nodes. Without
// a backplane there is no panel.

import { byId, count, duration, element, plural } from './dom.js';

/** Draws the response of /v1/nodes; null if the server has no backplane, or does not respond. */
export function drawNodes(answer) {
  const backplane = answer?.backplane;
  byId('nodes').hidden = !backplane;
  if (!backplane) return;
  byId('log-state').dataset.state = backplane.up ? 'open' : 'waiting';
  byId('log-state-word').textContent = backplane.up ? 'connected' : 'not connected';
  const { lag_items, lag_ms, pending } = backplane;
  // Without a link the end of the log is unknown.
  byId('log-lag').textContent = backplane.up ? `${plural(lag_items, 'item')}, ${time(lag_ms)}` : 'unknown';
  byId('log-lag').classList.toggle('warn', !backplane.up || lag_ms > 1000);
  byId('log-pending').textContent = plural(pending, 'message');
  byId('log-pending').classList.toggle('warn', !backplane.up && pending > 0);
  byId('node-rows').replaceChildren(...answer.nodes.map((node) => row(node, answer)));
}

const time = (ms) => (ms < 1000 ? `${ms} ms` : duration(ms / 1000));

function seen({ node, seen_ms }, { node: own, backplane }) {
  if (node === own) return 'this one';
  if (!backplane.up) return 'unknown';
  return seen_ms < 1000 ? 'just now' : `${time(seen_ms)} ago`;
}

function row(node, answer) {
  const name = element('th', { scope: 'row', class: 'mono' }, String(node.node));
  const cells = [count(node.connections), count(node.subscriptions), seen(node, answer)];
  const attributes = { title: `version ${node.version}`, ...(node.node === answer.node ? { class: 'own' } : {}) };
  return element('tr', attributes, name, ...cells.map((text) => element('td', { class: 'num' }, text)));
}
