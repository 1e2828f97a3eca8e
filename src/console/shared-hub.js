// SharedHub: the connection, shared by several views.
//
// Two views may subscribe to the same channel: the chat and the channel view that shows its messages. The hub has one
// subscription per channel and replays history to the first handler only. A view that joins later must not get less
// than the first one; so the channel is subscribed to again, and the earlier views are notified by `onrestart` that
// they will receive it from its beginning.

export class SharedHub {
  /** `watch` is notified about all channels: { cursor(id), gap(gap), replayed(n), rejected(channel, error) }. */
  constructor(watch) {
    this.watch = watch;
    this.hub = null;
    this.channels = new Map();
  }

  /** Switches to another hub: every view is subscribed to its channels again. */
  use(hub) {
    this.hub = hub;
    for (const [channel, group] of this.channels) this.begin(channel, group);
  }

  get state() {
    return this.hub.state;
  }

  publish(channel, value) {
    return this.hub.publish(channel, value);
  }

  /**
* Like the hub's, with two differences: a subscription always starts at the earliest stored message, and
* onlive's detail has the number of `replayed` messages, and `again`: whether the connection was lost before.
   */
  subscribe(channel, onmessage, options = {}) {
    const handler = { ...options, onmessage };
    let group = this.channels.get(channel);
    if (!group) this.channels.set(channel, (group = { handlers: new Set(), off: null }));
    group.off?.();
    group.off = null;
    this.begin(channel, group, handler);
    return () => {
      group.handlers.delete(handler);
      if (group.handlers.size > 0 || this.channels.get(channel) !== group) return;
      this.channels.delete(channel);
      group.off?.();
    };
  }

  begin(channel, group, newcomer) {
    for (const handler of group.handlers) handler.onrestart?.();
    if (newcomer) group.handlers.add(newcomer);
    const notify = (event, ...details) => {
      for (const handler of [...group.handlers]) handler[event]?.(...details);
    };
    let joined = false;
    let replayed = null;
    group.off = this.hub.subscribe(
      channel,
      (message) => {
        if (replayed !== null) replayed++;
        this.watch.cursor(message.id);
        notify('onmessage', message);
      },
      {
        since: 'earliest',
        onsubscribed: (reply) => {
          replayed = 0;
          this.watch.cursor(reply.id);
          notify('onsubscribed', reply);
        },
        ongap: (gap) => {
          this.watch.gap(gap);
          notify('ongap', gap);
        },
        onlive: (reply) => {
          // A replay to a new subscriber is not counted; a replay after a reconnect is.
          if (joined) this.watch.replayed(replayed ?? 0);
          this.watch.cursor(reply.id);
          notify('onlive', { replayed: replayed ?? 0, again: joined });
          joined = true;
          replayed = null;
        },
        onerror: (error) => {
          this.watch.rejected(channel, error);
          notify('onerror', error);
        },
      },
    );
  }
}
