// A page with useChannel in strict mode. `window.page` is for the test.

import { StrictMode, createElement, useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { Oyez } from 'oyez';
import { useChannel } from 'oyez/react';

const hub = new Oyez(new URL(location.href).searchParams.get('server'));
const page = { hub, calls: [], gaps: [], foreign: 0, states: [] };
window.page = page;

function Room({ channel, suffix, since = 'earliest', messages_max = 5 }) {
  const { state, messages, error, publish } = useChannel(hub, channel, {
    since,
    messages_max,
    onmessage: ({ data }) => page.calls.push(`${data}${suffix}`),
    ongap: ({ why }) => page.gaps.push(why),
  });
  page.publish = publish;
  page.states.push(state);
  page.foreign += messages.filter((message) => message.channel !== channel).length;
  return createElement('p', { id: 'room' }, JSON.stringify({ state, data: messages.map(({ data }) => data), error: error?.code ?? null }));
}

function App() {
  const [{ room, rendered }, set] = useState({ room: { channel: 'a', suffix: '' }, rendered: () => {} });
  // The promise is resolved when the effects of the hook have run too: those of a child run before its parent's.
  page.setRoom = (room) => new Promise((rendered) => set({ room, rendered }));
  useEffect(() => rendered());
  return room ? createElement(Room, room) : createElement('p', { id: 'room' }, 'none');
}

const root = createRoot(document.getElementById('root'));
page.unmount = () => root.unmount();
root.render(createElement(StrictMode, null, createElement(App)));
