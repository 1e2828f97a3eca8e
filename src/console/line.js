// The connection as the views see it.
//
// Two views may hear the same channel: whoever has chatted may want to see the messages that it is made of.
// The hub has one subscription for a channel, and replays history to the first who asks. A view that comes
// later must not find less than one that comes first; so the channel is subscribed to anew then, and those
// who were there are told by `onagain` that they will hear it from its beginning.

export class Line {
  /** `watch` hears of all channels: { cursor(id), gap(gap), replayed(n), refused(channel, error) }. */
  constructor(watch) {
    this.watch = watch;
    this.hub = null;
    this.channels = new Map();
  }

  /** Another hub takes over: every view hears its channels again. */
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
   * As the hub's, with two differences: a channel is always heard from the earliest message that is kept, and
   * onlive's detail says how many were `replayed`, and whether they were so `again`, after a loss of the connection.
   */
  subscribe(channel, onmessage, options = {}) {
    const ear = { ...options, onmessage };
    let group = this.channels.get(channel);
    if (!group) this.channels.set(channel, (group = { ears: new Set(), off: null }));
    group.off?.();
    group.off = null;
    this.begin(channel, group, ear);
    return () => {
      group.ears.delete(ear);
      if (group.ears.size > 0 || this.channels.get(channel) !== group) return;
      this.channels.delete(channel);
      group.off?.();
    };
  }

  begin(channel, group, newcomer) {
    for (const ear of group.ears) ear.onagain?.();
    if (newcomer) group.ears.add(newcomer);
    const tell = (what, ...details) => {
      for (const ear of [...group.ears]) ear[what]?.(...details);
    };
    let joined = false;
    let replayed = null;
    group.off = this.hub.subscribe(
      channel,
      (message) => {
        if (replayed !== null) replayed++;
        this.watch.cursor(message.id);
        tell('onmessage', message);
      },
      {
        since: 'earliest',
        onsubscribed: (reply) => {
          replayed = 0;
          this.watch.cursor(reply.id);
          tell('onsubscribed', reply);
        },
        ongap: (gap) => {
          this.watch.gap(gap);
          tell('ongap', gap);
        },
        onlive: (reply) => {
          // What is replayed to a newcomer is no news; what is replayed to one who comes back is.
          if (joined) this.watch.replayed(replayed ?? 0);
          this.watch.cursor(reply.id);
          tell('onlive', { replayed: replayed ?? 0, again: joined });
          joined = true;
          replayed = null;
        },
        onerror: (error) => {
          this.watch.refused(channel, error);
          tell('onerror', error);
        },
      },
    );
  }
}
