// A React hook for the channels of an Oyez client.

import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from 'react';

const MESSAGES_MAX = 100;
const NOTHING = { hub: null, channel: null, messages: [], error: null };

/**
 * Subscribes while the component is mounted, and renders it again for each message and each state of the connection.
 * Components that use the same hub share its connection.
 */
export function useChannel(hub, channel, options = {}) {
  const { since, echo = true, messages_max = MESSAGES_MAX } = options;
  const handlers = useRef(options);
  const [received, setReceived] = useState(NOTHING);

  const onStates = useCallback((changed) => {
    hub.addEventListener('state', changed);
    return () => hub.removeEventListener('state', changed);
  }, [hub]);
  const state = useSyncExternalStore(onStates, () => hub.state, () => 'connecting');

  // Handlers are those of the last render, and may change without a new subscription.
  useEffect(() => {
    handlers.current = options;
  });

  useEffect(() => {
    const nothing = { hub, channel, messages: [], error: null };
    // In strict mode the effect runs twice, and the second replay must not follow the first.
    setReceived(nothing);
    return hub.subscribe(channel, (message) => {
      setReceived(({ messages }) => ({ hub, channel, messages: newest([...messages, message], messages_max), error: null }));
      handlers.current.onmessage?.(message);
    }, {
      since,
      echo,
      ongap: (gap) => handlers.current.ongap?.(gap),
      onlive: (live) => handlers.current.onlive?.(live),
      onsubscribed: (subscribed) => {
        setReceived((received) => (received.error ? { ...received, error: null } : received));
        handlers.current.onsubscribed?.(subscribed);
      },
      onerror: (error) => {
        setReceived((received) => ({ ...received, error }));
        handlers.current.onerror?.(error);
      },
    });
  }, [hub, channel, since, echo, messages_max]);

  const publish = useCallback((value) => hub.publish(channel, value), [hub, channel]);
  // Between the render with another hub or channel and its effect, the received messages are those of the earlier one.
  const { messages, error } = received.hub === hub && received.channel === channel ? received : NOTHING;
  return { state, messages, error, publish };
}

/** The last elements; `slice(-0)` would return all of them. */
function newest(list, count) {
  return count > 0 ? list.slice(-count) : [];
}
