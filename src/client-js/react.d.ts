import type { Message, Oyez, OyezError, State, SubscribeOptions } from './oyez.js';

export interface ChannelOptions<T = unknown> extends SubscribeOptions {
  /** Called for each message, in addition to the render. */
  onmessage?: ((message: Message<T>) => void) | undefined;
  /** How many messages `messages` keeps. Default: 100. */
  messages_max?: number | undefined;
}

export interface Channel<T = unknown> {
  /** The state of the connection. */
  state: State;
  /** The newest messages, the oldest first. */
  messages: Message<T>[];
  /** Why the server rejected the subscription; null otherwise. */
  error: OyezError | null;
  /** Publishes on the channel. */
  publish: (value: {}) => Promise<string>;
}

/**
 * Subscribes to a channel while the component is mounted. A change of `hub`, `channel`, `since`, `echo` or `messages_max`
 * begins a new subscription; handlers may change at any time.
 */
export function useChannel<T = unknown>(hub: Oyez, channel: string, options?: ChannelOptions<T>): Channel<T>;
