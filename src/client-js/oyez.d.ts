// Types of ../console/oyez.js, which becomes oyez.js when the package is packed.

/** Codes of rejections by the server. */
export type ServerErrorCode =
  | 'bad_json'
  | 'too_deep'
  | 'unknown_type'
  | 'bad_ref'
  | 'bad_channel'
  | 'bad_cursor'
  | 'bad_payload'
  | 'bad_base64'
  | 'bad_key'
  | 'key_reused'
  | 'forbidden'
  | 'no_auth'
  | 'bad_token'
  | 'already_subscribed'
  | 'not_subscribed'
  | 'too_many_channels'
  | 'over_capacity'
  | 'rate_limited'
  | 'drain'
  | 'backplane_down'
  | 'backplane_full'
  | 'unconfirmed';

/** Codes of rejections by the client itself. */
export type ClientErrorCode = 'queue_full' | 'too_big' | 'bad_channel' | 'bad_data' | 'closed' | 'unknown';

export type ErrorCode = ServerErrorCode | ClientErrorCode;

/** A rejected request or a failed publish. */
export class OyezError extends Error {
  constructor(code: string, message?: string);
  name: 'OyezError';
  /** One of `ErrorCode`; a newer server can send others. */
  code: ErrorCode | (string & {});
}

/** The sender of a message, as the server knows it from the sender's token. */
export interface User {
  id: string;
  info?: unknown;
}

interface Envelope {
  channel: string;
  /** Opaque; the cursor to continue after this message. */
  id: string;
  /** Counts the messages of the channel. */
  n: number;
  /** The sender's `client`; undefined for messages published over HTTP. */
  from: string | undefined;
  /** Null if the sender has no token with a `sub`. */
  user: User | null;
  /** Published by this client. */
  own: boolean;
}

export interface TextMessage extends Envelope {
  kind: 'text';
  data: string;
}

export interface BinaryMessage extends Envelope {
  kind: 'binary';
  data: Uint8Array;
}

export interface DataMessage<T = unknown> extends Envelope {
  kind: 'data';
  data: T;
}

/** A message; `T` is the type of JSON data, which is not checked. */
export type Message<T = unknown> = TextMessage | BinaryMessage | DataMessage<T>;

/** Messages between the ids `after` and `resume` are missing. */
export interface Gap {
  channel: string;
  after: string | null;
  resume: string;
  /** Their number, if it is known. */
  missed: number | null;
  why: 'evicted' | 'epoch' | 'slow' | 'future' | 'lost' | 'hole';
}

export interface Live {
  channel: string;
  id: string;
}

export interface Subscribed {
  channel: string;
  id: string;
  subscribers: number;
}

export interface SubscribeOptions {
  /** Where to begin: 'earliest', 'latest' or the id of a message. Absent: new messages only. */
  since?: 'earliest' | 'latest' | (string & {}) | undefined;
  /** False: leave out messages that this client published itself. */
  echo?: boolean | undefined;
  /** Messages are missing here. */
  ongap?: ((gap: Gap) => void) | undefined;
  /** The replay is complete: the following messages are new. */
  onlive?: ((live: Live) => void) | undefined;
  /** The server has accepted the subscription; called again after each reconnect. */
  onsubscribed?: ((subscribed: Subscribed) => void) | undefined;
  /** The server has rejected the subscription. It is requested again on the next connection. */
  onerror?: ((error: OyezError) => void) | undefined;
}

export interface OpenDetail {
  /** The name of this connection to others. */
  client: string;
}

export interface WaitingDetail {
  /** The pause before the next attempt. */
  retry_ms: number;
  code: number;
  reason: string;
}

export interface ClosedDetail {
  code: number;
  reason: string;
}

export type State = 'connecting' | 'open' | 'waiting' | 'closed';

/** A new state and its details. */
export type StateChange =
  | ['connecting', Record<string, never>]
  | ['open', OpenDetail]
  | ['waiting', WaitingDetail]
  | ['closed', ClosedDetail];

export interface StateEvent extends Event {
  readonly detail:
    | { state: 'connecting' }
    | ({ state: 'open' } & OpenDetail)
    | ({ state: 'waiting' } & WaitingDetail)
    | ({ state: 'closed' } & ClosedDetail);
}

/** An error that belongs to no publish. */
export interface OyezErrorEvent extends Event {
  readonly detail: OyezError;
}

export interface OyezEventMap {
  state: StateEvent;
  error: OyezErrorEvent;
}

/** As much of a WebSocket as is used. */
export interface WebSocketLike {
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

export interface Options {
  /** A function is called at each connect, and before the token expires. */
  token?: string | (() => string | Promise<string>) | undefined;
  onstate?: ((...change: StateChange) => void) | undefined;
  /** Unacknowledged publishes; one more is rejected (`queue_full`). Default: 1000. */
  publishes_max?: number;
  /** Silence after a ping that means the connection is dead. Default: 10000. */
  pong_timeout_ms?: number;
  /** Default: the global one, which Node has since version 22. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike;
  /** From 0 to below 1. Default: Math.random. */
  random?: () => number;
}

interface ListenerOptions {
  capture?: boolean;
  once?: boolean;
  passive?: boolean;
  signal?: AbortSignal;
}

declare const EventTargetWithoutListeners: new () => Omit<EventTarget, 'addEventListener' | 'removeEventListener'>;

/** A connection that reconnects; an EventTarget whose events are those of `OyezEventMap`. */
export class Oyez extends EventTargetWithoutListeners {
  /**
   * @param url ws://, wss://, http:// or https://, with the server's path prefix if it has one; relative to the page; the
   *   page's own origin if absent
   */
  constructor(url?: string, options?: Options);

  get state(): State;

  /** Who this connection is to others; null while it is not open. */
  get client(): string | null;

  /**
   * Subscribes to a channel. Handlers of one channel share one subscription, and `since` counts for the first of them.
   *
   * @returns ends it
   */
  subscribe<T = unknown>(name: string, onmessage: (message: Message<T>) => void, options?: SubscribeOptions): () => void;

  /**
   * Publishes a string as text, bytes (an ArrayBuffer or a view of one) as binary, anything else as JSON.
   *
   * @returns the message's id; rejected with an OyezError, which is logged if it is not handled
   */
  publish(name: string, value: {}): Promise<string>;

  /** Drops the connection as if the network had failed; it comes back by itself, after `retry_ms` if that is given. */
  cut(retry_ms?: number): void;

  /** Closes the client for good. No timer, listener or promise remains. */
  close(): void;

  addEventListener<K extends keyof OyezEventMap>(
    type: K,
    listener: (event: OyezEventMap[K]) => void,
    options?: boolean | ListenerOptions,
  ): void;
  removeEventListener<K extends keyof OyezEventMap>(
    type: K,
    listener: (event: OyezEventMap[K]) => void,
    options?: boolean | { capture?: boolean },
  ): void;
}

// Without this, declarations that are not marked would be exported too.
export {};
